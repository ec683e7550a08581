//! Reading a Hugging Face folder: `config.json` and the weights, in one file or in shards with an index.
//!
//! The folder is checked as a whole when it is opened (headers only, no weights are read), so that a job of hours does
//! not stop at the one shard that was never downloaded.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    path::{Component, Path, PathBuf},
};

use serde::{
    Deserialize,
    de::{Deserializer, MapAccess, Visitor},
};
use serde_json::Value;

use crate::{
    error::{FormatError, Result},
    fsx,
    safetensors::{SafetensorsFile, TensorInfo},
    view::{Region, TensorView},
};

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

/// An opened Hugging Face folder: the configuration as it stands, and every tensor of every shard.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    config: Value,
    shards: Vec<SafetensorsFile>,
    /// Name to index of the shard.
    shard_of: HashMap<String, usize>,
    notes: Vec<String>,
}

impl Checkpoint {
    /// Opens the folder, maps all its weight files and checks their headers against the index.
    ///
    /// A tensor that lies in a shard but not in the index is part of the checkpoint (other loaders read whole shards,
    /// too).
    ///
    /// # Errors
    /// The folder, `config.json`, the weights or a shard is missing or malformed; the index names a file outside of the
    /// folder or a tensor that its shard lacks; a tensor lies in two shards.
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
        let (single, index) = (path.join(SINGLE), path.join(INDEX));
        let shards = match (single.exists(), index.exists()) {
            (true, false) => vec![SafetensorsFile::open(&single)?],
            (false, true) => open_shards(path, &index, SafetensorsFile::open)?,
            (true, true) => {
                let rule = format!("holds both {SINGLE} and {INDEX}");
                return Err(FormatError::place(
                    path,
                    rule,
                    "remove the one that is left over from an earlier export",
                ));
            }
            (false, false) => {
                let (single, index) = (path.join(TORCH_SINGLE), path.join(TORCH_INDEX));
                match (single.exists(), index.exists()) {
                    (true, _) => vec![SafetensorsFile::open_torch(&single)?],
                    (false, true) => open_shards(path, &index, SafetensorsFile::open_torch)?,
                    (false, false) => return Err(no_weights(path)),
                }
            }
        };

        Self::of_shards(path, config, shards)
    }

    /// A checkpoint of files that were opened already.
    pub(crate) fn of_shards(path: &Path, config: Value, shards: Vec<SafetensorsFile>) -> Result<Self> {
        let mut shard_of = HashMap::new();
        for (i, shard) in shards.iter().enumerate() {
            for name in shard.names() {
                if let Some(other) = shard_of.insert(name.to_owned(), i) {
                    let rule = format!("lies in {} as well", file_name(shards[other].path()));
                    let hint = "two exports are mixed in this folder; download it again into an empty one";
                    return Err(FormatError::tensor(shard.path(), name, rule, hint));
                }
            }
        }
        Ok(Self {
            path: path.to_owned(),
            config,
            shards,
            shard_of,
            notes: Vec::new(),
        })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `config.json`, always an object, keys in file order.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// What was chosen or passed over when the folder was opened: one line each, for the user.
    pub fn notes(&self) -> &[String] {
        &self.notes
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
        self.shards.iter().flat_map(|shard| shard.header().tensors())
    }

    /// What the headers say of the tensor called `name`.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.shard_of
            .get(name)
            .and_then(|&i| self.shards[i].header().info(name))
    }

    /// Whether there is a tensor called `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.shard_of.contains_key(name)
    }

    /// The tensor called `name`, with a share of its file's map.
    ///
    /// # Errors
    /// There is none of this name, or its type is foreign.
    pub fn region(&self, name: &str) -> Result<Region> {
        self.shard(name)?.region(name)
    }

    /// The tensor called `name`, borrowed from its file's map.
    ///
    /// # Errors
    /// There is none of this name, or its type is foreign.
    pub fn view(&self, name: &str) -> Result<TensorView<'_>> {
        self.shard(name)?.view(name)
    }

    /// Bytes of all tensors together.
    pub fn total_bytes(&self) -> u64 {
        self.tensors().map(|t| t.range.len() as u64).sum()
    }

    fn shard(&self, name: &str) -> Result<&SafetensorsFile> {
        let shard = self.shard_of.get(name).map(|&i| &self.shards[i]);
        shard.ok_or_else(|| {
            let hint = "config.json and the weights do not belong together, or the export is incomplete";
            FormatError::tensor(&self.path, name, "is not in this checkpoint", hint)
        })
    }
}

/// `model.safetensors.index.json`, parsed and checked by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardIndex {
    /// Tensor name to file name, relative to the folder and within it.
    pub weight_map: BTreeMap<String, String>,
}

impl ShardIndex {
    /// Parses an index from the text of its file; `path` is for messages only.
    ///
    /// # Errors
    /// Not JSON, no `weight_map` of strings, a tensor listed twice, no tensor at all, or a file outside of the folder.
    pub fn parse(path: &Path, json: &[u8]) -> Result<Self> {
        const HINT: &str = "the index is damaged or was edited; download it again";
        let raw: RawIndex = serde_json::from_slice(json)
            .map_err(|e| FormatError::place(path, format!("is not a valid shard index: {e}"), HINT))?;
        let mut weight_map = BTreeMap::new();
        for (tensor, file) in raw.weight_map.0 {
            if !stays_within(&file) {
                let rule = format!("its file {file:?} is not a plain path within the folder");
                let hint = "an index must not reach outside of its folder; do not trust this checkpoint";
                return Err(FormatError::tensor(path, &tensor, rule, hint));
            }
            if let Some(other) = weight_map.get(&tensor) {
                let rule = format!("is listed twice, for {other} and for {file}");
                return Err(FormatError::tensor(path, &tensor, rule, HINT));
            }
            weight_map.insert(tensor, file);
        }
        if weight_map.is_empty() {
            return Err(FormatError::key(path, "weight_map", "lists no tensors", HINT));
        }
        Ok(Self { weight_map })
    }
}

fn open_shards(
    folder: &Path,
    index_path: &Path,
    open: fn(&Path) -> Result<SafetensorsFile>,
) -> Result<Vec<SafetensorsFile>> {
    let index = ShardIndex::parse(index_path, &fsx::read(index_path)?)?;
    let mut shards = BTreeMap::new();
    for (tensor, file) in &index.weight_map {
        if !shards.contains_key(file) {
            let path = folder.join(file);
            if !path.exists() {
                let rule = format!("does not exist; the index needs it, for tensor {tensor:?} among others");
                return Err(FormatError::place(
                    &path,
                    rule,
                    "the download is incomplete; fetch this file, too",
                ));
            }
            shards.insert(file, open(&path)?);
        }
        let shard = &shards[file];
        if !shard.contains(tensor) {
            let rule = format!("is not in this file, though {} says so", file_name(index_path));
            let hint = "index and shards are of different exports; download both again";
            return Err(FormatError::tensor(shard.path(), tensor, rule, hint));
        }
    }
    Ok(shards.into_values().collect())
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

fn no_weights(path: &Path) -> FormatError {
    let hint = "the download is incomplete; fetch the safetensors files, too";
    FormatError::place(path, format!("holds neither {SINGLE} nor {INDEX}"), hint)
}

/// Whether `file` is made of plain names only: no root, no "..", nothing empty. Links are allowed, since the cache of the
/// Hugging Face hub is made of them, and whoever can place a link can place a file.
fn stays_within(file: &str) -> bool {
    let mut components = Path::new(file).components().peekable();
    components.peek().is_some() && components.all(|c| matches!(c, Component::Normal(_)))
}

fn file_name(path: &Path) -> std::borrow::Cow<'_, str> {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy()
}

#[derive(Deserialize)]
struct RawIndex {
    weight_map: Pairs,
}

/// A JSON object of strings, with duplicate keys kept.
struct Pairs(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct PairsVisitor;
        impl<'de> Visitor<'de> for PairsVisitor {
            type Value = Pairs;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of file names")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(PairsVisitor)
    }
}
