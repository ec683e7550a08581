//! Decoder plans: the list of stages between embedding and final norm. Ordinary models are the one-stage plan.

mod standard;

use crate::{Block, config::ModelConfig, ctx::Ctx, error::Result, param::Param, weights::Weights};
use ounce_tensor::Tensor;

pub use standard::StandardPlan;

/// What runs between the embedding and the final norm.
pub trait Plan: Send + Sync {
    /// The residual stream `x [B,T,D]` through every stage.
    ///
    /// # Errors
    /// If shapes do not fit or the cache refuses.
    fn forward(&self, x: Tensor, ctx: &mut Ctx<'_>) -> Result<Tensor>;
    /// Visits every parameter, in checkpoint order.
    fn visit(&mut self, f: &mut dyn FnMut(&mut Param));
    /// The blocks, in the order they run.
    fn blocks(&self) -> Vec<&Block>;
}

/// Builds the plan of a configuration. This is the one list to edit when a plan is added.
///
/// # Errors
/// If a weight is missing or has the wrong shape.
pub fn build(config: &ModelConfig, weights: &mut dyn Weights) -> Result<Box<dyn Plan>> {
    Ok(Box::new(StandardPlan::new(config, weights)?))
}
