//! `ounce demo`: the main job, end to end, on the model that ships with the program.
//!
//! Measure, merge experts with HC-SMoE to 75 % and 50 %, measure again, generate before and after, print the bill, write
//! a report. Everything here is orchestration: quality comes from `ounce-eval`, merging from `ounce-compress`,
//! generation from `ounce-model`.

mod bill;
mod measure;

use crate::{LabError, report::Report};
use ounce_compress::{MergeJob, MergeRecipe, MergeReport, merge};
use ounce_formats::{Overwrite, fsx};
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::AtomicBool,
};

pub use measure::{Measurement, measure};

/// What the demo needs to know.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// Where results go.
    pub out: PathBuf,
    /// Folder with `demo/` (the model) and `texts/` (calibration and evaluation).
    pub models: PathBuf,
    /// This program, to measure each model in a process of its own: run as `PROGRAM measure MODEL --text FILE …`.
    pub program: PathBuf,
    /// For the report's footer.
    pub command_line: String,
    /// For the report's footer.
    pub version: String,
}

/// Shares of experts the demo merges to.
const SHARES: [u32; 2] = [75, 50];
/// What the models are asked to continue.
const PROMPTS: [&str; 2] = ["It was a cold evening, and", "\"My dear,\" said the old man, \"I"];
/// Length of each continuation, in tokens.
const SAMPLE_TOKENS: usize = 80;

/// One column of the bill.
#[derive(Debug, Clone, Serialize)]
pub struct Variant {
    /// "original", "75 %", "50 %".
    pub name: String,
    /// Folder of the model.
    pub folder: PathBuf,
    /// What was measured.
    pub measured: Measurement,
    /// How long merging took, in seconds.
    pub merge_seconds: Option<f64>,
}

/// Everything the demo found.
pub struct Demo {
    /// Original first.
    pub variants: Vec<Variant>,
    /// What merging decided, per merged variant.
    pub merges: Vec<MergeReport>,
    /// The report as written to `report.html`.
    pub report: Report,
}

/// Runs the demo; `progress` is told what happens next.
///
/// # Errors
/// If the model or its texts are missing, or any step fails.
pub fn demo(options: &DemoOptions, progress: &mut dyn FnMut(&str)) -> Result<Demo, LabError> {
    let model = options.models.join("demo");
    let texts = options.models.join("texts");
    fsx::create_dir_all(&options.out)?;

    progress("measuring the original model");
    let mut variants = vec![Variant {
        name: "original".into(),
        folder: model.clone(),
        measured: measure_apart(options, &model, &texts)?,
        merge_seconds: None,
    }];
    let mut merges = Vec::new();
    for share in SHARES {
        progress(&format!("merging experts to {share} %"));
        let out = options.out.join(format!("merged-{share}"));
        let report = merge(
            &MergeJob {
                model: model.clone(),
                recipe: recipe(share, &texts.join("calibration.txt"))?,
                out: out.clone(),
                expanded: false,
                overwrite: Overwrite::Replace,
                resume: false,
                command_line: options.command_line.clone(),
            },
            &mut |_| {},
            &AtomicBool::new(false),
        )?;
        progress(&format!("measuring the model with {share} % of its experts"));
        variants.push(Variant {
            name: format!("{share} %"),
            folder: out.clone(),
            measured: measure_apart(options, &out, &texts)?,
            merge_seconds: Some(report.seconds),
        });
        merges.push(report);
    }
    let report = bill::report(options, &variants, &merges)?;
    report.write_html(&options.out.join("report.html"))?;
    let json = serde_json::to_vec_pretty(&variants).map_err(|e| LabError::Demo(format!("result.json: {e}")))?;
    fsx::write_atomic(&options.out.join("result.json"), &json)?;
    Ok(Demo {
        variants,
        merges,
        report,
    })
}

/// HC-SMoE as in the paper: mean outputs, average linkage, weights averaged by usage.
fn recipe(percent: u32, calibration: &Path) -> Result<MergeRecipe, LabError> {
    let calibration = calibration.display().to_string().escape_default().to_string();
    let text = format!(
        "method = \"hc-smoe\"\nbudget = {{ percent = {percent} }}\n\
         calibration = {{ text = \"{calibration}\", sequences = 8, length = 512, seed = 42 }}\n"
    );
    Ok(MergeRecipe::from_toml(&text)?)
}

/// Measures `model` in a new process and reads what it prints.
fn measure_apart(options: &DemoOptions, model: &Path, texts: &Path) -> Result<Measurement, LabError> {
    let mut command = Command::new(&options.program);
    command
        .arg("measure")
        .arg(model)
        .arg("--text")
        .arg(texts.join("evaluation.txt"));
    command.args(["--sample-tokens", &SAMPLE_TOKENS.to_string()]);
    for prompt in PROMPTS {
        command.args(["--prompt", prompt]);
    }
    let output = command
        .output()
        .map_err(|e| LabError::Demo(format!("{}: {e}", options.program.display())))?;
    if !output.status.success() {
        return Err(LabError::Demo(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        ));
    }
    serde_json::from_slice(&output.stdout).map_err(|e| LabError::Demo(format!("the measuring process printed: {e}")))
}

/// The folder with the shipped model: below the current folder, beside the program, or where the program was built.
pub fn find_models() -> Option<PathBuf> {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|p| Some(p.parent()?.join("models")));
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
    [Some(PathBuf::from("models")), beside, Some(built)]
        .into_iter()
        .flatten()
        .find(|p| p.join("demo/config.json").is_file())
}
