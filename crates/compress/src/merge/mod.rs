//! `ounce merge`: one streaming pass from a checkpoint to a smaller one.
//!
//! Weights stay file-backed, and so do the hidden states of the calibration tokens; in memory are the activations of a
//! piece of one sequence ([`crate::pass`]) or, while writing, less than three experts in f32. Each measured layer is
//! journaled, so is what was decided before anything is written, and every tensor once it is on the disk; so a killed
//! run continues, and its result is the same byte for byte.

mod decide;
mod estimate;
mod journal;
mod record;
mod weigher;

pub use estimate::{MergeEstimate, estimate};

use crate::{
    calibrate::CalibrationIds,
    error::CompressError,
    grouping::Grouping,
    hc_smoe::LayerPlan,
    output::{Decision, items, output_config},
    pass::{Pass, Plan, Request, stopped},
    recipe::{MergeRecipe, Method},
};
use decide::{check, decide};
use journal::{Decided, Journal};
use ounce_formats::{Checkpoint, Identity, Overwrite, fsx};
use ounce_model::{Model, OpenOptions, Opened};
use ounce_tensor::Tensor;
use serde::{Deserialize, Serialize};
use std::{
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
    time::Instant,
};
use weigher::Weigher;

/// What to merge, how, and where to.
#[derive(Debug, Clone)]
pub struct MergeJob {
    /// Checkpoint folder.
    pub model: PathBuf,
    /// How.
    pub recipe: MergeRecipe,
    /// Output folder.
    pub out: PathBuf,
    /// Write n copies under the stock layout.
    pub expanded: bool,
    /// Whether to replace what is at `out`.
    pub overwrite: Overwrite,
    /// Continue what is at `out.partial`.
    pub resume: bool,
    /// For the model card.
    pub command_line: String,
}

/// What the callback is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MergeEvent {
    /// Statistics of this many of all layers are done.
    Calibrated(usize, usize),
    /// This many of all bytes are written.
    Written(u64, u64),
}

/// What became of one mixture layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerReport {
    /// Layer index.
    pub layer: usize,
    /// Group of each expert; when pruning, the new id of each kept expert and nothing for the others.
    pub labels: Vec<Option<usize>>,
    /// Share of the selections of each expert on the calibration tokens; empty if none were needed.
    pub usage: Vec<f64>,
    /// Distances at which clusters were joined, in order.
    pub heights: Vec<f64>,
}

impl LayerReport {
    /// Members of each group.
    pub fn groups(&self) -> Vec<Vec<usize>> {
        let count = self.labels.iter().flatten().max().map_or(0, |m| m + 1);
        let mut groups = vec![Vec::new(); count];
        for (expert, label) in self.labels.iter().enumerate() {
            if let Some(label) = label {
                groups[*label].push(expert);
            }
        }
        groups
    }
}

/// What a merge did.
#[derive(Debug, Clone, Serialize)]
pub struct MergeReport {
    /// Per mixture layer.
    pub layers: Vec<LayerReport>,
    /// Calibration tokens.
    pub calibration_tokens: usize,
    /// Bytes of weights before.
    pub bytes_before: u64,
    /// Bytes of weights after.
    pub bytes_after: u64,
    /// How the model was understood: what was chosen, taken away or ignored.
    pub notes: Vec<String>,
    /// How long it took.
    pub seconds: f64,
    /// Files of the original that are not in the result: nothing that a model needs, as far as is known.
    pub left: Vec<String>,
}

/// Largest free list of buffers while merging, in bytes: memory is bounded by contract.
const BUFFERS: usize = 32 << 20;

fn open(job: &MergeJob) -> Result<(Arc<Checkpoint>, Model), CompressError> {
    let opened = Opened::folder(&job.model, &OpenOptions::default())?;
    let checkpoint = opened.checkpoint().clone();
    let model = opened.model()?;
    let place = job.model.display().to_string();
    if !model.config.is_moe() {
        return Err(CompressError::input(
            place,
            "has no mixture of experts to merge",
            "name a mixtral, qwen2_moe, qwen3_moe or olmoe checkpoint",
        ));
    }
    if checkpoint.config()["model_type"] == "ounce_merged" {
        return Err(CompressError::input(
            place,
            "is merged already",
            "merge the original model with a smaller budget",
        ));
    }
    Ok((checkpoint, model))
}

/// The calibration tokens, if the recipe measures anything, checked against the vocabulary.
fn calibration(job: &MergeJob, model: &Model) -> Result<Option<CalibrationIds>, CompressError> {
    match &job.recipe.calibration {
        Some(calibration) if job.recipe.needs_calibration() => {
            let ids = CalibrationIds::load(calibration, &job.model)?;
            ids.check(calibration, model.config.vocab_size)?;
            Ok(Some(ids))
        }
        _ => Ok(None),
    }
}

/// Runs the job. `progress` is told how far it is; when `stop` is set, the job ends with
/// [`CompressError::Stopped`] and can be resumed.
///
/// # Errors
/// If the model, the recipe or the calibration is wrong (before anything is written), or the disk refuses (what is
/// finished by then can be resumed).
pub fn merge(
    job: &MergeJob,
    progress: &mut dyn FnMut(MergeEvent),
    stop: &AtomicBool,
) -> Result<MergeReport, CompressError> {
    let start = Instant::now();
    Tensor::limit_buffers(BUFFERS);
    let (checkpoint, model) = open(job)?;
    check(job, &model)?;
    let ids = calibration(job, &model)?;
    let pass = Pass::begin(Request {
        checkpoint: &checkpoint,
        identity: identity(job, ids.as_ref())?,
        read: reads(job),
        out: &job.out,
        overwrite: job.overwrite,
        resume: job.resume,
        command_line: &job.command_line,
    })?;
    let Some(mut pass) = pass else {
        // Done before: what it did stands in its record.
        return Ok(MergeReport {
            seconds: start.elapsed().as_secs_f64(),
            ..MergeReport::of(record::read(&job.out)?, (&checkpoint, &model), job, Vec::new())?
        });
    };
    let stop_error = stopped(&pass.folder);
    let mut journal = Journal(&mut pass.folder);
    let decided = if let Some(decided) = journal.decided() {
        decided
    } else {
        let decided = decide(job, &model, ids.as_ref(), &mut journal, progress, stop).map_err(|e| match e {
            CompressError::Stopped(_) => stop_error,
            other => other,
        })?;
        journal.decide(&decided)?;
        decided
    };
    journal.remove_scratch()?;

    let weigher = Weigher::new(job, &model, &checkpoint, &decided.plan);
    let plan = plan(job, &model, &checkpoint, &weigher, &decided, pass.folder.command())?;
    let left = pass.left();
    pass.write(
        plan,
        &mut |done, total| progress(MergeEvent::Written(done, total)),
        stop,
    )?;
    Ok(MergeReport {
        seconds: start.elapsed().as_secs_f64(),
        ..MergeReport::of(decided, (&checkpoint, &model), job, left)?
    })
}

impl MergeReport {
    fn of(
        decided: Decided,
        (before, model): (&Checkpoint, &Model),
        job: &MergeJob,
        left: Vec<String>,
    ) -> Result<Self, CompressError> {
        Ok(Self {
            layers: decided.plan,
            calibration_tokens: decided.calibration_tokens,
            bytes_before: before.total_bytes(),
            bytes_after: Checkpoint::open(&job.out)?.total_bytes(),
            notes: model.notes().to_vec(),
            seconds: 0.0,
            left,
        })
    }
}

/// Everything that decides a byte of the result, the model aside.
fn identity(job: &MergeJob, ids: Option<&CalibrationIds>) -> Result<Identity, CompressError> {
    Ok(Identity::new("merge")
        .with_instruction_set()
        .with("recipe", fsx::sha256_bytes(job.recipe.to_toml()?.as_bytes()))
        .with("calibration", ids.map(CalibrationIds::hash))
        .with("setting of --expanded", job.expanded))
}

/// What is read beside the model.
fn reads(job: &MergeJob) -> Vec<PathBuf> {
    let source = job.recipe.calibration.as_ref().map(|c| &c.source);
    source.map(|source| source.path().to_owned()).into_iter().collect()
}

/// What was decided, as a plan for the pass.
fn plan<'a>(
    job: &MergeJob,
    model: &Model,
    checkpoint: &Checkpoint,
    weigher: &'a Weigher<'a>,
    decided: &Decided,
    command: &str,
) -> Result<Plan<'a>, CompressError> {
    let plans: Vec<LayerPlan>;
    let kept: Vec<Vec<usize>>;
    let decision = match &job.recipe.method {
        Method::HcSmoe { .. } => {
            let plan = |l: &LayerReport| LayerPlan {
                layer: l.layer,
                grouping: Grouping::from_names(&l.labels.iter().flatten().copied().collect::<Vec<_>>()),
                heights: l.heights.clone(),
            };
            plans = decided.plan.iter().map(plan).collect();
            Decision::Merge {
                plans: &plans,
                expanded: job.expanded,
            }
        }
        Method::Prune { .. } | Method::OPrune => {
            let experts = |l: &LayerReport| l.groups().into_iter().flatten().collect();
            kept = decided.plan.iter().map(experts).collect();
            Decision::Keep(&kept)
        }
    };
    let config = output_config(&model.config, &decision);
    let items = items(checkpoint, &model.config, &decision);
    Ok(Plan {
        card: record::card(job, &config),
        files: record::files(job, decided, command)?,
        config,
        tensors: items.into_iter().map(|item| weigher.planned(item)).collect(),
        computed: true,
        seal: None,
    })
}
