//! Training steps: the dense model that other programs are measured on, and the shipped mixture of experts.

use super::{BenchRow, rates};
use ounce_data::Batch;
use ounce_kernels::Philox;
use ounce_train::{Recipe, TrainError, TrainStep};

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
    const VOCABULARY: u64 = 4096;
    let id = |i: usize| (Philox::at(1, 0, 0, i as u64) % VOCABULARY) as u32;
    [
        ("train_f32", &["run.compute=f32"][..]),
        ("train_bf16", &["run.compute=bf16"]),
        ("train_moe_f32", &MIXTURE),
    ]
    .into_iter()
    .map(|(name, changes)| {
        let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
        let recipe = Recipe::parse("bench", RECIPE, &changes)?;
        let (rows, length) = (recipe.run.batch, recipe.run.length);
        let inputs: Vec<u32> = (0..rows * length).map(id).collect();
        let targets: Vec<u32> = (0..rows * length).map(|i| id(i + 1)).collect();
        let batch = [Batch {
            rows,
            length,
            inputs,
            targets,
        }];
        let mut trainer = TrainStep::fresh(&recipe, VOCABULARY as usize)?;
        let mut step = 0;
        let rates = rates(runs, (rows * length) as f64, || {
            step += 1;
            trainer.run(&batch, step, 1e-3).map(drop)
        })?;
        Ok(BenchRow::new(name, "tokens/s", rates))
    })
    .collect()
}
