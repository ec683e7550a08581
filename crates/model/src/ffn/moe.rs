//! Mixture of experts with a softmax router and top-k selection.
//!
//! Sources: Shazeer et al. 2017; Mixtral (2024); Qwen1.5-MoE (2024, gated shared expert); OLMoE (2024). Symbols: E
//! experts, K experts per token, N tokens, `p = softmax(x Wᵀ)` over all E experts in f32, the K largest kept (ties to the
//! lower id), divided by their sum if `norm_topk_prob`, then `y = Σ p_i · expert_i(x)` plus, if there is one,
//! `sigmoid(x w_g) · shared(x)`.
//!
//! Merged experts (HC-SMoE, Chen et al. 2025, section 3.3): the router keeps its E outputs, `map[i]` names the stored
//! expert that answers for router output `i`, and a token whose choices meet in one stored expert runs it once with the
//! sum of their weights. An ordinary model is the identity map.
//!
//! Dispatch: (token, stored expert) pairs are sorted by expert, rows are gathered, each projection is one grouped matrix
//! product, and the weighted rows are added back in pair order, which makes the sum's order fixed.
//!
//! Balance loss (training): `coefficient · E · Σ_e f_e · P_e` per layer, `f_e` the number of selections of e per token
//! (no gradient), `P_e` the mean router probability; the value is `coefficient · K` when perfectly even. Layers are
//! averaged. Padding takes no part.

use super::{Bill, DenseFfn, FeedForward};
use crate::{
    balance::Balance,
    config::{ModelConfig, MoeConfig, MoeNames},
    ctx::Ctx,
    error::Result,
    param::{Linear, Param},
    topk::top_k,
    weights::Weights,
};
use ounce_tensor::{Compute, Tensor, ops};
use std::sync::Arc;

/// Router, experts, and possibly a gated shared expert.
pub struct MoeFfn {
    layer: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Divide the chosen probabilities by their sum.
    pub norm_topk: bool,
    /// Stored expert of each router output, `[E]`.
    pub map: Arc<[usize]>,
    router: Linear,
    /// The stored experts.
    pub experts: Vec<DenseFfn>,
    shared: Option<(DenseFfn, Linear)>,
    /// Balance coefficient, already divided by the number of mixture layers.
    balance: f64,
}

/// Which expert sees which token.
pub(super) struct Dispatch {
    /// Token of each pair, pairs sorted by stored expert, then token.
    pub(super) tokens: Vec<usize>,
    /// Pair of each selection `[N·K]`.
    pub(super) pair_of: Vec<usize>,
    /// First pair of each stored expert, and the end.
    pub(super) offsets: Vec<usize>,
}

impl Dispatch {
    /// `chosen [N·K]` router outputs, mapped to stored experts.
    pub(super) fn new(chosen: &[usize], k: usize, map: &[usize], stored: usize) -> Self {
        // A selection repeats a pair if an earlier choice of the same token maps to the same stored expert.
        let first_same = |slot: usize| {
            let start = slot - slot % k;
            (start..slot).find(|&s| map[chosen[s]] == map[chosen[slot]])
        };
        let mut offsets = vec![0; stored + 1];
        let repeats: Vec<Option<usize>> = (0..chosen.len()).map(first_same).collect();
        for (slot, repeat) in repeats.iter().enumerate() {
            if repeat.is_none() {
                offsets[map[chosen[slot]] + 1] += 1;
            }
        }
        for e in 0..stored {
            offsets[e + 1] += offsets[e];
        }
        let mut next = offsets.clone();
        let mut tokens = vec![0; offsets[stored]];
        let mut pair_of = vec![0; chosen.len()];
        for (slot, repeat) in repeats.iter().enumerate() {
            pair_of[slot] = if let Some(earlier) = repeat {
                pair_of[*earlier]
            } else {
                let pair = next[map[chosen[slot]]];
                next[map[chosen[slot]]] += 1;
                tokens[pair] = slot / k;
                pair
            };
        }
        Self {
            tokens,
            pair_of,
            offsets,
        }
    }
}

impl MoeFfn {
    /// The mixture of layer `layer`.
    ///
    /// # Errors
    /// If a weight is missing or has the wrong shape.
    pub fn new(
        prefix: &str,
        layer: usize,
        config: &ModelConfig,
        moe: &MoeConfig,
        weights: &mut dyn Weights,
    ) -> Result<Self> {
        let d = config.hidden_size;
        let base = format!("{prefix}.{}", moe.names.block());
        let experts = (0..moe.stored)
            .map(|e| {
                let [gate, up, down] = moe.names.expert(&base, e);
                let linear = |weights: &mut dyn Weights, name: &str, out, inner| -> Result<Linear> {
                    Ok(Linear {
                        weight: weights.param(name, &[out, inner])?,
                        bias: None,
                    })
                };
                Ok(DenseFfn {
                    gate: linear(weights, &gate, moe.width, d)?,
                    up: linear(weights, &up, moe.width, d)?,
                    down: linear(weights, &down, d, moe.width)?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let shared = match moe.shared_width {
            None => None,
            Some(width) => Some((
                DenseFfn::new(&format!("{base}.shared_expert"), d, width, false, weights)?,
                weights.linear(&format!("{base}.shared_expert_gate"), 1, d, false)?,
            )),
        };
        let moe_layers = config.layers.iter().filter(|l| l.ffn.moe().is_some()).count();
        Ok(Self {
            layer,
            top_k: moe.top_k,
            norm_topk: moe.norm_topk,
            map: moe.map.clone(),
            router: weights.linear(&format!("{base}.gate"), moe.experts, d, false)?,
            experts,
            shared,
            balance: moe.balance / moe_layers.max(1) as f64,
        })
    }

    /// Router logits `[N, E]` of `x [N, D]`, always in f32 arithmetic.
    ///
    /// # Errors
    /// If the last dimension is not D.
    pub fn router_logits(&self, x_nd: &Tensor, compute: Compute) -> Result<Tensor> {
        self.router.forward(x_nd, compute.exact())
    }

    /// Router probabilities, chosen ids `[N·K]` and their weights `[N, K]`.
    fn route(&self, logits_ne: &Tensor) -> Result<(Tensor, Vec<usize>, Tensor)> {
        let probabilities = ops::softmax(logits_ne)?;
        let e = logits_ne.last_dim();
        let wide = probabilities.to_f32();
        let chosen: Vec<usize> = wide.chunks_exact(e).flat_map(|row| top_k(row, self.top_k)).collect();
        let mut weights = ops::take_last(&probabilities, &chosen, self.top_k)?;
        if self.norm_topk {
            weights = ops::normalize_rows(&weights)?;
        }
        Ok((probabilities, chosen, weights))
    }
}

/// `coefficient · E · Σ_e f_e · P_e` for router probabilities `[N, E]` and the chosen ids `[N·K]`; see [`crate::balance`].
pub(super) fn balance_loss(
    probabilities_ne: &Tensor,
    chosen: &[usize],
    coefficient: f64,
    balance: &mut Balance,
) -> Result<Tensor> {
    let mut counts = vec![0f64; probabilities_ne.last_dim()];
    for &i in chosen {
        counts[i] += 1.0;
    }
    balance.loss(probabilities_ne, counts, coefficient)
}

impl FeedForward for MoeFfn {
    fn forward(&self, x_nd: &Tensor, ctx: &mut Ctx<'_>) -> Result<Tensor> {
        let n = x_nd.rows();
        let logits = self.router_logits(x_nd, ctx.compute)?;
        let (probabilities, chosen, weights_nk) = self.route(&logits)?;
        if self.balance > 0.0 && probabilities.needs_grad() {
            let loss = balance_loss(&probabilities, &chosen, self.balance, &mut ctx.sink.balance)?;
            ctx.sink.side_losses.push(loss);
        }
        ctx.note_ffn_input(self.layer, x_nd);
        ctx.note_routing(self.layer, &logits, &chosen, &weights_nk);
        let dispatch = Dispatch::new(&chosen, self.top_k, &self.map, self.experts.len());
        let pairs = dispatch.tokens.len();
        let flat = ops::reshape(&weights_nk, &[n * self.top_k, 1])?;
        let pair_weights = ops::scatter_add_rows(&flat, &dispatch.pair_of, pairs)?;
        let x_pd = ops::gather_rows(x_nd, &dispatch.tokens)?;
        let project = |x: &Tensor, map: fn(&DenseFfn) -> &Linear| {
            let weights: Vec<&Tensor> = self.experts.iter().map(|e| &map(e).weight.tensor).collect();
            ops::grouped_linear(x, &weights, &dispatch.offsets, ctx.compute)
        };
        let h_pi = ops::swiglu(&project(&x_pd, |e| &e.gate)?, &project(&x_pd, |e| &e.up)?)?;
        let y_pd = ops::scale_rows(&project(&h_pi, |e| &e.down)?, &pair_weights)?;
        let mut y_nd = ops::scatter_add_rows(&y_pd, &dispatch.tokens, n)?;
        if let Some((shared, gate)) = &self.shared {
            let s_n1 = ops::sigmoid(&gate.forward(x_nd, ctx.compute)?)?;
            y_nd = ops::add(&y_nd, &ops::scale_rows(&shared.apply(x_nd, ctx.compute)?, &s_n1)?)?;
        }
        Ok(y_nd)
    }

    fn visit(&mut self, f: &mut dyn FnMut(&mut Param)) {
        self.router.visit(f);
        for expert in &mut self.experts {
            expert.visit(f);
        }
        if let Some((shared, gate)) = &mut self.shared {
            shared.visit(f);
            gate.visit(f);
        }
    }

    fn bill(&self) -> Bill {
        let one = self.experts.first().map_or(0, |e| e.bill().parameters);
        let shared = self
            .shared
            .as_ref()
            .map_or(0, |(s, gate)| s.bill().parameters + gate.parameters());
        let idle = self.experts.len().saturating_sub(self.top_k) as u64 * one;
        let parameters = self.router.parameters() + self.experts.len() as u64 * one + shared;
        Bill {
            parameters,
            active_parameters: parameters - idle,
            explained: Vec::new(),
        }
    }

    fn as_moe(&self) -> Option<&MoeFfn> {
        Some(self)
    }
}

impl MoeNames {
    /// Name of the block below the layer.
    pub fn block(self) -> &'static str {
        match self {
            MoeNames::Mixtral => "block_sparse_moe",
            MoeNames::Qwen => "mlp",
        }
    }
    /// Names of gate, up and down of expert `e`.
    pub fn expert(self, base: &str, e: usize) -> [String; 3] {
        let [gate, up, down] = match self {
            MoeNames::Mixtral => ["w1", "w3", "w2"],
            MoeNames::Qwen => ["gate_proj", "up_proj", "down_proj"],
        };
        [gate, up, down].map(|m| format!("{base}.experts.{e}.{m}.weight"))
    }
}
