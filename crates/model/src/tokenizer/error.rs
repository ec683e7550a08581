//! What can go wrong between text and ids.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// What can go wrong between text and ids.
#[derive(Debug, Error)]
pub enum TokenizerError {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not what its name promises.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The broken rule.
        reason: String,
    },
    /// A file is in order, but asks for what cannot be done here.
    #[error("{}: {rule}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The broken rule, with the key that asks for it.
        rule: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// An id no token has.
    #[error("token id {id} has no token (ids run to {})", size.saturating_sub(1))]
    OutOfRange {
        /// The id.
        id: u32,
        /// One more than the largest id in use.
        size: usize,
    },
    /// The `tokenizers` crate refused, or panicked on, well-formed input.
    #[error("{action} failed: {reason}")]
    Backend {
        /// What was being done.
        action: &'static str,
        /// What it said.
        reason: String,
    },
    /// A key of a GGUF file breaks a rule.
    #[error(transparent)]
    Format(#[from] ounce_formats::FormatError),
    /// Training was asked for something impossible.
    #[error("cannot train a tokenizer: {0}")]
    Training(String),
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, TokenizerError>;

impl TokenizerError {
    /// What the user can do about it, if anything is known.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Io { path, source } if source.kind() == std::io::ErrorKind::NotFound => {
                Some(if path.ends_with("tokenizer.json") {
                    "a model folder needs a tokenizer.json, or vocab.json with merges.txt"
                } else {
                    "check the spelling of the path"
                })
            }
            Self::Io { .. } => None,
            Self::Malformed { .. } => Some("the file is damaged or was edited; download it again"),
            Self::Unsupported { hint, .. } => Some(hint),
            Self::Format(error) => error.hint(),
            Self::OutOfRange { .. } => Some("does this tokenizer belong to the model?"),
            Self::Backend { .. } => Some("the tokenizer.json may be damaged"),
            Self::Training(_) => Some("see tokenizer.train_vocab and data.train in the recipe"),
        }
    }

    pub(super) fn malformed(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::Malformed {
            path: path.as_ref().to_owned(),
            reason: reason.into(),
        }
    }

    pub(super) fn unsupported(path: impl AsRef<Path>, rule: impl Into<String>, hint: &'static str) -> Self {
        Self::Unsupported {
            path: path.as_ref().to_owned(),
            rule: rule.into(),
            hint,
        }
    }
}

/// Runs one call into the `tokenizers` crate; its errors and its panics both become [`TokenizerError::Backend`].
pub(super) fn guard<T, E: fmt::Display>(
    action: &'static str,
    call: impl FnOnce() -> std::result::Result<T, E>,
) -> Result<T> {
    // Unwind safety: the tokenizer is immutable but for its word cache, which is behind a lock and only ever skipped.
    let reason = match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
            .unwrap_or_else(|| "internal panic".into()),
    };
    Err(TokenizerError::Backend { action, reason })
}
