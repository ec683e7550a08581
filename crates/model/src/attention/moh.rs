//! MoH: mixture-of-head attention. Each token uses some of the heads only.
//!
//! Paper: "MoH: Multi-Head Attention as Mixture-of-Head Attention", P. Jin, B. Zhu, L. Yuan, S. Yan (ICML 2025,
//! arXiv 2410.11842). Multi-head attention is a sum over heads, and for a given token few of them matter. So heads are
//! treated as experts: the first ones are always on, each token picks K of the others, and the sum becomes a weighted one.
//! No head is added. A trained model can be converted with a router that has no parameters.
//!
//! Symbols: N tokens, `x [N,D]` normalised input, H heads of which the first h_s are shared and h_r = H - h_s routed, K
//! routed heads active per token; head outputs `H_i [N,hd]`, gates `g [N,H]`: `out = concat_i(g_i H_i) W_O`.
//!
//! Two routers:
//! - `two_stage`: `s = softmax(x wg_1ᵀ) [N,h_s]`, `r = softmax(x wgᵀ) [N,h_r]`, `r̂` = the K largest of r, renormalised,
//!   `(a1,a2) = softmax(x wg_0ᵀ)`; gates `2 a1 h_s s` and `2 a2 K r̂`. Uniform routers give gates of 1.
//! - `query_norm`: the K routed heads with the longest queries, gates 0 or 1. In training the gate passes its gradient
//!   straight to `p = softmax(n / std(n))`, n the norms of the routed heads' queries, std unbiased.
//!
//! Left open by the paper, or different in its code, and what is done here:
//! - The paper's equation 5 has neither the factors nor the renormalisation; its code has. `scaling` chooses, the code's
//!   form is the default.
//! - Without shared heads the gate is `K r̂` (no wg_0); one shared head has s = 1 (no wg_1); with all heads shared K is 0
//!   and the gate `H softmax(x wg_1ᵀ)`: still learned. Some but not all heads shared and K = 0 would leave heads that
//!   nothing ever uses: refused.
//! - Equal scores: the lower head wins. The norms of one routed head, or equal norms, have no spread: no gradient.
//! - The straight-through gradient reaches the selected heads; `straight_through = "all"` passes it to all of them.
//! - Norms are taken of the rotated query: a rotation changes no norm but by rounding. Routers run in f32.
//! - Balance loss as in the code: `h_r Σ_i P_i f_i`, P the mean score, f the share of tokens that select i (a constant),
//!   mean over layers, times `balance`. Padding takes no part.
//! - Every key and value is computed, kept and visible: a later token may select any head.
//!
//! Released code computes all heads and multiplies by the mask. Here inference over several tokens gathers the active
//! (token, head) pairs and computes attention for those only; training and single tokens use the dense form, which is the
//! reference. The projections of queries and outputs are computed for all heads in either form.

mod keys;
mod norm_scores;
#[cfg(test)]
mod tests;

use super::{Attention, Cost, FullAttention, Method, attend::Form};
use crate::{
    balance::Balance,
    config::ModelConfig,
    ctx::Ctx,
    error::Result,
    param::{Linear, Param},
    topk::top_k,
    weights::Weights,
};
use norm_scores::{norm_scores, norms};
use ounce_tensor::{Compute, DType, Tensor, ops};

pub(super) use keys::configure;

/// How routed heads are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Router {
    /// By the norm of the query; no parameters.
    QueryNorm,
    /// By learned maps.
    TwoStage,
}

/// Form of the learned gates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scaling {
    /// As in the published code: gates average one.
    Implemented,
    /// As in the published equation.
    Paper,
}

/// `moh` of a configuration.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MohConfig {
    /// How routed heads are chosen.
    pub router: Router,
    /// h_s: heads 0..h_s are always on.
    pub shared_heads: usize,
    /// K.
    pub active_routed_heads: usize,
    /// Form of the learned gates.
    pub scaling: Scaling,
    /// Pass the straight-through gradient to every routed head, selected or not.
    pub straight_through_all: bool,
    /// Coefficient of the balance loss (training only).
    pub balance: f64,
}

impl Method for MohConfig {
    fn key(&self) -> &'static str {
        "moh"
    }

    fn describe(&self) -> String {
        let router = match self.router {
            Router::QueryNorm => "query-norm",
            Router::TwoStage => "two-stage",
        };
        format!(
            "{} shared heads, {} routed heads per token ({router} router)",
            self.shared_heads, self.active_routed_heads
        )
    }

    fn build(&self, config: &ModelConfig, layer: usize, weights: &mut dyn Weights) -> Result<Box<dyn Attention>> {
        Ok(Box::new(Moh::new(*self, config, layer, weights)?))
    }

    fn costs(&self, config: &ModelConfig, context: usize, element: usize) -> Vec<Cost> {
        let (l, h, c) = (config.layers.len() as f64, config.heads as f64, config.head_dim as f64);
        let (d, s) = (config.hidden_size as f64, context as f64);
        let rho = (self.shared_heads + self.active_routed_heads) as f64 / h;
        let router = match self.router {
            Router::QueryNorm => 0.0,
            Router::TwoStage => self.router_rows(config.heads) as f64 * d * l,
        };
        let kv = config.kv_bytes_per_token(element) as f64 * s;
        vec![
            Cost {
                what: "parameters of the routers".into(),
                full: 0.0,
                method: router,
                formula: "layers · D · router rows",
            },
            Cost {
                what: "heads per token and layer".into(),
                full: h,
                method: rho * h,
                formula: "h_s + K",
            },
            Cost {
                what: format!("attention FLOPs per token, {context} tokens in context"),
                full: 4.0 * s * h * c * l,
                method: 4.0 * s * h * c * l * rho,
                formula: "layers · 4 · S · H · hd, times (h_s + K) / H where heads are skipped",
            },
            Cost {
                what: "router FLOPs per token".into(),
                full: 0.0,
                method: 2.0 * router,
                formula: "layers · 2 · D · router rows",
            },
            Cost {
                what: format!("KV bytes, {context} tokens in context"),
                full: kv,
                method: kv,
                formula: "unchanged: a later token may select any head",
            },
        ]
    }
}

impl MohConfig {
    /// Rows of `wg_0`, `wg_1` and `wg` together: which maps exist depends on the split.
    fn router_rows(&self, heads: usize) -> usize {
        let (shared, k) = (self.shared_heads, self.active_routed_heads);
        let stages = if shared > 0 && k > 0 { 2 } else { 0 };
        stages + if shared > 1 { shared } else { 0 } + (heads - shared)
    }
}

/// Attention whose heads are gated per token.
pub struct Moh {
    base: FullAttention,
    config: MohConfig,
    layer: usize,
    layers: usize,
    heads: usize,
    head_dim: usize,
    /// `wg [h_r,D]`: scores of the routed heads.
    routed: Option<Linear>,
    /// `wg_1 [h_s,D]`: weights of the shared heads.
    shared: Option<Linear>,
    /// `wg_0 [2,D]`: shared against routed.
    stages: Option<Linear>,
}

/// Gates of all heads, and what the balance loss needs.
struct Gates {
    /// `[N,H]`.
    all: Tensor,
    /// Which heads compute anything `[N·H]`.
    active: Vec<bool>,
    /// Scores of the routed heads `[N,h_r]`, where they were needed.
    scores: Option<Tensor>,
}

impl Moh {
    /// The attention of layer `layer`.
    ///
    /// # Errors
    /// If a weight is missing or has the wrong shape.
    pub fn new(moh: MohConfig, config: &ModelConfig, layer: usize, weights: &mut dyn Weights) -> Result<Self> {
        let base = FullAttention::new(config, layer, weights)?;
        let (prefix, d) = (format!("model.layers.{layer}.self_attn"), config.hidden_size);
        let (shared, routed) = (moh.shared_heads, config.heads - moh.shared_heads);
        let learned = moh.router == Router::TwoStage;
        let mut map = |name: &str, rows: usize, wanted: bool| {
            (learned && wanted)
                .then(|| weights.linear(&format!("{prefix}.{name}"), rows, d, false))
                .transpose()
        };
        Ok(Self {
            base,
            config: moh,
            layer,
            layers: config.layers.len(),
            heads: config.heads,
            head_dim: config.head_dim,
            routed: map("wg", routed, routed > 0)?,
            shared: map("wg_1", shared, shared > 1)?,
            stages: map("wg_0", 2, shared > 0 && routed > 0)?,
        })
    }

    /// Gates `[N,H]` from learned maps of `x [N,D]`.
    fn two_stage(&self, x_nd: &Tensor, exact: Compute) -> Result<Gates> {
        let (n, h, hs) = (x_nd.rows(), self.heads, self.config.shared_heads);
        let (hr, k) = (h - hs, self.config.active_routed_heads);
        let paper = self.config.scaling == Scaling::Paper;
        let softmax = |map: &Linear| -> Result<Tensor> { Ok(ops::softmax(&map.forward(x_nd, exact)?)?) };
        let stages = self.stages.as_ref().map(softmax).transpose()?;
        // Factor of one stage on its heads: 2 a · count in the code's form, a in the paper's.
        let staged = |part: Tensor, stage: usize, count: usize| -> Result<Tensor> {
            let part = ops::scale(&part, if paper { 1.0 } else { count as f64 })?;
            match &stages {
                None => Ok(part),
                Some(a) => {
                    let a = ops::take_last(a, &vec![stage; n], 1)?;
                    let a = ops::scale(&a, if paper { 1.0 } else { 2.0 })?;
                    Ok(ops::scale_rows(&part, &a)?)
                }
            }
        };
        let (mut parts, mut places, mut scores) = (Vec::new(), Vec::new(), None);
        let mut active = vec![false; n * h];
        if hs > 0 {
            let s = match &self.shared {
                Some(map) => softmax(map)?,
                None => constant(&vec![1.0; n], &[n, 1], x_nd.dtype())?,
            };
            parts.push(ops::reshape(&staged(s, 0, hs)?, &[n * hs, 1])?);
            places.extend((0..n).flat_map(|t| (0..hs).map(move |i| t * h + i)));
        }
        if let Some(map) = &self.routed {
            let r = softmax(map)?;
            let chosen: Vec<usize> = r.to_f32().chunks_exact(hr).flat_map(|row| top_k(row, k)).collect();
            let mut picked = ops::take_last(&r, &chosen, k)?;
            if !paper {
                picked = ops::normalize_rows(&picked)?;
            }
            parts.push(ops::reshape(&staged(picked, 1, k)?, &[n * k, 1])?);
            places.extend(chosen.iter().enumerate().map(|(i, &head)| i / k * h + hs + head));
            scores = Some(r);
        }
        for &place in &places {
            active[place] = true;
        }
        let parts: Vec<&Tensor> = parts.iter().collect();
        let all = ops::scatter_add_rows(&ops::concat_rows(&parts)?, &places, n * h)?;
        Ok(Gates {
            all: ops::reshape(&all, &[n, h])?,
            active,
            scores,
        })
    }

    /// Gates `[N,H]` of 0 and 1 from queries `[N·H,hd]`, with the straight-through gradient if one is wanted.
    fn query_norm(&self, q: &Tensor) -> Result<Gates> {
        let (h, hs) = (self.heads, self.config.shared_heads);
        let (n, hr, k) = (q.rows() / h, h - hs, self.config.active_routed_heads);
        let mut active = vec![false; n * h];
        let norms: Vec<f32> = match q.dtype() {
            DType::F64 => norms(q.values::<f64>().unwrap_or_default(), self.head_dim),
            _ => norms(q.values::<f32>().unwrap_or_default(), self.head_dim),
        };
        for (row, on) in norms.chunks_exact(h).zip(active.chunks_exact_mut(h)) {
            on[..hs].fill(true);
            for head in top_k(&row[hs..], k) {
                on[hs + head] = true;
            }
        }
        let gates: Vec<f64> = active.iter().map(|&on| f64::from(u8::from(on))).collect();
        let all = constant(&gates, &[n, h], q.dtype())?;
        if hr == 0 || !q.needs_grad() {
            return Ok(Gates {
                all,
                active,
                scores: None,
            });
        }
        let scores = norm_scores(q, h, hs)?;
        // Forward: the gates. Backward: their gradient, handed to the scores.
        let passes: Vec<f64> = active
            .iter()
            .map(|&on| f64::from(u8::from(on || self.config.straight_through_all)))
            .collect();
        let passes = constant(&passes, &[n, h], q.dtype())?;
        let routed: Vec<usize> = (0..n).flat_map(|_| hs..h).collect();
        let all = all.recorded(&[&scores], move |dy, _| {
            let dy = ops::mul(&dy, &passes)?;
            Ok(vec![Some(ops::take_last(&dy, &routed, hr)?)])
        });
        Ok(Gates {
            all,
            active,
            scores: Some(scores),
        })
    }

    /// `balance · h_r Σ_i P_i f_i`, this layer's share of the mean over layers.
    fn balance_loss(&self, scores: &Tensor, active: &[bool], balance: &mut Balance) -> Result<Tensor> {
        let (h, hs) = (self.heads, self.config.shared_heads);
        let mut counts = vec![0f64; scores.last_dim()];
        for active in active.chunks_exact(h) {
            for (count, &on) in counts.iter_mut().zip(&active[hs..]) {
                *count += f64::from(u8::from(on));
            }
        }
        balance.loss(scores, counts, self.config.balance / self.layers as f64)
    }
}

impl Attention for Moh {
    fn forward(&self, x_nd: &Tensor, ctx: &mut Ctx<'_>) -> Result<Tensor> {
        let (n, h, hd) = (x_nd.rows(), self.heads, self.head_dim);
        let projected = self.base.project(x_nd, ctx)?;
        let gates = match self.config.router {
            Router::TwoStage => self.two_stage(x_nd, ctx.compute.exact())?,
            Router::QueryNorm => self.query_norm(&ops::reshape(&projected.q, &[n * h, hd])?)?,
        };
        if let (Some(scores), true) = (&gates.scores, self.config.balance > 0.0)
            && scores.needs_grad()
        {
            let loss = self.balance_loss(scores, &gates.active, &mut ctx.sink.balance)?;
            ctx.sink.side_losses.push(loss);
        }
        ctx.note_head_gates(self.layer, &gates.all);
        let trains = gates.all.needs_grad() || projected.q.needs_grad() || projected.v.needs_grad();
        let form = if trains || !gates.active.contains(&false) {
            Form::Plain
        } else {
            Form::Of(&gates.active)
        };
        let out = self.base.attend(&projected, form, ctx)?;
        let out = ops::reshape(&out, &[n * h, hd])?;
        self.base
            .output(&ops::scale_rows(&out, &ops::reshape(&gates.all, &[n * h])?)?, ctx)
    }

    fn visit(&mut self, f: &mut dyn FnMut(&mut Param)) {
        self.base.visit(f);
        for map in [&mut self.routed, &mut self.shared, &mut self.stages]
            .into_iter()
            .flatten()
        {
            map.visit(f);
        }
    }
}

/// A constant in the dtype of the activations.
fn constant(values: &[f64], dims: &[usize], dtype: DType) -> Result<Tensor> {
    Ok(match dtype {
        DType::F64 => Tensor::new(values.to_vec(), dims)?,
        _ => Tensor::new(values.iter().map(|&x| x as f32).collect(), dims)?,
    })
}
