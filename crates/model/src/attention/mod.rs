//! The attention slot. Each method that can fill it has one file here.

mod full;

use crate::{config::ModelConfig, ctx::Ctx, error::Result, param::Param, weights::Weights};
use ounce_tensor::Tensor;

pub use full::FullAttention;

/// What fills the attention slot of a block.
pub trait Attention: Send + Sync {
    /// Mixes tokens: normalised input `x [B,T,D]` to a partial sum `[B,T,D]`.
    ///
    /// # Errors
    /// If shapes do not fit or the cache refuses.
    fn forward(&self, x: &Tensor, ctx: &mut Ctx<'_>) -> Result<Tensor>;
    /// Visits every parameter, in checkpoint order.
    fn visit(&mut self, f: &mut dyn FnMut(&mut Param));
}

/// Fills the slot of layer `layer`. This is the one list to edit when an attention method is added.
///
/// # Errors
/// If a weight is missing or has the wrong shape.
pub fn build(config: &ModelConfig, layer: usize, weights: &mut dyn Weights) -> Result<Box<dyn Attention>> {
    Ok(Box::new(FullAttention::new(config, layer, weights)?))
}
