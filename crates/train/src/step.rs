//! One optimiser step: micro-batches to gradients to an update. The trainer and the benchmarks share it.

use crate::{
    error::{Result, TrainError},
    estimate::{check_memory, vocab_size},
    objective::{At, How, Objective, hidden},
    optimizer::Optimizer,
    recipe::Recipe,
    start::Start,
};
use ounce_data::{Batch, DataDir};
use ounce_model::{
    Batch as ModelBatch, Model,
    balance::{Selected, whole_step},
};
use ounce_tensor::{Compute, Gradients, Tensor};
use std::sync::Arc;

/// Bytes of buffers kept between operations and steps.
const BUFFERS: usize = 512 << 20;

/// What one step found.
#[derive(Debug, Clone)]
pub struct StepResult {
    /// What was minimised, the mean over micro-batches.
    pub loss: f64,
    /// What it is made of.
    pub parts: Vec<(&'static str, f64)>,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
}

/// A model, its optimiser and its objective: everything one step needs but tokens.
pub struct TrainStep {
    /// The model; every parameter is an f32 leaf.
    pub model: Model,
    /// The optimiser.
    pub optimizer: Optimizer,
    pub(crate) objective: Box<dyn Objective>,
    pub(crate) compute: Compute,
    seed: u64,
}

impl TrainStep {
    /// Makes every parameter of `model` trainable.
    ///
    /// # Errors
    /// If the model cannot be trained, or a weight cannot be widened.
    pub fn new(mut model: Model, recipe: &Recipe) -> Result<Self> {
        if let Some(why) = model.frozen() {
            return Err(TrainError::Recipe {
                file: "recipe".into(),
                key: if recipe.init.is_some() { "init" } else { "model.family" }.into(),
                rule: why.into(),
                hint: "train the form it was converted from, and convert again".into(),
            });
        }
        // Every step needs the same buffers again.
        Tensor::limit_buffers(BUFFERS);
        let mut failed = None;
        model.visit(&mut |p| match p.tensor.cast(ounce_tensor::DType::F32) {
            Ok(wide) => p.tensor = wide.requires_grad(),
            Err(e) => failed = Some(e),
        });
        if let Some(error) = failed {
            return Err(error.into());
        }
        let optimizer = Optimizer::new(recipe.optimizer, &mut model);
        let objective = recipe.objective.build(recipe.run.length);
        Ok(Self {
            model,
            optimizer,
            objective,
            compute: recipe.run.compute.into(),
            seed: recipe.run.seed,
        })
    }

    /// What `recipe` starts from; `data` is where `${data}` points.
    ///
    /// # Errors
    /// If the recipe has neither `[model]` nor `init`, or what it names cannot be built.
    pub fn of(recipe: &Recipe, data: &DataDir) -> Result<Self> {
        let start = Start::of(recipe, data, || Ok((vocab_size(recipe, data)?, None)))?;
        check_memory(recipe, start.config())?;
        Self::new(start.model(recipe)?, recipe)
    }

    /// Tokens of a row of a micro-batch, without the last target.
    pub fn row_length(&self, recipe: &Recipe) -> usize {
        self.objective.tokens_needed(recipe.run.length) - 1
    }

    /// Whether the model has a balance loss: then a step of several micro-batches counts choices first.
    pub(crate) fn balances(&self) -> bool {
        let one = ModelBatch {
            ids: &[0],
            batch: 1,
            compute: self.compute,
        };
        let probe = || -> Result<bool> {
            let mut ctx = self.model.context(one)?;
            self.model.hidden(&mut ctx)?;
            Ok(!ctx.sink.balance.selected.is_empty())
        };
        // A model that cannot read a single token may have one.
        probe().unwrap_or(true)
    }

    /// Counts the choices of all micro-batches where a balance loss depends on them: its statistics are those of the step,
    /// however the step is cut. The forwards are the very ones of the losses, so that they choose alike to the bit.
    fn count_choices(&self, micro_batches: &[Batch], step: u64) -> Result<Option<Arc<[Selected]>>> {
        if micro_batches.len() < 2 || !self.balances() {
            return Ok(None);
        }
        let mut counts = Vec::with_capacity(micro_batches.len());
        for (part, batch) in micro_batches.iter().enumerate() {
            let at = At {
                seed: self.seed,
                step,
                part: part as u64,
            };
            let how = How {
                at,
                compute: self.compute,
                choices: None,
            };
            let input = self.objective.input(batch, at);
            counts.push(hidden(&self.model, &input, &how)?.1.sink.balance.selected);
        }
        Ok(Some(whole_step(counts)))
    }

    /// One optimiser step over the micro-batches; `step` counts from 1.
    ///
    /// # Errors
    /// If shapes do not fit, or the loss is not finite.
    pub fn run(&mut self, micro_batches: &[Batch], step: u64, lr: f64) -> Result<StepResult> {
        let mut gradients = Gradients::new();
        let (mut loss, mut parts): (f64, Vec<(&'static str, f64)>) = (0.0, Vec::new());
        let n = micro_batches.len() as f64;
        let counted = self.count_choices(micro_batches, step)?;
        for (part, batch) in micro_batches.iter().enumerate() {
            let at = At {
                seed: self.seed,
                step,
                part: part as u64,
            };
            let how = How {
                at,
                compute: self.compute,
                choices: counted.clone(),
            };
            let made = self.objective.loss(&self.model, batch, &how)?;
            let value = made.total.item()?;
            if !value.is_finite() {
                return Err(TrainError::Diverged { step, loss: value });
            }
            made.total.backward(&mut gradients)?;
            loss += value / n;
            for (i, (name, value)) in made.parts.into_iter().enumerate() {
                match parts.get_mut(i) {
                    Some(part) => part.1 += value / n,
                    None => parts.push((name, value / n)),
                }
            }
        }
        let grad_norm = self.optimizer.step(&mut self.model, gradients, n, step, lr)?;
        Ok(StepResult { loss, parts, grad_norm })
    }
}
