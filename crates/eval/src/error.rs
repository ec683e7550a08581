//! What can go wrong in an evaluation: its input, the model under it, or a suite's file.

use ounce_model::ModelError;
use ounce_tensor::TensorError;
use std::{io, path::PathBuf};

/// Result of everything in this crate.
pub type Result<T> = std::result::Result<T, EvalError>;

/// What an encoder may answer with; any error type converts into it with `?`.
pub type EncodeError = Box<dyn std::error::Error + Send + Sync>;

/// Errors of evaluations.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// A text, an item or an option breaks a rule.
    #[error("{what}: {rule}")]
    Input {
        /// What was given.
        what: String,
        /// The broken rule, with the value found.
        rule: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// A text could not be turned into ids.
    #[error("cannot encode the {what}: {source}")]
    Encode {
        /// Which text.
        what: String,
        /// What the tokenizer said.
        source: EncodeError,
    },
    /// The model gave a token no finite probability.
    #[error("the model's log-probability of token {position} of the text (id {id}) is {value}")]
    NotFinite {
        /// Position within the ids that were scored together.
        position: usize,
        /// The token.
        id: u32,
        /// What came out.
        value: f64,
    },
    /// A suite's file could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line of a suite's file breaks a rule.
    #[error("{}: line {line}: {rule}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// The broken rule.
        rule: String,
        /// What a line must be.
        hint: &'static str,
    },
    /// From the model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// From the tensors below.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

impl EvalError {
    /// What the user can do about it, if anything is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Input { hint, .. } | Self::Line { hint, .. } => (!hint.is_empty()).then(|| (*hint).to_owned()),
            Self::NotFinite { .. } => {
                Some("the weights hold NaN or infinity; `ounce inspect MODEL --scan` names the tensors".into())
            }
            Self::Io { .. } => Some("name the file, or the data folder that holds the suite".into()),
            Self::Model(e) => e.hint(),
            Self::Encode { .. } | Self::Tensor(_) => None,
        }
    }
}
