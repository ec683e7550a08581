//! Autonomy-of-Experts: a mixture of experts without a router.
//!
//! Paper: Lv et al., "Autonomy-of-Experts Models", ICML 2025, arXiv 2501.13074. A router guesses which expert suits a
//! token without seeing what the expert would do with it. Here every expert computes a cheap first projection of the
//! token, the K experts with the largest norms go on, and the projection is reused by the winners.
//!
//! Symbols: N tokens, D model width, E experts, K experts per token, r = `aoe_d_low`, W = `aoe_d_wide`, P = N·K pairs of a
//! token and an expert it chose. Weights `w_down [E·r, D]` (expert-major rows), and per expert `w_up [W, r]`, `w_p [W, D]`,
//! `w_o [D, W]`.
//!
//! ```text
//! c = x w_downᵀ                       [N, E, r]   one product for all experts
//! p = ‖c‖₂ over r                     [N, E]      before any activation, in f32
//! I = the K largest p                 [N, K]      ties to the lower index
//! g = softmax(p over I)               [N, K]      "softmax_selected"; or the entries I of softmax(p), "softmax_all"
//! y = Σ_{k ∈ I} g_k · ( silu(c_k w_upᵀ) · (x w_pᵀ) ) w_oᵀ
//! ```
//!
//! Balance loss (training): `coefficient · E · Σ_e f_e · P_e`, `f_e` the number of selections of e per token (no gradient),
//! `P_e` the mean of the softmax over all norms; `coefficient · K` when perfectly even.
//!
//! What the paper leaves open and what we chose:
//! - Of its ways to select, top-K by token alone; top-P and the choice of tokens by experts are not here.
//! - Padding is dispatched like a token and its output thrown away; balance losses and statistics do not count it.
//! - It does not say how balance losses of layers combine: they are averaged, as in our router mixtures.
//! - Its formulas divide the K weights by their sum, one of its published programs does not. The formulas are the default
//!   (`softmax_selected`); under `softmax_all` the weights sum to less than one, and losers get a gradient through them.
//! - The norm has no gradient at zero: zero is used.
//! - The rounding of the width that keeps parameters equal to those of a SwiGLU expert, `(3·D·I − r·D) / (r + 2·D)`, is
//!   left to whoever writes the configuration; `ounce inspect` says what a model's experts weigh.
//!
//! Memory: the losers' factors, `(E − K)/E` of c, are dropped as soon as the norms are known. The tape keeps the winners'
//! factors and the tokens; only where a gradient reaches every norm (balance loss, `softmax_all`) is c computed again, in
//! the backward walk. Decode is the same forward: no state but the cache of attention.

#[cfg(test)]
mod tests;

use super::{
    Bill, FeedForward, FfnFamily, FfnMethod,
    moe::{Dispatch, balance_loss},
};
use crate::{
    config::{ModelConfig, keys::Keys, refuse},
    ctx::Ctx,
    error::Result,
    param::{Linear, Param},
    topk::top_k,
    weights::Weights,
};
use ounce_tensor::{Compute, Tensor, ops, recomputed};
use std::sync::Arc;

/// How norms become weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Score {
    /// Softmax over the K selected norms: the weights sum to one.
    Selected,
    /// Softmax over all norms, of which the K selected entries are used.
    All,
}

/// The keys of `model_type` "aoe" that belong to the method.
#[derive(Debug, Clone, PartialEq)]
pub struct AoeConfig {
    /// `num_experts`: E.
    pub experts: usize,
    /// `num_experts_per_tok`: K.
    pub top_k: usize,
    /// `aoe_d_low`: r.
    pub d_low: usize,
    /// `aoe_d_wide`: W.
    pub d_wide: usize,
    /// `aoe_score`; `softmax_selected` if absent.
    pub score: Score,
    /// `router_aux_loss_coef`: coefficient of the balance loss (training only); 0 if absent.
    pub balance: f64,
}

pub(crate) const FAMILY: FfnFamily = FfnFamily {
    model_type: "aoe",
    used: &[
        "attention_bias",
        "pretraining_tp",
        "num_experts",
        "num_experts_per_tok",
        "aoe_d_low",
        "aoe_d_wide",
        "aoe_score",
        "router_aux_loss_coef",
    ],
    reads_hidden_act: true,
    read: |keys| Ok(Arc::new(AoeConfig::read(keys)?)),
};

impl AoeConfig {
    fn read(keys: &Keys<'_>) -> Result<Self> {
        let experts = match keys.count("num_experts", 0..=1 << 16)? {
            Some(0) => {
                let hint = "1 is a dense layer with a factorised gate";
                return refuse(keys.file, "num_experts", "must be at least 1, is 0", hint);
            }
            Some(n) => n,
            None => return keys.bad("num_experts", "is missing"),
        };
        let top_k = keys.size("num_experts_per_tok")?;
        if top_k > experts {
            let rule = format!("must be at most num_experts = {experts}, is {top_k}");
            return refuse(
                keys.file,
                "num_experts_per_tok",
                rule,
                "a token cannot choose an expert twice",
            );
        }
        let score = match keys.text("aoe_score")? {
            None | Some("softmax_selected") => Score::Selected,
            Some("softmax_all") => Score::All,
            Some(other) => {
                let hint = "\"softmax_selected\" (the paper's formulas) or \"softmax_all\"";
                return refuse(keys.file, "aoe_score", format!("\"{other}\" is no score"), hint);
            }
        };
        let balance = keys.number("router_aux_loss_coef")?.unwrap_or(0.0);
        if balance < 0.0 {
            let rule = format!("must not be negative, is {balance}");
            return refuse(keys.file, "router_aux_loss_coef", rule, "0 turns the balance loss off");
        }
        Ok(Self {
            experts,
            top_k,
            d_low: keys.size("aoe_d_low")?,
            d_wide: keys.size("aoe_d_wide")?,
            score,
            balance,
        })
    }
}

impl FfnMethod for AoeConfig {
    fn build(&self, config: &ModelConfig, layer: usize, weights: &mut dyn Weights) -> Result<Box<dyn FeedForward>> {
        let prefix = format!("model.layers.{layer}.mlp");
        let ffn = AoeFfn::new(self, &prefix, layer, config.hidden_size, weights)?;
        Ok(Box::new(AoeFfn {
            // Averaged over layers.
            balance: self.balance / config.layers.len() as f64,
            ..ffn
        }))
    }

    fn width(&self) -> usize {
        (self.top_k * self.d_wide).max(self.experts * self.d_low)
    }
}

/// What a winner does with its factors.
struct Expert {
    /// `w_up [W, r]`.
    up: Linear,
    /// `w_p [W, D]`.
    product: Linear,
    /// `w_o [D, W]`.
    out: Linear,
}

/// Experts that choose their tokens.
pub struct AoeFfn {
    layer: usize,
    config: AoeConfig,
    /// `w_down [E·r, D]`.
    down: Linear,
    experts: Vec<Expert>,
    /// Coefficient of this layer's balance loss.
    balance: f64,
}

impl AoeFfn {
    fn new(config: &AoeConfig, prefix: &str, layer: usize, d: usize, weights: &mut dyn Weights) -> Result<Self> {
        let (r, wide) = (config.d_low, config.d_wide);
        let down = weights.linear(&format!("{prefix}.w_down"), config.experts * r, d, false)?;
        let experts = (0..config.experts)
            .map(|e| {
                let base = format!("{prefix}.experts.{e}");
                Ok(Expert {
                    up: weights.linear(&format!("{base}.w_up"), wide, r, false)?,
                    product: weights.linear(&format!("{base}.w_p"), wide, d, false)?,
                    out: weights.linear(&format!("{base}.w_o"), d, wide, false)?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            layer,
            config: config.clone(),
            down,
            experts,
            balance: config.balance,
        })
    }

    /// The norms `[N, E]` as a part of the tape: c is computed again when their gradient is.
    fn taped_norms(&self, x_nd: &Tensor, norms_ne: &Tensor, compute: Compute) -> Tensor {
        let (down, r, dims) = (
            self.down.weight.tensor.clone(),
            self.config.d_low,
            norms_ne.shape().to_vec(),
        );
        recomputed(x_nd, norms_ne, move |x| {
            let c = ops::linear(x, &down, compute)?;
            let rows = c.numel() / r;
            ops::reshape(&ops::row_norms(&ops::reshape(&c, &[rows, r])?)?, &dims)
        })
    }
}

impl FeedForward for AoeFfn {
    fn forward(&self, x_nd: &Tensor, ctx: &mut Ctx<'_>) -> Result<Tensor> {
        let AoeConfig {
            experts: e,
            top_k: k,
            d_low: r,
            score,
            ..
        } = self.config;
        let n = x_nd.rows();
        let down = &self.down.weight.tensor;
        let trains = x_nd.needs_grad() || down.needs_grad();

        // Outside the tape: what must be kept for the gradient is known only when the winners are.
        let c = ops::linear(&x_nd.detach(), &down.detach(), ctx.compute)?;
        let c = ops::reshape(&c, &[n * e, r])?;
        let mut norms_ne = ops::reshape(&ops::row_norms(&c)?, &[n, e])?;
        let wide = norms_ne.to_f32();
        let chosen: Vec<usize> = wide.chunks_exact(e).flat_map(|row| top_k(row, k)).collect();
        let everyone: Vec<usize> = (0..e).collect();
        let dispatch = Dispatch::new(&chosen, k, &everyone, e);
        let winners: Vec<usize> = (0..e)
            .flat_map(|i| (dispatch.offsets[i]..dispatch.offsets[i + 1]).map(move |pair| (i, pair)))
            .map(|(i, pair)| dispatch.tokens[pair] * e + i)
            .collect();
        let x_pd = ops::gather_rows(x_nd, &dispatch.tokens)?;
        let c_pr = ops::gather_rows(&c, &winners)?;
        drop(c);
        let c_pr = ops::known_grouped_linear(&x_pd, down, &dispatch.offsets, &c_pr, ctx.compute)?;

        if trains && (score == Score::All || self.balance > 0.0) {
            norms_ne = self.taped_norms(x_nd, &norms_ne, ctx.compute);
        }
        let weights_nk = match score {
            Score::Selected => {
                let won = ops::reshape(&ops::row_norms(&c_pr)?, &[n * k, 1])?;
                let won = ops::gather_rows(&won, &dispatch.pair_of)?;
                ops::softmax(&ops::reshape(&won, &[n, k])?)?
            }
            Score::All => ops::take_last(&ops::softmax(&norms_ne)?, &chosen, k)?,
        };
        if trains && self.balance > 0.0 {
            let loss = balance_loss(&ops::softmax(&norms_ne)?, &chosen, self.balance, &mut ctx.sink.balance)?;
            ctx.sink.side_losses.push(loss);
        }
        ctx.note_ffn_input(self.layer, x_nd);
        ctx.note_routing(self.layer, &norms_ne, &chosen, &weights_nk);

        let project = |x: &Tensor, map: fn(&Expert) -> &Linear| {
            let weights: Vec<&Tensor> = self.experts.iter().map(|e| &map(e).weight.tensor).collect();
            ops::grouped_linear(x, &weights, &dispatch.offsets, ctx.compute)
        };
        let h_pw = ops::swiglu(&project(&c_pr, |e| &e.up)?, &project(&x_pd, |e| &e.product)?)?;
        let flat = ops::reshape(&weights_nk, &[n * k, 1])?;
        let pair_weights = ops::scatter_add_rows(&flat, &dispatch.pair_of, n * k)?;
        let y_pd = ops::scale_rows(&project(&h_pw, |e| &e.out)?, &pair_weights)?;
        let y_nd = ops::scatter_add_rows(&y_pd, &dispatch.tokens, n)?;
        Ok(y_nd)
    }

    fn visit(&mut self, f: &mut dyn FnMut(&mut Param)) {
        self.down.visit(f);
        for expert in &mut self.experts {
            for map in [&mut expert.up, &mut expert.product, &mut expert.out] {
                map.visit(f);
            }
        }
    }

    fn bill(&self) -> Bill {
        let AoeConfig {
            experts, top_k, d_low, ..
        } = self.config;
        let d = self.down.weight.tensor.last_dim() as u64;
        let one = self
            .experts
            .first()
            .map_or(0, |e| e.up.parameters() + e.product.parameters() + e.out.parameters());
        let (e, k, r) = (experts as u64, top_k as u64, d_low as u64);
        let (scoring, whole) = (e * r * d, r * d + one);
        // 2 FLOPs per weight met.
        let (useful, wasted, router) = (2 * k * whole, 2 * (e - k) * r * d, 2 * e * d);
        Bill {
            parameters: scoring + e * one,
            active_parameters: scoring + k * one,
            explained: vec![
                format!(
                    "AoE: {experts} experts score themselves by {d_low} factors each, {top_k} go on; an expert has {whole} \
                     parameters, as a SwiGLU expert of width {:.1} has",
                    whole as f64 / (3 * d) as f64
                ),
                format!(
                    "AoE costs {wasted} FLOPs per token and layer for factors of experts that lose, (E - K)·r·2D, and saves a \
                     router's {router}: {:+.1} % of the {useful} that the winners take",
                    100.0 * (wasted as f64 - router as f64) / useful as f64
                ),
                format!(
                    "AoE training keeps {} values per token and layer, the winners' factors and all norms, where the factors of \
                     all experts would be {}",
                    k * r + e,
                    e * r
                ),
            ],
        }
    }
}
