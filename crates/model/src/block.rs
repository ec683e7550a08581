//! One decoder block: the slots, filled from a configuration and a source of weights.

use crate::{
    attention::{self, Attention},
    config::ModelConfig,
    ctx::Ctx,
    error::Result,
    ffn::{self, FeedForward},
    param::Param,
    residual::{self, SubBlocks, Wiring},
    weights::Weights,
};
use ounce_tensor::Tensor;

/// Norms, attention slot, feed-forward slot and their wiring.
pub struct Block {
    norm1: Param,
    attention: Box<dyn Attention>,
    norm2: Param,
    ffn: Box<dyn FeedForward>,
    wiring: Wiring,
    eps: f64,
}

impl Block {
    /// Layer `layer` of a model.
    ///
    /// # Errors
    /// If a weight is missing or has the wrong shape.
    pub fn new(config: &ModelConfig, layer: usize, weights: &mut dyn Weights) -> Result<Self> {
        let prefix = format!("model.layers.{layer}");
        let d = [config.hidden_size];
        Ok(Self {
            norm1: weights.param(&format!("{prefix}.input_layernorm.weight"), &d)?,
            attention: attention::build(config, layer, weights)?,
            norm2: weights.param(&format!("{prefix}.post_attention_layernorm.weight"), &d)?,
            ffn: ffn::build(config, layer, weights)?,
            wiring: config.layers[layer].wiring,
            eps: config.rms_norm_eps,
        })
    }

    /// A sequential block below `prefix`, whose slots the caller fills.
    ///
    /// # Errors
    /// If a weight is missing or has the wrong shape.
    pub(crate) fn with_slots(
        prefix: &str,
        (d, eps): (usize, f64),
        weights: &mut dyn Weights,
        attention: impl FnOnce(&mut dyn Weights) -> Result<Box<dyn Attention>>,
        ffn: impl FnOnce(&mut dyn Weights) -> Result<Box<dyn FeedForward>>,
    ) -> Result<Self> {
        Ok(Self {
            norm1: weights.param(&format!("{prefix}.input_layernorm.weight"), &[d])?,
            attention: attention(weights)?,
            norm2: weights.param(&format!("{prefix}.post_attention_layernorm.weight"), &[d])?,
            ffn: ffn(weights)?,
            wiring: Wiring::Sequential,
            eps,
        })
    }

    /// The block alone on the residual stream `x [N,D]`, with no output under way before or after it.
    ///
    /// # Errors
    /// If shapes do not fit or the cache refuses.
    pub fn forward(&self, x: &Tensor, ctx: &mut Ctx<'_>) -> Result<Tensor> {
        residual::run([self], x.clone(), ctx)
    }

    pub(crate) fn sub_blocks(&self) -> SubBlocks<'_> {
        SubBlocks {
            norm1: &self.norm1,
            attention: &*self.attention,
            norm2: &self.norm2,
            ffn: &*self.ffn,
            wiring: self.wiring,
            eps: self.eps,
        }
    }

    /// Visits every parameter, in checkpoint order.
    pub fn visit(&mut self, f: &mut dyn FnMut(&mut Param)) {
        f(&mut self.norm1);
        self.attention.visit(f);
        f(&mut self.norm2);
        self.ffn.visit(f);
    }

    /// The attention slot.
    pub fn attention(&self) -> &dyn Attention {
        &*self.attention
    }

    /// The feed-forward slot.
    pub fn ffn(&self) -> &dyn FeedForward {
        &*self.ffn
    }
}
