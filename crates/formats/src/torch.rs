//! Weights-only PyTorch files (`pytorch_model.bin`): read where they lie, executed never.
//!
//! Two forms are read. Since PyTorch 1.6 such a file is a zip archive of uncompressed members: `data.pkl` says which
//! tensors there are, `data/KEY` holds the bytes of each storage. Before, it was a row of pickles with the storages behind
//! them (`legacy`). In both a contiguous tensor is a range of the file, as in safetensors, and everything above reads
//! them in the same way; one that steps over its storage is gathered into memory once (`place`).
//!
//! The pickle is a program in general. Here it is read by a machine that knows the few instructions
//! which dictionaries of tensors need and no others; a *global* is compared with a short list of names and never looked
//! up, so there is nothing that could be called. Every index, length and range is checked against the file.

mod legacy;
mod named;
mod objects;
mod pickle;
mod place;
mod refusal;
mod zip;

use std::{collections::HashMap, ops::Range, path::Path};

use ounce_kernels::mapped::MappedFile;

use crate::{
    error::{FormatError, Result},
    safetensors::{Header, TensorInfo},
};
use objects::{Objects, Storage, Value};
use place::Gather;
use refusal::{DAMAGED, PACKED, Refusal};

/// Largest pickle; that of a model with a million tensors is smaller.
const MAX_PICKLE_BYTES: usize = 256 << 20;

/// What a file was found to hold.
#[derive(Debug)]
pub struct TorchFile {
    /// The tensors. A range that begins at or behind the end of the file is one of `gathered`, counted from there.
    pub header: Header,
    /// Tensors that lie in no single range of the file.
    pub gathered: Option<MappedFile>,
    /// What was passed over beside the tensors, and under which key they were found.
    pub notes: Vec<String>,
}

/// A pickle that was read: its objects, the value it left, and where each storage lies in the file.
struct Found<'a> {
    objects: Objects<'a>,
    root: Option<Value<'a>>,
    storages: HashMap<&'a str, Range<usize>>,
}

/// The tensors of a file whose whole content is `bytes`; `path` is for messages only.
///
/// # Errors
/// The archive or the pickle breaks a rule, asks for anything but tensors in dictionaries, or its tensors would need
/// more memory than the file has bytes.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<TorchFile> {
    let fail = |e: Refusal| FormatError::place(path, e.rule, e.hint);
    let found = if bytes.starts_with(legacy::MAGIC) {
        legacy::read(bytes).map_err(fail)?
    } else {
        archive(bytes).map_err(fail)?
    };
    let Found {
        objects,
        root,
        storages,
    } = found;
    let named = named::tensors(&objects, root.as_ref()).map_err(fail)?;
    let mut tensors = Vec::with_capacity(named.tensors.len());
    let mut gather = Gather::new(bytes.len());
    for (name, tensor) in named.tensors {
        let storage = objects.storage_of(tensor);
        let range = storages.get(storage.key).ok_or_else(|| {
            let rule = format!("its storage {:?} is not in the file", storage.key);
            FormatError::tensor(path, &name, rule, DAMAGED)
        })?;
        let range = gather
            .place(tensor, storage, range)
            .map_err(|e| FormatError::tensor(path, &name, e.rule, e.hint))?;
        tensors.push(TensorInfo {
            name,
            dtype: storage.dtype,
            shape: tensor.shape.clone(),
            range,
        });
    }
    Ok(TorchFile {
        header: Header::listed(path, tensors)?,
        gathered: gather
            .fill(bytes)
            .map_err(FormatError::io(path, "put its strided tensors into memory"))?,
        notes: named.notes,
    })
}

/// The form since PyTorch 1.6.
fn archive(bytes: &[u8]) -> std::result::Result<Found<'_>, Refusal> {
    let members = zip::members(bytes).map_err(|rule| {
        if rule.contains("compressed") {
            return Refusal { rule, hint: PACKED };
        }
        Refusal::from(rule)
    })?;
    let mut pickles: Vec<&str> = members
        .keys()
        .filter_map(|name| name.strip_suffix("data.pkl"))
        .collect();
    pickles.sort_unstable();
    let prefix = match pickles[..] {
        [prefix] => prefix,
        [] => return Err("holds no data.pkl".into()),
        [first, second, ..] => {
            return Err(Refusal {
                rule: format!("holds more than one data.pkl: {first}data.pkl and {second}data.pkl"),
                hint: "which one is meant cannot be known; save the state_dict by itself",
            });
        }
    };
    if let Some(order) = members.get(format!("{prefix}byteorder").as_str())
        && bytes[order.clone()] != *b"little"
    {
        return Err(Refusal {
            rule: "its byte order is not little-endian".into(),
            hint: "export it on a little-endian machine",
        });
    }
    let pickle = &members[format!("{prefix}data.pkl").as_str()];
    if pickle.len() > MAX_PICKLE_BYTES {
        let rule = format!(
            "its data.pkl has {} bytes, {MAX_PICKLE_BYTES} are allowed",
            pickle.len()
        );
        return Err(rule.into());
    }
    let pickled = pickle::run(&bytes[pickle.clone()]).map_err(|e| e.within("data.pkl"))?;
    let data = format!("{prefix}data/");
    let storages = members
        .iter()
        .filter_map(|(name, range)| Some((name.strip_prefix(data.as_str())?, range.clone())));
    Ok(Found {
        objects: pickled.objects,
        root: pickled.left,
        storages: storages.collect(),
    })
}

/// Bytes of an element of a storage.
fn element_bytes(storage: &Storage<'_>) -> usize {
    storage.dtype.bits() / 8
}
