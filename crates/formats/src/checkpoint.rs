//! Reading a Hugging Face folder: `config.json` and the weights, in one file or in shards with an index.
//!
//! The folder is checked as a whole when it is opened (headers only, no weights are read), so that a job of hours does
//! not stop at the one shard that was never downloaded.
//!
//! Tensors have the names of their files until somebody who knows what they are for gives them others
//! ([`Checkpoint::show`]): then they are listed and handed out under these, wherever they lie.

mod files;
mod index;

use std::{
    collections::HashMap,
    ops::Range,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{
    dtype::Dtype,
    error::{FormatError, Result},
    fsx,
    safetensors::{SafetensorsFile, TensorInfo},
    view::{Region, TensorView},
};

pub use index::ShardIndex;

/// The configuration's file name.
pub const CONFIG: &str = "config.json";
/// The weights' file name when there is one file.
pub const SINGLE: &str = "model.safetensors";
/// The index's file name when there are shards.
pub const INDEX: &str = "model.safetensors.index.json";
/// The pickled weights' file name when there is one file; read only where there are no safetensors.
pub const TORCH_SINGLE: &str = "pytorch_model.bin";
/// The index's file name when pickled weights are in shards.
pub const TORCH_INDEX: &str = "pytorch_model.bin.index.json";

/// An opened Hugging Face folder: the configuration, and every tensor of every shard.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    config: Value,
    shards: Vec<SafetensorsFile>,
    /// Shard after shard, each in file order.
    entries: Vec<Entry>,
    by_name: HashMap<String, usize>,
    notes: Vec<String>,
}

/// A tensor as it is listed: what it is called, and where it lies.
#[derive(Debug, Clone)]
struct Entry {
    info: TensorInfo,
    shard: usize,
}

/// A tensor under another name than its file's: all of it, or the part of its elements that is a tensor here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// The name it is listed under.
    pub name: String,
    /// The name it was listed under before.
    pub stored: String,
    /// Elements of it, row-major, and their shape.
    pub part: Option<(Range<usize>, Vec<usize>)>,
}

impl Checkpoint {
    /// Opens the folder, maps all its weight files and checks their headers against the index.
    ///
    /// A tensor that lies in a shard but not in the index is part of the checkpoint (other loaders read whole shards,
    /// too).
    ///
    /// # Errors
    /// The folder, `config.json`, the weights or a shard is missing or malformed; the index names a file outside of the
    /// folder or a tensor that its shard lacks; a tensor lies in two shards; two exports are mixed.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            let rule = if path.exists() {
                "is not a folder"
            } else {
                "does not exist"
            };
            return Err(FormatError::place(
                path,
                rule,
                "name a Hugging Face folder: config.json and safetensors",
            ));
        }
        let config = read_config(&path.join(CONFIG))?;
        let files::Weights { files, notes } = files::find(path)?;
        let mut checkpoint = Self::of(path, config, files)?;
        checkpoint.notes = notes;
        Ok(checkpoint)
    }

    /// A checkpoint of files that are open, whatever they were found in.
    ///
    /// # Errors
    /// A tensor lies in two of the files.
    pub fn of(path: &Path, config: Value, shards: Vec<SafetensorsFile>) -> Result<Self> {
        let mut entries = Vec::new();
        let mut by_name = HashMap::new();
        for (shard, file) in shards.iter().enumerate() {
            for info in file.header().tensors() {
                if let Some(other) = by_name.insert(info.name.clone(), entries.len()) {
                    let other: &Entry = &entries[other];
                    let rule = format!("lies in {} as well", file_name(shards[other.shard].path()));
                    let hint = "two exports are mixed in this folder; download it again into an empty one";
                    return Err(FormatError::tensor(file.path(), &info.name, rule, hint));
                }
                entries.push(Entry {
                    info: info.clone(),
                    shard,
                });
            }
        }
        Ok(Self {
            path: path.to_owned(),
            config,
            shards,
            entries,
            by_name,
            notes: Vec::new(),
        })
    }

    /// Lists the tensors of `list` under the names it gives, and no others. They stay where they lie.
    ///
    /// # Errors
    /// Two tensors would have one name; a name is not listed; a part is not within its tensor.
    pub fn show(&mut self, list: &[Shown]) -> Result<()> {
        let mut entries = Vec::with_capacity(list.len());
        for shown in list {
            let Some(&at) = self.by_name.get(&shown.stored) else {
                return Err(self.absent(&shown.stored));
            };
            let Entry { info, shard } = &self.entries[at];
            let mut info = info.clone();
            if let Some((elements, shape)) = &shown.part {
                info.range = part(&info, elements, shape).ok_or_else(|| {
                    let rule = format!("has shape {:?}, of which {shape:?} is no part", info.shape);
                    FormatError::tensor(&self.path, &shown.stored, rule, "is config.json of another model?")
                })?;
                info.shape.clone_from(shape);
            }
            info.name.clone_from(&shown.name);
            entries.push((Entry { info, shard: *shard }, &shown.stored));
        }
        entries.sort_by_key(|(e, _)| (e.shard, e.info.range.start, e.info.range.end));
        let mut by_name = HashMap::with_capacity(entries.len());
        for (at, (entry, stored)) in entries.iter().enumerate() {
            if let Some(other) = by_name.insert(entry.info.name.clone(), at) {
                let other: &(Entry, &String) = &entries[other];
                let rule = format!("both {:?} and {stored:?} are this tensor", other.1);
                let hint = "two exports are mixed; keep the one you mean";
                return Err(FormatError::tensor(&self.path, &entry.info.name, rule, hint));
            }
        }
        self.entries = entries.into_iter().map(|(entry, _)| entry).collect();
        self.by_name = by_name;
        Ok(())
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `config.json`, always an object, keys in file order.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Corrects the configuration where the weights decide what it says.
    pub fn set_config(&mut self, key: &str, value: Value) {
        if let Some(config) = self.config.as_object_mut() {
            config.insert(key.to_owned(), value);
        }
    }

    /// What was chosen, taken away or passed over when it was opened: one line each, for the user.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Adds a line to the notes.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// The weight files, in the order of their names.
    pub fn shards(&self) -> &[SafetensorsFile] {
        &self.shards
    }

    /// All names: shard after shard, each in file order, which is the order that reads the disk forwards.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors().map(|t| t.name.as_str())
    }

    /// All tensors, foreign types included, in the order of [`Checkpoint::names`].
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.entries.iter().map(|entry| &entry.info)
    }

    /// What is known of the tensor called `name` without reading it.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&at| &self.entries[at].info)
    }

    /// Whether there is a tensor called `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// The tensor called `name`, with a share of its file's map.
    ///
    /// # Errors
    /// There is none of this name, or its type is foreign.
    pub fn region(&self, name: &str) -> Result<Region> {
        let entry = self.usable(name)?;
        Ok(self.shards[entry.shard].region_of(&entry.info))
    }

    /// The tensor called `name`, borrowed from its file's map.
    ///
    /// # Errors
    /// There is none of this name, or its type is foreign.
    pub fn view(&self, name: &str) -> Result<TensorView<'_>> {
        let entry = self.usable(name)?;
        Ok(self.shards[entry.shard].view_of(&entry.info))
    }

    /// Bytes of all tensors together.
    pub fn total_bytes(&self) -> u64 {
        self.tensors().map(|t| t.range.len() as u64).sum()
    }

    fn usable(&self, name: &str) -> Result<&Entry> {
        let Some(&at) = self.by_name.get(name) else {
            return Err(self.absent(name));
        };
        let entry = &self.entries[at];
        match entry.info.dtype {
            Dtype::Foreign(_) => Err(entry.info.foreign(self.shards[entry.shard].path())),
            _ => Ok(entry),
        }
    }

    fn absent(&self, name: &str) -> FormatError {
        let hint = "config.json and the weights do not belong together, or the export is incomplete";
        FormatError::tensor(&self.path, name, "is not in this checkpoint", hint)
    }
}

/// The bytes of `elements` of a tensor, if they are within it, as many as `shape` says, and whole bytes.
fn part(info: &TensorInfo, elements: &Range<usize>, shape: &[usize]) -> Option<Range<usize>> {
    let bits = info.dtype.bits();
    let (start, end) = (elements.start.checked_mul(bits)?, elements.end.checked_mul(bits)?);
    let whole = start.is_multiple_of(8) && end.is_multiple_of(8) && start <= end;
    let range = whole.then(|| info.range.start.saturating_add(start / 8)..info.range.start.saturating_add(end / 8))?;
    (range.end <= info.range.end && info.dtype.byte_len(shape) == Some(range.len())).then_some(range)
}

fn read_config(path: &Path) -> Result<Value> {
    if !path.exists() {
        return Err(FormatError::place(
            path,
            "does not exist",
            "name the folder that holds config.json",
        ));
    }
    let hint = "the file is damaged or was edited; download it again";
    let config: Value = serde_json::from_slice(&fsx::read(path)?)
        .map_err(|e| FormatError::place(path, format!("is not valid JSON: {e}"), hint))?;
    if !config.is_object() {
        return Err(FormatError::place(path, "is not a JSON object", hint));
    }
    Ok(config)
}

fn file_name(path: &Path) -> std::borrow::Cow<'_, str> {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy()
}
