//! The feed-forward slot. Each method that can fill it has one file here.

pub mod aoe;
mod dense;
mod moe;
pub mod mole;
#[cfg(test)]
mod testing;

use crate::{
    config::{FfnConfig, ModelConfig, keys::Keys},
    ctx::Ctx,
    error::Result,
    param::Param,
    weights::Weights,
};
use ounce_tensor::Tensor;
use std::{fmt::Debug, sync::Arc};

pub use dense::DenseFfn;
pub use moe::MoeFfn;
pub use mole::MoleFfn;

/// The families that are a Llama but for this slot. This is the one list to edit when a feed-forward method is added.
pub(crate) const FAMILIES: &[FfnFamily] = &[aoe::FAMILY, mole::FAMILY, mole::LOOKUP];

/// A family that a method of this slot makes.
pub(crate) struct FfnFamily {
    /// Its `model_type`.
    pub(crate) model_type: &'static str,
    /// The keys it uses beside the common ones.
    pub(crate) used: &'static [&'static str],
    /// Does `hidden_act` choose the activation? If not, any value of it is allowed.
    pub(crate) reads_hidden_act: bool,
    /// Reads and checks the method's keys.
    pub(crate) read: fn(&Keys<'_>) -> Result<Arc<dyn FfnMethod>>,
}

/// The configuration of a method of this slot: it builds the layers.
pub trait FfnMethod: Debug + Send + Sync {
    /// The slot of layer `layer`.
    ///
    /// # Errors
    /// If a weight is missing or has the wrong shape.
    fn build(&self, config: &ModelConfig, layer: usize, weights: &mut dyn Weights) -> Result<Box<dyn FeedForward>>;
    /// Hidden values that one token makes in the slot.
    fn width(&self) -> usize;
}

/// What one layer's slot costs a token, from its shapes.
#[derive(Debug, Clone, Default)]
pub struct Bill {
    /// Parameters stored.
    pub parameters: u64,
    /// Parameters that one token meets.
    pub active_parameters: u64,
    /// What the method costs and saves, in words and by its paper's formulas; empty for stock layers.
    pub explained: Vec<String>,
}

/// What fills the feed-forward slot of a block.
pub trait FeedForward: Send + Sync {
    /// Transforms each token: normalised input `x [N,D]` to a partial sum `[N,D]`.
    ///
    /// # Errors
    /// If shapes do not fit.
    fn forward(&self, x: &Tensor, ctx: &mut Ctx<'_>) -> Result<Tensor>;
    /// Visits every parameter, in checkpoint order.
    fn visit(&mut self, f: &mut dyn FnMut(&mut Param));
    /// What the slot costs one token.
    fn bill(&self) -> Bill;
    /// Why the slot cannot be trained, if it cannot.
    fn frozen(&self) -> Option<&'static str> {
        None
    }
    /// The mixture of experts in this slot, if that is what fills it (expert merging looks inside).
    fn as_moe(&self) -> Option<&MoeFfn> {
        None
    }
    /// The lookup experts in this slot, if that is what fills it (building their table looks inside).
    fn as_mole(&self) -> Option<&MoleFfn> {
        None
    }
}

/// Fills the slot of layer `layer`.
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
        FfnConfig::Method(method) => method.build(config, layer, weights)?,
    })
}
