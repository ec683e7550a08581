//! The recipe file as it is written: names, numbers and their checks, one key at a time.

use super::{Calibration, CalibrationSource, Method, RecipeError, Similarity, refuse};
use crate::{
    budget::{Allocation, Amount, Budget},
    cluster::Linkage,
    merge_rule::{MergeRule, Weighting},
    prune::Score,
};
use ounce_data::readers::FIELD;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The values of the key `method`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MethodName {
    HcSmoe,
    Prune,
    OPrune,
}

/// The file as it is written. Names stay strings here so that a wrong one is answered with the list of right ones.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRecipe {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) method: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) similarity: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) linkage: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) merge: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) score: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) budget: Option<RawBudget>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) calibration: Option<RawCalibration>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawBudget {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) experts: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) percent: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) per_layer: Option<Vec<i64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) allocate: Option<String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCalibration {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) text: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ids: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) field: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sequences: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) length: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) seed: Option<i64>,
}

/// Names of the values of a key; the first is the default.
pub(super) type Names<T> = &'static [(&'static str, T)];

pub(super) const METHODS: Names<MethodName> = &[
    ("hc-smoe", MethodName::HcSmoe),
    ("prune", MethodName::Prune),
    ("o-prune", MethodName::OPrune),
];
pub(super) const SIMILARITIES: Names<Similarity> = &[
    ("expert-output", Similarity::ExpertOutput),
    ("weight", Similarity::Weight),
    ("router-logits", Similarity::RouterLogits),
];
pub(super) const LINKAGES: Names<Linkage> = &[
    ("average", Linkage::Average),
    ("single", Linkage::Single),
    ("complete", Linkage::Complete),
    ("ward-unsquared", Linkage::WardUnsquared),
];
pub(super) const MERGES: Names<MergeRule> = &[
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
pub(super) const SCORES: Names<Score> = &[
    ("reap-softmax", Score::ReapSoftmax),
    ("reap-renorm", Score::ReapRenorm),
    ("ean-sum", Score::EanSum),
    ("ean-mean", Score::EanMean),
    ("usage-counts", Score::UsageCounts),
    ("router-prob-mean", Score::RouterProbMean),
];
pub(super) const ALLOCATIONS: Names<Allocation> = &[("uniform", Allocation::Uniform), ("global", Allocation::Global)];

pub(super) fn named<T: Copy>(key: &'static str, names: Names<T>, given: Option<&str>) -> Result<T, RecipeError> {
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

pub(super) fn name_of<T: PartialEq>(names: Names<T>, value: &T) -> Option<String> {
    names
        .iter()
        .find(|(_, known)| known == value)
        .map(|(name, _)| (*name).to_owned())
}

impl RawRecipe {
    pub(super) fn method(&self) -> Result<Method, RecipeError> {
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

pub(super) fn count(key: &'static str, value: i64) -> Result<usize, RecipeError> {
    match usize::try_from(value) {
        Ok(count) if count > 0 => Ok(count),
        _ => refuse(key, format!("{value} is not a count"), "the smallest is 1"),
    }
}

impl RawBudget {
    pub(super) fn check(&self) -> Result<Budget, RecipeError> {
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
pub(super) fn integer(value: impl TryInto<i64>) -> Result<i64, RecipeError> {
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
    pub(super) fn check(&self) -> Result<Calibration, RecipeError> {
        let source = match (&self.text, &self.ids) {
            (Some(path), None) => CalibrationSource::Text {
                path: path.clone(),
                field: self.field.clone().unwrap_or_else(|| FIELD.to_owned()),
            },
            (None, Some(_)) if self.field.is_some() => refuse(
                "calibration.field",
                "it names the text in JSONL lines, and `ids` has none",
                "remove the key, or give `text`",
            )?,
            (None, Some(path)) => CalibrationSource::Ids(path.clone()),
            _ => refuse(
                "calibration",
                "exactly one of `text` and `ids` is needed",
                "text = \"FILE\", or ids = \"FILE.safetensors\" with input_ids [N, T]",
            )?,
        };
        if source.path().as_os_str().is_empty() {
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
            CalibrationSource::Text { .. } => Calibration {
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
            CalibrationSource::Text { path, field } => {
                raw.text = Some(path.clone());
                raw.field = (field != FIELD).then(|| field.clone());
            }
            CalibrationSource::Ids(path) => raw.ids = Some(path.clone()),
        }
        Ok(raw)
    }
}
