//! What a merged folder says of itself: recipe, groups, model card.

use super::{LayerReport, MergeJob, journal::Decided};
use crate::{
    error::CompressError,
    pass::Card,
    recipe::{Method, RecipeError},
};
use ounce_formats::{FormatError, fsx};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::path::Path;

/// The file with the groups.
const RECORD: &str = "merge.json";

/// Recipe and groups.
///
/// # Errors
/// The recipe cannot be expressed as TOML.
pub(super) fn files(
    job: &MergeJob,
    decided: &Decided,
    command: &str,
) -> Result<Vec<(&'static str, String)>, RecipeError> {
    let record = json!({
        "ounce_version": env!("CARGO_PKG_VERSION"),
        "command": command,
        "calibration_tokens": decided.calibration_tokens,
        "layers": decided.plan,
    });
    Ok(vec![
        ("merge.toml", job.recipe.to_toml()?),
        (RECORD, format!("{record:#}\n")),
    ])
}

/// What a finished merge decided.
///
/// # Errors
/// Its record is gone or damaged.
pub(super) fn read(out: &Path) -> Result<Decided, CompressError> {
    #[derive(Deserialize)]
    struct Record {
        layers: Vec<LayerReport>,
        calibration_tokens: usize,
    }
    let path = out.join(RECORD);
    let record: Record = serde_json::from_slice(&fsx::read(&path)?).map_err(|e| FormatError::Place {
        path,
        rule: format!("is damaged: {e}"),
        hint: "`--overwrite` starts again".into(),
    })?;
    Ok(Decided {
        plan: record.layers,
        calibration_tokens: record.calibration_tokens,
    })
}

/// What the model card tells.
pub(super) fn card(job: &MergeJob, config: &Map<String, Value>) -> Card {
    let what = match (&job.recipe.method, job.expanded) {
        (Method::HcSmoe { .. }, false) => {
            "Experts of each layer were merged (HC-SMoE, arXiv 2410.08589). The router is unchanged; `expert_map` in \
             `config.json` says which stored expert answers for which router output, so other programs cannot load it."
        }
        (Method::HcSmoe { .. }, true) => {
            "Experts of each layer were merged (HC-SMoE, arXiv 2410.08589) and written out once for every router output: \
             it loads anywhere and is no smaller than the original."
        }
        (Method::Prune { .. }, _) => "The experts with the lowest scores were dropped, with their router rows.",
        (Method::OPrune, _) => {
            "Of all subsets of experts of this size, each layer kept the one that changes its output least (O-prune, arXiv \
             2402.14800); the others were dropped, with their router rows."
        }
    };
    let uneven = if config.contains_key("experts_per_layer") {
        " Layers have different numbers of experts (`experts_per_layer` in `config.json`), so other programs cannot load it."
    } else {
        ""
    };
    Card {
        method: match job.recipe.method {
            Method::HcSmoe { .. } => "hc-smoe",
            Method::Prune { .. } => "prune",
            Method::OPrune => "o-prune",
        },
        what: format!("{what}{uneven}"),
        parameters: vec![("recipe", "`merge.toml`; the groups are in `merge.json`".into())],
        advice: None,
    }
}
