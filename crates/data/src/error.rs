//! The one error type of this crate: which file, which rule, what to do about it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// What can go wrong between files and batches.
#[derive(Debug, Error)]
pub enum DataError {
    /// A file or folder could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A text that is not UTF-8.
    #[error("{}:{line}: not UTF-8 at byte {offset}", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Line of the first bad byte, from 1.
        line: usize,
        /// Offset of the first bad byte in the file.
        offset: usize,
    },
    /// A line of a JSONL file that breaks a rule.
    #[error("{}:{line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// The broken rule.
        reason: String,
    },
    /// Files were read, but no text was in them.
    #[error("no text in {what}")]
    Empty {
        /// What was read.
        what: String,
    },
    /// The caller's encoder refused a document.
    #[error("{document}: cannot encode: {reason}")]
    Encode {
        /// File, and line where there is one.
        document: String,
        /// What the encoder said.
        reason: String,
    },
    /// A token cache that is damaged or belongs to other data.
    #[error("{}: {reason}", path.display())]
    Cache {
        /// The file.
        path: PathBuf,
        /// The broken rule.
        reason: String,
    },
    /// A setting that cannot work.
    #[error("{rule}")]
    Setting {
        /// What was set, and the broken rule.
        rule: String,
        /// What to do about it.
        hint: &'static str,
    },
}

impl DataError {
    /// What the user can do about it, if anything is known.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Io { source, .. } => match source.kind() {
                ErrorKind::NotFound => Some("check the spelling of the path"),
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                    Some("free some space on this disk, or choose another place")
                }
                ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                    Some("check the permissions, or choose another place")
                }
                ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
                    Some("one of the folders of this path is a file")
                }
                _ => None,
            },
            Self::NotUtf8 { .. } => Some("convert the file (iconv -t UTF-8) or leave it out"),
            Self::Line { .. } => Some(
                "each line is one JSON object; `field` (data.field of a recipe, --field of eval) names the text in it",
            ),
            Self::Empty { .. } => Some("documents come from .txt, .text, .md, .jsonl and .ndjson files"),
            Self::Encode { .. } => None,
            Self::Cache { .. } => Some("delete it and it will be built again"),
            Self::Setting { hint, .. } => (!hint.is_empty()).then_some(*hint),
        }
    }
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, DataError>;

/// Attaches the path to a system error.
pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> DataError + '_ {
    move |source| DataError::Io {
        path: path.to_owned(),
        source,
    }
}

/// Writes through a neighbour and a rename: readers see the old file or the new one, and a failure leaves no part of it.
pub(crate) fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".partial-{}", std::process::id()));
    let partial = path.with_file_name(name);
    let written = std::fs::write(&partial, content).and_then(|()| std::fs::rename(&partial, path));
    if written.is_err() {
        // Best effort: the first failure is the one worth reporting.
        let _ = std::fs::remove_file(&partial);
    }
    written.map_err(io(path))
}
