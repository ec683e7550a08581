//! The training step of the model that other programs are measured on.

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

/// `train_f32` and `train_bf16` (tokens/s): forward, loss, backward and AdamW over all parameters.
///
/// # Errors
/// Never in practice; the recipe is fixed.
pub fn train(runs: usize) -> Result<Vec<BenchRow>, TrainError> {
    let (rows, length, vocabulary) = (8, 512, 4096u64);
    let id = |i: usize| (Philox::at(1, 0, 0, i as u64) % vocabulary) as u32;
    let inputs: Vec<u32> = (0..rows * length).map(id).collect();
    let targets: Vec<u32> = (0..rows * length).map(|i| id(i + 1)).collect();
    let batch = [Batch {
        rows,
        length,
        inputs,
        targets,
    }];
    ["f32", "bf16"]
        .into_iter()
        .map(|compute| {
            let recipe = Recipe::parse("bench", RECIPE, &[format!("run.compute={compute}")])?;
            let mut trainer = TrainStep::fresh(&recipe, vocabulary as usize)?;
            let mut step = 0;
            let rates = rates(runs, (rows * length) as f64, || {
                step += 1;
                trainer.run(&batch, step, 1e-3).map(drop)
            })?;
            Ok(BenchRow::new(format!("train_{compute}"), "tokens/s", rates))
        })
        .collect()
}
