//! Autonomy-of-Experts: validation loss against router mixtures and a dense model, at equal active parameters.
//!
//! Two baselines of the paper, a router as large as all scoring matrices and a factorised gate in the router mixture, are
//! models of their own and not made here; nor are its tasks, which models of this size cannot do.

use super::{Budget, Finding, Measured, Reproduction, Results, Row, Workbench, comparison, recipe::Sizes};
use crate::LabError;
use ounce_train::Recipe;

/// See the module.
pub(super) struct Aoe;

/// The paper's gap in training loss at r = D/3, with 732 M parameters, as far as its plot can be read.
const PAPER_GAP: f64 = -0.02;
/// The paper's entropies of load, natural logarithm, on SST-2.
const PAPER_LOAD: [(&str, f64); 2] = [(MOE, 2.015), (AOE, 2.023)];

const MOE: &str = "moe-balance";
const AOE: &str = "aoe-balance";
const VARIANTS: [&str; 5] = ["dense", "moe", MOE, "aoe", AOE];
/// The same with other ranks of the factors, about D/12, D/6 and 2D/3 as in the paper; `full` only.
const RANKS: [&str; 3] = ["aoe-balance-r12", "aoe-balance-r24", "aoe-balance-r84"];

/// `ffn` is the width of a router mixture's expert; at most 1 M active parameters up to `standard`.
fn sizes(budget: Budget) -> Sizes {
    Sizes::pick(
        budget,
        [48, 3, 64, 512, 64, 400, 8],
        [96, 4, 128, 1024, 128, 500, 16],
        [128, 4, 512, 4096, 256, 4000, 16],
    )
}

/// Width that gives an expert the parameters of a SwiGLU expert of width `ffn`: equation 5 of the paper, rounded.
fn wide(d: usize, ffn: usize, r: usize) -> usize {
    let (parameters, per_column) = (3 * d * ffn - r * d, r + 2 * d);
    (2 * parameters + per_column) / (2 * per_column)
}

fn recipe(variant: &str, seed: u64, budget: Budget) -> Result<Recipe, LabError> {
    let sizes = sizes(budget);
    let Sizes { d, ffn, .. } = sizes;
    let balance = if variant.contains("balance") { 0.01 } else { 0.0 };
    let mixture = format!("intermediate_size = {ffn}\nexperts = 8\nexperts_per_token = 2\nbalance = {balance}");
    let own = match variant {
        "dense" => format!("intermediate_size = {}", 2 * ffn),
        "moe" | MOE => mixture,
        _ => {
            let rank = variant.rsplit_once("-r").and_then(|(_, r)| r.parse().ok());
            let r = rank.unwrap_or(d / 3);
            let wide = wide(d, ffn, r);
            format!("family = \"aoe\"\n{mixture}\nconfig = {{ aoe_d_low = {r}, aoe_d_wide = {wide} }}")
        }
    };
    comparison::recipe(&format!("tied = true\n{own}"), seed, sizes)
}

impl Reproduction for Aoe {
    fn name(&self) -> &'static str {
        "aoe"
    }
    fn title(&self) -> &'static str {
        "Autonomy-of-Experts (ICML 2025, arXiv 2501.13074)"
    }
    fn claim(&self) -> &'static str {
        "Experts that choose themselves by the norm of a first projection learn better than experts chosen by a router: \
         44.46 against 43.68 on the mean of eight tasks at 732 M parameters, about 0.02 nats of training loss, both with a \
         balance loss. Tested here: 8 experts, 2 active, at equal parameters of experts, data order, steps and seeds, the \
         validation loss of AoE is below that of a router mixture, both with a balance loss. The tasks are not run here."
    }
    fn variants(&self, budget: Budget) -> Vec<&'static str> {
        let ranks = budget.pick(&[][..], &[], &RANKS);
        [&VARIANTS, ranks].concat()
    }
    fn seeds(&self, budget: Budget) -> u64 {
        budget.pick(7, 5, 3)
    }
    fn settings(&self, variant: &str, seed: u64, budget: Budget) -> Result<String, LabError> {
        Ok(recipe(variant, seed, budget)?.to_toml())
    }

    fn run(&self, variant: &str, seed: u64, bench: &mut Workbench<'_>) -> Result<Measured, LabError> {
        let mut trained = bench.train("train", &recipe(variant, seed, bench.budget)?)?;
        comparison::measure(&mut trained, sizes(bench.budget).length, bench)
    }

    fn judge(&self, results: &Results) -> Result<Finding, LabError> {
        let variants = self.variants(results.budget);
        let mut rows = comparison::rows(results, &variants)?;
        for (variant, paper) in PAPER_LOAD {
            let load = results.interval(variant, "load entropy")?;
            rows.push(Row::new(
                format!("entropy of load, {variant} (at most 2.079)"),
                load,
                Some(paper),
            ));
            let confidence = results.interval(variant, "confidence entropy")?;
            rows.push(Row::new(format!("entropy of scores, {variant}"), confidence, None));
        }
        let gap = results.difference(AOE, MOE, "loss")?;
        rows.push(Row::new(
            format!("{AOE} - {MOE} (nats/token; paper: read off a plot)"),
            gap,
            Some(PAPER_GAP),
        ));
        let others = [("aoe", "moe"), (AOE, "dense"), (MOE, "dense"), (AOE, "aoe")];
        let ranks = variants.iter().filter(|v| RANKS.contains(v)).map(|v| (*v, MOE));
        for (variant, baseline) in others.into_iter().chain(ranks) {
            let difference = results.difference(variant, baseline, "loss")?;
            rows.push(Row::new(
                format!("{variant} - {baseline} (nats/token)"),
                difference,
                None,
            ));
        }
        let control = comparison::control(results, MOE, "dense")?;
        let why = format!(
            "With balance losses, AoE's validation loss is {:+.4} nats per token from the router mixture's over {} seeds; {}. \
             The paper's gap is about {PAPER_GAP} nats. {control}",
            gap.mean,
            gap.n,
            comparison::smallest_visible(&gap)
        );
        Ok(Finding {
            rows,
            verdict: comparison::verdict(&gap, 0.0, results, [AOE, MOE])?,
            why,
            plots: vec![comparison::loss_plot(results, &variants)?],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_are_those_of_the_paper() {
        for (d, ffn, r, expected) in [(768, 3072, 64, 4393), (768, 3072, 256, 3840), (1280, 5120, 400, 6469)] {
            assert_eq!(wide(d, ffn, r), expected);
        }
    }

    #[test]
    fn experts_of_both_kinds_have_the_same_parameters_to_one_row() {
        for budget in [Budget::Quick, Budget::Standard, Budget::Full] {
            let Sizes { d, ffn, .. } = sizes(budget);
            for r in [12, 24, d / 3, 84] {
                let ours = r * d + wide(d, ffn, r) * (r + 2 * d);
                assert!(ours.abs_diff(3 * d * ffn) <= (r + 2 * d).div_ceil(2), "{d} {ffn} {r}");
            }
        }
    }
}
