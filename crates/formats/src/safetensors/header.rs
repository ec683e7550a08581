//! The header's text: found, parsed with every duplicate kept, and its entries checked.

use super::{LENGTH_BYTES, MAX_HEADER_BYTES, METADATA_KEY, TensorInfo};
use crate::{
    dtype::Dtype,
    error::{FormatError, Result},
};
use serde::{
    Deserialize,
    de::{DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor},
};
use std::{collections::BTreeMap, path::Path};

const DAMAGED: &str = "the file is truncated or was edited; download it again";
const TRUNCATED: &str = "the file is truncated; download it again";
const NOT_SAFETENSORS: &str = "this is not a safetensors file, or it is damaged; download it again";
const LFS_POINTER: &str = "this is a Git LFS pointer, not the weights; run `git lfs pull` in that folder";

/// The JSON text of the header and the offset of the first byte after it.
pub(super) fn header_json<'a>(path: &Path, bytes: &'a [u8]) -> Result<(&'a str, usize)> {
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
pub(super) fn checked_entry(path: &Path, name: String, entry: RawEntry) -> Result<TensorInfo> {
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
pub(super) fn check_coverage(path: &Path, tensors: &[TensorInfo], data_len: usize) -> Result<()> {
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
pub(super) struct RawEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// The header as JSON has it, with duplicates kept, and the key at which reading stopped.
#[derive(Default)]
pub(super) struct RawHeader {
    pub(super) entries: Vec<(String, RawEntry)>,
    pub(super) metadata: BTreeMap<String, String>,
    saw_metadata: bool,
    at: Option<String>,
}

impl RawHeader {
    pub(super) fn parse(path: &Path, json: &str) -> Result<Self> {
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
