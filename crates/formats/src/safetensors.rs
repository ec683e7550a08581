//! Reading one safetensors file.
//!
//! The header is parsed here rather than by the `safetensors` crate for two reasons: that crate keeps the last of two
//! tensors of one name, silently, and its errors name neither file nor, mostly, tensor. The tests hold the two parsers
//! against each other: whatever is accepted here, that crate accepts with the same shapes and bytes.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    path::Path,
    sync::Arc,
};

use ounce_kernels::mapped::MappedFile;
use serde::{
    Deserialize,
    de::{DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor},
};

use crate::{
    dtype::Dtype,
    error::{FormatError, Result},
    fsx,
    view::{Region, TensorView},
};

/// The format's own limit on the length of the JSON header.
pub const MAX_HEADER_BYTES: usize = 100_000_000;

/// Bytes before the header: its length, little-endian.
pub(crate) const LENGTH_BYTES: usize = 8;

/// The name under which a header keeps its string map.
pub(crate) const METADATA_KEY: &str = "__metadata__";

const DAMAGED: &str = "the file is truncated or was edited; download it again";
const TRUNCATED: &str = "the file is truncated; download it again";
const NOT_SAFETENSORS: &str = "this is not a safetensors file, or it is damaged; download it again";
const LFS_POINTER: &str = "this is a Git LFS pointer, not the weights; run `git lfs pull` in that folder";

/// What the header says of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The tensor's name.
    pub name: String,
    /// Element type, [`Dtype::Foreign`] included.
    pub dtype: Dtype,
    /// Row-major shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// The tensor's bytes, counted from the start of the file.
    pub range: Range<usize>,
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
        if let Dtype::Foreign(_) = info.dtype {
            let rule = format!("its type {} is not supported", info.dtype);
            let hint = "convert the checkpoint to F32, BF16 or F16";
            return Err(FormatError::tensor(&self.path, name, rule, hint));
        }
        Ok(info)
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

/// A memory-mapped safetensors file with a checked header.
#[derive(Debug, Clone)]
pub struct SafetensorsFile {
    file: Arc<MappedFile>,
    header: Header,
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
            header,
        })
    }

    /// Maps a weights-only PyTorch file (`.bin`) and checks what it says of its tensors; nothing in it is executed.
    ///
    /// # Errors
    /// The file cannot be opened or mapped, or [`crate::torch::parse`] refuses it.
    pub fn open_torch(path: &Path) -> Result<Self> {
        let file = fsx::open(path)?;
        let file = MappedFile::new(&file).map_err(FormatError::io(path, "map it into memory"))?;
        let header = crate::torch::parse(path, &file)?;
        Ok(Self {
            file: Arc::new(file),
            header,
        })
    }

    /// The checked header.
    pub fn header(&self) -> &Header {
        &self.header
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
        self.header.view(&self.file, name)
    }

    /// The tensor called `name`, with a share of the map.
    ///
    /// # Errors
    /// There is none of this name, or its type is foreign.
    pub fn region(&self, name: &str) -> Result<Region> {
        let info = self.header.usable(name)?;
        Ok(Region {
            file: Arc::clone(&self.file),
            range: info.range.clone(),
            dtype: info.dtype,
            shape: info.shape.clone(),
            name: info.name.clone(),
            path: Arc::clone(&self.header.path),
        })
    }
}

/// The JSON text of the header and the offset of the first byte after it.
fn header_json<'a>(path: &Path, bytes: &'a [u8]) -> Result<(&'a str, usize)> {
    let place = |rule: String, hint: &str| FormatError::place(path, rule, hint);
    if bytes.starts_with(b"version https://git-lfs") {
        return Err(place("is not a safetensors file".to_owned(), LFS_POINTER));
    }
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
        let rule = format!(
            "has {} bytes, a safetensors file starts with {LENGTH_BYTES} of header length",
            bytes.len()
        );
        return Err(place(rule, TRUNCATED));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES as u64 {
        let rule = format!("says its header is {length} bytes long, the format allows {MAX_HEADER_BYTES}");
        return Err(place(rule, NOT_SAFETENSORS));
    }
    let length = length as usize;
    let Some(json) = rest.get(..length) else {
        let rule = format!("says its header is {length} bytes long, only {} follow", rest.len());
        return Err(place(rule, TRUNCATED));
    };
    let json = std::str::from_utf8(json).map_err(|e| place(format!("header is not UTF-8: {e}"), NOT_SAFETENSORS))?;
    Ok((json, LENGTH_BYTES + length))
}

/// Checks one entry by itself; its range still counts from the start of the data.
fn checked_entry(path: &Path, name: String, entry: RawEntry) -> Result<TensorInfo> {
    let RawEntry {
        dtype,
        shape,
        data_offsets: (start, end),
    } = entry;
    let broken = |rule: String, hint: &str| Err(FormatError::tensor(path, &name, rule, hint));
    let Some(dtype) = Dtype::from_name(&dtype) else {
        return broken(format!("dtype {dtype:?} is none of the format's"), DAMAGED);
    };
    let Some(span) = end.checked_sub(start) else {
        return broken(format!("data_offsets [{start}, {end}] end before they start"), DAMAGED);
    };
    match dtype.byte_len(&shape) {
        Some(needed) if needed == span => Ok(TensorInfo {
            name,
            dtype,
            shape,
            range: start..end,
        }),
        Some(needed) => {
            let rule = format!("shape {shape:?} of {dtype} needs {needed} bytes, its data_offsets span {span}");
            broken(rule, DAMAGED)
        }
        None => broken(
            format!("shape {shape:?} of {dtype} is no countable number of bytes"),
            DAMAGED,
        ),
    }
}

/// The tensors, sorted by offset, must cover `data_len` bytes without gap or overlap.
fn check_coverage(path: &Path, tensors: &[TensorInfo], data_len: usize) -> Result<()> {
    let mut covered = 0;
    let mut previous = None::<&TensorInfo>;
    for tensor in tensors {
        let start = tensor.range.start;
        if start != covered {
            let rule = match previous {
                Some(p) if start < covered => {
                    format!(
                        "its data starts at {start}, within tensor {:?} that ends at {covered}",
                        p.name
                    )
                }
                Some(p) => format!(
                    "its data starts at {start}, tensor {:?} before it ends at {covered}",
                    p.name
                ),
                None => format!("its data starts at {start}, the first tensor must start at 0"),
            };
            return Err(FormatError::tensor(path, &tensor.name, rule, DAMAGED));
        }
        if tensor.range.end > data_len {
            let rule = format!(
                "its data ends at {}, the file has {data_len} bytes of data",
                tensor.range.end
            );
            return Err(FormatError::tensor(path, &tensor.name, rule, TRUNCATED));
        }
        covered = tensor.range.end;
        previous = Some(tensor);
    }
    if covered < data_len {
        let rule = format!("has {} bytes that belong to no tensor", data_len - covered);
        return Err(FormatError::place(path, rule, DAMAGED));
    }
    Ok(())
}

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// The header as JSON has it, with duplicates kept, and the key at which reading stopped.
#[derive(Default)]
struct RawHeader {
    entries: Vec<(String, RawEntry)>,
    metadata: BTreeMap<String, String>,
    saw_metadata: bool,
    at: Option<String>,
}

impl RawHeader {
    fn parse(path: &Path, json: &str) -> Result<Self> {
        let mut raw = Self::default();
        let mut deserializer = serde_json::Deserializer::from_str(json);
        let read = (&mut raw)
            .deserialize(&mut deserializer)
            .and_then(|()| deserializer.end());
        match (read, &raw.at) {
            (Ok(()), _) => Ok(raw),
            (Err(e), Some(key)) if key == METADATA_KEY => Err(FormatError::key(
                path,
                key,
                format!("header entry is malformed: {e}"),
                DAMAGED,
            )),
            (Err(e), Some(key)) => Err(FormatError::tensor(
                path,
                key,
                format!("header entry is malformed: {e}"),
                DAMAGED,
            )),
            (Err(e), None) => Err(FormatError::place(
                path,
                format!("header is not valid JSON: {e}"),
                NOT_SAFETENSORS,
            )),
        }
    }
}

impl<'de> DeserializeSeed<'de> for &mut RawHeader {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for &mut RawHeader {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            let key = self.at.insert(key).clone();
            if key == METADATA_KEY {
                if std::mem::replace(&mut self.saw_metadata, true) {
                    return Err(A::Error::custom("listed twice"));
                }
                self.metadata = map.next_value::<Option<_>>()?.unwrap_or_default();
            } else {
                let entry = map.next_value()?;
                self.entries.push((key, entry));
            }
            self.at = None;
        }
        Ok(())
    }
}
