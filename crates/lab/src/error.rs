//! Whatever can stop a demo, a benchmark or a report.

use crate::{bench::CheckpointError, report::ReportError};

/// Errors of this crate; most come from below.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The demo itself.
    #[error("demo: {0}")]
    Demo(String),
    /// An experiment.
    #[error("{what}: {rule}")]
    Reproduce {
        /// What was given or made.
        what: String,
        /// The broken rule.
        rule: String,
        /// What to do about it.
        hint: String,
    },
    /// A benchmark.
    #[error("{what}: {rule}")]
    Bench {
        /// What was given.
        what: String,
        /// The broken rule.
        rule: String,
        /// What to do about it.
        hint: String,
    },
    /// An experiment was told to stop; this folder can be continued.
    #[error("stopped; {0} can be continued")]
    Interrupted(String),
    /// Training.
    #[error(transparent)]
    Train(#[from] ounce_train::TrainError),
    /// Corpora.
    #[error(transparent)]
    Data(#[from] ounce_data::DataError),
    /// Files.
    #[error(transparent)]
    Format(#[from] ounce_formats::FormatError),
    /// Models.
    #[error(transparent)]
    Model(#[from] ounce_model::ModelError),
    /// Evaluation.
    #[error(transparent)]
    Eval(#[from] ounce_eval::EvalError),
    /// Merging.
    #[error(transparent)]
    Compress(#[from] ounce_compress::CompressError),
    /// Merge recipes.
    #[error(transparent)]
    Recipe(#[from] ounce_compress::RecipeError),
    /// Tables.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// Random checkpoints.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Operations.
    #[error(transparent)]
    Tensor(#[from] ounce_tensor::TensorError),
}

impl LabError {
    /// What the user can do about it, if anything is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Format(e) => e.hint().map(str::to_owned),
            Self::Model(e) => e.hint(),
            Self::Train(e) => e.hint(),
            Self::Eval(e) => e.hint(),
            Self::Compress(e) => e.hint(),
            Self::Checkpoint(e) => e.hint(),
            Self::Reproduce { hint, .. } | Self::Bench { hint, .. } => (!hint.is_empty()).then(|| hint.clone()),
            Self::Interrupted(_) => Some("run the same command with --resume".into()),
            _ => None,
        }
    }
}
