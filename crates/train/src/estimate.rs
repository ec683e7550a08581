//! What a run will cost, before it starts; and the refusal of one that no machine like this can hold.

use crate::{
    error::{Result, TrainError},
    recipe::{Recipe, TokenizerConfig},
    step::fresh_config,
};
use ounce_data::DataDir;
use ounce_model::{ModelConfig, ModelError, Tokenizer, config::LayerConfig};
use serde::Serialize;

/// Bytes per parameter: the f32 master, both moments, the gradient.
const STATE: u64 = 16;
/// Bytes per parameter of a checkpoint: master and moments in f32, the export in 16 bits.
const CHECKPOINT: u64 = 14;

/// What a run will cost.
#[derive(Debug, Clone, Serialize)]
pub struct Estimate {
    /// Parameters.
    pub parameters: u64,
    /// Tokens the run trains on.
    pub tokens: u64,
    /// Bytes of masters, moments and gradients.
    pub state_bytes: u64,
    /// Rough bytes of activations kept for one micro-batch.
    pub activation_bytes: u64,
    /// Bytes of one checkpoint.
    pub checkpoint_bytes: u64,
}

/// What a run of `recipe` will cost; `data` is where `${data}` points.
///
/// # Errors
/// If the recipe's model cannot be built: it must have a `[model]` and a vocabulary.
pub fn estimate(recipe: &Recipe, data: &DataDir) -> Result<Estimate> {
    let vocab_size = vocab_size(recipe, data)?;
    let (config, _) = fresh_config(recipe, vocab_size, None)?;
    cost(recipe, &config)
}

/// Tokens of the vocabulary that a fresh model of `recipe` has; 0 if it continues a checkpoint, which has its own.
///
/// # Errors
/// If the recipe names a folder without a tokenizer.
pub fn vocab_size(recipe: &Recipe, data: &DataDir) -> Result<usize> {
    Ok(match &recipe.tokenizer {
        Some(TokenizerConfig::TrainVocab(size)) => *size,
        Some(TokenizerConfig::Reuse(folder)) => Tokenizer::from_folder(data.expand(folder)?)
            .map_err(ModelError::from)?
            .vocab_size(),
        None => 0,
    })
}

fn cost(recipe: &Recipe, config: &ModelConfig) -> Result<Estimate> {
    let parameters = ounce_model::parameter_count(config)?;
    // About 16 values of model width and 4 of feed-forward width per token and layer stay alive for the backward walk.
    let ffn = |l: &LayerConfig| l.ffn.width() as u64;
    let layer = |l: &LayerConfig| (16 * config.hidden_size as u64).saturating_add(ffn(l).saturating_mul(4));
    let per_token = config.layers.iter().map(layer).fold(0, u64::saturating_add);
    // Products of sizes of `[run]` were checked when the recipe was read.
    let objective = recipe.objective.build(recipe.run.length);
    let micro = (objective.forward_rows(recipe.run.micro_batch()) * recipe.run.length) as u64;
    Ok(Estimate {
        parameters,
        tokens: recipe.run.steps * (recipe.run.batch * recipe.run.length) as u64,
        state_bytes: parameters.saturating_mul(STATE),
        activation_bytes: per_token.saturating_mul(micro).saturating_mul(4),
        checkpoint_bytes: parameters.saturating_mul(CHECKPOINT),
    })
}

/// Refuses a run that needs more than all memory of this machine: the attempt would end in the middle of an allocation, or
/// take the machine down with it. What is compared is a lower bound: the state, the ids of a step, and one value of model
/// width per layer and token of a micro-batch.
pub(crate) fn check_memory(recipe: &Recipe, config: &ModelConfig) -> Result<()> {
    let cost = cost(recipe, config)?;
    let run = &recipe.run;
    let residuals = ((run.micro_batch() * run.length) as u64)
        .saturating_mul(4 * config.hidden_size as u64)
        .saturating_mul(config.layers.len() as u64);
    let ids = 8 * (run.batch * run.length) as u64;
    let needed = cost.state_bytes.saturating_add(residuals).saturating_add(ids);
    match memory() {
        Some(memory) if needed > memory => Err(TrainError::Memory {
            parameters: cost.parameters,
            needed,
            memory,
        }),
        _ => Ok(()),
    }
}

/// Bytes of memory and swap of this machine, where the system tells.
fn memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = |key: &str| -> Option<u64> {
        let line = text.lines().find(|l| l.starts_with(key))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    Some((kib("MemTotal:")? + kib("SwapTotal:").unwrap_or(0)) * 1024)
}
