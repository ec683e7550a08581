//! What can stop a training run.

use ounce_data::DataError;
use ounce_formats::FormatError;
use ounce_model::ModelError;
use ounce_tensor::TensorError;

/// Result of everything in this crate.
pub type Result<T> = std::result::Result<T, TrainError>;

/// Errors of training.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A key of the recipe breaks a rule.
    #[error("{file}: key \"{key}\": {rule}")]
    Recipe {
        /// The recipe's file.
        file: String,
        /// The key, dotted.
        key: String,
        /// The broken rule.
        rule: String,
        /// What to do about it.
        hint: String,
    },
    /// A training folder breaks a rule.
    #[error("{place}: {rule}")]
    Folder {
        /// The folder or file.
        place: String,
        /// The broken rule.
        rule: String,
        /// What to do about it.
        hint: String,
    },
    /// The loss is not a number any more.
    #[error("step {step}: the loss is {loss}")]
    Diverged {
        /// The step.
        step: u64,
        /// The loss.
        loss: f64,
    },
    /// From below.
    #[error(transparent)]
    Data(#[from] DataError),
    /// From below.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// From below.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// From below.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

impl TrainError {
    /// What the user can do about it, if anything is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Recipe { hint, .. } | Self::Folder { hint, .. } => (!hint.is_empty()).then(|| hint.clone()),
            Self::Diverged { .. } => {
                Some("lower optimizer.lr, or raise schedule.warmup; --resume continues from the last checkpoint".into())
            }
            Self::Format(e) => e.hint().map(str::to_owned),
            Self::Model(e) => e.hint(),
            Self::Data(_) | Self::Tensor(_) => None,
        }
    }
}
