//! Token by token generation.

use crate::{
    error::{ModelError, Result},
    model::Model,
    sampler::{Sampler, SamplerConfig},
    session::{Session, SlotId},
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

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model made one of [`GenerateOptions::eos`]; it is the last id.
    Eos(u32),
    /// [`GenerateOptions::max_new_tokens`] were made.
    Length,
    /// The listener wanted no more.
    Stopped,
}

/// What came out.
#[derive(Debug, Clone)]
pub struct Generation {
    /// Prompt and new ids.
    pub ids: Vec<u32>,
    /// Length of the prompt.
    pub prompt_len: usize,
    /// Tokens of the prompt that were held already.
    pub cached: usize,
    /// Why it ended.
    pub finish: Finish,
    /// Time of the prompt's forward.
    pub prefill: Duration,
    /// Time of all tokens after the first.
    pub decode: Duration,
}

impl Generation {
    /// The new ids.
    pub fn new_ids(&self) -> &[u32] {
        &self.ids[self.prompt_len..]
    }

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
    on_token: impl FnMut(u32) -> bool,
) -> Result<Generation> {
    Conversation::new(model, options.compute).generate(prompt, options, on_token)
}

/// One sequence that grows by turns: what the model has read stays in memory, so that a later prompt costs only the tokens
/// in which it differs.
pub struct Conversation<'m> {
    session: Session<'m>,
    slot: Option<SlotId>,
    /// The tokens that the slot holds.
    held: Vec<u32>,
}

impl<'m> Conversation<'m> {
    /// A conversation in which nothing has been said. `compute` is the arithmetic of prompts.
    pub fn new(model: &'m Model, compute: Compute) -> Self {
        Self {
            session: Session::new(model, compute),
            slot: None,
            held: Vec::new(),
        }
    }

    /// Continues `prompt`, the whole of it from the first token on. Tokens at its front that are held are not read again;
    /// where others are held, it goes back to the last that agrees, or begins anew if the model's memory cannot go back.
    ///
    /// # Errors
    /// As [`generate`]. The conversation can go on after an error.
    pub fn generate(
        &mut self,
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
        let room = self.session.model().config.max_positions.saturating_sub(prompt.len());
        let reserve = prompt.len() + options.max_new_tokens.min(room).min(MOST_RESERVED);
        let (slot, cached) = self.slot_for(prompt, reserve)?;
        let mut sampler = Sampler::new(options.sampler.clone(), prompt);
        let start = Instant::now();
        let mut made = Generation {
            ids: prompt.to_vec(),
            prompt_len: prompt.len(),
            cached,
            finish: Finish::Length,
            prefill: Duration::ZERO,
            decode: Duration::ZERO,
        };
        for step in 0..options.max_new_tokens {
            let logits = match made.new_ids().last() {
                None => self.session.prefill(slot, &prompt[cached..])?,
                Some(&id) => self.session.step(&[(slot, id)])?,
            }
            .to_f32();
            if step == 0 {
                made.prefill = start.elapsed();
            }
            if !logits.iter().any(|x| x.is_finite()) || logits.iter().any(|x| x.is_nan()) {
                return input(
                    "logits",
                    "are not finite",
                    "the weights hold NaN or infinity; `ounce inspect MODEL --scan` names the tensors",
                );
            }
            self.held.clone_from(&made.ids);
            let id = sampler.next(&logits);
            made.ids.push(id);
            let wanted = on_token(id);
            if options.eos.contains(&id) {
                made.finish = Finish::Eos(id);
                break;
            }
            if !wanted {
                made.finish = Finish::Stopped;
                break;
            }
        }
        made.decode = start.elapsed().saturating_sub(made.prefill);
        self.slot = Some(slot);
        Ok(made)
    }

    /// A slot for a prompt, and how many of the prompt's tokens it holds: never all, for the last one's logits are wanted.
    /// It is kept only once all went well.
    fn slot_for(&mut self, prompt: &[u32], reserve: usize) -> Result<(SlotId, usize)> {
        let held = std::mem::take(&mut self.held);
        let agree = held.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let agree = agree.min(prompt.len() - 1);
        if let Some(slot) = self.slot.take() {
            if agree > 0 && (agree == held.len() || self.session.rollback(slot, agree).is_ok()) {
                return Ok((slot, agree));
            }
            self.session.close(slot)?;
        }
        Ok((self.session.open(reserve), 0))
    }
}

fn input<T>(what: &str, rule: impl Into<String>, hint: &str) -> Result<T> {
    Err(ModelError::Input {
        what: what.into(),
        rule: rule.into(),
        hint: hint.into(),
    })
}
