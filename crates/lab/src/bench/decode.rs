//! Decoding and prefill of a checkpoint, batch 1.

use super::{BenchRow, rates};
use ounce_kernels::Philox;
use ounce_model::{Batch, GenerateOptions, Model, ModelError, SamplerConfig, generate};
use ounce_tensor::no_grad;

/// Tokens made by one run of [`decode`].
const DECODE: usize = 128;
/// Tokens read by one run of [`prefill`].
const PREFILL: usize = 512;

fn ids(model: &Model, n: usize) -> Vec<u32> {
    (0..n)
        .map(|i| (Philox::at(7, 0, 0, i as u64) % model.config.vocab_size as u64) as u32)
        .collect()
}

/// `decode`: tokens per second of 128 tokens after a prompt of one.
///
/// # Errors
/// If the model fails.
pub fn decode(model: &Model, runs: usize) -> Result<BenchRow, ModelError> {
    let options = GenerateOptions {
        max_new_tokens: DECODE,
        sampler: SamplerConfig::default(),
        eos: Vec::new(),
        compute: model.compute(),
    };
    let prompt = ids(model, 1);
    let rates = rates(runs, DECODE as f64, || {
        generate(model, &prompt, &options, |_| true).map(drop)
    })?;
    Ok(BenchRow::new("decode", "tokens/s", rates))
}

/// `prefill`: tokens per second of a prompt of 512 tokens into an empty cache.
///
/// # Errors
/// If the model fails.
pub fn prefill(model: &Model, runs: usize) -> Result<BenchRow, ModelError> {
    let prompt = ids(model, PREFILL);
    let rates = rates(runs, PREFILL as f64, || {
        let mut cache = model.cache(1, PREFILL);
        let batch = Batch {
            ids: &prompt,
            batch: 1,
            compute: model.compute(),
        };
        no_grad(|| model.next_logits(batch, &mut *cache)).map(drop)
    })?;
    Ok(BenchRow::new("prefill", "tokens/s", rates))
}
