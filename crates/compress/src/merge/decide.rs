//! What is to become of the experts of every layer: the recipe's checks, the measuring, the decision.

use super::{
    LayerReport, MergeEvent, MergeJob,
    journal::{Decided, Journal},
};
use crate::{
    budget::{Allocation, Amount},
    calibrate::CalibrationIds,
    calibration_pass::CalibrationPass,
    error::CompressError,
    hc_smoe, oprune,
    prune::{Score, keep_best, keep_best_global},
    recipe::{MergeRecipe, Method, Similarity},
    statistics::{LayerStatistics, Wanted},
};
use ounce_formats::fsx;
use ounce_model::Model;
use std::sync::atomic::AtomicBool;

/// Experts of each mixture layer.
pub(super) fn experts(model: &Model) -> Vec<usize> {
    model.config.moe_layers().map(|(_, m)| m.experts).collect()
}

/// Refuses what cannot be done or written, before the long part begins.
///
/// # Errors
/// A budget that does not fit the model, too many subsets, or a layout that cannot hold the result.
pub(super) fn check(job: &MergeJob, model: &Model) -> Result<(), CompressError> {
    let experts = experts(model);
    let budget = &job.recipe.budget;
    let kept = budget.uniform(&experts)?;
    let (n, r) = (experts[0], kept[0]);
    let uneven = budget.allocation == Allocation::Global || kept.iter().any(|&k| k != r);
    if job.recipe.method == Method::OPrune {
        if uneven || matches!(budget.amount, Amount::PerLayer(_)) {
            return Err(CompressError::input(
                "key `budget`",
                "O-prune judges every layer by itself and keeps the same count in each",
                "budget = { experts = N } or { percent = P }, without `allocate`",
            ));
        }
        if oprune::count(n, r).is_none() {
            return Err(CompressError::input(
                "key `method`",
                format!(
                    "O-prune would try all subsets of {r} of {n} experts, which are more than {}",
                    oprune::MOST
                ),
                "keep almost all or very few experts, or use method = \"prune\"",
            ));
        }
    }
    if job.expanded && uneven && matches!(job.recipe.method, Method::Prune { .. }) {
        return Err(CompressError::input(
            "key `budget`",
            "pruned layers of different size cannot be written with --expanded: a stock configuration has one count",
            "leave out --expanded, or give every layer the same count",
        ));
    }
    Ok(())
}

/// What the statistics must hold for a recipe.
pub(super) fn wanted(recipe: &MergeRecipe, experts: &[usize]) -> Result<Wanted, CompressError> {
    Ok(match recipe.method {
        Method::HcSmoe { similarity, .. } => Wanted {
            outputs: similarity == Similarity::ExpertOutput,
            router_columns: similarity == Similarity::RouterLogits,
            subsets: None,
        },
        Method::Prune { score } => Wanted {
            outputs: !matches!(score, Score::UsageCounts | Score::RouterProbMean),
            ..Wanted::default()
        },
        Method::OPrune => Wanted {
            subsets: recipe.budget.uniform(experts)?.first().copied(),
            ..Wanted::default()
        },
    })
}

/// Measures what is not measured yet, keeping each layer, and decides.
///
/// # Errors
/// As [`super::merge`].
pub(super) fn decide(
    job: &MergeJob,
    model: &Model,
    ids: Option<&CalibrationIds>,
    journal: &mut Journal<'_>,
    progress: &mut dyn FnMut(MergeEvent),
    stop: &AtomicBool,
) -> Result<Decided, CompressError> {
    let experts = experts(model);
    let mut statistics = Vec::new();
    if let Some(ids) = ids {
        let scratch = journal.scratch();
        fsx::create_dir_all(&scratch)?;
        let (done, earlier) = journal.measured()?;
        statistics = earlier;
        let pass = CalibrationPass::new(model, ids, wanted(&job.recipe, &experts)?, &scratch)?;
        let layers = pass.layers();
        let mut each = |layer, measured: Option<LayerStatistics>| {
            journal.measure(layer, measured.as_ref())?;
            statistics.extend(measured.map(|mut s| {
                // Large, and the distances are all that is asked of it.
                s.mean_output = Vec::new();
                s
            }));
            progress(MergeEvent::Calibrated(layer + 1, layers));
            Ok(())
        };
        pass.run(done, &mut each, stop)?;
    }
    let usage = |i: usize| statistics.get(i).map_or_else(Vec::new, LayerStatistics::usage_freq);
    let kept = match &job.recipe.method {
        Method::HcSmoe {
            similarity, linkage, ..
        } => {
            let plans = hc_smoe::plan(model, &statistics, *similarity, *linkage, &job.recipe.budget)?;
            let report = |(i, p): (usize, hc_smoe::LayerPlan)| LayerReport {
                layer: p.layer,
                labels: p.grouping.labels().iter().map(|&l| Some(l)).collect(),
                usage: usage(i),
                heights: p.heights,
            };
            return Ok(Decided {
                plan: plans.into_iter().enumerate().map(report).collect(),
                calibration_tokens: ids.map_or(0, CalibrationIds::tokens),
            });
        }
        Method::Prune { score } => kept_by_score(&statistics, *score, &job.recipe, &experts)?,
        Method::OPrune => statistics
            .iter()
            .zip(job.recipe.budget.uniform(&experts)?)
            .map(|(s, r)| oprune::best(s.usage_counts.len(), r, &s.subset_losses))
            .collect(),
    };
    let report = |(i, kept): (usize, Vec<usize>)| LayerReport {
        layer: statistics[i].layer,
        labels: (0..experts[i]).map(|e| kept.iter().position(|&k| k == e)).collect(),
        usage: usage(i),
        heights: Vec::new(),
    };
    Ok(Decided {
        plan: kept.into_iter().enumerate().map(report).collect(),
        calibration_tokens: ids.map_or(0, CalibrationIds::tokens),
    })
}

fn kept_by_score(
    statistics: &[LayerStatistics],
    score: Score,
    recipe: &MergeRecipe,
    experts: &[usize],
) -> Result<Vec<Vec<usize>>, CompressError> {
    let scores: Vec<Vec<f64>> = statistics.iter().map(|s| s.scores(score)).collect();
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
