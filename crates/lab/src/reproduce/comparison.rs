//! What experiments share that compare validation losses of trained models: the recipe but for the feed-forward slot, what a
//! run measures, whether anything was learned, and how a difference is worded and plotted.

use super::{
    Measured, Results, Row, Trained, Verdict, Workbench,
    recipe::{Setup, Sizes},
};
use crate::{
    LabError,
    report::{Axis, Plot, PlotData, Series},
};
use ounce_eval::Interval;
use ounce_train::Recipe;
use std::collections::BTreeMap;

/// Nats per token by which every model must beat the frequencies of single tokens before a comparison counts: models that
/// have learned nothing are all alike. Our choice.
const LEARNED: f64 = 0.5;

/// The corpus: sums, differences and products. On the toy stories a model of twice the width is no better, so a mixture
/// has nothing to gain there; here it is.
const CORPUS: &str = "toy-arithmetic";

/// Windows in which routing is looked at.
const WINDOWS: usize = 32;

/// A recipe; `own` are the lines of `[model]` that belong to the variant.
pub(super) fn recipe(own: &str, seed: u64, sizes: Sizes) -> Result<Recipe, LabError> {
    let setup = Setup {
        sizes,
        heads: 4,
        positions: sizes.length,
        corpora: &[CORPUS],
        eval_tokens: 16_384,
    };
    setup.recipe(own, seed)
}

/// The ids of the validation text.
pub(super) fn validation_ids(trained: &Trained, bench: &Workbench<'_>) -> Result<Vec<u32>, LabError> {
    trained.ids(&bench.text(&format!("{CORPUS}.valid.txt"))?)
}

/// `loss`, its floor `unigram`, and `parameters` and `active` in millions; with routed layers `load entropy` and `confidence
/// entropy`, too. The curve `validation`.
pub(super) fn measure(trained: &mut Trained, length: usize, bench: &Workbench<'_>) -> Result<Measured, LabError> {
    let ids = validation_ids(trained, bench)?;
    let (parameters, active) = trained.parameters();
    let mut values = BTreeMap::from([
        ("loss".into(), trained.validation_loss()?),
        ("unigram".into(), entropy(counts(&ids).values().copied())),
        ("parameters".into(), parameters as f64 / 1e6),
        ("active".into(), active as f64 / 1e6),
    ]);
    if let Some((load, confidence)) = routing_entropies(trained, &ids, length)? {
        values.insert("load entropy".into(), load);
        values.insert("confidence entropy".into(), confidence);
    }
    Ok(Measured {
        values,
        curves: BTreeMap::from([("validation".into(), trained.validation.clone())]),
    })
}

fn counts(ids: &[u32]) -> BTreeMap<u32, f64> {
    ids.iter().fold(BTreeMap::new(), |mut counts, &id| {
        *counts.entry(id).or_insert(0.0) += 1.0;
        counts
    })
}

/// Entropy in nats of weights that need not sum to one. Of a text's counts: the lowest loss on it without context.
fn entropy(weights: impl Iterator<Item = f64> + Clone) -> f64 {
    let sum: f64 = weights.clone().sum();
    let terms = weights.filter(|w| *w > 0.0).map(|w| w / sum);
    terms.map(|p| -p * p.ln()).sum()
}

/// Entropy of how often experts are chosen, and mean entropy of the softmax over all experts' scores, each averaged over
/// layers; none without routed layers.
fn routing_entropies(trained: &Trained, ids: &[u32], length: usize) -> Result<Option<(f64, f64)>, LabError> {
    let layers = trained.routing(ids, length, WINDOWS)?;
    let (mut load, mut confidence) = (0.0, 0.0);
    for layer in &layers {
        let experts = layer.logits.last_dim();
        let mut chosen = vec![0.0; experts];
        for &expert in &layer.experts {
            chosen[expert] += 1.0;
        }
        load += entropy(chosen.into_iter());
        let logits = layer.logits.to_f32();
        let one = |row: &[f32]| {
            let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            entropy(row.iter().map(|&v| f64::from(v - top).exp()))
        };
        let rows = logits.len() / experts;
        confidence += logits.chunks_exact(experts).map(one).sum::<f64>() / rows as f64;
    }
    let n = layers.len() as f64;
    Ok((!layers.is_empty()).then(|| (load / n, confidence / n)))
}

/// A row of losses and one of active parameters for each variant, and what single tokens' frequencies would reach.
pub(super) fn rows(results: &Results, variants: &[&str]) -> Result<Vec<Row>, LabError> {
    let mut rows = Vec::new();
    for variant in variants {
        let name = format!("validation loss, {variant} (nats/token)");
        rows.push(Row::new(name, results.interval(variant, "loss")?, None));
    }
    if let Some(first) = variants.first() {
        let name = "loss by frequencies of single tokens (nats/token)";
        rows.push(Row::new(name, results.interval(first, "unigram")?, None));
    }
    for variant in variants {
        let name = format!("parameters that one token meets, {variant} (millions)");
        rows.push(Row::new(name, results.interval(variant, "active")?, None));
    }
    Ok(rows)
}

/// Whether `gap` is at most `bound`; inconclusive unless every run of both `variants` has learned something.
pub(super) fn verdict(gap: &Interval, bound: f64, results: &Results, variants: [&str; 2]) -> Result<Verdict, LabError> {
    for variant in variants {
        let losses = results.values(variant, "loss")?;
        let floors = results.values(variant, "unigram")?;
        if losses.iter().zip(floors).any(|(loss, floor)| *loss > floor - LEARNED) {
            return Ok(Verdict::Inconclusive);
        }
    }
    Ok(Verdict::at_most(gap, bound))
}

/// The smallest effect that could have been seen, as the part of a sentence.
pub(super) fn smallest_visible(difference: &Interval) -> String {
    difference.half_width().map_or_else(
        || "one seed has no interval, so nothing can be told".to_owned(),
        |half| format!("the smallest gap that could have been told from none is {half:.4} nats"),
    )
}

/// How much a router mixture gains over the dense model here, as a sentence: where it gains nothing, more experts are of no
/// use whatever chooses them.
pub(super) fn control(results: &Results, mixture: &str, dense: &str) -> Result<String, LabError> {
    let gain = results.difference(mixture, dense, "loss")?;
    let half = gain
        .half_width()
        .map_or(String::new(), |half| format!(" (give or take {half:.4})"));
    Ok(format!(
        "Small models on toy arithmetic, where the router mixture itself is {:+.4} nats{half} from the dense model.",
        gain.mean
    ))
}

/// The curve `validation` of each variant.
pub(super) fn loss_plot(results: &Results, variants: &[&str]) -> Result<Plot, LabError> {
    let series = variants.iter().map(|v| results.curve(v, "validation"));
    Ok(Plot {
        title: "Validation loss over steps".into(),
        caption: "Mean over seeds; bands are 95 % intervals.".into(),
        data: PlotData::Lines {
            x: Axis::linear("Step", ""),
            y: Axis::linear("Validation loss", "nats per token"),
            series: series.collect::<Result<Vec<Series>, _>>()?,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reproduce::Budget;

    #[test]
    fn entropies_are_those_of_the_normalised_weights() {
        assert!((entropy([3.0, 3.0, 0.0, 3.0, 3.0].into_iter()) - 4f64.ln()).abs() < 1e-12);
        assert!(entropy([5.0].into_iter()).abs() < 1e-12);
        let expected = 0.25 * 4f64.ln() + 0.75 * (4.0 / 3.0f64).ln();
        assert!((entropy(counts(&[7, 7, 2, 7]).values().copied()) - expected).abs() < 1e-12);
    }

    fn results(loss: f64) -> Results {
        let mut results = Results::new(Budget::Quick, vec![1, 2, 3]);
        for seed in 1..=3 {
            for (variant, loss) in [("new", loss), ("old", loss + 0.1 + 1e-3 * seed as f64)] {
                let values = [("loss".to_owned(), loss), ("unigram".to_owned(), 4.0)];
                let measured = Measured {
                    values: values.into(),
                    ..Measured::default()
                };
                results.insert(variant, seed, measured);
            }
        }
        results
    }

    #[test]
    fn models_that_have_learned_nothing_decide_nothing() {
        for (loss, expected) in [
            (2.0, Verdict::Holds),
            (3.3, Verdict::Holds),
            (3.45, Verdict::Inconclusive),
        ] {
            let results = results(loss);
            let gap = results.difference("new", "old", "loss").unwrap();
            assert_eq!(
                verdict(&gap, 0.0, &results, ["new", "old"]).unwrap(),
                expected,
                "{loss}"
            );
        }
        let results = results(2.0);
        let gap = results.difference("old", "new", "loss").unwrap();
        let found = verdict(&gap, 0.0, &results, ["old", "new"]).unwrap();
        assert_eq!(found, Verdict::DoesNotHold);
    }
}
