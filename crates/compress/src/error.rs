//! What can stop a merge.

use crate::{
    align::AlignError, budget::BudgetError, cluster::CutError, geometry::GeometryError, merge_rule::MergeError,
    prune::PruneError, recipe::RecipeError,
};
use ounce_data::DataError;
use ounce_formats::FormatError;
use ounce_model::ModelError;
use ounce_tensor::TensorError;

/// Errors of merging and pruning.
#[derive(Debug, thiserror::Error)]
pub enum CompressError {
    /// The model or the calibration breaks a rule.
    #[error("{what}: {rule}")]
    Input {
        /// What was given.
        what: String,
        /// The broken rule.
        rule: String,
        /// What to do about it.
        hint: String,
    },
    /// The job was told to stop; `--resume` continues it.
    #[error("stopped; the folder {0} can be continued")]
    Stopped(String),
    /// A layer cannot be clustered or merged.
    #[error("layer {layer}: {source}")]
    Layer {
        /// The layer.
        layer: usize,
        /// Why.
        source: LayerError,
    },
    /// From the recipe.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// From the recipe's budget.
    #[error(transparent)]
    Budget(#[from] BudgetError),
    /// From pruning.
    #[error(transparent)]
    Prune(#[from] PruneError),
    /// From the files.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// From the calibration text.
    #[error(transparent)]
    Data(#[from] DataError),
    /// From the model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// From an operation.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// What can be wrong within one layer.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// Features.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// Groups.
    #[error(transparent)]
    Cut(#[from] CutError),
    /// Means.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// Neurons.
    #[error(transparent)]
    Align(#[from] AlignError),
}

impl LayerError {
    pub(crate) fn at(self, layer: usize) -> CompressError {
        CompressError::Layer { layer, source: self }
    }
}

impl CompressError {
    pub(crate) fn input(what: impl Into<String>, rule: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Input {
            what: what.into(),
            rule: rule.into(),
            hint: hint.into(),
        }
    }

    /// What the user can do about it, if anything is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Input { hint, .. } => (!hint.is_empty()).then(|| hint.clone()),
            Self::Stopped(_) => Some("run the same command with --resume".into()),
            Self::Format(e) => e.hint().map(str::to_owned),
            Self::Model(e) => e.hint(),
            Self::Data(e) => e.hint().map(str::to_owned),
            _ => None,
        }
    }
}
