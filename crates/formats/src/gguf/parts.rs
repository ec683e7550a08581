//! A model in several files: `NAME-00001-of-00003.gguf` and so on, each of which says which part it is.

use std::path::{Path, PathBuf};

use super::{DAMAGED, metadata::Metadata};
use crate::error::{FormatError, Result};

const NO: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";
/// Most parts anyone can mean; their numbers have five digits.
const MOST: u64 = 99_999;

pub(super) const MIXED: &str = "parts of two conversions are mixed; download all of them again";

/// Number (from 0) and path of the parts that belong to the first one.
pub(super) fn others(path: &Path, metadata: &Metadata) -> Result<Vec<(u64, PathBuf)>> {
    let count = metadata.unsigned(COUNT)?.unwrap_or(1);
    if count > MOST {
        return Err(FormatError::key(
            path,
            COUNT,
            format!("is {count}; at most {MOST} are read"),
            DAMAGED,
        ));
    }
    if count <= 1 {
        return Ok(Vec::new());
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let no = metadata.unsigned(NO)?.unwrap_or(0);
    let Some(stem) = name.strip_suffix(&suffix(no, count)) else {
        let rule = format!(
            "is part {} of {count}, and its name does not end in {}",
            no + 1,
            suffix(no, count)
        );
        let hint = "give all parts the names they were published under, in one folder";
        return Err(FormatError::place(path, rule, hint));
    };
    if no != 0 {
        let rule = format!("is part {} of {count}", no + 1);
        return Err(FormatError::place(
            path,
            rule,
            format!("name the first part, {stem}{}", suffix(0, count)),
        ));
    }
    let mut parts = Vec::new();
    for no in 1..count {
        let part = path.with_file_name(format!("{stem}{}", suffix(no, count)));
        if !part.exists() {
            let rule = format!("does not exist; it is part {} of {count} of this model", no + 1);
            return Err(FormatError::place(
                &part,
                rule,
                "the download is incomplete; fetch this file, too",
            ));
        }
        parts.push((no, part));
    }
    Ok(parts)
}

/// Whether a file is the part it should be.
pub(super) fn check(path: &Path, metadata: &Metadata, no: u64, first: &Metadata) -> Result<()> {
    for (key, wanted) in [(NO, Some(no)), (COUNT, first.unsigned(COUNT)?)] {
        let is = metadata.unsigned(key)?;
        if is != wanted {
            let show = |n: Option<u64>| n.map_or("missing".to_owned(), |n| n.to_string());
            let rule = format!(
                "is {}, where the first part and the file's name say {}",
                show(is),
                show(wanted)
            );
            return Err(FormatError::key(path, key, rule, MIXED));
        }
    }
    Ok(())
}

/// Whether all parts together hold as many tensors as the first one says.
pub(super) fn check_total(path: &Path, first: &Metadata, tensors: usize) -> Result<()> {
    match first.unsigned(TENSORS)? {
        Some(wanted) if wanted != tensors as u64 => {
            let rule = format!("is {wanted}, and the parts hold {tensors} tensors");
            Err(FormatError::key(path, TENSORS, rule, MIXED))
        }
        _ => Ok(()),
    }
}

fn suffix(no: u64, count: u64) -> String {
    format!("-{:05}-of-{count:05}.gguf", no + 1)
}
