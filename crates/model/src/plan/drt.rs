//! DRT, the Differentiable Retrieval-based Transformer: a decoder that looks far back by retrieving chunks of its own past.
//!
//! # Paper and idea
//! X. Hu, Z. Teng, J. Zhao, W. Wu, K. Tu, "Efficient Length-Generalizable Attention via Causal Retrieval for Long-Context
//! Language Modeling", ICML 2025, arXiv 2410.01651. Choosing the k best chunks passes no gradient to the chooser, so
//! retrievers are usually trained apart. Here a token attends to each chosen chunk *separately* (a softmax inside each
//! chunk), and the k outputs are mixed by the softmax of the chunks' relevance scores: the scores are part of the forward
//! computation and learn from the next-token loss which past chunk helps the *next* chunk. With a sliding window for what is
//! near and one retrieval per chunk, the cost of a token does not depend on the length of the text.
//!
//! # Symbols
//! B batch, T real tokens of a call, S real tokens per chunk, C = S+1 positions of a chunk with its landmark LMK, D width,
//! h heads, hd = D/h, k chunks per retrieval, W window, G retrieval groups. `past` counts real tokens seen before a call.
//!
//! 1. After every S real tokens the plan inserts LMK (a token with an embedding of its own). Ids in and states out are those
//!    of real tokens only, so the last real token of a chunk predicts the first of the next and LMK predicts nothing.
//! 2. *Lower layers*: pre-norm blocks with causal attention to W positions before and the own one, ALiBi, no rotary
//!    positions. Landmarks count as positions.
//! 3. *Chunk encoder*: each finished chunk by itself, both directions, rotary positions from 0, on RMSNorm(lower output).
//!    Its last row is the landmark key `l_c [D]`; linear maps of its rows are the chunk's keys and values `[rows, h, hd]`,
//!    shared by all upper layers. The landmark's own row there is zeros (a logit 0 with value 0: "nothing here"), or removed.
//! 4. *Retrieval*, per group, at the end of chunk t: `u_t = RMSNorm(hidden of LMK)`, `R[t,c] = u_t · l_c / sqrt(D)` for c < t;
//!    the k largest (of R plus Gumbel noise in training), weights `w = softmax` of the chosen, noise-free scores.
//! 5. *Upper layers* of the group: the tokens of chunk t+1 attend to what chunk t retrieved ([`ounce_tensor::ops::gca`]):
//!    `a = x + attn(norm1(x))`, `g = gca(a)`, `y = a + ffn(norm2(a + g))`. g is not added to the residual stream.
//!
//! # What the paper leaves open, and what we chose
//! - The published code decides by C mod 64 whether the landmark's row is zeros (0) or removed (1), and refuses other sizes.
//!   Here `landmark_null_slot` says it; without the key the rule holds. Its flag `enable_softmax_one` has no effect in its
//!   fused kernel, and none here: the row of zeros is the one in the denominator.
//! - A prompt of any length is legal. The open chunk has no landmark and is not in memory; its tokens use what the chunk
//!   before retrieved. There are no seams: a text in pieces, or token by token, gives the same numbers as at once, because
//!   the last retrieval and the open chunk travel in the cache. (The published code starts every call without retrieval and
//!   leaves out the query's norm when decoding.)
//! - Chunks that see fewer than k others have empty slots of weight 0; ties go to the earliest chunk.
//! - Noise is a pure function of (seed, step, forward, group, row, chunk, candidate): a resumed run draws the same.
//! - Encoder norms keep eps 1e-6 and the encoder and the chunk memory keep all h heads where the decoder groups keys;
//!   landmark norms use 1e-5. The authors' code does not pass the configuration on there.
//! - Sequences of unequal length or with a past of their own are run one after the other, as their chunks end at different
//!   tokens.
//! - Retrieval happens at the ends of chunks only: what a question asks for in the middle of a chunk is found at its end.
//!
//! # Configuration
//! As the authors' (`enc_chunk_size`, `decoder_layers` = lower layers and one number per group, `encoder_layers`,
//! `chunk_topk`, `slide_window`, `chunk_id`), plus `landmark_null_slot`, `chunk_memory` ("f32" or "f16") and
//! `chunk_retriever` ("learned", or "random": chunks are drawn by lot, the paper's ablation). Their files say `model_type: "llama"`: the family is recognised by its keys, and we write `"drt"`.
//!
//! # Lazy prefill
//! Chunks are encoded from the lower layers' output, so of a prompt whose last output alone is wanted the upper layers need to
//! run on the end only: U of them see U·W positions back (W is at least a chunk, so this covers what a chunk before
//! retrieved), and one chunk more for going back within it. Everything before is the lower layers and the encoder, and the
//! landmarks of only the last chunks are compared with all others. Logits are the same.
//!
//! # Decode
//! See `memory`: windows are cut, chunks are appended, nothing is copied again. Going back is possible within the open chunk.

mod bill;
mod config;
mod layers;
mod memory;
mod retrieval;
mod span;
#[cfg(test)]
mod tests;

use super::Plan;
use crate::{
    Block,
    cache::{Cache, CacheType},
    config::ModelConfig,
    ctx::Ctx,
    error::{ModelError, Result},
    param::{Linear, Param},
    residual,
    rope::RopeTable,
    rows::{Even, Rows},
    weights::Weights,
};
use config::DrtConfig;
use layers::{ChunkTensors, ENCODER_EPS, Shape, UpperLayer, decoder_layer, encoder_layer};
use memory::{DrtCache, state};
use ounce_tensor::{Tensor, ops};
use span::Span;

pub(crate) use config::FAMILY;
pub use config::MODEL_TYPE;

/// One retrieval and the layers that use it.
struct Group {
    norm: Param,
    layers: Vec<UpperLayer>,
}

/// The plan. See the module.
pub struct DrtPlan {
    drt: DrtConfig,
    shape: Shape,
    lower: Vec<Block>,
    groups: Vec<Group>,
    prenorm: Param,
    encoder: Vec<Block>,
    encoder_norm: Param,
    chunk_k: Linear,
    chunk_v: Linear,
    /// Cosines and sines of one chunk `[C, hd/2]`.
    angles: (Tensor, Tensor),
}

/// The rows of a call that a block runs on, in place of the context's own.
struct View(Rows);

impl View {
    /// `len` positions of each of `batch` sequences after `before` others. The decoder's own layers rotate nothing.
    fn new(batch: usize, before: usize, len: usize) -> Self {
        Self(Rows::even(batch, before, len, Tensor::zeros(&[0]), Tensor::zeros(&[0])))
    }

    /// Runs `f` on these rows.
    fn during<R>(mut self, ctx: &mut Ctx<'_>, f: impl FnOnce(&mut Ctx<'_>) -> Result<R>) -> Result<R> {
        self.0.first = ctx.rows.first;
        std::mem::swap(&mut self.0, &mut ctx.rows);
        let made = f(ctx);
        std::mem::swap(&mut self.0, &mut ctx.rows);
        made
    }
}

impl DrtPlan {
    fn new(drt: &DrtConfig, config: &ModelConfig, weights: &mut dyn Weights) -> Result<Self> {
        let s = Shape::from((drt, config));
        let d = [s.hidden];
        let lower = (0..drt.lower_layers)
            .map(|i| decoder_layer(&format!("model.lower_layers.{i}"), i, &s, weights))
            .collect::<Result<_>>()?;
        let mut groups = Vec::new();
        let mut layer = drt.lower_layers;
        for (g, &count) in drt.groups.iter().enumerate() {
            let mut layers = Vec::new();
            for i in 0..count {
                let prefix = format!("model.upper_layers.{g}.{i}");
                layers.push(UpperLayer::new(&prefix, layer, drt.rows(), &s, weights)?);
                layer += 1;
            }
            let norm = weights.param(&format!("model.lmk_norms.{g}.weight"), &d)?;
            groups.push(Group { norm, layers });
        }
        let encoder = (0..drt.encoder_layers)
            .map(|i| encoder_layer(&format!("model.encoder.layers.{i}"), &s, weights))
            .collect::<Result<_>>()?;
        let positions = (0..drt.positions()).map(|p| (p, drt.positions()));
        Ok(Self {
            lower,
            groups,
            prenorm: weights.param("model.enc_prenorm.weight", &d)?,
            encoder,
            encoder_norm: weights.param("model.encoder.norm.weight", &d)?,
            chunk_k: weights.linear("model.chunk_k_proj", s.hidden, s.hidden, false)?,
            chunk_v: weights.linear("model.chunk_v_proj", s.hidden, s.hidden, false)?,
            angles: RopeTable::new(&config.rope, s.head_dim).tables(positions)?,
            drt: drt.clone(),
            shape: s,
        })
    }

    /// Real tokens `[B·T,D]` and the landmarks between them: `[B·positions, D]`.
    fn insert(x: &Tensor, span: Span, b: usize, ctx: &Ctx<'_>) -> Result<Tensor> {
        if span.finished() == 0 {
            return Ok(x.clone());
        }
        let Some(landmark) = &ctx.inserted else {
            return Err(ModelError::Input {
                what: "landmark".into(),
                rule: "the context holds no embedding of the landmark token".into(),
                hint: "run a retrieval decoder as a whole model".into(),
            });
        };
        let pool = ops::concat_rows(&[x, landmark])?;
        let mut rows = vec![b * span.len; b * span.total()];
        for row in 0..b {
            for i in 0..span.len {
                rows[row * span.total() + span.position(i)] = row * span.len + i;
            }
        }
        Ok(ops::gather_rows(&pool, &rows)?)
    }

    /// The real tokens `[B·T,D]` among `x [B·positions, D]`.
    fn real(x: &Tensor, span: Span, b: usize) -> Result<Tensor> {
        if span.finished() == 0 {
            return Ok(x.clone());
        }
        let rows: Vec<usize> = (0..b)
            .flat_map(|row| (0..span.len).map(move |i| row * span.total() + span.position(i)))
            .collect();
        Ok(ops::gather_rows(x, &rows)?)
    }

    /// All stages on `x [B·positions, D]`. With it comes the part of the call that it is of.
    fn run(&self, x: Tensor, span: Span, b: usize, ctx: &mut Ctx<'_>) -> Result<(Tensor, Span)> {
        let x = residual::run(&self.lower, x, ctx)?;
        let fresh = self.finish_chunks(&x, span, b, ctx)?;
        let memory = match (state(ctx)?, fresh) {
            // From here on they are read from the cache, as all earlier ones.
            (Some(state), Some(chunks)) => {
                state.extend(&chunks)?;
                None
            }
            (_, fresh) => fresh,
        };
        let (rest, view) = self.rest(span, b, ctx)?;
        let x = last_positions(&x, rest.total(), b)?;
        let x = view.during(ctx, |ctx| self.run_upper(x, rest, b, memory.as_ref(), ctx))?;
        if let Some(state) = state(ctx)? {
            state.finish(span.len);
        }
        Ok((x, rest))
    }

    /// The retrieval groups on `x [B·positions, D]`.
    fn run_upper(
        &self,
        mut x: Tensor,
        span: Span,
        b: usize,
        memory: Option<&ChunkTensors>,
        ctx: &mut Ctx<'_>,
    ) -> Result<Tensor> {
        for (g, group) in self.groups.iter().enumerate() {
            let found = self.retrieve(g, &x, (span, b), memory, ctx)?;
            for layer in &group.layers {
                x = residual::run_bypassed(&layer.block, &x, ctx, |x, ctx| layer.cross(x, &found, memory, ctx))?;
            }
        }
        Ok(x)
    }

    /// The end of the call that upper layers must run on, in whole chunks, and its view: all of the call, unless a prompt
    /// is read of which only the last outputs are wanted. Then the windows of the upper layers get zeros for what is left
    /// out, which nobody sees: see the module on lazy prefill.
    fn rest(&self, span: Span, batch: usize, ctx: &mut Ctx<'_>) -> Result<(Span, View)> {
        let wanted = ctx.wanted.unwrap_or(span.len).min(span.len);
        let in_window = state(ctx)?.map(|state| state.in_window());
        let upper: usize = self.groups.iter().map(|g| g.layers.len()).sum();
        let seen = upper * self.drt.window;
        let first = (span.position(span.len - wanted)).min(span.total().saturating_sub(self.drt.positions()));
        let skipped = match in_window {
            None => 0,
            Some(_) => span.chunks_before(first.saturating_sub(seen)),
        };
        let (rest, positions) = span.after(skipped);
        if let (Some(cache), true) = (ctx.caches.first_mut(), positions > 0) {
            let unseen = Tensor::zeros(&[positions, self.shape.kv_heads, self.shape.head_dim]);
            for layer in self.drt.lower_layers..self.drt.lower_layers + upper {
                cache.append(layer, &unseen, &unseen)?;
            }
        }
        Ok((rest, View::new(batch, in_window.unwrap_or(0) + positions, rest.total())))
    }

    /// Encodes the chunks that the call finishes, from the lower layers' output `y [B·positions, D]` and the open chunk in
    /// the cache; the new open chunk goes there.
    fn finish_chunks(&self, y: &Tensor, span: Span, b: usize, ctx: &mut Ctx<'_>) -> Result<Option<ChunkTensors>> {
        let c = self.drt.positions();
        let (open, total, finished) = (span.open(), span.total(), span.finished());
        let mut pool = y.clone();
        let before = state(ctx)?.and_then(|state| state.open.take());
        if let Some(before) = &before {
            pool = ops::concat_rows(&[&pool, before])?;
        }
        // Positions of the open chunk before the call come first.
        let row = |b_row: usize, p: usize| match p.checked_sub(open) {
            Some(new) => b_row * total + new,
            None => b * total + b_row * open + p,
        };
        if let Some(state) = state(ctx)? {
            let left = finished * c..open + total;
            if !left.is_empty() {
                let rows: Vec<usize> = (0..b).flat_map(|r| left.clone().map(move |p| row(r, p))).collect();
                state.open = Some(ops::gather_rows(&pool, &rows)?.detach());
            }
        }
        if finished == 0 {
            return Ok(None);
        }
        let rows: Vec<usize> = (0..finished)
            .flat_map(|n| (0..b).flat_map(move |r| (n * c..(n + 1) * c).map(move |p| row(r, p))))
            .collect();
        self.encode(&ops::gather_rows(&pool, &rows)?, ctx).map(Some)
    }

    /// Keys, values and landmarks of chunks `[M·C, D]`.
    fn encode(&self, chunks: &Tensor, ctx: &mut Ctx<'_>) -> Result<ChunkTensors> {
        let c = self.drt.positions();
        let m = chunks.rows() / c;
        let tile = |t: &Tensor| {
            let values = t.to_f32().repeat(m);
            Tensor::new(values, &[m * c, t.last_dim()])?.cast(chunks.dtype())
        };
        let view = View(Rows::even(m, 0, c, tile(&self.angles.0)?, tile(&self.angles.1)?));
        let x = ops::rms_norm(chunks, &self.prenorm.tensor, self.shape.eps)?;
        // Chunks are never cached.
        let caches = std::mem::take(&mut ctx.caches);
        let e = view.during(ctx, |ctx| residual::run(&self.encoder, x, ctx))?;
        ctx.caches = caches;
        let e = ops::rms_norm(&e, &self.encoder_norm.tensor, ENCODER_EPS)?;
        let is_landmark = |p: usize| p % c == c - 1;
        let (landmarks, tokens): (Vec<usize>, Vec<usize>) = (0..m * c).partition(|&p| is_landmark(p));
        let landmarks = ops::gather_rows(&e, &landmarks)?;
        let e = ops::gather_rows(&e, &tokens)?;
        let mut sides = Linear::forward_many(&e, &[&self.chunk_k, &self.chunk_v], ctx.compute)?.into_iter();
        let (rows, heads, head_dim) = (self.drt.rows(), self.shape.heads, self.shape.head_dim);
        let mut next = || {
            let mut side = sides.next().expect("invariant: two outputs for two maps");
            if self.drt.null_slot {
                side = ops::scatter_add_rows(&side, &tokens, m * c)?;
            }
            ops::reshape(&side, &[m, rows, heads, head_dim])
        };
        Ok(ChunkTensors {
            keys: next()?,
            values: next()?,
            landmarks,
        })
    }
}

/// The last `n` of the positions of each of the `b` sequences of `x [B·positions, D]`.
fn last_positions(x: &Tensor, n: usize, b: usize) -> Result<Tensor> {
    let total = x.rows() / b;
    if n == total {
        return Ok(x.clone());
    }
    let rows: Vec<usize> = (0..b)
        .flat_map(|row| (row + 1) * total - n..(row + 1) * total)
        .collect();
    Ok(ops::gather_rows(x, &rows)?)
}

impl DrtPlan {
    /// The plan on sequences that are all alike: `x [B·T,D]`.
    fn forward_alike(&self, x: &Tensor, ctx: &mut Ctx<'_>) -> Result<Tensor> {
        let Some(Even { batch, len, past }) = ctx.rows.uniform() else {
            unreachable!("invariant: a group's sequences are alike");
        };
        let span = Span {
            chunk: self.drt.chunk,
            past,
            len,
        };
        let x = Self::insert(x, span, batch, ctx)?;
        let in_window = state(ctx)?.map_or(0, |state| state.in_window());
        let view = View::new(batch, in_window, span.total());
        let (x, span) = view.during(ctx, |ctx| self.run(x, span, batch, ctx))?;
        let x = Self::real(&x, span, batch)?;
        last_positions(&x, ctx.wanted.unwrap_or(span.len).min(span.len), batch)
    }
}

impl Plan for DrtPlan {
    fn forward(&self, x: Tensor, ctx: &mut Ctx<'_>) -> Result<Tensor> {
        ctx.by_groups(&x, |x, ctx| self.forward_alike(&x, ctx))
    }

    fn visit(&mut self, f: &mut dyn FnMut(&mut Param)) {
        for block in &mut self.lower {
            block.visit(f);
        }
        for group in &mut self.groups {
            for layer in &mut group.layers {
                layer.visit(f);
            }
            f(&mut group.norm);
        }
        for block in &mut self.encoder {
            block.visit(f);
        }
        f(&mut self.prenorm);
        f(&mut self.encoder_norm);
        self.chunk_k.visit(f);
        self.chunk_v.visit(f);
    }

    fn blocks(&self) -> Vec<&Block> {
        let upper = self.groups.iter().flat_map(|g| &g.layers).map(|l| &l.block);
        self.lower.iter().chain(upper).collect()
    }

    fn inserted_token(&self) -> Option<u32> {
        Some(self.drt.landmark)
    }

    fn cache(&self, kind: CacheType, reserve: usize) -> Option<Box<dyn Cache>> {
        Some(Box::new(DrtCache::new(&self.drt, &self.shape, kind, reserve)))
    }
}
