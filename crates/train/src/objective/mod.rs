//! Objectives: what a step minimises. Each has one file here.

pub mod long_short;
mod next_token;

use crate::error::Result;
use long_short::{LongShort, LongShortConfig};
use ounce_data::Batch;
use ounce_model::{Batch as ModelBatch, Ctx, Model, Noise, balance::Selected};
use ounce_tensor::{Compute, Tensor, ops};
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, sync::Arc};

pub use next_token::NextToken;

/// A loss and what it is made of.
pub struct LossParts {
    /// What is minimised: a scalar with a tape.
    pub total: Tensor,
    /// Named values for the log.
    pub parts: Vec<(&'static str, f64)>,
}

/// Which step of which run: whatever an objective draws is a function of it, so that a resumed run draws the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct At {
    /// Seed of the run.
    pub seed: u64,
    /// The step, counted from 1; 0 outside training.
    pub step: u64,
    /// The micro-batch of the step.
    pub part: u64,
}

impl At {
    /// Where methods that explore draw their noise; none outside training.
    fn noise(self) -> Option<Noise> {
        let Self { seed, step, part } = self;
        (step > 0).then_some(Noise { seed, step, part })
    }
}

/// How a loss is computed.
#[derive(Debug, Clone)]
pub struct How {
    /// Which step.
    pub at: At,
    /// Arithmetic of the matrix products.
    pub compute: Compute,
    /// What all micro-batches of the step chose, if there are several: balance losses are of the whole step.
    pub choices: Option<Arc<[Selected]>>,
}

/// A key of the recipe that is out of range.
pub(crate) struct Problem {
    pub(crate) key: &'static str,
    pub(crate) rule: String,
    pub(crate) hint: &'static str,
}

/// What a step minimises. It may call the forward more than once.
pub trait Objective: Send + Sync {
    /// Tokens a row needs for windows of `length`, targets included.
    fn tokens_needed(&self, length: usize) -> usize;
    /// Rows of windows that go through the model for `rows` rows of a micro-batch.
    fn forward_rows(&self, rows: usize) -> usize {
        rows
    }
    /// The windows that go through the model for a micro-batch.
    fn input<'a>(&self, batch: &'a Batch, _at: At) -> Cow<'a, Batch> {
        Cow::Borrowed(batch)
    }
    /// The loss of one micro-batch.
    ///
    /// # Errors
    /// If shapes do not fit.
    fn loss(&self, model: &Model, batch: &Batch, how: &How) -> Result<LossParts>;
}

/// The forward that every objective begins with: hidden states of [`Objective::input`], and what the blocks left.
pub(crate) fn hidden<'a>(model: &Model, input: &'a Batch, how: &How) -> Result<(Tensor, Ctx<'a>)> {
    let mut ctx = model.context(ModelBatch {
        ids: &input.inputs,
        batch: input.rows,
        compute: how.compute,
    })?;
    ctx.noise = how.at.noise();
    ctx.sink.balance.step.clone_from(&how.choices);
    let hidden = model.hidden(&mut ctx)?;
    Ok((hidden, ctx))
}

/// Adds the losses that the blocks left in the sink (the balance of mixtures of experts) to an objective's own.
fn add_side_losses(mut total: Tensor, mut parts: Vec<(&'static str, f64)>, ctx: &mut Ctx<'_>) -> Result<LossParts> {
    let side: Vec<Tensor> = std::mem::take(&mut ctx.sink.side_losses);
    if !side.is_empty() {
        let mut balance = 0.0;
        for loss in side {
            balance += loss.item()?;
            total = ops::add(&total, &loss)?;
        }
        parts.push(("balance", balance));
    }
    Ok(LossParts { total, parts })
}

/// `[objective]` of a recipe. This is the one list to edit when an objective is added.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "kind",
    rename_all = "snake_case",
    deny_unknown_fields,
    expecting = "a table, [objective], with a key `kind`"
)]
pub enum ObjectiveConfig {
    /// Cross-entropy of the next token, plus the balance losses of mixtures.
    NextToken {},
    /// The same plus a penalty on predictions that depend on the length of the context.
    LongShort(LongShortConfig),
}

impl Default for ObjectiveConfig {
    fn default() -> Self {
        Self::NextToken {}
    }
}

impl ObjectiveConfig {
    /// The objective for windows of `length` tokens.
    pub fn build(&self, length: usize) -> Box<dyn Objective> {
        match self {
            Self::NextToken {} => Box::new(NextToken),
            Self::LongShort(config) => Box::new(LongShort::new(*config, length)),
        }
    }

    /// The first key that is out of range for windows of `length` tokens.
    pub(crate) fn problem(&self, length: usize) -> Option<Problem> {
        match self {
            Self::NextToken {} => None,
            Self::LongShort(config) => config.problem(length),
        }
    }
}
