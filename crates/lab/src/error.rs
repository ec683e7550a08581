//! Whatever can stop a demo, a benchmark or a report.

use crate::{bench::CheckpointError, report::ReportError};

/// Errors of this crate; most come from below.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The demo itself.
    #[error("demo: {0}")]
    Demo(String),
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
            Self::Eval(e) => e.hint(),
            Self::Compress(e) => e.hint(),
            Self::Checkpoint(e) => e.hint(),
            Self::Demo(_) | Self::Recipe(_) | Self::Report(_) | Self::Tensor(_) => None,
        }
    }
}
