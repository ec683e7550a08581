//! Everything in the output folder but weights.

use super::{
    MergeJob,
    journal::{Decided, Journal},
};
use crate::{error::CompressError, recipe::Method, side_files};
use ounce_formats::fsx;
use serde_json::{Value, json};

/// Everything but weights: configuration, tokenizer, recipe, card.
///
/// # Errors
/// A file cannot be read or written.
pub(super) fn write(job: &MergeJob, journal: &Journal, config: &Value, decided: &Decided) -> Result<(), CompressError> {
    let dir = journal.folder.path();
    side_files::copy(&job.model, dir)?;
    let pretty = |value: &Value| format!("{value:#}\n");
    fsx::write_atomic(&dir.join("config.json"), pretty(config).as_bytes())?;
    fsx::write_atomic(&dir.join("merge.toml"), job.recipe.to_toml()?.as_bytes())?;
    let record = json!({
        "ounce_version": env!("CARGO_PKG_VERSION"),
        "command": journal.command,
        "calibration_tokens": decided.calibration_tokens,
        "layers": decided.plan,
    });
    fsx::write_atomic(&dir.join("merge.json"), pretty(&record).as_bytes())?;
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
    let uneven = if config.get("experts_per_layer").is_some() {
        " Layers have different numbers of experts (`experts_per_layer` in `config.json`), so other programs cannot load it."
    } else {
        ""
    };
    let card = format!(
        "# Made with Ounce {}\n\n{what}{uneven}\n\n```\n{}\n```\n\nThe recipe is in `merge.toml`, the groups in `merge.json`.\n",
        env!("CARGO_PKG_VERSION"),
        journal.command
    );
    fsx::write_atomic(&dir.join("README.md"), card.as_bytes())?;
    Ok(())
}
