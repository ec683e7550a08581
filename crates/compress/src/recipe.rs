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
//! `method = "prune"` takes `score` instead of `similarity`, `linkage` and `merge`; `"o-prune"` takes none of them.
//!
//! Choices: `aligned` weighs by frequency after matching neurons one to one, `aligned-average` weighs alike. The
//! default score is `reap-softmax`, what REAP does for models that do not renormalise. Only `budget` has no default.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::budget::{Allocation, Amount, Budget, BudgetError};
use crate::cluster::Linkage;
use crate::merge_rule::{MergeRule, Weighting};
use crate::prune::Score;

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

/// The values of the key `method`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MethodName {
    HcSmoe,
    Prune,
    OPrune,
}

/// Where calibration tokens come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CalibrationSource {
    /// A text file, tokenised and cut into sequences.
    Text(PathBuf),
    /// A safetensors file with `input_ids [N, T]`, i64.
    Ids(PathBuf),
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
        "{0}\n(hint: a merge recipe has the keys method, similarity, linkage, merge, score, budget = {{experts | percent | per_layer, allocate}}, calibration = {{text | ids, sequences, length, seed}})"
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

/// The file as it is written. Names stay strings here so that a wrong one is answered with the list of right ones.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRecipe {
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    similarity: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    linkage: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    merge: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    budget: Option<RawBudget>,
    #[serde(skip_serializing_if = "Option::is_none")]
    calibration: Option<RawCalibration>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBudget {
    #[serde(skip_serializing_if = "Option::is_none")]
    experts: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    percent: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    per_layer: Option<Vec<i64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allocate: Option<String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCalibration {
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ids: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sequences: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    length: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<i64>,
}

/// Names of the values of a key; the first is the default.
type Names<T> = &'static [(&'static str, T)];

const METHODS: Names<MethodName> = &[
    ("hc-smoe", MethodName::HcSmoe),
    ("prune", MethodName::Prune),
    ("o-prune", MethodName::OPrune),
];
const SIMILARITIES: Names<Similarity> = &[
    ("expert-output", Similarity::ExpertOutput),
    ("weight", Similarity::Weight),
    ("router-logits", Similarity::RouterLogits),
];
const LINKAGES: Names<Linkage> = &[
    ("average", Linkage::Average),
    ("single", Linkage::Single),
    ("complete", Linkage::Complete),
    ("ward-unsquared", Linkage::WardUnsquared),
];
const MERGES: Names<MergeRule> = &[
    (
        "frequency",
        MergeRule {
            weighting: Weighting::Frequency,
            align: false,
        },
    ),
    (
        "average",
        MergeRule {
            weighting: Weighting::Average,
            align: false,
        },
    ),
    (
        "aligned",
        MergeRule {
            weighting: Weighting::Frequency,
            align: true,
        },
    ),
    (
        "aligned-average",
        MergeRule {
            weighting: Weighting::Average,
            align: true,
        },
    ),
];
const SCORES: Names<Score> = &[
    ("reap-softmax", Score::ReapSoftmax),
    ("reap-renorm", Score::ReapRenorm),
    ("ean-sum", Score::EanSum),
    ("ean-mean", Score::EanMean),
    ("usage-counts", Score::UsageCounts),
    ("router-prob-mean", Score::RouterProbMean),
];
const ALLOCATIONS: Names<Allocation> = &[("uniform", Allocation::Uniform), ("global", Allocation::Global)];

fn named<T: Copy>(key: &'static str, names: Names<T>, given: Option<&str>) -> Result<T, RecipeError> {
    let Some(given) = given else {
        return Ok(names[0].1);
    };
    if let Some(&(_, value)) = names.iter().find(|(name, _)| *name == given) {
        return Ok(value);
    }
    let list: Vec<String> = names.iter().map(|(name, _)| format!("\"{name}\"")).collect();
    refuse(
        key,
        format!("\"{given}\" is not known"),
        format!("one of {}", list.join(", ")),
    )
}

fn name_of<T: PartialEq>(names: Names<T>, value: &T) -> Option<String> {
    names
        .iter()
        .find(|(_, known)| known == value)
        .map(|(name, _)| (*name).to_owned())
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

impl RawRecipe {
    fn method(&self) -> Result<Method, RecipeError> {
        let name = named("method", METHODS, self.method.as_deref())?;
        let only = |method: MethodName, key, value: &Option<String>| match value {
            Some(_) if name != method => refuse(
                key,
                format!(
                    "it has no meaning for method = \"{}\"",
                    name_of(METHODS, &name).unwrap_or_default()
                ),
                "remove the key or change `method`",
            ),
            _ => Ok(()),
        };
        only(MethodName::HcSmoe, "similarity", &self.similarity)?;
        only(MethodName::HcSmoe, "linkage", &self.linkage)?;
        only(MethodName::HcSmoe, "merge", &self.merge)?;
        only(MethodName::Prune, "score", &self.score)?;
        Ok(match name {
            MethodName::HcSmoe => Method::HcSmoe {
                similarity: named("similarity", SIMILARITIES, self.similarity.as_deref())?,
                linkage: named("linkage", LINKAGES, self.linkage.as_deref())?,
                merge: named("merge", MERGES, self.merge.as_deref())?,
            },
            MethodName::Prune => Method::Prune {
                score: named("score", SCORES, self.score.as_deref())?,
            },
            MethodName::OPrune => Method::OPrune,
        })
    }
}

fn count(key: &'static str, value: i64) -> Result<usize, RecipeError> {
    match usize::try_from(value) {
        Ok(count) if count > 0 => Ok(count),
        _ => refuse(key, format!("{value} is not a count"), "the smallest is 1"),
    }
}

impl RawBudget {
    fn check(&self) -> Result<Budget, RecipeError> {
        let amount = match (self.experts, self.percent, &self.per_layer) {
            (Some(experts), None, None) => Amount::Experts(count("budget.experts", experts)?),
            (None, Some(percent), None) => Amount::Percent(percent),
            (None, None, Some(list)) => {
                let counts: Result<Vec<_>, _> = list.iter().map(|&kept| count("budget.per_layer", kept)).collect();
                Amount::PerLayer(counts?)
            }
            _ => refuse(
                "budget",
                "exactly one of `experts`, `percent`, `per_layer` is needed",
                "budget = { percent = 50 } keeps half",
            )?,
        };
        let allocation = named("budget.allocate", ALLOCATIONS, self.allocate.as_deref())?;
        let budget = Budget { amount, allocation };
        budget.check()?;
        Ok(budget)
    }
}

/// TOML integers have 64 bits and a sign.
fn integer(value: impl TryInto<i64>) -> Result<i64, RecipeError> {
    value
        .try_into()
        .map_err(|_| RecipeError::Toml("a number is too large for a TOML integer".to_owned()))
}

impl TryFrom<&Budget> for RawBudget {
    type Error = RecipeError;

    fn try_from(budget: &Budget) -> Result<Self, RecipeError> {
        let mut raw = Self {
            allocate: name_of(ALLOCATIONS, &budget.allocation),
            ..Self::default()
        };
        match &budget.amount {
            Amount::Experts(experts) => raw.experts = Some(integer(*experts)?),
            Amount::Percent(percent) => raw.percent = Some(*percent),
            Amount::PerLayer(list) => {
                raw.per_layer = Some(list.iter().map(|&kept| integer(kept)).collect::<Result<_, _>>()?);
            }
        }
        Ok(raw)
    }
}

impl RawCalibration {
    fn check(&self) -> Result<Calibration, RecipeError> {
        let source = match (&self.text, &self.ids) {
            (Some(path), None) => CalibrationSource::Text(path.clone()),
            (None, Some(path)) => CalibrationSource::Ids(path.clone()),
            _ => refuse(
                "calibration",
                "exactly one of `text` and `ids` is needed",
                "text = \"FILE\", or ids = \"FILE.safetensors\" with input_ids [N, T]",
            )?,
        };
        let (CalibrationSource::Text(path) | CalibrationSource::Ids(path)) = &source;
        if path.as_os_str().is_empty() {
            let key = if self.text.is_some() {
                "calibration.text"
            } else {
                "calibration.ids"
            };
            return refuse(key, "the path is empty", "name a file");
        }
        let sequences = self
            .sequences
            .map(|value| count("calibration.sequences", value))
            .transpose()?;
        let length = self
            .length
            .map(|value| count("calibration.length", value))
            .transpose()?;
        let seed = match self.seed.map(u64::try_from).transpose() {
            Ok(seed) => seed,
            Err(_) => refuse("calibration.seed", "it is negative", "any whole number from 0 on")?,
        };
        Ok(match source {
            CalibrationSource::Text(_) => Calibration {
                source,
                sequences: sequences.or(Some(32)),
                length: length.or(Some(2048)),
                seed: seed.or(Some(42)),
            },
            CalibrationSource::Ids(_) => Calibration {
                source,
                sequences,
                length,
                seed,
            },
        })
    }
}

impl TryFrom<&Calibration> for RawCalibration {
    type Error = RecipeError;

    fn try_from(calibration: &Calibration) -> Result<Self, RecipeError> {
        let mut raw = Self {
            sequences: calibration.sequences.map(integer).transpose()?,
            length: calibration.length.map(integer).transpose()?,
            seed: calibration.seed.map(integer).transpose()?,
            ..Self::default()
        };
        match &calibration.source {
            CalibrationSource::Text(path) => raw.text = Some(path.clone()),
            CalibrationSource::Ids(path) => raw.ids = Some(path.clone()),
        }
        Ok(raw)
    }
}

#[cfg(test)]
mod tests;
