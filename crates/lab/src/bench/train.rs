//! Training steps: the dense model that other programs are measured on, the shipped mixture of experts, and any recipe.

use super::{BenchRow, rates};
use ounce_data::{Batch, DataDir};
use ounce_kernels::Philox;
use ounce_train::{Recipe, TrainError, TrainStep};
use std::path::PathBuf;

/// 6.29 M parameters, Llama-shaped: width 256, 4 layers, 8 heads, SwiGLU 1024, vocabulary 4096 (untied), 8 x 512 tokens.
const RECIPE: &str = r#"
[model]
hidden_size = 256
layers = 4
heads = 8
intermediate_size = 1024
max_positions = 512
[tokenizer]
train_vocab = 4096
[data]
train = ["unused"]
[optimizer]
lr = 1e-3
[run]
steps = 100
batch = 8
length = 512
"#;

/// What makes of it the shape of `models/demo.toml`, 16 x 256 tokens.
const MIXTURE: [&str; 8] = [
    "model.intermediate_size=192",
    "model.experts=8",
    "model.experts_per_token=2",
    "model.balance=0.01",
    "model.tied=true",
    "run.batch=16",
    "run.length=256",
    "run.compute=f32",
];

/// `train_f32`, `train_bf16` and `train_moe_f32` (tokens/s): forward, loss, backward and AdamW over all parameters.
///
/// # Errors
/// Never in practice; the recipe is fixed.
pub fn train(runs: usize) -> Result<Vec<BenchRow>, TrainError> {
    [
        ("train_f32", &["run.compute=f32"][..]),
        ("train_bf16", &["run.compute=bf16"]),
        ("train_moe_f32", &MIXTURE),
    ]
    .into_iter()
    .map(|(name, changes)| {
        let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
        time(name, &Recipe::parse("bench", RECIPE, &changes)?, runs)
    })
    .collect()
}

/// One row per recipe (tokens/s), named after its file. Ids are random: the recipe's texts are not read.
///
/// # Errors
/// If a recipe is wrong, or the checkpoint that it continues is.
pub fn train_recipes(recipes: &[PathBuf], runs: usize) -> Result<Vec<BenchRow>, TrainError> {
    let one = |path: &PathBuf| {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        time(&stem, &Recipe::read(path, &[])?, runs)
    };
    recipes.iter().map(one).collect()
}

fn time(name: &str, recipe: &Recipe, runs: usize) -> Result<BenchRow, TrainError> {
    let mut trainer = TrainStep::of(recipe, &DataDir::from_environment(None))?;
    let vocab_size = trainer.model.config.vocab_size;
    let id = |i: usize| (Philox::at(1, 0, 0, i as u64) % vocab_size as u64) as u32;
    let rows = recipe.run.micro_batch();
    let length = trainer.row_length(recipe);
    let batches: Vec<Batch> = (0..recipe.run.batch / rows)
        .map(|m| {
            let first = m * rows * length;
            Batch {
                rows,
                length,
                inputs: (first..first + rows * length).map(id).collect(),
                targets: (first..first + rows * length).map(|i| id(i + 1)).collect(),
            }
        })
        .collect();
    let mut step = 0;
    let rates = rates(runs, (recipe.run.batch * length) as f64, || {
        step += 1;
        trainer.run(&batches, step, 1e-3).map(drop)
    })?;
    Ok(BenchRow::new(name, "tokens/s", rates))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn every_shipped_recipe_can_be_timed() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/recipes");
        let mut paths: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
        // Second stages go on from a checkpoint, which is not here (see below).
        paths.retain(|path| !std::fs::read_to_string(path).unwrap().contains("\ninit = "));
        paths.sort();
        let rows = train_recipes(&paths, 1).unwrap();
        let names: Vec<String> = rows.iter().map(|r| r.name.clone()).collect();
        assert!(
            names.contains(&"aoe".into()) && names.contains(&"long_short".into()),
            "{names:?}"
        );
        assert!(rows.iter().all(|r| r.min > 0.0 && r.runs == 1), "{rows:?}");
    }

    #[test]
    fn a_recipe_that_continues_a_checkpoint_is_timed_on_it() {
        let dir = tempfile::tempdir().unwrap();
        let recipe = |name: &str, init: &Path| {
            let path = dir.path().join(name);
            let text = format!(
                "init = {init:?}\n[data]\ntrain = [\"x\"]\n[optimizer]\nlr = 1e-3\n[run]\nsteps = 1\nbatch = 1\nlength = 4\n"
            );
            std::fs::write(&path, text).unwrap();
            path
        };
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/mixtral");
        let rows = train_recipes(&[recipe("on.toml", &golden)], 1).unwrap();
        assert!(rows[0].name == "on" && rows[0].min > 0.0, "{rows:?}");
        let error = train_recipes(&[recipe("off.toml", Path::new("somewhere"))], 1).unwrap_err();
        assert!(error.to_string().contains("somewhere"), "{error}");
    }
}
