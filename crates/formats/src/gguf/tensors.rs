//! The list of tensors: their types, shapes and places.

use std::collections::HashSet;

use ounce_kernels::BlockKind;

use super::{DAMAGED, cursor::Cursor, metadata::Metadata};
use crate::{
    dtype::Dtype,
    error::{FormatError, Result},
    safetensors::{Header, TensorInfo},
};

/// Most tensors anyone can mean.
const MOST_TENSORS: u64 = 1 << 20;
/// Most dimensions of a tensor.
const MOST_DIMENSIONS: u32 = 4;
/// Longest name of a tensor. GGML itself takes 63 bytes.
const LONGEST_NAME: usize = 1024;
/// Multiple at which tensors begin where no key says otherwise.
const ALIGNMENT: u64 = 32;

/// Types of the format that are not read, by number.
const NOT_READ: [(u32, &str); 25] = [
    (4, "Q4_2"),
    (5, "Q4_3"),
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (36, "IQ4_NL_4_4"),
    (39, "MXFP4"),
    (40, "NVFP4"),
];

fn dtype(number: u32) -> Option<Dtype> {
    Some(match number {
        0 => Dtype::F32,
        1 => Dtype::F16,
        2 => Dtype::Blocks(BlockKind::Q4_0),
        3 => Dtype::Blocks(BlockKind::Q4_1),
        6 => Dtype::Blocks(BlockKind::Q5_0),
        7 => Dtype::Blocks(BlockKind::Q5_1),
        8 => Dtype::Blocks(BlockKind::Q8_0),
        12 => Dtype::Blocks(BlockKind::Q4K),
        13 => Dtype::Blocks(BlockKind::Q5K),
        14 => Dtype::Blocks(BlockKind::Q6K),
        26 => Dtype::I32,
        27 => Dtype::I64,
        28 => Dtype::F64,
        30 => Dtype::BF16,
        _ => return None,
    })
}

/// A tensor as the list has it: the offset counts from the start of the data.
struct Entry {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    offset: u64,
}

/// Reads and checks the list of `count` tensors.
pub(super) fn read(cursor: &mut Cursor<'_, '_>, count: u64, metadata: &Metadata) -> Result<Header> {
    const KEY: &str = "general.alignment";
    let path = cursor.path;
    if count > MOST_TENSORS {
        let rule = format!("says that it has {count} tensors; at most {MOST_TENSORS} are read");
        return Err(FormatError::place(path, rule, DAMAGED));
    }
    let alignment = metadata.unsigned(KEY)?.unwrap_or(ALIGNMENT);
    if !alignment.is_power_of_two() || alignment > 1 << 30 {
        let rule = format!("is {alignment}, where a power of two is needed");
        return Err(FormatError::key(path, KEY, rule, DAMAGED));
    }
    let mut entries = Vec::new();
    let mut names = HashSet::new();
    for i in 0..count {
        let entry = entry(cursor, i)?;
        if !names.insert(entry.name.clone()) {
            return Err(FormatError::tensor(path, &entry.name, "is listed twice", DAMAGED));
        }
        entries.push(entry);
    }
    // In a file without tensors nothing follows, not even padding.
    let start = (cursor.at as u64).next_multiple_of(alignment);
    let mut tensors = Vec::with_capacity(entries.len());
    for entry in entries {
        tensors.push(place(cursor, entry, start, alignment)?);
    }
    tensors.sort_by_key(|t| (t.range.start, t.range.end));
    for pair in tensors.windows(2) {
        if pair[1].range.start < pair[0].range.end {
            let rule = format!("overlaps tensor {:?}", pair[0].name);
            return Err(FormatError::tensor(path, &pair[1].name, rule, DAMAGED));
        }
    }
    Header::listed(path, tensors)
}

fn entry(cursor: &mut Cursor<'_, '_>, i: u64) -> Result<Entry> {
    let name = cursor
        .text(&format!("the name of tensor number {i}"), LONGEST_NAME)?
        .to_owned();
    let fail = |path, rule: String, hint: &str| Err(FormatError::tensor(path, &name, rule, hint));
    let dimensions = cursor.u32("a number of dimensions")?;
    if dimensions > MOST_DIMENSIONS {
        let rule = format!("has {dimensions} dimensions; at most {MOST_DIMENSIONS} are allowed");
        return fail(cursor.path, rule, DAMAGED);
    }
    // The format lists the fastest dimension first.
    let mut shape = Vec::new();
    for _ in 0..dimensions {
        let size = cursor.u64("a dimension")?;
        let Ok(size) = usize::try_from(size) else {
            return fail(cursor.path, format!("has a dimension of {size}"), DAMAGED);
        };
        shape.insert(0, size);
    }
    let number = cursor.u32("the type of a tensor")?;
    let offset = cursor.u64("the offset of a tensor")?;
    let Some(dtype) = dtype(number) else {
        let known = NOT_READ.iter().find(|(n, _)| *n == number);
        return match known {
            Some((_, name)) => fail(
                cursor.path,
                format!("is of type {name}, which is not read"),
                "take a conversion to F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K or Q6_K",
            ),
            None => fail(cursor.path, format!("is of type {number}, which is unknown"), DAMAGED),
        };
    };
    Ok(Entry {
        name,
        dtype,
        shape,
        offset,
    })
}

/// The tensor at its place in the file, if it is all there.
fn place(cursor: &Cursor<'_, '_>, entry: Entry, start: u64, alignment: u64) -> Result<TensorInfo> {
    let Entry {
        name,
        dtype,
        shape,
        offset,
    } = entry;
    let fail = |rule: String| Err(FormatError::tensor(cursor.path, &name, rule, DAMAGED));
    let Some(len) = dtype.byte_len(&shape) else {
        return match dtype {
            Dtype::Blocks(kind) => fail(format!(
                "of shape {shape:?} is not made of whole {dtype} blocks of {} values a row",
                kind.values()
            )),
            _ => fail(format!("of shape {shape:?} has more bytes than can be counted")),
        };
    };
    if !offset.is_multiple_of(alignment) {
        return fail(format!(
            "its offset {offset} is not a multiple of the alignment {alignment}"
        ));
    }
    let first = start.checked_add(offset).and_then(|first| usize::try_from(first).ok());
    let range = first.and_then(|first| Some(first..first.checked_add(len)?));
    match range.filter(|range| range.end <= cursor.bytes.len()) {
        Some(range) => Ok(TensorInfo {
            name,
            dtype,
            shape,
            range,
        }),
        None => fail(format!(
            "its {len} bytes at offset {offset} of the data end beyond the file of {}",
            cursor.bytes.len()
        )),
    }
}
