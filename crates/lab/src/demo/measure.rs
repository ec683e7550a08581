//! One model's bill: quality, size, memory, speed. Runs in a process of its own, because a process's peak memory never
//! falls again.

use crate::bench::{anonymous_rss_bytes, peak_rss_bytes, rates};
use ounce_eval::{ScoreOptions, perplexity_of_text};
use ounce_formats::fsx;
use ounce_model::{GenerateOptions, ModelError, OpenOptions, Opened, SamplerConfig, Tokenizer, generate};
use serde::{Deserialize, Serialize};
use std::{path::Path, time::Instant};

/// What the measuring process prints as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Measurement {
    /// Bits per byte of the evaluation text; lower is better.
    pub bits_per_byte: f64,
    /// Perplexity per token of the evaluation text; lower is better.
    pub perplexity: f64,
    /// All parameters.
    pub parameters: usize,
    /// Experts stored, over all layers.
    pub experts: usize,
    /// Bytes of the weight files.
    pub disk_bytes: u64,
    /// Peak resident memory while generating, mapped weights included.
    pub peak_rss_bytes: u64,
    /// Resident memory after generating that is not backed by a file.
    pub anonymous_bytes: u64,
    /// Generation at batch 1, five runs, sorted.
    pub tokens_per_second: Vec<f64>,
    /// From opening the folder to the first token, in milliseconds.
    pub first_token_ms: f64,
    /// Prompts and their continuations.
    pub samples: Vec<(String, String)>,
}

/// Tokens of each timed generation.
const TIMED_TOKENS: usize = 128;
/// Timed generations.
const RUNS: usize = 5;

/// Measures the model in `dir` on the text file `text`; each prompt is continued by `sample_tokens` tokens.
///
/// # Errors
/// If the folder, its tokenizer or the text cannot be read, or the model fails.
pub fn measure(
    dir: &Path,
    text: &Path,
    prompts: &[String],
    sample_tokens: usize,
) -> Result<Measurement, crate::LabError> {
    let start = Instant::now();
    let opened = Opened::new(dir, &OpenOptions::default())?;
    let disk_bytes = opened.checkpoint().total_bytes();
    let mut model = opened.model()?;
    let tokenizer = Tokenizer::open(dir).map_err(ModelError::from)?;
    let mut options = GenerateOptions {
        max_new_tokens: 1,
        sampler: SamplerConfig {
            temperature: 0.8,
            ..SamplerConfig::default()
        },
        eos: Vec::new(),
        compute: model.compute(),
    };
    let encode = |s: &str| tokenizer.encode(s, true).map_err(ModelError::from);
    let first = prompts.first().map_or("The", String::as_str);
    generate(&model, &encode(first)?, &options, |_| true)?;
    let first_token_ms = start.elapsed().as_secs_f64() * 1e3;

    options.max_new_tokens = TIMED_TOKENS;
    let prompt = encode(first)?;
    let mut tokens_per_second = rates(RUNS, TIMED_TOKENS as f64, || {
        generate(&model, &prompt, &options, |_| true).map(drop)
    })?;
    tokens_per_second.sort_by(f64::total_cmp);

    options.max_new_tokens = sample_tokens;
    let samples = prompts
        .iter()
        .map(|prompt| {
            let ids = encode(prompt)?;
            let made = generate(&model, &ids, &options, |_| true)?;
            let text = tokenizer
                .decode(&made.ids[made.prompt_len..], true)
                .map_err(ModelError::from)?;
            Ok((prompt.clone(), text))
        })
        .collect::<Result<Vec<_>, ModelError>>()?;

    // Before the evaluation, whose batches of logits would hide what the model itself needs.
    let (peak_rss_bytes, anonymous_bytes) = (peak_rss_bytes(), anonymous_rss_bytes());
    let text = fsx::read_to_string(text)?;
    let encode = |s: &str| tokenizer.encode(s, true).map_err(Into::into);
    let scoring = ScoreOptions::for_model(&model);
    let quality = perplexity_of_text(&model, &text, &encode, &scoring, &mut |_, _| {})?;
    Ok(Measurement {
        bits_per_byte: quality.bits_per_byte,
        perplexity: quality.perplexity,
        parameters: model.parameters(),
        experts: model.config.moe_layers().map(|(_, moe)| moe.stored).sum(),
        disk_bytes,
        peak_rss_bytes,
        anonymous_bytes,
        tokens_per_second,
        first_token_ms,
        samples,
    })
}
