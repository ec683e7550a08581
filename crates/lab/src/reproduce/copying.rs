//! The model that experiments start from which ask what becomes of distant context: it copies what it saw long ago.
//!
//! Its text has notes of random words that recur at a distance, so that context is worth something. One model per seed is
//! trained, in short windows, where copying is learned soonest; every variant tunes that one, as the papers do.

use super::{
    Budget, Trained, Workbench,
    recipe::{Setup, Sizes},
};
use crate::LabError;
use ounce_data::toy::write_toys;
use ounce_train::Recipe;

/// At most 1 M parameters up to `standard`.
pub(super) fn sizes(budget: Budget) -> Sizes {
    Sizes::pick(
        budget,
        [64, 3, 160, 512, 64, 1500, 24],
        [96, 4, 256, 512, 64, 2500, 24],
        [192, 6, 512, 2048, 128, 8000, 24],
    )
}

/// Models have positions for four times the windows of the first training.
pub(super) const POSITIONS: usize = 4;

fn setup(budget: Budget, sizes: Sizes) -> Setup {
    Setup {
        sizes,
        heads: 4,
        positions: POSITIONS * self::sizes(budget).length,
        corpora: &["notes/toy-notes"],
        eval_tokens: 2048,
    }
}

/// The recipe of the first training.
pub(super) fn base(seed: u64, budget: Budget) -> Result<Recipe, LabError> {
    let sizes = sizes(budget);
    // Weights of 1 / sqrt(width) and a high rate: with the usual 0.02 and 3e-3 copying takes several times the steps.
    let own = format!(
        "intermediate_size = {}\ntied = true\nconfig = {{ initializer_range = {} }}",
        sizes.ffn,
        budget.pick("0.125", "0.1", "0.07")
    );
    let mut base = setup(budget, sizes).recipe(&own, seed)?;
    base.optimizer.lr = budget.pick(1e-2, 6e-3, 3e-3);
    Ok(base)
}

/// The recipe of a variant that goes on from there: `steps` of `batch` windows of `length` tokens; `own` are its own lines.
pub(super) fn tuning(
    own: &str,
    seed: u64,
    budget: Budget,
    [steps, batch, length]: [usize; 3],
) -> Result<Recipe, LabError> {
    let sizes = Sizes {
        length,
        steps,
        batch,
        ..sizes(budget)
    };
    setup(budget, sizes).tuning(own, seed)
}

/// Trains the model of `seed`, if no variant has, and tunes it. Returns the result and the ids of the held-out text.
pub(super) fn tuned(
    base: &Recipe,
    mut tuning: Recipe,
    seed: u64,
    bench: &mut Workbench<'_>,
) -> Result<(Trained, Vec<u32>), LabError> {
    // Enough text that it is not learned by heart.
    let bytes = bench.budget.pick(3_000_000, 6_000_000, 40_000_000);
    write_toys(&bench.data.expand("${data}/notes")?, 0, bytes)?;
    let start = bench.train_shared(&format!("seed-{seed}"), base)?;
    tuning.init = Some(start.folder.display().to_string());
    let trained = bench.train("train", &tuning)?;
    let ids = trained.ids(&bench.text("notes/toy-notes.valid.txt")?)?;
    Ok((trained, ids))
}
