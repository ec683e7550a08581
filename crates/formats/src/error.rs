//! The one error type of this crate.
//!
//! Every variant names the place (file, and tensor or key where there is one) and the broken rule; the advice is kept
//! apart, in [`FormatError::hint`], so that whoever prints the error can give it a line of its own.

use std::{
    io,
    path::{Path, PathBuf},
};

/// What every fallible function of this crate returns.
pub type Result<T> = std::result::Result<T, FormatError>;

/// Something is wrong with a file, a folder, or the way one was to be written.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The operating system refused.
    #[error("{}: cannot {action}: {error}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried, in the infinitive ("read it").
        action: &'static str,
        /// What the system said. Part of the message, hence not also a source.
        error: io::Error,
    },
    /// A file or folder breaks a rule as a whole.
    #[error("{}: {rule}", path.display())]
    Place {
        /// The file or folder.
        path: PathBuf,
        /// The broken rule.
        rule: String,
        /// What to do about it.
        hint: String,
    },
    /// One tensor of a file breaks a rule.
    #[error("{}: tensor {tensor:?}: {rule}", path.display())]
    Tensor {
        /// The file that holds the tensor, or should.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// The broken rule.
        rule: String,
        /// What to do about it.
        hint: String,
    },
    /// One key of a JSON file breaks a rule.
    #[error("{}: key {key:?}: {rule}", path.display())]
    Key {
        /// The JSON file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The broken rule.
        rule: String,
        /// What to do about it.
        hint: String,
    },
}

impl FormatError {
    /// Advice for the person who reads the message: one line, without the word "hint".
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Io { error, .. } => io_hint(error.kind()),
            Self::Place { hint, .. } | Self::Tensor { hint, .. } | Self::Key { hint, .. } => Some(hint),
        }
    }

    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Io {
            path: path.to_owned(),
            action,
            error,
        }
    }

    pub(crate) fn place(path: &Path, rule: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Place {
            path: path.to_owned(),
            rule: rule.into(),
            hint: hint.into(),
        }
    }

    pub(crate) fn tensor(path: &Path, tensor: &str, rule: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Tensor {
            path: path.to_owned(),
            tensor: tensor.to_owned(),
            rule: rule.into(),
            hint: hint.into(),
        }
    }

    pub(crate) fn key(path: &Path, key: &str, rule: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Key {
            path: path.to_owned(),
            key: key.to_owned(),
            rule: rule.into(),
            hint: hint.into(),
        }
    }
}

fn io_hint(kind: io::ErrorKind) -> Option<&'static str> {
    match kind {
        io::ErrorKind::NotFound => Some("check the spelling of the path"),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            Some("check the permissions, or choose another place")
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            Some("free some space on this disk, or choose another place")
        }
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            Some("one of the folders of this path is a file")
        }
        io::ErrorKind::IsADirectory => Some("name a file, not a folder"),
        io::ErrorKind::InvalidData => Some("the file is damaged, or not a text in UTF-8"),
        _ => None,
    }
}
