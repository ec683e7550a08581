//! The form before PyTorch 1.6, which `torch.save(..., _use_new_zipfile_serialization=False)` still writes: five pickles
//! (a magic number, the version of the protocol, the machine, the object, the list of storage keys), and then, in the
//! order of that list, each storage as the number of its elements and their bytes.

use super::{
    Found, MAX_PICKLE_BYTES, element_bytes,
    objects::Value,
    pickle::{self, Pickled},
    refusal::{DAMAGED, Refusal, Step},
};
use std::collections::HashMap;

/// The pickled magic number, with which every file of this form begins.
pub(super) const MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// Protocol of the form, the same since it exists.
const PROTOCOL: i64 = 1001;

pub(super) fn read(bytes: &[u8]) -> Step<Found<'_>> {
    let mut at = MAGIC.len();
    let mut next = |part: &str| -> Step<(Pickled<'_>, usize)> {
        let end = bytes.len().min(at + MAX_PICKLE_BYTES);
        let pickled = pickle::run(&bytes[at..end]).map_err(|e| e.within(part))?;
        at += pickled.length;
        Ok((pickled, at))
    };
    let (version, _) = next("protocol version")?;
    if !matches!(version.left, Some(Value::Int(PROTOCOL))) {
        return Err(Refusal {
            rule: format!("is no PyTorch file of protocol {PROTOCOL}"),
            hint: DAMAGED,
        });
    }
    let (machine, _) = next("machine")?;
    if machine.objects.flag(machine.left.as_ref(), "little_endian") == Some(false) {
        return Err(Refusal {
            rule: "its byte order is not little-endian".into(),
            hint: "export it on a little-endian machine",
        });
    }
    let (object, _) = next("object")?;
    let (keys, mut at) = next("storage keys")?;
    let keys = keys
        .objects
        .texts(keys.left.as_ref())
        .ok_or("its storage keys are no list of texts")?;

    let mut storages = HashMap::new();
    for key in keys {
        let storage = object.objects.storage_by_key(key);
        let storage = storage.ok_or_else(|| format!("storage {key:?} belongs to no tensor"))?;
        let count = bytes.get(at..at + 8).and_then(|b| b.first_chunk::<8>());
        let count = u64::from_le_bytes(*count.ok_or("ends before its storages do")?);
        let len = usize::try_from(count)
            .ok()
            .and_then(|n| n.checked_mul(element_bytes(storage)));
        let end = len
            .and_then(|len| (at + 8).checked_add(len))
            .filter(|&end| end <= bytes.len());
        let Some(end) = end else {
            return Err(format!("storage {key:?} of {count} elements reaches beyond the end of the file").into());
        };
        if storages.insert(key, at + 8..end).is_some() {
            return Err(format!("storage {key:?} is there twice").into());
        }
        at = end;
    }
    Ok(Found {
        objects: object.objects,
        root: object.left,
        storages,
    })
}
