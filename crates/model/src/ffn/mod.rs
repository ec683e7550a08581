//! The feed-forward slot. Each method that can fill it has one file here.

mod dense;
mod moe;

use crate::{
    config::{FfnConfig, ModelConfig},
    ctx::Ctx,
    error::Result,
    param::Param,
    weights::Weights,
};
use ounce_tensor::Tensor;

pub use dense::DenseFfn;
pub use moe::MoeFfn;

/// What fills the feed-forward slot of a block.
pub trait FeedForward: Send + Sync {
    /// Transforms each token: normalised input `x [B,T,D]` to a partial sum `[B,T,D]`.
    ///
    /// # Errors
    /// If shapes do not fit.
    fn forward(&self, x: &Tensor, ctx: &mut Ctx<'_>) -> Result<Tensor>;
    /// Visits every parameter, in checkpoint order.
    fn visit(&mut self, f: &mut dyn FnMut(&mut Param));
    /// The mixture of experts in this slot, if that is what fills it (expert merging looks inside).
    fn as_moe(&self) -> Option<&MoeFfn> {
        None
    }
}

/// Fills the slot of layer `layer`. This is the one list to edit when a feed-forward method is added.
///
/// # Errors
/// If a weight is missing or has the wrong shape.
pub fn build(config: &ModelConfig, layer: usize, weights: &mut dyn Weights) -> Result<Box<dyn FeedForward>> {
    let prefix = format!("model.layers.{layer}");
    Ok(match &config.layers[layer].ffn {
        FfnConfig::Dense { width } => Box::new(DenseFfn::new(
            &format!("{prefix}.mlp"),
            config.hidden_size,
            *width,
            config.mlp_bias,
            weights,
        )?),
        FfnConfig::Moe(moe) => Box::new(MoeFfn::new(&prefix, layer, config, moe, weights)?),
    })
}
