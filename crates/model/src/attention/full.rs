//! Full causal attention with rotary positions and grouped key/value heads, optionally within a sliding window.
//!
//! Sources: "Attention Is All You Need" (Vaswani et al. 2017), grouped queries (Ainslie et al. 2023), sliding windows
//! (Mistral 7B, 2023). What the families add: biases on q, k, v and o (Qwen2, `attention_bias`), RMSNorm of each query
//! and key head before the rotation (Qwen3), RMSNorm over all heads together and clamping of q, k and v (OLMoE).

use super::{
    Attention,
    attend::{Form, Projected, attend, rope},
};
use crate::{
    config::{ModelConfig, QkNorm},
    ctx::Ctx,
    error::Result,
    param::{Linear, Param},
    weights::Weights,
};
use ounce_tensor::{
    Tensor,
    ops::{self, AttentionConfig},
};

/// Softmax attention over all visible keys.
pub struct FullAttention {
    layer: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
    clip: Option<f64>,
    eps: f64,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    norms: Option<(Param, Param)>,
    /// The norms span each head (Qwen3) rather than all heads together (OLMoE).
    norm_per_head: bool,
}

impl FullAttention {
    /// The attention of layer `layer`.
    ///
    /// # Errors
    /// If a weight is missing or has the wrong shape.
    pub fn new(config: &ModelConfig, layer: usize, weights: &mut dyn Weights) -> Result<Self> {
        let prefix = format!("model.layers.{layer}.self_attn");
        let (d, hd) = (config.hidden_size, config.head_dim);
        let (q_width, kv_width) = (config.heads * hd, config.kv_heads * hd);
        let norms = match config.qk_norm {
            QkNorm::None => None,
            QkNorm::PerHead => Some((hd, hd)),
            QkNorm::AllHeads => Some((q_width, kv_width)),
        };
        let norms = match norms {
            None => None,
            Some((q, k)) => Some((
                weights.param(&format!("{prefix}.q_norm.weight"), &[q])?,
                weights.param(&format!("{prefix}.k_norm.weight"), &[k])?,
            )),
        };
        Ok(Self {
            layer,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: hd,
            window: config.layers[layer].window,
            clip: config.clip_qkv,
            eps: config.rms_norm_eps,
            q: weights.linear(&format!("{prefix}.q_proj"), q_width, d, config.qkv_bias)?,
            k: weights.linear(&format!("{prefix}.k_proj"), kv_width, d, config.qkv_bias)?,
            v: weights.linear(&format!("{prefix}.v_proj"), kv_width, d, config.qkv_bias)?,
            o: weights.linear(&format!("{prefix}.o_proj"), d, q_width, config.o_bias)?,
            norms,
            norm_per_head: config.qk_norm == QkNorm::PerHead,
        })
    }

    fn clipped(&self, x: Tensor) -> Result<Tensor> {
        match self.clip {
            Some(bound) => Ok(ops::clamp(&x, -bound, bound)?),
            None => Ok(x),
        }
    }

    /// Queries, keys and values of `x [N,D]`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub(super) fn project(&self, x_nd: &Tensor, ctx: &Ctx<'_>) -> Result<Projected> {
        let (n, hd) = (x_nd.rows(), self.head_dim);
        let mut projected = Linear::forward_many(x_nd, &[&self.q, &self.k, &self.v], ctx.compute)?.into_iter();
        let mut next = || projected.next().expect("invariant: three outputs for three maps");
        let (mut q, mut k, v) = (next(), next(), next());
        if let (Some((nq, nk)), false) = (&self.norms, self.norm_per_head) {
            q = ops::rms_norm(&q, &nq.tensor, self.eps)?;
            k = ops::rms_norm(&k, &nk.tensor, self.eps)?;
        }
        let (q, k, v) = (self.clipped(q)?, self.clipped(k)?, self.clipped(v)?);
        let mut q_nhd = ops::reshape(&q, &[n, self.heads, hd])?;
        let mut k_nhd = ops::reshape(&k, &[n, self.kv_heads, hd])?;
        let v_nhd = ops::reshape(&v, &[n, self.kv_heads, hd])?;
        if let (Some((nq, nk)), true) = (&self.norms, self.norm_per_head) {
            q_nhd = ops::rms_norm(&q_nhd, &nq.tensor, self.eps)?;
            k_nhd = ops::rms_norm(&k_nhd, &nk.tensor, self.eps)?;
        }
        Ok(Projected {
            q: rope(&q_nhd, ctx)?,
            k: rope(&k_nhd, ctx)?,
            v: v_nhd,
        })
    }

    /// Head outputs `[N,H,hd]`.
    ///
    /// # Errors
    /// If shapes do not fit or a cache refuses.
    pub(super) fn attend(&self, p: &Projected, form: Form<'_>, ctx: &mut Ctx<'_>) -> Result<Tensor> {
        let config = AttentionConfig {
            causal: true,
            window: self.window,
            scale: 1.0 / (self.head_dim as f64).sqrt(),
            compute: ctx.compute,
        };
        attend(self.layer, p, config, form, ctx)
    }

    /// The partial sum `[N,D]` of head outputs `[N,H,hd]`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub(super) fn output(&self, heads_nhd: &Tensor, ctx: &Ctx<'_>) -> Result<Tensor> {
        let width = self.heads * self.head_dim;
        self.o
            .forward(&ops::reshape(heads_nhd, &[ctx.rows.tokens(), width])?, ctx.compute)
    }
}

impl Attention for FullAttention {
    fn forward(&self, x_nd: &Tensor, ctx: &mut Ctx<'_>) -> Result<Tensor> {
        let projected = self.project(x_nd, ctx)?;
        let out = self.attend(&projected, Form::Plain, ctx)?;
        self.output(&out, ctx)
    }

    fn visit(&mut self, f: &mut dyn FnMut(&mut Param)) {
        for map in [&mut self.q, &mut self.k, &mut self.v, &mut self.o] {
            map.visit(f);
        }
        if let Some((q, k)) = &mut self.norms {
            f(q);
            f(k);
        }
    }
}
