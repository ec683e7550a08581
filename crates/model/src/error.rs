//! What can be wrong with a model: its configuration, its tensors, or the ids it is fed.

use ounce_formats::FormatError;
use ounce_tensor::TensorError;

/// Result of everything in this crate.
pub type Result<T> = std::result::Result<T, ModelError>;

/// Errors of loading and running models.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A key of a configuration breaks a rule.
    #[error("{file}: key \"{key}\": {rule}")]
    Config {
        /// The file, or "configuration" if it never was a file.
        file: String,
        /// The key.
        key: String,
        /// The broken rule, with the value found.
        rule: String,
        /// What to do about it.
        hint: String,
    },
    /// Several of them, a line each.
    #[error("{} keys cannot be used as they are{}", .0.len(), lines(.0))]
    Several(Vec<ModelError>),
    /// A tensor of a checkpoint breaks a rule.
    #[error("{file}: tensor \"{tensor}\": {rule}")]
    Weight {
        /// Folder or file of the checkpoint.
        file: String,
        /// The tensor.
        tensor: String,
        /// The broken rule.
        rule: String,
        /// What to do about it.
        hint: String,
    },
    /// An input (ids, prompt, length) breaks a rule.
    #[error("{what}: {rule}")]
    Input {
        /// What was given.
        what: String,
        /// The broken rule.
        rule: String,
        /// What to do about it.
        hint: String,
    },
    /// A tokenizer file or a text breaks a rule.
    #[error(transparent)]
    Tokenizer(#[from] crate::tokenizer::TokenizerError),
    /// A cache was asked for something it cannot do.
    #[error("cache: {0}")]
    Cache(String),
    /// From the files below.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// From the tensors below.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

impl ModelError {
    /// What the user can do about it, if anything is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Config { hint, .. } | Self::Weight { hint, .. } | Self::Input { hint, .. } => {
                (!hint.is_empty()).then(|| hint.clone())
            }
            Self::Format(e) => e.hint().map(str::to_owned),
            Self::Tokenizer(e) => e.hint().map(str::to_owned),
            // Each line has its own.
            Self::Several(_) | Self::Cache(_) | Self::Tensor(_) => None,
        }
    }
}

/// More lines than this help nobody.
const SHOWN: usize = 20;

/// One line an error, with its hint.
fn lines(errors: &[ModelError]) -> String {
    let line = |e: &ModelError| match e.hint() {
        Some(hint) => format!("\n  {e}; {hint}"),
        None => format!("\n  {e}"),
    };
    let more = match errors.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!("\n  and {more} more"),
    };
    errors.iter().take(SHOWN).map(line).chain([more]).collect()
}
