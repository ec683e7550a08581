//! MoH: quality of a mixture of heads, against attention of all heads and against attention of fewer heads, at equal
//! tokens, steps and seeds.
//!
//! Baselines at the same share of heads: models that have no more heads than that from the start (static, trained); the
//! trained model of all heads with the least important heads of each layer switched off, and with random ones (both
//! untrained afterwards). Conversion: the trained model with the `query_norm` router, before and after tuning, beside a
//! control that is tuned on the same tokens with all heads, which the paper's headline lacks.
//!
//! Time is not measured here: `ounce bench attention --method moh` does, on a quiet machine.

mod pruned;
#[cfg(test)]
mod tests;

use super::{
    Budget, Finding, Measured, Reproduction, Results, Row, Verdict, Workbench,
    recipe::{Setup, Sizes, followed_by},
    workbench::token_entropy,
};
use crate::{
    LabError,
    report::{Axis, Plot, PlotData, Point, Series},
};
use ounce_eval::Interval;
use ounce_train::Recipe;
use pruned::pruned;
use std::collections::BTreeMap;

/// See the module.
pub(super) struct Moh;

/// All heads.
const ALL: &str = "mha";
/// The share the paper's language models keep in its headline: three quarters.
const HEADLINE: &str = "moh-75";

/// Heads of every model.
const HEADS: usize = 8;

/// Nats per token that half the heads, chosen at random and switched off, must cost: else attention does too little in
/// these models for a comparison of its forms to mean anything. Our choice.
const MATTERS: f64 = 0.05;

/// Shares of heads at which pruned models are measured: name and heads.
const SHARES: [(&str, usize); 2] = [("75", 6), ("50", 4)];

/// Shared heads and routed heads per token of a mixture.
fn split(variant: &str) -> Option<(usize, usize)> {
    Some(match variant {
        "moh-88" => (2, 5),
        HEADLINE => (2, 4),
        "moh-63" => (2, 3),
        "moh-50" => (2, 2),
        "moh-75-none-shared" => (0, 6),
        _ => return None,
    })
}

struct Scale {
    length: usize,
    /// Scored tokens of an evaluation.
    tokens: usize,
    recipe: Recipe,
    /// Continues a model for a fifth of the steps; its `init` is put in when there is one.
    tuning: Recipe,
}

fn scale(variant: &str, seed: u64, budget: Budget) -> Result<Scale, LabError> {
    // At most 1 M parameters up to `standard`.
    let sizes = Sizes::pick(
        budget,
        [64, 3, 160, 512, 96, 250, 8],
        [128, 4, 320, 1024, 128, 400, 12],
        [192, 6, 512, 4096, 256, 6000, 16],
    );
    let heads = variant.strip_prefix("fewer-").map_or(HEADS, |share| {
        SHARES.iter().find(|s| s.0 == share).map_or(HEADS, |s| s.1)
    });
    let setup = Setup {
        sizes,
        heads,
        positions: sizes.length,
        corpora: &["toy-text", "toy-retrieval"],
        eval_tokens: budget.pick(4096, 8192, 16_384),
    };
    let moh = split(variant).map_or_else(String::new, |(shared, active)| {
        format!("moh = {{ router = \"two_stage\", shared_heads = {shared}, active_routed_heads = {active} }}")
    });
    let own = format!(
        "intermediate_size = {}\ntied = true\nconfig = {{ head_dim = {} }}\n{moh}",
        sizes.ffn,
        sizes.d / HEADS
    );
    let tuning = Setup {
        sizes: Sizes {
            steps: sizes.steps / 5,
            ..sizes
        },
        ..setup
    };
    Ok(Scale {
        length: sizes.length,
        tokens: budget.pick(8192, 16_384, 65_536),
        recipe: setup.recipe(&own, seed)?,
        tuning: tuning.tuning("", seed)?,
    })
}

/// Conversion of [`ALL`] at a share of heads: half of the active heads are shared, as in the published model.
fn query_norm(active: usize) -> String {
    let shared = HEADS / 2;
    let (shared, routed) = if active > shared {
        (shared, active - shared)
    } else {
        (active / 2, active.div_ceil(2))
    };
    format!("moh:router=query_norm,shared_heads={shared},active_routed_heads={routed}")
}

/// Entropy of the loads of the routed heads over its maximum, mean over layers: 1 if all are used alike.
fn balance(loads: &[Vec<f64>], shared: usize) -> f64 {
    let of_layer = |loads: &Vec<f64>| {
        let routed = &loads[shared..];
        let sum: f64 = routed.iter().sum();
        let entropy: f64 = routed
            .iter()
            .filter(|&&l| l > 0.0)
            .map(|l| -l / sum * (l / sum).ln())
            .sum();
        entropy / (routed.len() as f64).ln()
    };
    loads.iter().map(of_layer).sum::<f64>() / loads.len() as f64
}

impl Reproduction for Moh {
    fn name(&self) -> &'static str {
        "moh"
    }
    fn title(&self) -> &'static str {
        "MoH: mixture of attention heads (ICML 2025, arXiv 2410.11842)"
    }
    fn claim(&self) -> &'static str {
        "Language models in which each token uses 50 to 75 % of the attention heads are better than those that use all: \
         averages over six tasks 43.9 for all heads, 44.6 at 75 %, 45.4 at 50 % (186 M parameters, 100 B tokens); 47.4, \
         47.8 and 47.2 (881 M). Tested here: at equal tokens, steps and seeds the validation loss at 75 % is not above \
         that of attention of all heads. Time is not tested here: `ounce bench attention --method moh` measures it."
    }
    fn variants(&self, budget: Budget) -> Vec<&'static str> {
        budget.pick(
            vec![ALL, HEADLINE, "moh-50", "fewer-75", "fewer-50"],
            vec![ALL, HEADLINE, "moh-50", "fewer-75", "fewer-50"],
            vec![
                ALL,
                "moh-88",
                HEADLINE,
                "moh-63",
                "moh-50",
                "moh-75-none-shared",
                "fewer-75",
                "fewer-50",
            ],
        )
    }
    fn seeds(&self, budget: Budget) -> u64 {
        budget.pick(6, 5, 5)
    }
    fn settings(&self, variant: &str, seed: u64, budget: Budget) -> Result<String, LabError> {
        let Scale { recipe, tuning, .. } = scale(variant, seed, budget)?;
        Ok(if variant == ALL {
            followed_by(&recipe, &tuning)
        } else {
            recipe.to_toml()
        })
    }

    fn run(&self, variant: &str, seed: u64, bench: &mut Workbench<'_>) -> Result<Measured, LabError> {
        let scale = scale(variant, seed, bench.budget)?;
        let mut trained = bench.train("train", &scale.recipe)?;
        let valid = trained.ids(&bench.text("toy-text.valid.txt")?)?;
        let mut measured = Measured::default();
        if variant == ALL {
            let text = bench.text("toy-text.txt")?;
            let train = trained.ids(&text[..text.len().min(100_000)])?;
            measured = pruned(&mut trained, &scale, &train, &valid, seed)?;
            let mut tuned = |name: &str, attention: Option<String>| -> Result<f64, LabError> {
                let mut recipe = scale.tuning.clone();
                recipe.init = Some(trained.folder.display().to_string());
                recipe.attention = attention;
                bench.train(name, &recipe)?.loss_at(&valid, scale.length, scale.tokens)
            };
            let control = tuned("control", None)?;
            measured.values.insert("tuned control".into(), control);
            for (share, kept) in SHARES {
                let spec = query_norm(kept);
                let at_once = trained.with_attention(&spec)?;
                let loss = at_once.loss_at(&valid, scale.length, scale.tokens)?;
                measured.values.insert(format!("converted {share}"), loss);
                let loss = tuned(&format!("tuned-{share}"), Some(spec))?;
                measured.values.insert(format!("tuned {share}"), loss);
            }
        }
        if let Some((shared, _)) = split(variant) {
            let loads = trained.head_loads(&valid, scale.length, scale.tokens / 2)?;
            let share = loads.iter().flatten().sum::<f64>() / (loads.len() * HEADS) as f64;
            measured.values.insert("share of heads".into(), share);
            measured.values.insert("balance".into(), balance(&loads, shared));
        }
        let loss = trained.loss_at(&valid, scale.length, scale.tokens)?;
        measured.values.insert("loss".into(), loss);
        measured.values.insert("no context".into(), token_entropy(&valid));
        measured.curves.insert("validation".into(), trained.validation);
        Ok(measured)
    }

    fn judge(&self, results: &Results) -> Result<Finding, LabError> {
        let variants = self.variants(results.budget);
        let mut rows = vec![Row::new(
            "loss without any context (nats/token)",
            results.interval(ALL, "no context")?,
            None,
        )];
        for variant in &variants {
            let name = format!("loss, {variant} (nats/token)");
            rows.push(Row::new(name, results.interval(variant, "loss")?, None));
        }
        for variant in variants.iter().filter(|v| **v != ALL) {
            // The paper has accuracies and no losses; what is higher there is lower here.
            let paper = match *variant {
                HEADLINE => "; paper: +0.7 and +0.4 points of accuracy",
                "moh-50" => "; paper: +1.5 and -0.2 points of accuracy",
                _ => "",
            };
            let name = format!("{variant} - {ALL} (nats/token{paper})");
            rows.push(Row::new(name, results.difference(variant, ALL, "loss")?, None));
        }
        for (share, _) in SHARES {
            let (moh, fewer) = (format!("moh-{share}"), format!("fewer-{share}"));
            let gap = results.difference(&moh, &fewer, "loss")?;
            rows.push(Row::new(format!("{moh} - {fewer} (nats/token)"), gap, None));
        }
        let after = |name: &str| results.change(ALL, name, "loss");
        for kind in ["pruned", "random", "converted"] {
            for (share, _) in SHARES {
                let name = format!(
                    "{ALL} with {share} % of its heads, {}, not tuned - {ALL}",
                    kind_in_words(kind)
                );
                rows.push(Row::new(name, after(&format!("{kind} {share}"))?, None));
            }
        }
        for (share, _) in SHARES {
            let gap = results.change(ALL, &format!("tuned {share}"), "tuned control")?;
            rows.push(Row::new(
                format!("converted to {share} %, tuned - tuned control"),
                gap,
                None,
            ));
        }
        for variant in variants.iter().filter(|v| split(v).is_some()) {
            let paper = split(variant).map(|(shared, active)| (shared + active) as f64 / HEADS as f64);
            let share = results.interval(variant, "share of heads")?;
            rows.push(Row::new(format!("share of heads used, {variant}"), share, paper));
            let balance = results.interval(variant, "balance")?;
            rows.push(Row::new(
                format!("entropy of head loads / its maximum, {variant}"),
                balance,
                None,
            ));
        }

        let gap = results.difference(HEADLINE, ALL, "loss")?;
        let against_fewer = results.difference(HEADLINE, "fewer-75", "loss")?;
        let matters = after("random 50")?;
        let used = matters.ci95.map_or(matters.mean, |[low, _]| low) >= MATTERS;
        let verdict = match Verdict::at_most(&gap, 0.0) {
            Verdict::Holds if !used => Verdict::Inconclusive,
            verdict => verdict,
        };
        let seen = gap.half_width().map_or_else(
            || "one seed has no interval, so nothing can be told".to_owned(),
            |half| format!("the smallest gap that could have been told from none is {half:.4} nats"),
        );
        let unused = if used {
            String::new()
        } else {
            format!(
                "; half the heads switched off at random cost only {:.4} nats, so attention does too little here to judge it",
                matters.mean
            )
        };
        let told = match against_fewer.ci95 {
            Some([low, high]) if low <= 0.0 && high >= 0.0 => " (not told from none)",
            Some(_) => "",
            None => " (one seed)",
        };
        let why = format!(
            "With 75 % of the heads per token the validation loss is {:+.4} nats per token from that of all heads over {} \
             seeds, and {:+.4}{told} from that of models built with 75 % of the heads{unused}; {seen}. Small models on toy \
             text, far from converged: losses, where the paper has accuracies.",
            gap.mean, gap.n, against_fewer.mean
        );
        Ok(Finding {
            rows,
            verdict,
            why,
            plots: plots(results, &variants)?,
        })
    }
}

fn kind_in_words(kind: &str) -> &'static str {
    match kind {
        "pruned" => "the most important",
        "random" => "random ones",
        _ => "by query norm",
    }
}

fn plots(results: &Results, variants: &[&'static str]) -> Result<Vec<Plot>, LabError> {
    let point = |x: f64, at: &Interval| Point {
        x,
        y: at.mean,
        low: at.ci95.map(|c| c[0]),
        high: at.ci95.map(|c| c[1]),
        label: String::new(),
    };
    let mut series: BTreeMap<&str, Vec<Point>> = BTreeMap::new();
    for (share, heads) in SHARES {
        let x = 100.0 * heads as f64 / HEADS as f64;
        for (name, gap) in [
            (
                "mixture, trained so",
                results.difference(&format!("moh-{share}"), ALL, "loss")?,
            ),
            (
                "fewer heads, trained so",
                results.difference(&format!("fewer-{share}"), ALL, "loss")?,
            ),
            (
                "pruned by importance",
                results.change(ALL, &format!("pruned {share}"), "loss")?,
            ),
            (
                "pruned at random",
                results.change(ALL, &format!("random {share}"), "loss")?,
            ),
            (
                "converted by query norm",
                results.change(ALL, &format!("converted {share}"), "loss")?,
            ),
            (
                "converted and tuned",
                results.change(ALL, &format!("tuned {share}"), "tuned control")?,
            ),
        ] {
            series.entry(name).or_default().push(point(x, &gap));
        }
    }
    let series = series.into_iter().map(|(name, points)| Series {
        name: name.into(),
        points,
    });
    let curves = variants.iter().map(|v| results.curve(v, "validation"));
    Ok(vec![
        Plot {
            title: "Loss by share of heads".into(),
            caption:
                "Paired difference from attention of all heads (the tuned model: from a control tuned as long); 95 % \
                      intervals."
                    .into(),
            data: PlotData::Lines {
                x: Axis::linear("Heads per token", "%"),
                y: Axis::linear("Difference of loss", "nats per token"),
                series: series.collect(),
            },
        },
        Plot {
            title: "Validation loss over steps".into(),
            caption: "Mean over seeds; bands are 95 % intervals.".into(),
            data: PlotData::Lines {
                x: Axis::linear("Step", ""),
                y: Axis::linear("Validation loss", "nats per token"),
                series: curves.collect::<Result<_, _>>()?,
            },
        },
    ])
}
