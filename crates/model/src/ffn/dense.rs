//! SwiGLU: `down(silu(gate(x)) * up(x))`. Source: "GLU Variants Improve Transformer" (Shazeer 2020).

use super::{Bill, FeedForward};
use crate::{
    ctx::Ctx,
    error::Result,
    param::{Linear, Param},
    weights::Weights,
};
use ounce_tensor::{Compute, Tensor, ops};

/// A dense feed-forward layer, or one shared expert.
pub struct DenseFfn {
    /// `[I, D]`.
    pub gate: Linear,
    /// `[I, D]`.
    pub up: Linear,
    /// `[D, I]`.
    pub down: Linear,
}

impl DenseFfn {
    /// The three maps below `prefix`.
    ///
    /// # Errors
    /// If a weight is missing or has the wrong shape.
    pub fn new(prefix: &str, d: usize, width: usize, bias: bool, weights: &mut dyn Weights) -> Result<Self> {
        Ok(Self {
            gate: weights.linear(&format!("{prefix}.gate_proj"), width, d, bias)?,
            up: weights.linear(&format!("{prefix}.up_proj"), width, d, bias)?,
            down: weights.linear(&format!("{prefix}.down_proj"), d, width, bias)?,
        })
    }

    /// The layer on `x [.., D]`.
    ///
    /// # Errors
    /// If the last dimension is not D.
    pub fn apply(&self, x: &Tensor, compute: Compute) -> Result<Tensor> {
        let both = Linear::forward_many(x, &[&self.gate, &self.up], compute)?;
        self.down.forward(&ops::swiglu(&both[0], &both[1])?, compute)
    }
}

impl FeedForward for DenseFfn {
    fn forward(&self, x: &Tensor, ctx: &mut Ctx<'_>) -> Result<Tensor> {
        self.apply(x, ctx.compute)
    }
    fn visit(&mut self, f: &mut dyn FnMut(&mut Param)) {
        for map in [&mut self.gate, &mut self.up, &mut self.down] {
            map.visit(f);
        }
    }
    fn bill(&self) -> Bill {
        let parameters = [&self.gate, &self.up, &self.down].map(Linear::parameters).iter().sum();
        Bill {
            parameters,
            active_parameters: parameters,
            explained: Vec::new(),
        }
    }
}
