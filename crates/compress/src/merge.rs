//! `ounce merge`: one streaming pass from a checkpoint to a smaller one.
//!
//! Weights stay file-backed; in memory are the hidden states of the calibration tokens and, while writing, at most three
//! experts in f32. What was decided is journaled before anything is written, and every tensor once it is on the disk; so
//! a killed run continues, and its result is the same byte for byte.

use crate::{
    align::{Alignment, Expert},
    budget::Allocation,
    calibrate::CalibrationIds,
    error::{CompressError, LayerError},
    grouping::Grouping,
    hc_smoe::{self, LayerPlan},
    merge_rule::{MergeRule, TensorMean},
    output::{Decision, Item, Matrix, Source, items, output_config},
    prune::{Score, keep_best, keep_best_global},
    recipe::{MergeRecipe, Method, Similarity},
    statistics::{LayerStatistics, Wanted, gather},
};
use ounce_formats::{Checkpoint, Dtype, OutputFolder, Overwrite, Resume, ShardOptions, ShardedWriter, fsx};
use ounce_model::{Model, ffn::DenseFfn};
use ounce_tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

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
    /// How long it took.
    pub seconds: f64,
}

/// What a merge will cost.
#[derive(Debug, Clone, Serialize)]
pub struct MergeEstimate {
    /// Calibration tokens.
    pub calibration_tokens: usize,
    /// Floating-point operations of the statistics.
    pub calibration_flops: f64,
    /// Bound on memory that is not file-backed.
    pub memory_bytes: u64,
    /// Bytes of weights before.
    pub bytes_before: u64,
    /// Bytes of weights after; for a global budget, the same number of experts is assumed in every layer.
    pub bytes_after: u64,
}

/// What was decided, as journaled.
#[derive(Serialize, Deserialize)]
struct Decided {
    plan: Vec<LayerReport>,
    calibration_tokens: usize,
    job: String,
}

/// Largest free list of buffers while merging, in bytes: memory is bounded by contract.
const BUFFERS: usize = 64 << 20;

/// What the statistics must hold for a method.
fn wanted(method: Method) -> Wanted {
    match method {
        Method::HcSmoe { similarity, .. } => Wanted {
            outputs: similarity == Similarity::ExpertOutput,
            router_columns: similarity == Similarity::RouterLogits,
        },
        Method::Prune { score } => Wanted {
            outputs: !matches!(score, Score::UsageCounts | Score::RouterProbMean),
            router_columns: false,
        },
    }
}

fn open(job: &MergeJob) -> Result<(Arc<Checkpoint>, Model), CompressError> {
    let checkpoint = Arc::new(Checkpoint::open(&job.model)?);
    let model = Model::from_checkpoint(checkpoint.clone(), false)?;
    let place = job.model.display().to_string();
    if !model.config.is_moe() {
        return Err(CompressError::input(place, "has no mixture of experts to merge", ""));
    }
    if model.config.moe_layers().any(|(_, m)| m.stored != m.experts) {
        return Err(CompressError::input(
            place,
            "is merged already",
            "merge the original model with a smaller budget",
        ));
    }
    Ok((checkpoint, model))
}

/// What the job will cost, without doing it.
///
/// # Errors
/// If the model or the calibration cannot be read, or the budget does not fit.
pub fn estimate(job: &MergeJob) -> Result<MergeEstimate, CompressError> {
    let (checkpoint, model) = open(job)?;
    let c = &model.config;
    let tokens = match &job.recipe.calibration {
        Some(calibration) if job.recipe.needs_calibration() => CalibrationIds::load(calibration, &job.model)?.tokens(),
        _ => 0,
    };
    let experts: Vec<usize> = c.moe_layers().map(|(_, m)| m.experts).collect();
    let kept = job.recipe.budget.uniform(&experts)?;
    let all = wanted(job.recipe.method).outputs;
    let attention = c.layers.len() * c.hidden_size * c.head_dim * (2 * c.heads + 2 * c.kv_heads);
    let expert = |m: &ounce_model::config::MoeConfig| 3 * c.hidden_size * m.width;
    let per_token: usize = attention
        + c.moe_layers()
            .map(|(_, m)| (m.top_k + if all { m.experts } else { 0 }) * expert(m))
            .sum::<usize>();
    let element = model.dtype().size();
    let dropped: usize = c
        .moe_layers()
        .zip(&kept)
        .map(|((_, m), &r)| (m.experts - r) * expert(m) * element)
        .sum();
    let largest = c.moe_layers().map(|(_, m)| expert(m)).max().unwrap_or(0);
    Ok(MergeEstimate {
        calibration_tokens: tokens,
        calibration_flops: 2.0 * per_token as f64 * tokens as f64,
        memory_bytes: (2 * tokens * c.hidden_size * 4 + 3 * largest * 4 + (200 << 20)) as u64,
        bytes_before: checkpoint.total_bytes(),
        bytes_after: checkpoint.total_bytes() - if job.expanded { 0 } else { dropped as u64 },
    })
}

/// Runs the job. `progress` is told how far it is; when `stop` is set, the job ends with
/// [`CompressError::Stopped`] and can be resumed.
///
/// # Errors
/// If the model, the recipe or the calibration is wrong, or the disk refuses.
pub fn merge(
    job: &MergeJob,
    progress: &mut dyn FnMut(MergeEvent),
    stop: &AtomicBool,
) -> Result<MergeReport, CompressError> {
    let start = Instant::now();
    Tensor::limit_buffers(BUFFERS);
    let (checkpoint, model) = open(job)?;
    let overwrite = if job.overwrite {
        Overwrite::Replace
    } else {
        Overwrite::Refuse
    };
    let resume = if job.resume { Resume::Yes } else { Resume::No };
    let mut folder = OutputFolder::create(&job.out, overwrite, resume)?;
    let stopped = || CompressError::Stopped(folder_name(job));

    // A resumed job must be the same job: everything that decides a byte is in this text.
    let identity = format!("{:?} expanded={} {}", job.recipe, job.expanded, checkpoint.config());
    let identity = fsx::sha256_bytes(identity.as_bytes());
    let decided = match journaled(&folder) {
        Some(decided) if decided.job == identity => decided,
        Some(_) => {
            return Err(CompressError::input(
                folder_name(job),
                "was begun with another recipe or model",
                "--overwrite starts again",
            ));
        }
        None => {
            let decided = decide(job, &model, identity, progress, stop).map_err(|e| match e {
                CompressError::Stopped(_) => stopped(),
                other => other,
            })?;
            folder.record(&json!({ "decided": &decided }))?;
            decided
        }
    };

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
        Method::Prune { .. } => {
            kept = decided
                .plan
                .iter()
                .map(|l| l.groups().into_iter().flatten().collect())
                .collect();
            Decision::Keep(&kept)
        }
    };
    let config = output_config(&model.config, &decision)?;
    let items = items(&checkpoint, &model.config, &decision);
    write_side_files(job, &folder, &config, &decided)?;

    let declared = items.iter().map(|i| i.spec.clone()).collect();
    let mut writer = ShardedWriter::resume(folder.path(), declared, &ShardOptions::default(), &folder)?;
    let weigher = Weigher {
        job,
        model: &model,
        checkpoint: &checkpoint,
        layers: &decided.plan,
    };
    let total = items.len();
    for (done, item) in items.iter().enumerate().skip(writer.finished()) {
        if stop.load(Ordering::Relaxed) {
            writer.commit(&mut folder)?;
            return Err(stopped());
        }
        weigher.write(item, &mut writer)?;
        // The journal costs a sync: once per expert is often enough to lose little.
        if done % 3 == 2 || done + 1 == total {
            writer.commit(&mut folder)?;
        }
        progress(MergeEvent::Written(done + 1, total));
    }
    writer.finish()?;
    folder.finish()?;
    let after = Checkpoint::open(&job.out)?.total_bytes();
    Ok(MergeReport {
        layers: decided.plan,
        calibration_tokens: decided.calibration_tokens,
        bytes_before: checkpoint.total_bytes(),
        bytes_after: after,
        seconds: start.elapsed().as_secs_f64(),
    })
}

fn folder_name(job: &MergeJob) -> String {
    format!("{}.partial", job.out.display())
}

/// The decision of an earlier process, if it came so far.
fn journaled(folder: &OutputFolder) -> Option<Decided> {
    let entry = folder.entries().iter().find_map(|e| e.get("decided"))?;
    serde_json::from_value(entry.clone()).ok()
}

/// Statistics and decisions for every mixture layer.
fn decide(
    job: &MergeJob,
    model: &Model,
    identity: String,
    progress: &mut dyn FnMut(MergeEvent),
    stop: &AtomicBool,
) -> Result<Decided, CompressError> {
    let recipe = &job.recipe;
    // A wrong budget is refused before the long part.
    let experts: Vec<usize> = model.config.moe_layers().map(|(_, m)| m.experts).collect();
    recipe.budget.uniform(&experts)?;
    let mut tokens = 0;
    let statistics = match &recipe.calibration {
        Some(calibration) if recipe.needs_calibration() => {
            let ids = CalibrationIds::load(calibration, &job.model)?;
            tokens = ids.tokens();
            gather(
                model,
                &ids,
                wanted(recipe.method),
                &mut |a, b| progress(MergeEvent::Calibrated(a, b)),
                stop,
            )?
        }
        _ => Vec::new(),
    };
    let usage = |i: usize| statistics.get(i).map_or_else(Vec::new, LayerStatistics::usage_freq);
    let plan = match &recipe.method {
        Method::HcSmoe {
            similarity, linkage, ..
        } => hc_smoe::plan(model, &statistics, *similarity, *linkage, &recipe.budget)?
            .into_iter()
            .enumerate()
            .map(|(i, p)| LayerReport {
                layer: p.layer,
                labels: p.grouping.labels().iter().map(|&l| Some(l)).collect(),
                usage: usage(i),
                heights: p.heights,
            })
            .collect(),
        Method::Prune { score } => kept_experts(&statistics, *score, recipe, &experts)?
            .into_iter()
            .enumerate()
            .map(|(i, kept)| LayerReport {
                layer: statistics[i].layer,
                labels: (0..experts[i]).map(|e| kept.iter().position(|&k| k == e)).collect(),
                usage: usage(i),
                heights: Vec::new(),
            })
            .collect(),
    };
    Ok(Decided {
        plan,
        calibration_tokens: tokens,
        job: identity,
    })
}

fn kept_experts(
    statistics: &[LayerStatistics],
    score: Score,
    recipe: &MergeRecipe,
    experts: &[usize],
) -> Result<Vec<Vec<usize>>, CompressError> {
    let scores: Vec<Vec<f64>> = statistics.iter().map(|s| scores(s, score)).collect();
    Ok(match recipe.budget.allocation {
        Allocation::Uniform => {
            let counts = recipe.budget.uniform(experts)?;
            scores
                .iter()
                .zip(counts)
                .map(|(s, r)| keep_best(s, r))
                .collect::<Result<_, _>>()?
        }
        Allocation::Global => keep_best_global(&scores, recipe.budget.total(experts)?)?,
    })
}

/// A score of every expert of a layer, `[n]`.
pub fn scores(s: &LayerStatistics, score: Score) -> Vec<f64> {
    match score {
        Score::UsageCounts => s.usage_counts.iter().map(|&c| c as f64).collect(),
        Score::RouterProbMean => s.router_prob_mean.clone(),
        Score::EanSum => s.norm_sum.clone(),
        Score::EanMean => s.per_selection(&s.norm_sum),
        Score::ReapSoftmax => s.per_selection(&s.norm_sum_softmax),
        Score::ReapRenorm => s.per_selection(&s.norm_sum_renorm),
    }
}

/// Everything but weights: configuration, tokenizer, recipe, card.
fn write_side_files(
    job: &MergeJob,
    folder: &OutputFolder,
    config: &serde_json::Value,
    decided: &Decided,
) -> Result<(), CompressError> {
    const COPIED: &[&str] = &[
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "generation_config.json",
        "chat_template.jinja",
        "merges.txt",
        "vocab.json",
    ];
    let dir = folder.path();
    for name in COPIED {
        let from = job.model.join(name);
        if from.is_file() {
            fsx::write_atomic(&dir.join(name), &fsx::read(&from)?)?;
        }
    }
    let pretty = |value: &serde_json::Value| format!("{value:#}\n");
    fsx::write_atomic(&dir.join("config.json"), pretty(config).as_bytes())?;
    fsx::write_atomic(&dir.join("merge.toml"), job.recipe.to_toml()?.as_bytes())?;
    let record = json!({
        "ounce_version": env!("CARGO_PKG_VERSION"),
        "command": job.command_line,
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
    };
    let card = format!(
        "# Made with Ounce {}\n\n{what}\n\n```\n{}\n```\n\nThe recipe is in `merge.toml`, the groups in `merge.json`.\n",
        env!("CARGO_PKG_VERSION"),
        job.command_line
    );
    fsx::write_atomic(&dir.join("README.md"), card.as_bytes())?;
    Ok(())
}

/// Makes the bytes of each tensor.
struct Weigher<'a> {
    job: &'a MergeJob,
    model: &'a Model,
    checkpoint: &'a Checkpoint,
    layers: &'a [LayerReport],
}

/// Bytes copied at one time.
const PIECE: usize = 16 << 20;

impl Weigher<'_> {
    fn write(&self, item: &Item, writer: &mut ShardedWriter) -> Result<(), CompressError> {
        let name = &item.spec.name;
        match &item.source {
            Source::Copy => {
                let region = self.checkpoint.region(name)?;
                if region.bytes().is_empty() {
                    writer.write(name, &[])?;
                }
                for piece in region.bytes().chunks(PIECE) {
                    writer.write(name, piece)?;
                }
            }
            Source::Rows(rows) => {
                let region = self.checkpoint.region(name)?;
                let row = region.bytes().len() / region.shape[0].max(1);
                for &r in rows {
                    writer.write(name, &region.bytes()[r * row..(r + 1) * row])?;
                }
            }
            Source::Expert { index, expert, matrix } => {
                let weight = self.tensor(*index, *expert, *matrix);
                writer.write(name, weight.bytes())?;
            }
            Source::Merged { index, group, matrix } => {
                let layer = &self.layers[*index];
                let merged = self
                    .merged(layer, *index, *group, *matrix)
                    .map_err(|e| e.at(layer.layer))?;
                match merged {
                    // A group of one: the expert itself, bit for bit.
                    None => {
                        let only = layer.labels.iter().position(|l| *l == Some(*group)).unwrap_or(0);
                        writer.write(name, self.tensor(*index, only, *matrix).bytes())?;
                    }
                    Some(values) => {
                        let dtype = match item.spec.dtype {
                            Dtype::BF16 => DType::BF16,
                            Dtype::F16 => DType::F16,
                            _ => DType::F32,
                        };
                        let shape = [values.len()];
                        writer.write(name, Tensor::new(values, &shape)?.cast(dtype)?.bytes())?;
                    }
                }
            }
        }
        Ok(())
    }

    fn expert(&self, index: usize, expert: usize) -> &DenseFfn {
        let blocks = self.model.plan().blocks();
        let moe = blocks[self.layers[index].layer]
            .ffn()
            .as_moe()
            .expect("invariant: planned layers are mixtures");
        &moe.experts[expert]
    }

    fn tensor(&self, index: usize, expert: usize, matrix: Matrix) -> &Tensor {
        let expert = self.expert(index, expert);
        match matrix {
            Matrix::Gate => &expert.gate.weight.tensor,
            Matrix::Up => &expert.up.weight.tensor,
            Matrix::Down => &expert.down.weight.tensor,
        }
    }

    fn values(&self, index: usize, expert: usize, matrix: Matrix) -> Vec<f32> {
        self.tensor(index, expert, matrix).to_f32()
    }

    /// The mean of a group's matrices; `None` for a group of one.
    fn merged(
        &self,
        layer: &LayerReport,
        index: usize,
        group: usize,
        matrix: Matrix,
    ) -> Result<Option<Vec<f32>>, LayerError> {
        let Method::HcSmoe { merge: rule, .. } = self.job.recipe.method else {
            return Ok(None);
        };
        let members: Vec<usize> = (0..layer.labels.len())
            .filter(|&e| layer.labels[e] == Some(group))
            .collect();
        if members.len() < 2 {
            return Ok(None);
        }
        let weights = rule.weights(&members, &layer.usage)?;
        let mut mean = TensorMean::new(self.tensor(index, members[0], matrix).numel());
        for (&expert, weight) in members.iter().zip(weights) {
            let values = self.aligned(rule, index, members[0], expert, matrix)?;
            mean.add(expert, &values, weight)?;
        }
        Ok(Some(mean.finish()?))
    }

    /// A matrix of `expert`, its hidden neurons in the order of `reference` if the rule says so.
    fn aligned(
        &self,
        rule: MergeRule,
        index: usize,
        reference: usize,
        expert: usize,
        matrix: Matrix,
    ) -> Result<Vec<f32>, LayerError> {
        let values = self.values(index, expert, matrix);
        if !rule.align || expert == reference {
            return Ok(values);
        }
        let width = self.expert(index, expert).gate.weight.tensor.dim(0);
        let whole = |e: usize| [Matrix::Gate, Matrix::Up, Matrix::Down].map(|m| self.values(index, e, m));
        let (ours, theirs) = (whole(expert), whole(reference));
        let alignment = Alignment::find(borrow(&theirs, width), borrow(&ours, width))?;
        Ok(match matrix {
            Matrix::Down => alignment.columns(&values),
            _ => alignment.rows(&values),
        })
    }
}

fn borrow(matrices: &[Vec<f32>; 3], width: usize) -> Expert<'_> {
    let [gate, up, down] = matrices;
    Expert { gate, up, down, width }
}
