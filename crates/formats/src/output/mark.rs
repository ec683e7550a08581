//! The owner's mark: the file by which a folder is known as one of ours, and what is in it.
//!
//! It is there before anything else, says who is at work and, once the folder is whole, what it was made from and which
//! files belong to it. Nothing without it is ever cleared, continued or replaced, and neither is a file that is not in its
//! list, unless that was asked for by name.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::journal::JOURNAL;
use crate::{
    error::{FormatError, Result},
    fsx,
    identity::Identity,
    lock::LOCK,
};

/// The mark's file name.
pub const MARK: &str = "ounce.json";

/// What the mark says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Mark {
    /// The command line that began it.
    pub(super) command: String,
    /// What decided every byte.
    pub(super) identity: Identity,
    /// The files it was made from, by the SHA-256 of their contents.
    #[serde(default)]
    pub(super) made_from: BTreeMap<String, String>,
    /// What belongs to the folder; empty while it is not whole.
    #[serde(default)]
    pub(super) files: BTreeSet<String>,
}

impl Mark {
    /// The mark of `folder`, if it has one.
    pub(super) fn of(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&fsx::read(&folder.join(MARK)).ok()?).ok()
    }

    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(|e| {
            let hint = "this is a fault in the code that writes the mark; please report it";
            FormatError::place(folder, format!("its mark is no JSON: {e}"), hint)
        })?;
        fsx::write_atomic(&folder.join(MARK), format!("{text}\n").as_bytes())
    }
}

/// Files of ours that come and go.
pub(super) fn passing(name: &str) -> bool {
    name == LOCK || name == JOURNAL || name == MARK || fsx::is_temporary(name)
}

/// Everything in `folder` that is no folder itself, by its path from there, `/` between the parts.
pub(super) fn files(folder: &Path) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    walk(folder, "", &mut found)?;
    Ok(found)
}

fn walk(folder: &Path, prefix: &str, found: &mut BTreeSet<String>) -> Result<()> {
    let io = |action| FormatError::io(folder, action);
    for entry in fs::read_dir(folder).map_err(io("list this folder"))? {
        let entry = entry.map_err(io("list this folder"))?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        // Of a link, the link itself.
        if entry.file_type().map_err(io("list this folder"))?.is_dir() {
            walk(&entry.path(), &format!("{name}/"), found)?;
        } else {
            found.insert(name);
        }
    }
    Ok(())
}

/// The files of `folder` that are not ours; all of them, if the folder is not.
pub(super) fn foreign(folder: &Path) -> Result<BTreeSet<String>> {
    let ours = Mark::of(folder).map(|mark| mark.files);
    let foreign = |name: &String| match &ours {
        Some(ours) => !passing(name) && !ours.contains(name),
        None => true,
    };
    Ok(files(folder)?.into_iter().filter(foreign).collect())
}

/// "a, b, c and 5 more".
pub(super) fn some_of(names: &BTreeSet<String>) -> String {
    let mut text: Vec<String> = names.iter().take(3).map(|n| n.escape_debug().to_string()).collect();
    if names.len() > 3 {
        text.push(format!("{} more", names.len() - 3));
    }
    match text.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => text.concat(),
    }
}
