//! The zip archive around a PyTorch file: names of its members and where their bytes are. Only what PyTorch writes is
//! read: members that are neither compressed nor encrypted, with 64-bit sizes where 32 bits do not suffice.

use std::{collections::HashMap, ops::Range};

/// Little-endian integers at a place, checked.
fn number<const N: usize>(bytes: &[u8], at: usize) -> std::result::Result<u64, String> {
    let end = at.checked_add(N).ok_or("an offset is too large")?;
    let part = bytes
        .get(at..end)
        .ok_or_else(|| format!("ends within a record at byte {at}"))?;
    Ok(part.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)))
}

/// The uncompressed members of a zip archive: name to range of the file.
pub(super) fn members(bytes: &[u8]) -> std::result::Result<HashMap<&str, Range<usize>>, String> {
    const END: usize = 22;
    let Some(last) = bytes.len().checked_sub(END) else {
        return Err("is too short to be a zip archive".into());
    };
    // The end record is followed by a comment of at most 64 KiB.
    let end = (last.saturating_sub(0xffff)..=last)
        .rev()
        .find(|&at| bytes[at..].starts_with(b"PK\x05\x06"))
        .ok_or("is not a zip archive")?;
    let mut count = number::<2>(bytes, end + 10)?;
    let mut directory = number::<4>(bytes, end + 16)?;
    // PyTorch writes the 64-bit form always: a locator before the end record points at it.
    if let Some(locator) = end.checked_sub(20)
        && bytes[locator..].starts_with(b"PK\x06\x07")
    {
        let record = usize::try_from(number::<8>(bytes, locator + 8)?).map_err(|e| e.to_string())?;
        if !bytes.get(record..).is_some_and(|b| b.starts_with(b"PK\x06\x06")) {
            return Err("its zip64 locator points at nothing".into());
        }
        count = number::<8>(bytes, record + 32)?;
        directory = number::<8>(bytes, record + 48)?;
    }
    let mut at = usize::try_from(directory).map_err(|e| e.to_string())?;
    let mut members = HashMap::new();
    for _ in 0..count {
        if number::<4>(bytes, at)? != 0x0201_4b50 {
            return Err(format!("has no directory entry at byte {at}"));
        }
        let (flags, method) = (number::<2>(bytes, at + 8)?, number::<2>(bytes, at + 10)?);
        let (packed, size) = (number::<4>(bytes, at + 20)?, number::<4>(bytes, at + 24)?);
        let lengths = [28, 30, 32].map(|field| number::<2>(bytes, at + field).map(|n| n as usize));
        let [name_len, extra_len, comment_len] = lengths;
        let (name_len, extra_len, comment_len) = (name_len?, extra_len?, comment_len?);
        let local = number::<4>(bytes, at + 42)?;
        let name = bytes.get(at + 46..at + 46 + name_len).ok_or("ends within a name")?;
        let name = std::str::from_utf8(name).map_err(|e| format!("a member's name is not UTF-8: {e}"))?;
        let extra = at + 46 + name_len..at + 46 + name_len + extra_len;
        let extra = bytes.get(extra).ok_or("ends within a directory entry")?;
        let [size, packed, local] = wide(extra, [size, packed, local])?;
        if method != 0 || packed != size || flags & 1 != 0 {
            return Err(format!("member {name:?} is compressed or encrypted"));
        }
        let local = usize::try_from(local).map_err(|e| e.to_string())?;
        if number::<4>(bytes, local)? != 0x0403_4b50 {
            return Err(format!("member {name:?} has no header at byte {local}"));
        }
        let skip = 30 + number::<2>(bytes, local + 26)? as usize + number::<2>(bytes, local + 28)? as usize;
        let start = local + skip;
        let end = usize::try_from(size).ok().and_then(|size| start.checked_add(size));
        let Some(end) = end.filter(|&end| end <= bytes.len()) else {
            return Err(format!("member {name:?} reaches beyond the end of the file"));
        };
        if members.insert(name, start..end).is_some() {
            return Err(format!("member {name:?} is there twice"));
        }
        at += 46 + name_len + extra_len + comment_len;
    }
    Ok(members)
}

/// Size, packed size and offset, with those that are all ones taken from the zip64 field of `extra`, in that order.
fn wide(extra: &[u8], mut values: [u64; 3]) -> std::result::Result<[u64; 3], String> {
    const ALL_ONES: u64 = 0xffff_ffff;
    if !values.contains(&ALL_ONES) {
        return Ok(values);
    }
    let mut at = 0;
    while at + 4 <= extra.len() {
        let (kind, len) = (number::<2>(extra, at)?, number::<2>(extra, at + 2)? as usize);
        if kind == 1 {
            let mut from = at + 4;
            for value in values.iter_mut().filter(|v| **v == ALL_ONES) {
                *value = number::<8>(extra, from)?;
                from += 8;
            }
            return Ok(values);
        }
        at += 4 + len;
    }
    Err("a large member lacks its zip64 sizes".into())
}
