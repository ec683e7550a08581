//! What a run will cost, before it starts; and the refusal of one that no machine like this can hold.

use crate::{
    error::{Result, TrainError},
    recipe::{Export, Recipe, TokenizerConfig},
    start::Start,
};
use ounce_data::DataDir;
use ounce_model::{ModelConfig, ModelError, Tokenizer, config::LayerConfig};
use ounce_tensor::{Tensor, no_grad, ops};
use serde::Serialize;
use std::time::{Duration, Instant};

/// Bytes per parameter: the f32 master, both moments, the gradient.
const STATE: u64 = 16;
/// Bytes per parameter of a checkpoint beside the export: master and moments in f32.
const TRAINER: u64 = 12;
/// Share of the rate of one large matrix product that whole training steps reach: measured between 0.3 and 0.6.
const SHARE: f64 = 0.5;

/// What a run will cost.
#[derive(Debug, Clone, Serialize)]
pub struct Estimate {
    /// Parameters.
    pub parameters: u64,
    /// Optimiser steps.
    pub steps: u64,
    /// Tokens the run trains on.
    pub tokens: u64,
    /// Bytes of masters, moments and gradients.
    pub state_bytes: u64,
    /// Rough bytes of activations kept for one micro-batch.
    pub activation_bytes: u64,
    /// Bytes of one checkpoint.
    pub checkpoint_bytes: u64,
    /// Checkpoints that are kept at the end.
    pub checkpoints: u64,
    /// Bytes of the final model.
    pub final_bytes: u64,
    /// Most bytes on the disk at a time: a checkpoint is written before the oldest is removed.
    pub disk_bytes: u64,
    /// Floating-point operations: six per active parameter and token.
    pub flops: f64,
    /// Rough duration on this machine, see [`Estimate::time`]; 0 until then.
    pub seconds: f64,
}

/// What a run of `recipe` will cost; `data` is where `${data}` points. No text is read, and no weight.
///
/// # Errors
/// If the recipe's model cannot be built: it must have a `[model]` and a vocabulary, or an `init` that is a checkpoint.
pub fn estimate(recipe: &Recipe, data: &DataDir) -> Result<Estimate> {
    let start = Start::of(recipe, data, || Ok((vocab_size(recipe, data)?, None)))?;
    cost(recipe, start.config())
}

/// Tokens of the vocabulary that a fresh model of `recipe` has; 0 if it continues a checkpoint, which has its own.
///
/// # Errors
/// If the recipe names a folder without a tokenizer.
pub(crate) fn vocab_size(recipe: &Recipe, data: &DataDir) -> Result<usize> {
    Ok(match &recipe.tokenizer {
        Some(TokenizerConfig::TrainVocab(size)) => *size,
        Some(TokenizerConfig::Reuse(folder)) => Tokenizer::open(data.expand(folder)?)
            .map_err(ModelError::from)?
            .vocab_size(),
        None => 0,
    })
}

fn cost(recipe: &Recipe, config: &ModelConfig) -> Result<Estimate> {
    let run = &recipe.run;
    let parameters = ounce_model::parameter_count(config)?;
    // About 16 values of model width and 4 of feed-forward width per token and layer stay alive for the backward walk.
    let ffn = |l: &LayerConfig| l.ffn.width() as u64;
    let layer = |l: &LayerConfig| (16 * config.hidden_size as u64).saturating_add(ffn(l).saturating_mul(4));
    let per_token = config.layers.iter().map(layer).fold(0, u64::saturating_add);
    // Products of sizes of `[run]` were checked when the recipe was read.
    let objective = recipe.objective.build(run.length);
    let micro = (objective.forward_rows(run.micro_batch()) * run.length) as u64;
    let exported = match run.export {
        Export::Bf16 => 2,
        Export::F32 => 4,
    };
    let checkpoint_bytes = parameters.saturating_mul(TRAINER + exported);
    let final_bytes = parameters.saturating_mul(exported);
    let written = match run.checkpoint_every {
        0 => 1,
        every => run.steps.div_ceil(every),
    };
    let checkpoints = written.min(run.keep as u64);
    let at_once = written.min(checkpoints.saturating_add(1));
    let whole = final_bytes.saturating_add(checkpoints.saturating_mul(checkpoint_bytes));
    let tokens = run.steps * (run.batch * run.length) as u64;
    let views = objective.forward_rows(run.batch) as f64 / run.batch as f64;
    Ok(Estimate {
        parameters,
        steps: run.steps,
        tokens,
        state_bytes: parameters.saturating_mul(STATE),
        activation_bytes: per_token.saturating_mul(micro).saturating_mul(4),
        checkpoint_bytes,
        checkpoints,
        final_bytes,
        disk_bytes: whole.max(at_once.saturating_mul(checkpoint_bytes)),
        flops: 6.0 * active(config, parameters) as f64 * tokens as f64 * views,
        seconds: 0.0,
    })
}

/// Parameters that a token meets: experts it is not sent to are not among them, nor rows of an embedding that is no head.
fn active(config: &ModelConfig, parameters: u64) -> u64 {
    let idle = config.moe_layers().map(|(_, moe)| {
        let one = 3_u64
            .saturating_mul(moe.width as u64)
            .saturating_mul(config.hidden_size as u64);
        one.saturating_mul(moe.stored.saturating_sub(moe.top_k) as u64)
    });
    let embedding = if config.tied {
        0
    } else {
        (config.vocab_size as u64).saturating_mul(config.hidden_size as u64)
    };
    parameters
        .saturating_sub(idle.fold(0, u64::saturating_add))
        .saturating_sub(embedding)
}

impl Estimate {
    /// Fills in `seconds` from how fast this machine multiplies matrices now, in a quarter of a second. Attention, which
    /// grows with the length, is not in it: the figure is good to a factor of two, and `ounce bench train --recipe`
    /// measures real steps.
    ///
    /// # Errors
    /// If an operation fails.
    pub fn time(&mut self, recipe: &Recipe) -> Result<()> {
        const SIZE: usize = 512;
        let values = |seed: usize| (0..SIZE * SIZE).map(|i| ((i * 7 + seed) % 13) as f32 - 6.0).collect();
        let (a, b) = (
            Tensor::new(values(1), &[SIZE, SIZE])?,
            Tensor::new(values(2), &[SIZE, SIZE])?,
        );
        let product = || no_grad(|| ops::linear(&a, &b, recipe.run.compute.into()));
        // The first one starts the threads.
        product()?;
        let (start, mut done) = (Instant::now(), 0.0);
        while start.elapsed() < Duration::from_millis(250) {
            product()?;
            done += 2.0 * (SIZE * SIZE * SIZE) as f64;
        }
        self.seconds = self.flops * start.elapsed().as_secs_f64() / (done * SHARE);
        Ok(())
    }
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
