//! Long-Short Alignment: loss beyond the training length after tuning with and without the penalty, and the probe that
//! alignment was not bought by blindness.
//!
//! As in the paper, a trained model is tuned for some hundred steps; all penalties of a seed start from the same one. Its
//! text has notes that recur at a distance, so that the model has a use of distant context to lose.

use super::{Budget, Finding, Measured, Reproduction, Results, Row, Verdict, Workbench, copying, recipe::followed_by};
use crate::{
    LabError,
    report::{Axis, Plot, PlotData, Series},
};
use ounce_train::Recipe;

/// See the module.
pub(super) struct LongShort;

/// Change of the log-perplexity at long lengths in the paper: 6.12 to 5.88 (Llama-2-7B with CLEX, `RedPajama` books).
const PAPER: f64 = -0.0400;

const BASELINE: &str = "alpha-0";
const PENALTY: &str = "sce-0.1";

/// Nats per token that a model must gain from a repeated passage for the probe to notice that the gain is lost; a model
/// that gains less makes too little use of distant context to begin with. Our choice.
const SEES: f64 = 0.1;

/// Lengths of evaluation, in training lengths.
const MULTIPLES: [usize; 3] = [1, 2, copying::POSITIONS];

/// Divergence and weight of a variant.
fn penalty(variant: &str) -> (&'static str, &str) {
    match variant.split_once('-') {
        Some(("jeffreys", alpha)) => ("jeffreys", alpha),
        Some((_, alpha)) => ("sce", alpha),
        None => ("sce", "0"),
    }
}

struct Scale {
    length: usize,
    /// The model that all variants start from.
    base: Recipe,
    /// Continues it; its `init` is put in when there is one.
    tuning: Recipe,
}

fn scale(variant: &str, seed: u64, budget: Budget) -> Result<Scale, LabError> {
    let sizes = copying::sizes(budget);
    let (divergence, alpha) = penalty(variant);
    let objective = format!("[objective]\nkind = \"long_short\"\nalpha = {alpha}\ndivergence = \"{divergence}\"");
    let steps = budget.pick(200, 400, 1000);
    Ok(Scale {
        length: sizes.length,
        base: copying::base(seed, budget)?,
        tuning: copying::tuning(&objective, seed, budget, [steps, sizes.batch / 2, sizes.length])?,
    })
}

fn loss_name(multiple: usize) -> String {
    format!("loss at {multiple}x")
}

impl Reproduction for LongShort {
    fn name(&self) -> &'static str {
        "long-short"
    }
    fn title(&self) -> &'static str {
        "Long-Short Alignment (ICML 2025, arXiv 2506.11769)"
    }
    fn claim(&self) -> &'static str {
        "A penalty of 0.1 times the divergence between predictions from a longer and a shorter context lowers the loss \
         on contexts longer than those of training (paper: perplexity 6.12 to 5.88, -0.040 nats, Llama-2-7B continued for \
         200 steps). Tested here: small models that copy from a distance, tuned on both views with and without the penalty, at \
         equal tokens, steps and seeds; loss at four times the training length. A model that ignores distant context is \
         aligned, too, so a repeated passage must not be predicted worse."
    }
    fn variants(&self, budget: Budget) -> Vec<&'static str> {
        budget.pick(
            vec![BASELINE, PENALTY, "jeffreys-0.1"],
            vec![BASELINE, PENALTY, "jeffreys-0.1"],
            vec![
                BASELINE,
                "sce-0.05",
                PENALTY,
                "sce-0.3",
                "sce-0.5",
                "sce-1",
                "jeffreys-0.1",
                "jeffreys-1",
            ],
        )
    }
    fn seeds(&self, budget: Budget) -> u64 {
        budget.pick(6, 6, 5)
    }
    fn settings(&self, variant: &str, seed: u64, budget: Budget) -> Result<String, LabError> {
        let Scale { base, tuning, .. } = scale(variant, seed, budget)?;
        Ok(followed_by(&base, &tuning))
    }

    fn run(&self, variant: &str, seed: u64, bench: &mut Workbench<'_>) -> Result<Measured, LabError> {
        let Scale { length, base, tuning } = scale(variant, seed, bench.budget)?;
        let (trained, ids) = copying::tuned(&base, tuning, seed, bench)?;
        let mut measured = Measured::default();
        let mut curve = Vec::new();
        for multiple in MULTIPLES {
            let loss = trained.loss_at(&ids, multiple * length, bench.budget.pick(8192, 32_768, 131_072))?;
            curve.push((multiple as f64, loss));
            measured.values.insert(loss_name(multiple), loss);
        }
        measured.curves.insert("loss by length".into(), curve);
        let m = trained.misalignment(&ids, length, bench.budget.pick(128, 256, 512))?;
        for (name, value) in [
            ("sce", m.divergences.sce),
            ("jeffreys", m.divergences.jeffreys),
            ("entropy", f64::midpoint(m.divergences.h_long, m.divergences.h_short)),
            ("probe", m.long_range.gain.mean),
        ] {
            measured.values.insert(name.into(), value);
        }
        Ok(measured)
    }

    fn judge(&self, results: &Results) -> Result<Finding, LabError> {
        let variants = self.variants(results.budget);
        let far = loss_name(MULTIPLES[MULTIPLES.len() - 1]);
        let mut rows = Vec::new();
        for multiple in MULTIPLES {
            let name = loss_name(multiple);
            rows.push(Row::new(
                format!("{name}, {BASELINE} (nats/token)"),
                results.interval(BASELINE, &name)?,
                None,
            ));
        }
        let sight = results.interval(BASELINE, "probe")?;
        rows.push(Row::new(format!("probe, {BASELINE} (nats/token)"), sight, None));
        for variant in variants.iter().filter(|v| **v != BASELINE) {
            for multiple in MULTIPLES {
                let name = loss_name(multiple);
                let paper = (name == far && *variant == PENALTY).then_some(PAPER);
                let difference = results.difference(variant, BASELINE, &name)?;
                rows.push(Row::new(format!("{name}, {variant} - {BASELINE}"), difference, paper));
            }
            for name in ["jeffreys", "entropy", "probe"] {
                let difference = results.difference(variant, BASELINE, name)?;
                rows.push(Row::new(format!("{name}, {variant} - {BASELINE}"), difference, None));
            }
        }
        let gain = results.difference(PENALTY, BASELINE, &far)?;
        let probe = results.difference(PENALTY, BASELINE, "probe")?;
        let sees = sight.ci95.is_some_and(|[low, _]| low >= SEES);
        let blinder = probe.ci95.is_some_and(|[_, high]| high < 0.0);
        let verdict = match Verdict::at_most(&gain, 0.0) {
            Verdict::Holds if blinder => Verdict::DoesNotHold,
            Verdict::Holds if !sees => Verdict::Inconclusive,
            verdict => verdict,
        };
        let seen = gain.half_width().map_or_else(
            || "one seed has no interval, so nothing can be told".to_owned(),
            |half| format!("the smallest change that could have been told from none is {half:.4} nats"),
        );
        let cost = if blinder {
            "; the repeated passage is predicted worse, so alignment was bought by blindness to distant context"
                .to_owned()
        } else if sees {
            String::new()
        } else {
            format!(
                "; without the penalty, too, a repeated passage gains only {:.4} nats per token (below {SEES}), so the probe \
                 could not have noticed blindness",
                sight.mean
            )
        };
        let why = format!(
            "With 0.1 times SCE the loss at {} times the training length changes by {:+.4} nats per token over {} seeds{cost}; \
             {seen}. Small models on toy text; the paper continues a 7 B model.",
            MULTIPLES[MULTIPLES.len() - 1],
            gain.mean,
            gain.n
        );
        let series = variants
            .iter()
            .map(|v| results.curve(v, "loss by length"))
            .collect::<Result<Vec<Series>, _>>()?;
        let plots = vec![Plot {
            title: "Loss by context length".into(),
            caption: "Mean over seeds; bands are 95 % intervals. Second halves of windows only.".into(),
            data: PlotData::Lines {
                x: Axis::log("Window", "training lengths"),
                y: Axis::linear("Loss", "nats per token"),
                series,
            },
        }];
        Ok(Finding {
            rows,
            verdict,
            why,
            plots,
        })
    }
}
