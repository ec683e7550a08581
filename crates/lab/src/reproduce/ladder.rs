//! Ladder Residual: quality of standard, parallel and ladder wiring at equal parameters, tokens, steps and seeds.
//!
//! The paper's other half, speed under tensor parallelism, needs ranks on a real link and is not measured here.

use super::{
    Budget, Finding, Measured, Reproduction, Results, Row, Verdict, Workbench, comparison,
    recipe::{Setup, Sizes},
};
use crate::LabError;
use ounce_train::Recipe;
use std::collections::BTreeMap;

/// See the module.
pub(super) struct Ladder;

/// Loss gaps of the paper, nats per token, from its `WikiText` perplexities of models trained on 100 B tokens: 14.90
/// against 14.48 at 3.5 B parameters, 18.42 against 18.54 at 1.2 B.
const PAPER_3B: f64 = 0.0286;
const PAPER_1B: f64 = -0.0065;

const STANDARD: &str = "standard";
const VARIANTS: [&str; 3] = [STANDARD, "parallel", "ladder"];

fn recipe(variant: &str, seed: u64, budget: Budget) -> Result<Recipe, LabError> {
    // At most 1 M parameters up to `standard`.
    let sizes = Sizes::pick(
        budget,
        [64, 6, 160, 512, 64, 400, 8],
        [96, 8, 256, 1024, 128, 500, 16],
        [256, 12, 704, 4096, 256, 4000, 16],
    );
    let setup = Setup {
        sizes,
        heads: 4,
        positions: sizes.length,
        corpora: &["toy-text"],
        eval_tokens: 16_384,
    };
    let wiring = if variant == STANDARD { "sequential" } else { variant };
    let own = format!(
        "intermediate_size = {}\ntied = true\nresidual = {{ wiring = \"{wiring}\" }}",
        sizes.ffn
    );
    setup.recipe(&own, seed)
}

impl Reproduction for Ladder {
    fn name(&self) -> &'static str {
        "ladder"
    }
    fn title(&self) -> &'static str {
        "Ladder Residual (ICML 2025, arXiv 2501.06589)"
    }
    fn claim(&self) -> &'static str {
        "Trained from scratch, a model in which every sub-block reads the residual stream without the newest output is \
         about as good as a standard one: the paper's perplexities differ by -0.6 % at 1.2 B parameters and +2.9 % at \
         3.5 B. Tested here: at equal parameters, data order, steps and seeds, the validation loss of the ladder model is \
         at most 0.0286 nats (the paper's larger gap) above the standard model's. The speed under tensor parallelism is \
         not tested here."
    }
    fn variants(&self, _budget: Budget) -> Vec<&'static str> {
        VARIANTS.to_vec()
    }
    fn seeds(&self, budget: Budget) -> u64 {
        budget.pick(8, 5, 5)
    }
    fn settings(&self, variant: &str, seed: u64, budget: Budget) -> Result<String, LabError> {
        Ok(recipe(variant, seed, budget)?.to_toml())
    }

    fn run(&self, variant: &str, seed: u64, bench: &mut Workbench<'_>) -> Result<Measured, LabError> {
        let trained = bench.train("train", &recipe(variant, seed, bench.budget)?)?;
        Ok(Measured {
            values: BTreeMap::from([("loss".into(), trained.validation_loss()?)]),
            curves: BTreeMap::from([("validation".into(), trained.validation)]),
        })
    }

    fn judge(&self, results: &Results) -> Result<Finding, LabError> {
        let mut rows = Vec::new();
        for variant in VARIANTS {
            let name = format!("validation loss, {variant} (nats/token)");
            rows.push(Row::new(name, results.interval(variant, "loss")?, None));
        }
        let gap = results.difference("ladder", STANDARD, "loss")?;
        let parallel = results.difference("ladder", "parallel", "loss")?;
        rows.push(Row::new(
            "ladder - standard (nats/token; paper: 3.5 B)",
            gap,
            Some(PAPER_3B),
        ));
        rows.push(Row::new(
            "ladder - standard (nats/token; paper: 1.2 B)",
            gap,
            Some(PAPER_1B),
        ));
        rows.push(Row::new("ladder - parallel (nats/token)", parallel, None));
        let verdict = Verdict::at_most(&gap, PAPER_3B);
        let why = format!(
            "The ladder model's validation loss is {:+.4} nats per token from the standard model's over {} seeds, against \
             a margin of {PAPER_3B} (the paper's larger gap); {}. Small models on toy text: quality only, not speed.",
            gap.mean,
            gap.n,
            comparison::smallest_visible(&gap)
        );
        Ok(Finding {
            rows,
            verdict,
            why,
            plots: vec![comparison::loss_plot(results, &VARIANTS)?],
        })
    }
}
