//! Mixture of Lookup Experts: validation loss against a dense model of equal arithmetic at inference and router mixtures of
//! equal training parameters; and that the table computes what the experts compute.
//!
//! As in the paper the dense model is MoLE's own without routed experts: two matrices and GELU per layer. Our router
//! mixtures have three matrices and `SiLU`, so their gap to the others is also one of architecture; a dense model of that
//! kind stands beside them.
//!
//! The other half of the paper, what reading experts or rows from a disk costs, is not measured here.

use super::{Budget, Finding, Measured, Reproduction, Results, Row, Trained, Workbench, comparison, recipe::Sizes};
use crate::LabError;
use ounce_compress::{CompressError, ConvertJob, convert};
use ounce_formats::Overwrite;
use ounce_train::Recipe;

/// See the module.
pub(super) struct Mole;

const DENSE: &str = "mole-0";
const SWIGLU: &str = "dense-swiglu";
const MOLE: &str = "mole-4";
const VARIANTS: [&str; 5] = [DENSE, SWIGLU, "moe-10", MOLE, "mole-16"];
/// The router mixture with as many training parameters as MoLE-16; `full` only.
const LARGE: [&str; 1] = ["moe-34"];

/// Element types of tables.
const TABLES: [&str; 2] = ["f32", "f16"];

/// `ffn` is the width of a MoLE expert; at most 1 M parameters met by a token up to `standard`.
fn sizes(budget: Budget) -> Sizes {
    Sizes::pick(
        budget,
        [48, 3, 96, 512, 64, 400, 8],
        [96, 4, 240, 1024, 128, 350, 16],
        [128, 4, 768, 4096, 256, 4000, 16],
    )
}

fn recipe(variant: &str, seed: u64, budget: Budget) -> Result<Recipe, LabError> {
    let sizes = sizes(budget);
    let ffn = sizes.ffn;
    // Stock layers have three matrices where MoLE has two: two thirds of the width are as large.
    let own = match variant.split_once('-') {
        Some(("moe", experts)) => format!(
            "intermediate_size = {}\nexperts = {experts}\nexperts_per_token = 2\nbalance = 0.01",
            ffn / 3
        ),
        Some(("mole", experts)) => format!(
            "family = \"mole\"\nintermediate_size = {ffn}\nexperts = {experts}\nconfig = {{ hidden_act = \"gelu\" }}"
        ),
        _ => format!("intermediate_size = {}", 2 * ffn / 3),
    };
    comparison::recipe(&own, seed, sizes)
}

/// Builds both tables and measures them: the loss with each less that of the experts, on the same tokens, and how many
/// parameters a token meets when the experts are gone.
fn measure_tables(trained: &Trained, measured: &mut Measured, bench: &Workbench<'_>) -> Result<(), LabError> {
    let ids = comparison::validation_ids(trained, bench)?;
    let (window, tokens) = (sizes(bench.budget).length, 8192);
    let before = trained.loss_at(&ids, window, tokens)?;
    for dtype in TABLES {
        let out = bench.dir.join(format!("table-{dtype}"));
        let job = ConvertJob {
            model: trained.folder.clone(),
            to: "mole-lut".into(),
            options: [("dtype".to_owned(), dtype.to_owned())].into(),
            out: out.clone(),
            overwrite: Overwrite::Replace,
            resume: false,
            command_line: "ounce reproduce mole".into(),
        };
        convert(&job, &mut |_, _| {}, bench.stop).map_err(|error| match error {
            CompressError::Stopped(place) => LabError::Interrupted(place),
            other => other.into(),
        })?;
        let mut table = Trained::open(out)?;
        let after = table.loss_at(&ids, window, tokens)?;
        measured.values.insert(format!("table {dtype}"), after - before);
        measured
            .values
            .insert("active".into(), table.parameters().1 as f64 / 1e6);
    }
    Ok(())
}

impl Reproduction for Mole {
    fn name(&self) -> &'static str {
        "mole"
    }
    fn title(&self) -> &'static str {
        "Mixture of Lookup Experts (ICML 2025, arXiv 2503.15798)"
    }
    fn claim(&self) -> &'static str {
        "Experts that know only the token's id, and become a table after training, improve a dense model at equal arithmetic \
         per token: 40.8 (4 experts) and 41.9 (16) against 38.8 on the mean of eight tasks at 160 M parameters; router \
         mixtures with as many training parameters reach 40.3 and 41.8. Tested here: at equal arithmetic per token at \
         inference, data order, steps and seeds, the validation loss of MoLE with 4 experts is below the dense model's. The \
         tasks, and the speed of tables on a disk, are not tested here."
    }
    fn variants(&self, budget: Budget) -> Vec<&'static str> {
        let large = budget.pick(&[][..], &[], &LARGE);
        [&VARIANTS, large].concat()
    }
    fn seeds(&self, budget: Budget) -> u64 {
        budget.pick(7, 5, 3)
    }
    fn settings(&self, variant: &str, seed: u64, budget: Budget) -> Result<String, LabError> {
        Ok(recipe(variant, seed, budget)?.to_toml())
    }

    fn run(&self, variant: &str, seed: u64, bench: &mut Workbench<'_>) -> Result<Measured, LabError> {
        let mut trained = bench.train("train", &recipe(variant, seed, bench.budget)?)?;
        let mut measured = comparison::measure(&mut trained, sizes(bench.budget).length, bench)?;
        if variant.starts_with("mole") && variant != DENSE {
            measure_tables(&trained, &mut measured, bench)?;
        }
        Ok(measured)
    }

    fn judge(&self, results: &Results) -> Result<Finding, LabError> {
        let variants = self.variants(results.budget);
        let mut rows = comparison::rows(results, &variants)?;
        for variant in &variants {
            let name = format!("training parameters, {variant} (millions)");
            rows.push(Row::new(name, results.interval(variant, "parameters")?, None));
        }
        let gap = results.difference(MOLE, DENSE, "loss")?;
        rows.push(Row::new(format!("{MOLE} - {DENSE} (nats/token)"), gap, None));
        let others = [
            ("mole-16", DENSE),
            ("mole-16", MOLE),
            (SWIGLU, DENSE),
            ("moe-10", SWIGLU),
            (MOLE, "moe-10"),
        ];
        let large = variants.iter().filter(|v| LARGE.contains(v)).map(|v| ("mole-16", *v));
        for (variant, baseline) in others.into_iter().chain(large) {
            let difference = results.difference(variant, baseline, "loss")?;
            rows.push(Row::new(
                format!("{variant} - {baseline} (nats/token)"),
                difference,
                None,
            ));
        }
        for dtype in TABLES {
            let change = results.interval(MOLE, &format!("table {dtype}"))?;
            rows.push(Row::new(
                format!("{MOLE}, table in {dtype} - experts (nats/token)"),
                change,
                None,
            ));
        }
        let control = comparison::control(results, "moe-10", SWIGLU)?;
        let why = format!(
            "MoLE's validation loss with 4 experts is {:+.4} nats per token from that of the same model without them \
             over {} seeds; {}. {control} The small vocabulary \
             gives lookup experts few inputs.",
            gap.mean,
            gap.n,
            comparison::smallest_visible(&gap)
        );
        Ok(Finding {
            rows,
            verdict: comparison::verdict(&gap, 0.0, results, [MOLE, DENSE])?,
            why,
            plots: vec![comparison::loss_plot(results, &variants)?],
        })
    }
}
