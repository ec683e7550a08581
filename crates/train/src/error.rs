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
    #[error("{file}: {}{rule}", named(key))]
    Recipe {
        /// The recipe's file.
        file: String,
        /// The key, dotted; empty if it is not about one key.
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
    /// The model cannot be trained on this machine.
    #[error(
        "the model has {parameters} parameters; training it takes at least {:.1} GB, this machine has {:.1} GB with swap",
        gigabytes(*needed),
        gigabytes(*memory)
    )]
    Memory {
        /// Parameters of the model.
        parameters: u64,
        /// Bytes that cannot be done without.
        needed: u64,
        /// Bytes of memory and swap.
        memory: u64,
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

fn named(key: &str) -> String {
    if key.is_empty() {
        String::new()
    } else {
        format!("key \"{key}\": ")
    }
}

fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

impl TrainError {
    /// What the user can do about it, if anything is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Recipe { hint, .. } | Self::Folder { hint, .. } => (!hint.is_empty()).then(|| hint.clone()),
            Self::Diverged { .. } => {
                Some("lower optimizer.lr, or raise schedule.warmup; --resume continues from the last checkpoint".into())
            }
            Self::Memory { .. } => {
                Some("lower the sizes in [model], or run.micro_batch; --dry-run shows what a recipe costs".into())
            }
            Self::Format(e) => e.hint().map(str::to_owned),
            Self::Model(e) => e.hint(),
            Self::Data(e) => e.hint().map(str::to_owned),
            Self::Tensor(_) => None,
        }
    }
}
