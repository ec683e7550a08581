//! What an output may replace: never an input, never what holds one or is held by one, never what is not ours.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{Overwrite, mark};
use crate::error::{FormatError, Result};

const ELSEWHERE: &str = "choose another output folder";

/// OUT must be absent, or a folder that may be replaced.
pub(super) fn check(path: &Path, overwrite: Overwrite, sources: &[PathBuf]) -> Result<()> {
    let Ok(found) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !found.is_dir() {
        return Err(FormatError::place(path, "exists and is not a folder", ELSEWHERE));
    }
    keep_sources(path, sources)?;
    if overwrite == Overwrite::Refuse {
        let hint = "`--overwrite` replaces it, or choose another output folder";
        return Err(FormatError::place(path, "exists already", hint));
    }
    // A slip of the hand like `--out .. --overwrite` must not remove the folder one works in.
    let inside = match (fs::canonicalize(path), std::env::current_dir()) {
        (Ok(target), Ok(current)) => current.starts_with(target),
        _ => false,
    };
    if inside {
        return Err(FormatError::place(path, "holds the current folder", ELSEWHERE));
    }
    let foreign = mark::foreign(path)?;
    if overwrite == Overwrite::Any || foreign.is_empty() {
        return Ok(());
    }
    let what = mark::some_of(&foreign);
    let rule = format!("holds what Ounce did not make there: {what}");
    let hint = "`--overwrite=any` removes all of it; or choose another output folder";
    Err(FormatError::place(path, rule, hint))
}

/// Refuses to touch the existing folder `path` if it is one of `sources`, holds one, or lies in one.
pub(super) fn keep_sources(path: &Path, sources: &[PathBuf]) -> Result<()> {
    let Ok(target) = fs::canonicalize(path) else {
        return Ok(());
    };
    for source in sources {
        // A source that is not there cannot be lost.
        let Ok(real) = fs::canonicalize(source) else { continue };
        let rule = if real == target {
            format!("is what is read: {}", source.display())
        } else if real.starts_with(&target) {
            format!("holds what is read: {}", source.display())
        } else if target.starts_with(&real) {
            format!("is part of what is read: {}", source.display())
        } else {
            continue;
        };
        return Err(FormatError::place(path, rule, ELSEWHERE));
    }
    Ok(())
}

/// A single output file may replace a regular file, but none that is read: not a source, not a part of one; and neither a
/// folder, a device nor a link.
///
/// # Errors
/// It may not be replaced.
pub fn check_output_file(path: &Path, sources: &[&Path]) -> Result<()> {
    let Ok(found) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    let elsewhere = "choose another output file";
    if !found.is_file() {
        let rule = "exists and is no regular file, so it is not replaced";
        return Err(FormatError::place(path, rule, elsewhere));
    }
    let Ok(target) = fs::canonicalize(path) else {
        return Ok(());
    };
    let read = |source: &&&Path| {
        let same = |a: &fs::Metadata, b: &fs::Metadata| {
            use std::os::unix::fs::MetadataExt;
            (a.dev(), a.ino()) == (b.dev(), b.ino())
        };
        let linked = fs::metadata(source).is_ok_and(|there| same(&there, &found));
        linked || fs::canonicalize(source).is_ok_and(|real| target.starts_with(real))
    };
    match sources.iter().find(read) {
        Some(source) => {
            let rule = format!("is part of what is read: {}", source.display());
            Err(FormatError::place(path, rule, elsewhere))
        }
        None => Ok(()),
    }
}
