//! The one error type of this crate: which file, which rule, what to do about it.

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
    #[error("{}: not UTF-8 at byte {offset}; convert the file (iconv -t UTF-8) or leave it out", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Offset of the first bad byte.
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
    #[error("no text in {what}; documents come from .txt, .text, .md, .jsonl and .ndjson files")]
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
    #[error("{}: {reason}; delete it and it will be built again", path.display())]
    Cache {
        /// The file.
        path: PathBuf,
        /// The broken rule.
        reason: String,
    },
    /// A setting that cannot work.
    #[error("{0}")]
    Setting(String),
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
