//! Reading one safetensors file.
//!
//! The header is parsed here rather than by the `safetensors` crate for two reasons: that crate keeps the last of two
//! tensors of one name, silently, and its errors name neither file nor, mostly, tensor. The tests hold the two parsers
//! against each other: whatever is accepted here, that crate accepts with the same shapes and bytes.

mod header;

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    path::Path,
    sync::Arc,
};

use ounce_kernels::mapped::MappedFile;

use crate::{
    dtype::Dtype,
    error::{FormatError, Result},
    fsx,
    torch::TorchFile,
    view::{Region, TensorView},
};
use header::{RawHeader, check_coverage, checked_entry, header_json};

/// The format's own limit on the length of the JSON header.
pub const MAX_HEADER_BYTES: usize = 100_000_000;

/// Bytes before the header: its length, little-endian.
pub(crate) const LENGTH_BYTES: usize = 8;

/// The name under which a header keeps its string map.
pub(crate) const METADATA_KEY: &str = "__metadata__";

/// What the header says of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The tensor's name.
    pub name: String,
    /// Element type, [`Dtype::Foreign`] included.
    pub dtype: Dtype,
    /// Row-major shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// The tensor's bytes, counted from the start of the file; behind its end, those of tensors gathered in memory.
    pub range: Range<usize>,
}

impl TensorInfo {
    /// Why its data cannot be used, its type being foreign.
    pub(crate) fn foreign(&self, path: &Path) -> FormatError {
        let name = self.dtype.name();
        let rule = format!("its type {name} is not supported");
        let hint = if name.starts_with("F8") || name.starts_with("F6") || name.starts_with("F4") {
            "such floats need the scales they were quantised with, which are not read; take the model in BF16, F16 or F32"
        } else {
            "convert the checkpoint to F32, BF16 or F16"
        };
        FormatError::tensor(path, &self.name, rule, hint)
    }
}

/// The checked header of a safetensors file: every range lies within the file, is as long as dtype and shape say, and
/// together they cover the data exactly.
#[derive(Debug, Clone)]
pub struct Header {
    path: Arc<Path>,
    /// In file order.
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
    metadata: BTreeMap<String, String>,
}

impl Header {
    /// Parses and checks the header of a file whose whole content is `bytes`; `path` is for messages only.
    ///
    /// # Errors
    /// Any rule of the format is broken; the message names the first tensor that breaks one.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let (json, data_start) = header_json(path, bytes)?;
        let raw = RawHeader::parse(path, json)?;

        let mut tensors = Vec::with_capacity(raw.entries.len());
        for (name, entry) in raw.entries {
            tensors.push(checked_entry(path, name, entry)?);
        }
        // Headers may list tensors in any order; coverage is checked in the order of the bytes.
        tensors.sort_by_key(|t| (t.range.start, t.range.end));
        check_coverage(path, &tensors, bytes.len() - data_start)?;

        let mut by_name = HashMap::with_capacity(tensors.len());
        for (i, tensor) in tensors.iter_mut().enumerate() {
            tensor.range = data_start + tensor.range.start..data_start + tensor.range.end;
            if by_name.insert(tensor.name.clone(), i).is_some() {
                let hint = "two tensors were written under one name; write the file again";
                return Err(FormatError::tensor(
                    path,
                    &tensor.name,
                    "is listed twice in the header",
                    hint,
                ));
            }
        }
        Ok(Self {
            path: path.into(),
            tensors,
            by_name,
            metadata: raw.metadata,
        })
    }

    /// A header of tensors found in another format, whose ranges count from the start of the file and were checked.
    pub(crate) fn listed(path: &Path, mut tensors: Vec<TensorInfo>) -> Result<Self> {
        tensors.sort_by_key(|t| (t.range.start, t.range.end));
        let mut by_name = HashMap::with_capacity(tensors.len());
        for (i, tensor) in tensors.iter().enumerate() {
            if by_name.insert(tensor.name.clone(), i).is_some() {
                let hint = "two tensors were written under one name; write the file again";
                return Err(FormatError::tensor(path, &tensor.name, "is listed twice", hint));
            }
        }
        Ok(Self {
            path: path.into(),
            tensors,
            by_name,
            metadata: BTreeMap::new(),
        })
    }

    /// All tensors, in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor called `name`, whatever its type.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }

    /// The string map of the header; empty if it has none.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The tensor called `name` if its data can be used.
    ///
    /// # Errors
    /// There is none of this name, or its type is foreign.
    pub fn usable(&self, name: &str) -> Result<&TensorInfo> {
        let Some(info) = self.info(name) else {
            let hint = format!(
                "the file holds {} other tensors; compare their names",
                self.tensors.len()
            );
            return Err(FormatError::tensor(&self.path, name, "is not in this file", hint));
        };
        match info.dtype {
            Dtype::Foreign(_) => Err(info.foreign(&self.path)),
            _ => Ok(info),
        }
    }

    /// The tensor called `name`, over the same `bytes` that were parsed.
    ///
    /// # Errors
    /// As [`Header::usable`]; also if `bytes` is shorter than what was parsed.
    pub fn view<'a>(&'a self, bytes: &'a [u8], name: &str) -> Result<TensorView<'a>> {
        let info = self.usable(name)?;
        let bytes = bytes.get(info.range.clone()).ok_or_else(|| {
            FormatError::tensor(
                &self.path,
                name,
                "lies outside of the given bytes",
                "pass the whole file",
            )
        })?;
        Ok(TensorView {
            path: &self.path,
            name: &info.name,
            dtype: info.dtype,
            shape: &info.shape,
            bytes,
        })
    }
}

/// A memory-mapped file of tensors with a checked header.
#[derive(Debug, Clone)]
pub struct SafetensorsFile {
    file: Arc<MappedFile>,
    /// What lies in no single range of the file; ranges behind its end count from here.
    gathered: Option<Arc<MappedFile>>,
    header: Header,
    notes: Vec<String>,
}

impl SafetensorsFile {
    /// Maps the file and checks its header; no tensor data is read.
    ///
    /// # Errors
    /// The file cannot be opened or mapped, or [`Header::parse`] refuses it.
    pub fn open(path: &Path) -> Result<Self> {
        let file = fsx::open(path)?;
        let file = MappedFile::new(&file).map_err(FormatError::io(path, "map it into memory"))?;
        let header = Header::parse(path, &file)?;
        Ok(Self {
            file: Arc::new(file),
            gathered: None,
            header,
            notes: Vec::new(),
        })
    }

    /// Maps a weights-only PyTorch file (`.bin`) and checks what it says of its tensors; nothing in it is executed.
    ///
    /// # Errors
    /// The file cannot be opened or mapped, or [`crate::torch::parse`] refuses it.
    pub fn open_torch(path: &Path) -> Result<Self> {
        let file = fsx::open(path)?;
        let file = MappedFile::new(&file).map_err(FormatError::io(path, "map it into memory"))?;
        let TorchFile {
            header,
            gathered,
            notes,
        } = crate::torch::parse(path, &file)?;
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
        Ok(Self {
            file: Arc::new(file),
            gathered: gathered.map(Arc::new),
            header,
            notes: notes.into_iter().map(|note| format!("{name}: {note}")).collect(),
        })
    }

    /// A mapped file whose header was read and checked by another format's reader.
    pub(crate) fn listed(file: Arc<MappedFile>, header: Header) -> Self {
        Self {
            file,
            gathered: None,
            header,
            notes: Vec::new(),
        }
    }

    /// The checked header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What was chosen or passed over within the file: one line each, for the user.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The path it was opened under.
    pub fn path(&self) -> &Path {
        &self.header.path
    }

    /// All names, in file order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.header.tensors.iter().map(|t| t.name.as_str())
    }

    /// Whether there is a tensor called `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.header.by_name.contains_key(name)
    }

    /// The string map of the header; empty if it has none.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.metadata
    }

    /// The tensor called `name`, borrowed from the map.
    ///
    /// # Errors
    /// There is none of this name, or its type is foreign.
    pub fn view(&self, name: &str) -> Result<TensorView<'_>> {
        Ok(self.view_of(self.header.usable(name)?))
    }

    /// The tensor called `name`, with a share of the map.
    ///
    /// # Errors
    /// There is none of this name, or its type is foreign.
    pub fn region(&self, name: &str) -> Result<Region> {
        Ok(self.region_of(self.header.usable(name)?))
    }

    /// A tensor of this file, or a part of one, with a share of the map it lies in.
    pub(crate) fn region_of(&self, info: &TensorInfo) -> Region {
        let (map, range) = self.place(info);
        Region {
            file: Arc::clone(map),
            range,
            dtype: info.dtype,
            shape: info.shape.clone(),
            name: info.name.clone(),
            path: Arc::clone(&self.header.path),
        }
    }

    /// The same, borrowed.
    pub(crate) fn view_of<'a>(&'a self, info: &'a TensorInfo) -> TensorView<'a> {
        let (map, range) = self.place(info);
        TensorView {
            path: &self.header.path,
            name: &info.name,
            dtype: info.dtype,
            shape: &info.shape,
            bytes: &map[range],
        }
    }

    /// The map that holds a checked tensor, and its bytes there.
    fn place(&self, info: &TensorInfo) -> (&Arc<MappedFile>, Range<usize>) {
        let end = self.file.len();
        match &self.gathered {
            Some(gathered) if info.range.end > end => (gathered, info.range.start - end..info.range.end - end),
            _ => (&self.file, info.range.clone()),
        }
    }
}
