//! `ounce merge`: one streaming pass from a checkpoint to a smaller one.
//!
//! Weights stay file-backed, and so do the hidden states of the calibration tokens; in memory are the activations of a
//! piece of one sequence ([`crate::pass`]) or, while writing, less than three experts in f32. Each measured layer is
//! journaled, so is what was decided before anything is written, and every tensor once it is on the disk; so a killed
//! run continues, and its result is the same byte for byte.

mod decide;
mod estimate;
mod journal;
mod side_files;
mod weigher;

pub use estimate::{MergeEstimate, estimate};

use crate::{
    calibrate::CalibrationIds,
    error::CompressError,
    grouping::Grouping,
    hc_smoe::LayerPlan,
    output::{Decision, items, output_config},
    recipe::{MergeRecipe, Method},
};
use decide::{check, decide};
use journal::{Identity, Journal};
use ounce_formats::{Checkpoint, OutputFolder, Overwrite, Resume, ShardOptions, ShardedWriter};
use ounce_model::{Model, OpenOptions, Opened};
use ounce_tensor::Tensor;
use serde::{Deserialize, Serialize};
use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
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
    /// Replace what is at `out`.
    pub overwrite: bool,
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
    /// This many of all tensors are written.
    Written(usize, usize),
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
}

/// Largest free list of buffers while merging, in bytes: memory is bounded by contract.
const BUFFERS: usize = 32 << 20;

fn open(job: &MergeJob) -> Result<(Arc<Checkpoint>, Model), CompressError> {
    let opened = Opened::new(&job.model, &OpenOptions::default())?;
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
    let identity = Identity::of(job, &checkpoint, ids.as_ref())?;
    let overwrite = if job.overwrite {
        Overwrite::Replace
    } else {
        Overwrite::Refuse
    };
    let resume = if job.resume { Resume::Yes } else { Resume::No };
    let folder = OutputFolder::create(&job.out, overwrite, resume)?;
    let mut journal = Journal::begin(folder, &identity, job)?;
    let stopped = || CompressError::Stopped(format!("{}.partial", job.out.display()));

    let decided = if let Some(decided) = journal.decided() {
        decided
    } else {
        let decided = decide(job, &model, ids.as_ref(), &mut journal, progress, stop).map_err(|e| match e {
            CompressError::Stopped(_) => stopped(),
            other => other,
        })?;
        journal.decide(&decided)?;
        decided
    };
    journal.remove_scratch()?;

    let plans: Vec<LayerPlan>;
    let kept: Vec<Vec<usize>>;
    let decision = match &job.recipe.method {
        Method::HcSmoe { .. } => {
            plans = decided
                .plan
                .iter()
                .map(|l| LayerPlan {
                    layer: l.layer,
                    grouping: Grouping::from_names(&l.labels.iter().flatten().copied().collect::<Vec<_>>()),
                    heights: l.heights.clone(),
                })
                .collect();
            Decision::Merge {
                plans: &plans,
                expanded: job.expanded,
            }
        }
        Method::Prune { .. } | Method::OPrune => {
            kept = decided
                .plan
                .iter()
                .map(|l| l.groups().into_iter().flatten().collect())
                .collect();
            Decision::Keep(&kept)
        }
    };
    let config = output_config(&model.config, &decision);
    let items = items(&checkpoint, &model.config, &decision);
    side_files::write(job, &journal, &config, &decided)?;

    let declared = items.iter().map(|i| i.spec.clone()).collect();
    let folder = &mut journal.folder;
    let mut writer = ShardedWriter::resume(folder.path(), declared, &ShardOptions::default(), folder)?;
    let weigher = Weigher::new(job, &model, &checkpoint, &decided.plan);
    let total = items.len();
    for (done, item) in items.iter().enumerate().skip(writer.finished()) {
        if stop.load(Ordering::Relaxed) {
            writer.commit(folder)?;
            return Err(stopped());
        }
        weigher.write(item, &mut writer)?;
        // The journal costs a sync: once per expert is often enough to lose little.
        if done % 3 == 2 || done + 1 == total {
            writer.commit(folder)?;
        }
        progress(MergeEvent::Written(done + 1, total));
    }
    writer.finish()?;
    journal.folder.finish()?;
    let after = Checkpoint::open(&job.out)?.total_bytes();
    Ok(MergeReport {
        layers: decided.plan,
        calibration_tokens: decided.calibration_tokens,
        bytes_before: checkpoint.total_bytes(),
        bytes_after: after,
        notes: model.notes().to_vec(),
        seconds: start.elapsed().as_secs_f64(),
    })
}
