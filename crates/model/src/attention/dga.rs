//! DGA: dynamic group attention. Few tokens stay as they are, the others are attended in groups.
//!
//! Paper: "Curse of High Dimensionality Issue in Transformer for Long-context Modeling", S. Zhang, Z. You, Y. Chen,
//! Z. Wen, Q. Wang, Z. Qiu, Y. Li, M. Tan (ICML 2025, arXiv 2505.22107). Attention puts nearly all its mass on few tokens,
//! yet every token costs the same. DGA keeps a share of *focal* tokens as single key/value pairs and replaces every m of
//! the rest by one aggregated pair. A query inside an unfinished group still sees that group's earlier members one by one
//! (the *complement*), so nothing is dropped. There are no parameters.
//!
//! Symbols: B rows, T tokens, L tokens of a row that are no padding, H query heads, Hk key heads, hd head dimension; m
//! group size, gamma focal ratio, r scoring queries, J groups. Keys are rotated before they are averaged.
//!
//! Importance of a token: the attention it receives from the last r queries, summed over the query heads of its key head
//! (`score_mode = "last_strided"`: half of r from the end, half evenly spaced). Focal: the ceil(gamma L) largest, ties to
//! the lower index. The others in order, m at a time, are the groups; a rest below m (the *tail*) stays single. Group j
//! with last token e: `w = mean over heads of softmax(q[e] K_Gᵀ scale)`, `k_j = w K_G`, `v_j = w V_G`. A query at i sees
//! singles up to i, groups with e <= i, and of the others the members up to i: every token of 0..=i exactly once.
//!
//! Two selections:
//! - `global`: as above over the whole prompt; the paper's. Which tokens are focal depends on later queries, so with a
//!   whole text at once a token's logits depend on later tokens. Perplexities measured so are not honest.
//! - `causal_block`: the paper's decoding schedule for every token, strictly causal. What it leaves open is settled so:
//!   - Tokens are cut into blocks of b = m' (default ceil(m / (1 - gamma)), the paper's 1.1 m). Within its block a query
//!     sees single tokens; a block is compressed after its last token has been attended to, and is seen in compressed form
//!     from the next token on.
//!   - A block has max(1, floor((b - ceil(gamma b)) / m)) groups of m; every other token of it is focal. So nothing is
//!     left over, and no token waits for a later block.
//!   - The block's newest query alone scores its tokens and weights its groups (earlier queries are not cached), softmax
//!     over the block only, summed over the query heads of a key head.
//!   - The last, unfinished block stays exact.
//!
//!   Every decision about a token thus depends on tokens of its own block at most, which no earlier query saw compressed.
//!
//! Decoding is the same rule in both selections: new tokens go to an exact buffer (at first the prompt's tail); when it
//! holds m' tokens, the newest query turns it into focal tokens and groups. These are never revisited. A call with several
//! tokens on a filled cache is the same as one call per token.
//!
//! Left open elsewhere, and what is done here:
//! - A prompt of at most `min_len` tokens (default m') is attended exactly under `global`, and is all buffer afterwards.
//! - `group_bias`: one aggregated pair stands for m but has one exponential. `entropy` adds H(w), the first-order
//!   correction that is exact for the weighting query if Hk = H; `logm` adds ln m; `none` (default) is the paper.
//! - `layers`: which layers; the others are exact.
//! - Whole prompts under `global` use the vector kernel by a detour (`fast.rs`), blocks directly (`cache.rs`: between two
//!   compressions it is ordinary causal attention over what is kept); both are tested against the plain loops of `grouped.rs`.
//!   Gradients are plain loops.
//!
//! Ours, not the paper's; both are 0 unless asked for:
//! - `sink`: the first tokens are always single, beside the focal ones.
//! - `window`: at least so many of the last tokens are single to every query. Groups are formed of tokens between the first
//!   and the recent ones, and seen in place of their members by queries that are `window` tokens further on: under
//!   `causal_block` a block is compressed when `window` tokens have followed it, by the newest query then.
//! - Padding never is focal, never enters a group, and yields zeros. Counts follow each row's own length.
//! - Selection passes no gradient; the weights w do.
//! - The cache holds values of the type that full attention's would.
//! - Averaging keys before their rotation and rotating once is not offered.

mod cache;
mod config;
mod fast;
mod grouped;
mod layout;
mod store;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod theory;

use super::{Attention, FullAttention, attend::Projected};
use crate::{
    cache::CacheType,
    ctx::Ctx,
    error::{ModelError, Result},
    layer_cache::LayerCache,
    param::Param,
};
use ounce_tensor::{
    Tensor,
    ops::{self, RowSpan},
};
use std::ops::Range;

pub use cache::DgaCache;
pub(super) use config::configure;
pub use config::{DgaConfig, GroupBias, ScoreMode, Selection};
pub use grouped::{Head, Shape, attention, heads};
pub use layout::{Group, Layout};

/// Attention over single tokens and groups.
pub struct Dga {
    base: FullAttention,
    config: DgaConfig,
    layer: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Dga {
    /// Grouped attention with the maps of `base`, which belongs to layer `layer` of `config`.
    pub(super) fn new(dga: DgaConfig, config: &crate::ModelConfig, layer: usize, base: FullAttention) -> Self {
        Self {
            base,
            config: dga,
            layer,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
        }
    }
}

impl Dga {
    /// Head outputs `[tokens,H,hd]` of sequences that are all alike.
    fn heads_of(&self, p: &Projected, group: &Range<usize>, ctx: &mut Ctx<'_>) -> Result<Tensor> {
        let first = &ctx.rows.seqs[group.start];
        let (batch, len, past) = (group.len(), first.tokens.len(), first.past);
        let tokens = ctx.rows.tokens_of(group);
        let shape = Shape {
            batch,
            len,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: 1.0 / (self.head_dim as f64).sqrt(),
        };
        let span = RowSpan {
            q_start: past,
            kv_begin: 0,
            kv_len: past + len,
        };
        let spans = vec![span; batch];
        let row = |x: &Tensor| {
            let part = ops::narrow_rows(x, tokens.start, tokens.end)?;
            ops::reshape(&part, &[batch, len, x.dim(1), x.dim(2)])
        };
        let (q, k, v) = (row(&p.q)?, row(&p.k)?, row(&p.v)?);
        let out = match ctx.caches.get_mut(group.start) {
            None => attention(&q, &k, &v, &shape, &spans, &self.config, ctx.compute)?,
            Some(cache) => {
                let own = cache.own_layer(self.layer).and_then(|l| l.as_any().downcast_mut());
                let Some(own): Option<&mut DgaCache> = own else {
                    return Err(ModelError::Cache(format!(
                        "layer {} shrinks its keys and values, which this cache cannot; use the model's own cache",
                        self.layer
                    )));
                };
                own.attend(&q, &k, &v, &shape, &spans, ctx.compute)?
            }
        };
        Ok(ops::reshape(&out, &[batch * len, self.heads, self.head_dim])?)
    }
}

impl Attention for Dga {
    fn forward(&self, x_nd: &Tensor, ctx: &mut Ctx<'_>) -> Result<Tensor> {
        let p = self.base.project(x_nd, ctx)?;
        let groups = ctx.rows.groups(!ctx.caches.is_empty());
        let mut made = Vec::with_capacity(groups.len());
        for group in groups {
            made.push(self.heads_of(&p, &group, ctx)?);
        }
        self.base
            .output(&ops::concat_rows(&made.iter().collect::<Vec<_>>())?, ctx)
    }

    fn visit(&mut self, f: &mut dyn FnMut(&mut Param)) {
        self.base.visit(f);
    }

    /// Blocks follow each other however they come; a global selection is of a whole prompt, and what is added to it is
    /// grouped as if it had been decoded.
    fn reads_in_pieces(&self) -> bool {
        self.config.selection == Selection::CausalBlock
    }

    fn layer_cache(&self, kind: CacheType) -> Option<Box<dyn LayerCache>> {
        Some(Box::new(DgaCache::new(
            self.config.clone(),
            kind,
            1,
            self.kv_heads,
            self.head_dim,
        )))
    }
}
