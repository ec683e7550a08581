//! Weights-only PyTorch files (`pytorch_model.bin`): read where they lie, executed never.
//!
//! Such a file is a zip archive of uncompressed members: `data.pkl` says which tensors there are, `data/KEY` holds the
//! bytes of each storage. Since they are not compressed, a contiguous tensor is a range of the file, as in safetensors,
//! and everything above reads both in the same way.
//!
//! `data.pkl` is a pickle, which in general is a program. Here it is read by a machine that knows the few instructions
//! which dictionaries of tensors need and no others; a *global* is compared with a short list of names and never looked
//! up, so there is nothing that could be called. Every index, length and range is checked against the file. Lists and
//! floats, which training checkpoints hold beside their weights, are passed over.

mod objects;
mod pickle;
mod refusal;
mod zip;

use std::{ops::Range, path::Path};

use crate::{
    error::{FormatError, Result},
    safetensors::{Header, TensorInfo},
};
use objects::{Storage, TensorRecord};
use refusal::{DAMAGED, Refusal};

/// Largest `data.pkl`; that of a model with a million tensors is smaller.
const MAX_PICKLE_BYTES: usize = 256 << 20;
const OLD: &str = "write it again: torch.save(torch.load(FILE, weights_only=True), FILE), or export safetensors";

/// The tensors of a file whose whole content is `bytes`; `path` is for messages only.
///
/// # Errors
/// The archive or the pickle breaks a rule, asks for anything but tensors in dictionaries, or holds a tensor that is not
/// contiguous.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<Header> {
    let fail = |rule: String, hint: &str| FormatError::place(path, rule, hint);
    // The pickled magic number every file of the old form begins with.
    if bytes.starts_with(b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19") {
        let rule = "is a PyTorch file of the form before version 1.6, which is not read".to_owned();
        return Err(fail(rule, OLD));
    }
    let members = zip::members(bytes).map_err(|rule| fail(rule, DAMAGED))?;
    let Some((prefix, pickle)) = members
        .iter()
        .find_map(|(name, range)| Some((name.strip_suffix("data.pkl")?, range)))
    else {
        return Err(fail("holds no data.pkl".into(), DAMAGED));
    };
    if let Some(order) = members.get(&format!("{prefix}byteorder"))
        && bytes[order.clone()] != *b"little"
    {
        let rule = "its byte order is not little-endian".to_owned();
        return Err(fail(rule, "export it on a little-endian machine"));
    }
    if pickle.len() > MAX_PICKLE_BYTES {
        let rule = format!(
            "its data.pkl has {} bytes, {MAX_PICKLE_BYTES} are allowed",
            pickle.len()
        );
        return Err(fail(rule, DAMAGED));
    }
    let refused = |e: Refusal| fail(format!("data.pkl: {}", e.rule), e.hint);
    let (objects, left) = pickle::run(&bytes[pickle.clone()]).map_err(refused)?;
    let named = objects.named(left.as_ref()).map_err(refused)?;
    let mut tensors = Vec::with_capacity(named.len());
    for (name, tensor) in named {
        let storage = objects.storage_of(tensor);
        let range = members.get(&format!("{prefix}data/{}", storage.key));
        let range = range.ok_or_else(|| format!("its storage {:?} is not in the archive", storage.key));
        let range = range.and_then(|range| place(tensor, storage, range));
        match range {
            Ok(range) => tensors.push(TensorInfo {
                name,
                dtype: storage.dtype,
                shape: tensor.shape.clone(),
                range,
            }),
            Err(rule) => return Err(FormatError::tensor(path, &name, rule, DAMAGED)),
        }
    }
    Header::listed(path, tensors)
}

/// Where a tensor's bytes are in the file.
fn place(
    tensor: &TensorRecord,
    storage: &Storage<'_>,
    member: &Range<usize>,
) -> std::result::Result<Range<usize>, String> {
    let size = storage.dtype.bits() / 8;
    if storage.elements.checked_mul(size) != Some(member.len()) {
        return Err(format!(
            "its storage says {} elements of {}, its member has {} bytes",
            storage.elements,
            storage.dtype,
            member.len()
        ));
    }
    let mut expected = 1usize;
    for (&dim, &stride) in tensor.shape.iter().zip(&tensor.stride).rev() {
        if dim > 1 && stride != expected {
            return Err(format!(
                "is not contiguous: shape {:?}, strides {:?}",
                tensor.shape, tensor.stride
            ));
        }
        expected = expected
            .checked_mul(dim)
            .ok_or("has more elements than can be counted")?;
    }
    let end = tensor.offset.checked_add(expected);
    match end {
        Some(end) if end <= storage.elements => Ok(member.start + tensor.offset * size..member.start + end * size),
        _ => Err(format!(
            "elements {}.. ({expected} of them) lie outside its storage of {}",
            tensor.offset, storage.elements
        )),
    }
}
