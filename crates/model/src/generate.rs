//! Token by token generation.

use crate::{
    error::{ModelError, Result},
    model::Model,
    sampler::{Sampler, SamplerConfig},
    session::Session,
};
use ounce_tensor::Compute;
use std::time::{Duration, Instant};

/// New tokens whose keys and values get their memory at once; a cache grows by doubling beyond. "As many as there are" must
/// not take all memory before the first token.
const MOST_RESERVED: usize = 8192;

/// Settings of one generation.
#[derive(Debug, Clone)]
pub struct GenerateOptions {
    /// Tokens to make at most.
    pub max_new_tokens: usize,
    /// How they are chosen.
    pub sampler: SamplerConfig,
    /// Ids that end it; empty: none.
    pub eos: Vec<u32>,
    /// Arithmetic of the prompt. The steps after it always multiply 16-bit weights exactly, in f32: their time is the
    /// time to read the weights, so that rounding activations to bf16 would cost accuracy and gain nothing.
    pub compute: Compute,
}

/// What came out.
#[derive(Debug, Clone)]
pub struct Generation {
    /// Prompt and new ids.
    pub ids: Vec<u32>,
    /// Length of the prompt.
    pub prompt_len: usize,
    /// Time of the prompt's forward.
    pub prefill: Duration,
    /// Time of all tokens after the first.
    pub decode: Duration,
}

impl Generation {
    /// New tokens per second after the first; 0 if there was no second.
    pub fn tokens_per_second(&self) -> f64 {
        let steps = (self.ids.len() - self.prompt_len).saturating_sub(1);
        if steps == 0 {
            0.0
        } else {
            steps as f64 / self.decode.as_secs_f64().max(1e-9)
        }
    }
}

/// Continues `prompt`; `on_token` sees each new id and may stop by returning false.
///
/// # Errors
/// If the prompt is empty or holds an id outside the vocabulary, a setting is out of range, or the logits are not
/// finite.
pub fn generate(
    model: &Model,
    prompt: &[u32],
    options: &GenerateOptions,
    mut on_token: impl FnMut(u32) -> bool,
) -> Result<Generation> {
    if prompt.is_empty() {
        return input("prompt", "is empty", "give at least one token");
    }
    if let Some((what, rule)) = options.sampler.problem() {
        return input(what, rule, "");
    }
    let room = model.config.max_positions.saturating_sub(prompt.len());
    let reserve = prompt.len() + options.max_new_tokens.min(room).min(MOST_RESERVED);
    let mut session = Session::new(model, options.compute);
    let slot = session.open(reserve);
    let mut sampler = Sampler::new(options.sampler.clone(), prompt);
    let mut ids = prompt.to_vec();
    let start = Instant::now();
    let mut prefill = Duration::ZERO;
    for made in 0..options.max_new_tokens {
        let logits = match ids[prompt.len()..].last() {
            None => session.prefill(slot, prompt)?,
            Some(&id) => session.step(&[(slot, id)])?,
        }
        .to_f32();
        if made == 0 {
            prefill = start.elapsed();
        }
        if !logits.iter().any(|x| x.is_finite()) || logits.iter().any(|x| x.is_nan()) {
            return input(
                "logits",
                "are not finite",
                "the weights hold NaN or infinity; `ounce inspect MODEL --scan` names the tensors",
            );
        }
        let id = sampler.next(&logits);
        ids.push(id);
        if !on_token(id) || options.eos.contains(&id) {
            break;
        }
    }
    Ok(Generation {
        ids,
        prompt_len: prompt.len(),
        prefill,
        decode: start.elapsed().saturating_sub(prefill),
    })
}

fn input<T>(what: &str, rule: impl Into<String>, hint: &str) -> Result<T> {
    Err(ModelError::Input {
        what: what.into(),
        rule: rule.into(),
        hint: hint.into(),
    })
}
