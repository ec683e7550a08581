//! Decoder plans: the list of stages between embedding and final norm. Ordinary models are the one-stage plan.

pub mod drt;
mod standard;

use crate::{
    Block,
    cache::{Cache, CacheType},
    config::{Keys, ModelConfig},
    ctx::Ctx,
    error::Result,
    param::Param,
    weights::Weights,
};
use ounce_tensor::Tensor;
use serde::Serialize;
use std::fmt::Debug;

pub use standard::StandardPlan;

/// The families that are a plan of their own. This is the one list to edit when a plan is added.
pub(crate) const FAMILIES: &[PlanFamily] = &[drt::FAMILY];

/// What runs between the embedding and the final norm.
pub trait Plan: Send + Sync {
    /// The residual stream `x [N,D]` through every stage; of the last tokens of each sequence only if [`Ctx::wanted`]
    /// asks for no more.
    ///
    /// # Errors
    /// If shapes do not fit or the cache refuses.
    fn forward(&self, x: Tensor, ctx: &mut Ctx<'_>) -> Result<Tensor>;
    /// Visits every parameter, in checkpoint order.
    fn visit(&mut self, f: &mut dyn FnMut(&mut Param));
    /// The blocks, in the order they run.
    fn blocks(&self) -> Vec<&Block>;
    /// The token whose embedding the plan puts between those of the text, if it does: `Ctx::inserted` then holds it.
    fn inserted_token(&self) -> Option<u32> {
        None
    }
    /// What the plan keeps of a sequence, where that is not what each layer's attention wants. Memory for `reserve` tokens
    /// may be had at once.
    fn cache(&self, _kind: CacheType, _reserve: usize) -> Option<Box<dyn Cache>> {
        None
    }
}

/// A plan as a configuration names it: checked when the configuration was read, it can build itself and say what it costs.
pub trait PlanMethod: Debug + Send + Sync {
    /// The plan of a configuration.
    ///
    /// # Errors
    /// If a weight is missing or has the wrong shape.
    fn build(&self, config: &ModelConfig, weights: &mut dyn Weights) -> Result<Box<dyn Plan>>;
    /// What keeps training on windows of `length` tokens from teaching the plan what it is for, if anything does.
    fn doubt(&self, _length: usize) -> Option<String> {
        None
    }
    /// Tokens of a chunk, if it cuts texts into chunks.
    fn chunk(&self) -> Option<usize> {
        None
    }
    /// What it costs; `element` is the size in bytes of a cached value.
    fn bill(&self, config: &ModelConfig, element: usize) -> PlanBill;
}

/// What a plan costs one token of the text.
#[derive(Debug, Clone, Serialize, PartialEq)]
pub struct PlanBill {
    /// Bytes that stay in memory for each token, however long the text.
    pub memory_bytes_per_token: f64,
    /// Bytes kept at most while decoding, whatever the length of the text.
    pub fixed_bytes: u64,
    /// Floating point operations of the products with weights.
    pub flops_per_token: f64,
    /// Floating point operations of attention, per token; does not grow with the text.
    pub attention_flops_per_token: f64,
    /// The same in words, with the formulas.
    pub explained: Vec<String>,
}

/// A family that a plan makes.
pub(crate) struct PlanFamily {
    /// Its `model_type`.
    pub(crate) model_type: &'static str,
    /// Does a configuration belong to it, whatever its `model_type` says?
    pub(crate) recognises: fn(&Keys<'_>) -> bool,
    /// The keys it uses beside the common ones.
    pub(crate) used: &'static [&'static str],
    /// Reads and checks a configuration whose keys are all known.
    pub(crate) read: fn(&Keys<'_>) -> Result<ModelConfig>,
}

/// Builds the plan of a configuration.
///
/// # Errors
/// If a weight is missing or has the wrong shape.
pub fn build(config: &ModelConfig, weights: &mut dyn Weights) -> Result<Box<dyn Plan>> {
    match &config.plan {
        Some(plan) => plan.build(config, weights),
        None => Ok(Box::new(StandardPlan::new(config, weights)?)),
    }
}
