//! The layers a DRT is made of: windowed attention with linear biases, attention within a chunk, and the module that
//! attends to retrieved chunks. Each is the whole of its arithmetic; who calls it with which context is the plan's matter.

use super::memory::state;
use crate::{
    Block,
    attention::{
        Attention,
        attend::{Form, Projected, attend, rope},
    },
    ctx::Ctx,
    error::{ModelError, Result},
    ffn::DenseFfn,
    param::{Linear, Param},
    weights::Weights,
};
use ounce_tensor::{
    Tensor,
    ops::{self, AttentionConfig, KeyValue, Neighbours},
};

/// Epsilon of every norm inside the encoder: the library's default, which the authors' code keeps.
pub(super) const ENCODER_EPS: f64 = 1e-6;

/// Sizes that layers share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// D.
    pub(super) hidden: usize,
    pub(super) heads: usize,
    /// Key and value heads of the decoder's own attention; the encoder and chunk memory have all `heads`.
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    /// I.
    pub(super) width: usize,
    /// W.
    pub(super) window: usize,
    pub(super) eps: f64,
}

enum Positions {
    /// Causal, `window` positions before the token and itself, one slope per head.
    Window { window: usize, slopes: Vec<f32> },
    /// Both directions, rotated by the context's tables.
    Chunk,
}

/// Self-attention of a DRT's layers.
struct DrtAttention {
    /// Its place in the cache; unused within chunks, which are never cached.
    layer: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    positions: Positions,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
}

impl DrtAttention {
    fn new(prefix: &str, layer: usize, s: &Shape, positions: Positions, weights: &mut dyn Weights) -> Result<Self> {
        let kv_heads = match positions {
            Positions::Window { .. } => s.kv_heads,
            Positions::Chunk => s.heads,
        };
        let (d, kv) = (s.hidden, kv_heads * s.head_dim);
        Ok(Self {
            layer,
            heads: s.heads,
            kv_heads,
            head_dim: s.head_dim,
            positions,
            q: weights.linear(&format!("{prefix}.q_proj"), d, d, false)?,
            k: weights.linear(&format!("{prefix}.k_proj"), kv, d, false)?,
            v: weights.linear(&format!("{prefix}.v_proj"), kv, d, false)?,
            o: weights.linear(&format!("{prefix}.o_proj"), d, d, false)?,
        })
    }
}

impl Attention for DrtAttention {
    fn forward(&self, x_nd: &Tensor, ctx: &mut Ctx<'_>) -> Result<Tensor> {
        let (n, hd) = (x_nd.rows(), self.head_dim);
        let mut made = Linear::forward_many(x_nd, &[&self.q, &self.k, &self.v], ctx.compute)?.into_iter();
        let mut next = |heads| {
            let y = made.next().expect("invariant: three outputs for three maps");
            ops::reshape(&y, &[n, heads, hd])
        };
        let mut p = Projected {
            q: next(self.heads)?,
            k: next(self.kv_heads)?,
            v: next(self.kv_heads)?,
        };
        let mut config = AttentionConfig {
            causal: false,
            window: None,
            scale: 1.0 / (hd as f64).sqrt(),
            compute: ctx.compute,
        };
        let form = match &self.positions {
            Positions::Chunk => {
                (p.q, p.k) = (rope(&p.q, ctx)?, rope(&p.k, ctx)?);
                Form::Plain
            }
            Positions::Window { window, slopes } => {
                (config.causal, config.window) = (true, Some(window + 1));
                Form::Slopes(slopes)
            }
        };
        let out = attend(self.layer, &p, config, form, ctx)?;
        self.o.forward(&ops::reshape(&out, &[n, self.heads * hd])?, ctx.compute)
    }

    fn visit(&mut self, f: &mut dyn FnMut(&mut Param)) {
        for map in [&mut self.q, &mut self.k, &mut self.v, &mut self.o] {
            map.visit(f);
        }
    }
}

/// Slope of each of `heads` heads: `2^(-8 (i+1) / heads)`.
pub(super) fn slopes(heads: usize) -> Vec<f32> {
    let slope = |i: usize| (-8.0 * (i + 1) as f64 / heads as f64).exp2() as f32;
    (0..heads).map(slope).collect()
}

/// A decoder layer below `prefix`, number `layer` in the cache.
pub(super) fn decoder_layer(prefix: &str, layer: usize, s: &Shape, weights: &mut dyn Weights) -> Result<Block> {
    let slopes = slopes(s.heads);
    check_slopes(&format!("{prefix}.self_attn.m"), &slopes, weights)?;
    let positions = Positions::Window {
        window: s.window,
        slopes,
    };
    block(prefix, layer, s, s.eps, positions, weights)
}

/// An encoder layer below `prefix`.
pub(super) fn encoder_layer(prefix: &str, s: &Shape, weights: &mut dyn Weights) -> Result<Block> {
    block(prefix, 0, s, ENCODER_EPS, Positions::Chunk, weights)
}

fn block(
    prefix: &str,
    layer: usize,
    s: &Shape,
    eps: f64,
    positions: Positions,
    weights: &mut dyn Weights,
) -> Result<Block> {
    Block::with_slots(
        prefix,
        (s.hidden, eps),
        weights,
        |weights| {
            let prefix = format!("{prefix}.self_attn");
            Ok(Box::new(DrtAttention::new(&prefix, layer, s, positions, weights)?))
        },
        |weights| {
            Ok(Box::new(DenseFfn::new(
                &format!("{prefix}.mlp"),
                s.hidden,
                s.width,
                false,
                weights,
            )?))
        },
    )
}

/// The authors' state dicts hold the slopes beside the weights. Other slopes than the formula's would be another model.
fn check_slopes(name: &str, slopes: &[f32], weights: &mut dyn Weights) -> Result<()> {
    let Some(stored) = weights.stored_copy(name, &[slopes.len()])? else {
        return Ok(());
    };
    // Room for bf16, nothing more.
    let near = |(a, b): (&f32, &f32)| (a - b).abs() <= b / 128.0;
    if stored.to_f32().iter().zip(slopes).all(near) {
        return Ok(());
    }
    Err(ModelError::Weight {
        file: "checkpoint".into(),
        tensor: name.into(),
        rule: format!("holds slopes {:?}, this family's are {slopes:?}", stored.to_f32()),
        hint: "the checkpoint was made for other positions than this program computes".into(),
    })
}

/// Keys and values of chunks `[M, rows, h, hd]`, on the tape; row `c·B + b` is chunk c of batch row b.
pub(super) struct ChunkTensors {
    pub(super) keys: Tensor,
    pub(super) values: Tensor,
    /// `[M, D]`.
    pub(super) landmarks: Tensor,
}

/// What the tokens of one call attend to: neighbours of every run, weights `[R,k]`.
pub(super) struct Found {
    pub(super) neighbours: Neighbours,
    pub(super) weights: Tensor,
}

/// An upper layer: a block, and the cross-attention that bypasses its residual stream.
pub(super) struct UpperLayer {
    pub(super) block: Block,
    heads: usize,
    head_dim: usize,
    rows: usize,
    eps: f64,
    pre_norm: Param,
    q: Linear,
    o: Linear,
}

impl UpperLayer {
    pub(super) fn new(prefix: &str, layer: usize, rows: usize, s: &Shape, weights: &mut dyn Weights) -> Result<Self> {
        Ok(Self {
            block: decoder_layer(prefix, layer, s, weights)?,
            heads: s.heads,
            head_dim: s.head_dim,
            rows,
            eps: s.eps,
            pre_norm: weights.param(&format!("{prefix}.gca.pre_norm.weight"), &[s.hidden])?,
            q: weights.linear(&format!("{prefix}.gca.q_proj"), s.hidden, s.hidden, false)?,
            o: weights.linear(&format!("{prefix}.gca.o_proj"), s.hidden, s.hidden, false)?,
        })
    }

    /// The partial sum `[N,D]` of cross-attention for `x [N,D]`; none where no token has anything to attend to. Without
    /// `memory` the chunks are the cache's.
    pub(super) fn cross(
        &self,
        x: &Tensor,
        found: &Found,
        memory: Option<&ChunkTensors>,
        ctx: &mut Ctx<'_>,
    ) -> Result<Option<Tensor>> {
        if found.neighbours.chunks.iter().all(Option::is_none) {
            return Ok(None);
        }
        let (compute, n) = (ctx.compute, x.rows());
        let q = self
            .q
            .forward(&ops::rms_norm(x, &self.pre_norm.tensor, self.eps)?, compute)?;
        let q = ops::reshape(&q, &[n, self.heads, self.head_dim])?;
        let how = (1.0 / (self.head_dim as f64).sqrt(), compute);
        let (keys, values) = match (memory, state(ctx)?) {
            (Some(chunks), _) => (KeyValue::Tensor(&chunks.keys), KeyValue::Tensor(&chunks.values)),
            (None, Some(state)) => state.chunks(),
            (None, None) => return Ok(None),
        };
        let out = ops::gca(&q, keys, values, self.rows, &found.neighbours, &found.weights, how)?;
        let out = ops::reshape(&out, x.shape())?;
        Ok(Some(self.o.forward(&out, compute)?))
    }

    pub(super) fn visit(&mut self, f: &mut dyn FnMut(&mut Param)) {
        self.block.visit(f);
        f(&mut self.pre_norm);
        self.q.visit(f);
        self.o.visit(f);
    }
}
