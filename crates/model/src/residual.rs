//! Residual wiring: how a block's sub-blocks are connected, and the only place where partial sums meet the collective.

use crate::{attention::Attention, ctx::Ctx, error::Result, ffn::FeedForward, param::Param};
use ounce_tensor::{Tensor, ops};

/// How attention and feed-forward are wired around the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wiring {
    /// `a = x + attn(norm1(x))`, `y = a + ffn(norm2(a))`.
    #[default]
    Sequential,
}

/// The two sub-blocks and their norms, borrowed from a block.
pub(crate) struct SubBlocks<'a> {
    pub(crate) norm1: &'a Param,
    pub(crate) attention: &'a dyn Attention,
    pub(crate) norm2: &'a Param,
    pub(crate) ffn: &'a dyn FeedForward,
    pub(crate) eps: f64,
}

impl Wiring {
    /// Runs a block on the residual stream `x [B,T,D]`.
    pub(crate) fn forward(self, blocks: &SubBlocks<'_>, x: &Tensor, ctx: &mut Ctx<'_>) -> Result<Tensor> {
        match self {
            Wiring::Sequential => {
                let partial = blocks
                    .attention
                    .forward(&ops::rms_norm(x, &blocks.norm1.tensor, blocks.eps)?, ctx)?;
                let a = ops::add(x, &ctx.collective.start_sum(partial)?.wait()?)?;
                let partial = blocks
                    .ffn
                    .forward(&ops::rms_norm(&a, &blocks.norm2.tensor, blocks.eps)?, ctx)?;
                Ok(ops::add(&a, &ctx.collective.start_sum(partial)?.wait()?)?)
            }
        }
    }
}
