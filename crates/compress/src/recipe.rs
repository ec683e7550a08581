//! The recipe of a merge, as written by a user in TOML.
//!
//! Owns the keys, their defaults and every refusal that needs no model. Unknown keys, keys of the other method and
//! values out of range are errors, because a silently ignored key changes a published number. It must not know how a
//! recipe is carried out, and opens no file.
//!
//! ```toml
//! method = "hc-smoe"              # or "prune", "o-prune"
//! similarity = "expert-output"    # "weight", "router-logits"
//! linkage = "average"             # "single", "complete", "ward-unsquared"
//! merge = "frequency"             # "average", "aligned", "aligned-average"
//! budget = { percent = 50 }       # kept; or { experts = 4 }, { per_layer = [4, 6] }; allocate = "uniform" | "global"
//! calibration = { text = "c4.txt", sequences = 32, length = 2048, seed = 42 }   # or ids = "calib.safetensors"
//! ```
//!
//! The calibration text may be JSONL, one document a line; `field = "text"` names the key that holds it.
//! `method = "prune"` takes `score` instead of `similarity`, `linkage` and `merge`; `"o-prune"` takes none of them.
//!
//! Choices: `aligned` weighs by frequency after matching neurons one to one, `aligned-average` weighs alike. The
//! default score is `reap-softmax`, what REAP does for models that do not renormalise. Only `budget` has no default.

mod raw;

use crate::{
    budget::{Budget, BudgetError},
    cluster::Linkage,
    merge_rule::{MergeRule, Weighting},
    prune::Score,
};
use raw::{LINKAGES, MERGES, METHODS, MethodName, RawBudget, RawCalibration, RawRecipe, SCORES, SIMILARITIES, name_of};
use std::path::{Path, PathBuf};

/// What describes an expert when experts are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Similarity {
    /// Mean output `[d]` over all calibration tokens, routed or not, not weighted by the router.
    #[default]
    ExpertOutput,
    /// All weights: gate, up and down flattened.
    Weight,
    /// The expert's column `[T]` of the router logits.
    RouterLogits,
}

/// How experts become fewer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Cluster the experts of each layer and merge every cluster.
    HcSmoe {
        /// What describes an expert.
        similarity: Similarity,
        /// Distance of clusters.
        linkage: Linkage,
        /// How a cluster becomes one expert.
        merge: MergeRule,
    },
    /// Keep the experts with the highest score.
    Prune {
        /// What an expert is judged by.
        score: Score,
    },
    /// Keep the subset of experts that changes the output least, see [`crate::oprune`].
    OPrune,
}

/// Where calibration tokens come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CalibrationSource {
    /// Documents, tokenised and cut into sequences.
    Text {
        /// A text file, a JSONL file, or a folder of them.
        path: PathBuf,
        /// Field of JSONL lines that holds the text.
        field: String,
    },
    /// A safetensors file with `input_ids [N, T]`, i64.
    Ids(PathBuf),
}

impl CalibrationSource {
    /// The file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Text { path, .. } | Self::Ids(path) => path,
        }
    }
}

/// The calibration set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Calibration {
    /// The file.
    pub source: CalibrationSource,
    /// Number of sequences. Text: 32 unless given. Ids: `None` takes every row.
    pub sequences: Option<usize>,
    /// Tokens per sequence. Text: 2048 unless given. Ids: `None` takes whole rows, a number their first tokens.
    pub length: Option<usize>,
    /// Seed of the choice of sequences. Text: 42 unless given. Ids: `None` takes the first rows, in order.
    pub seed: Option<u64>,
}

/// A complete, checked recipe.
#[derive(Debug, Clone, PartialEq)]
pub struct MergeRecipe {
    /// How.
    pub method: Method,
    /// How far.
    pub budget: Budget,
    /// Measured on what; `None` only where nothing is measured ([`MergeRecipe::needs_calibration`]).
    pub calibration: Option<Calibration>,
}

/// Why a recipe is refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RecipeError {
    /// Not TOML, an unknown key, or a value of the wrong type.
    #[error(
        "{0}\n(hint: a merge recipe has the keys method, similarity, linkage, merge, score, budget = {{experts | percent | per_layer, allocate}}, calibration = {{text | ids, field, sequences, length, seed}})"
    )]
    Toml(String),
    /// A key with a value that breaks a rule.
    #[error("key `{key}`: {rule} (hint: {hint})")]
    Value {
        /// Dotted key.
        key: &'static str,
        /// The broken rule, with the value.
        rule: String,
        /// What to write instead.
        hint: String,
    },
    /// The budget breaks a rule.
    #[error(transparent)]
    Budget(#[from] BudgetError),
}

fn refuse<T>(key: &'static str, rule: impl Into<String>, hint: impl Into<String>) -> Result<T, RecipeError> {
    Err(RecipeError::Value {
        key,
        rule: rule.into(),
        hint: hint.into(),
    })
}

impl MergeRecipe {
    /// Reads and checks a recipe.
    ///
    /// # Errors
    /// [`RecipeError`], with the key, the broken rule and a hint.
    pub fn from_toml(text: &str) -> Result<Self, RecipeError> {
        let raw: RawRecipe = toml::from_str(text).map_err(|error| RecipeError::Toml(error.to_string()))?;
        let method = raw.method()?;
        let budget = match &raw.budget {
            Some(budget) => budget.check()?,
            None => refuse(
                "budget",
                "it is missing and has no default",
                "budget = { percent = 50 } keeps half",
            )?,
        };
        let calibration = raw.calibration.as_ref().map(RawCalibration::check).transpose()?;
        let recipe = Self {
            method,
            budget,
            calibration,
        };
        if recipe.calibration.is_none() && recipe.needs_calibration() {
            return refuse(
                "calibration",
                "it is missing, and this method measures the experts on tokens",
                "calibration = { text = \"FILE\" }, or similarity = \"weight\" with merge = \"average\", which needs none",
            );
        }
        Ok(recipe)
    }

    /// Whether anything is measured on tokens: not if weights are compared and averaged alike.
    pub fn needs_calibration(&self) -> bool {
        match self.method {
            Method::HcSmoe { similarity, merge, .. } => {
                similarity != Similarity::Weight || merge.weighting == Weighting::Frequency
            }
            Method::Prune { .. } | Method::OPrune => true,
        }
    }

    /// The recipe with every default written out, for the folder that carries the result.
    ///
    /// # Errors
    /// [`RecipeError::Toml`] if a number does not fit a TOML integer or a path is not UTF-8.
    pub fn to_toml(&self) -> Result<String, RecipeError> {
        let mut raw = RawRecipe {
            budget: Some(RawBudget::try_from(&self.budget)?),
            calibration: self.calibration.as_ref().map(RawCalibration::try_from).transpose()?,
            ..RawRecipe::default()
        };
        match &self.method {
            Method::HcSmoe {
                similarity,
                linkage,
                merge,
            } => {
                raw.method = name_of(METHODS, &MethodName::HcSmoe);
                raw.similarity = name_of(SIMILARITIES, similarity);
                raw.linkage = name_of(LINKAGES, linkage);
                raw.merge = name_of(MERGES, merge);
            }
            Method::Prune { score } => {
                raw.method = name_of(METHODS, &MethodName::Prune);
                raw.score = name_of(SCORES, score);
            }
            Method::OPrune => raw.method = name_of(METHODS, &MethodName::OPrune),
        }
        toml::to_string(&raw).map_err(|error| RecipeError::Toml(error.to_string()))
    }
}

#[cfg(test)]
mod tests;
