//! Named parameters and the linear map every block is made of.

use crate::error::Result;
use ounce_tensor::{Compute, Tensor, ops};

/// A weight under its checkpoint name: what is visited to train, count or export a model.
#[derive(Debug, Clone)]
pub struct Param {
    /// Full name in the checkpoint, such as `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// The values, as stored.
    pub tensor: Tensor,
}

/// `y = x Wᵀ (+ bias)`, weight `[out, in]` in any float dtype.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Param,
    /// `[out]`.
    pub bias: Option<Param>,
}

impl Linear {
    /// Applies the map to `x [.., in]`.
    ///
    /// # Errors
    /// If the last dimension of `x` is not `in`.
    pub fn forward(&self, x: &Tensor, compute: Compute) -> Result<Tensor> {
        self.finish(ops::linear(x, &self.weight.tensor, compute)?)
    }

    /// Several maps of one input in one parallel region.
    ///
    /// # Errors
    /// If the last dimension of `x` is not `in` of each.
    pub fn forward_many(x: &Tensor, maps: &[&Linear], compute: Compute) -> Result<Vec<Tensor>> {
        let weights: Vec<&Tensor> = maps.iter().map(|m| &m.weight.tensor).collect();
        ops::linear_many(x, &weights, compute)?
            .into_iter()
            .zip(maps)
            .map(|(y, m)| m.finish(y))
            .collect()
    }

    fn finish(&self, y: Tensor) -> Result<Tensor> {
        match &self.bias {
            Some(bias) => Ok(ops::add_bias(&y, &bias.tensor)?),
            None => Ok(y),
        }
    }

    /// Number of parameters.
    pub fn parameters(&self) -> u64 {
        let bias = self.bias.as_ref().map_or(0, |b| b.tensor.numel());
        (self.weight.tensor.numel() + bias) as u64
    }

    /// Visits weight and bias.
    pub fn visit(&mut self, f: &mut dyn FnMut(&mut Param)) {
        f(&mut self.weight);
        if let Some(bias) = &mut self.bias {
            f(bias);
        }
    }
}
