//! Fused attention and rotary positions.

use super::real;
use crate::{
    error::{Result, TensorError, shape},
    storage::Real,
    tensor::Tensor,
};
use ounce_kernels::{self as k, AttentionRows, AttentionShape, Compute, Data, Heads};

/// What a query may see, for one row of the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowSpan {
    /// Position of the row's first query among the row's keys.
    pub q_start: usize,
    /// First key that exists (later than 0 with left padding).
    pub kv_begin: usize,
    /// Number of keys that exist, counted from key 0.
    pub kv_len: usize,
}

/// Settings of one attention call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionConfig {
    /// Only keys at the query's position or before.
    pub causal: bool,
    /// Only the last `window` positions, the query's own included.
    pub window: Option<usize>,
    /// Factor on the scores, usually `1/sqrt(head_dim)`.
    pub scale: f64,
    /// Arithmetic.
    pub compute: Compute,
}

/// Keys or values `[B, S, H, hd]`: a tensor (differentiable), or a part of a cache (constant).
#[derive(Clone, Copy)]
pub enum KeyValue<'a> {
    /// A tensor `[B, S, H, hd]`.
    Tensor(&'a Tensor),
    /// Cached values, not differentiable; strides in elements, `heads` heads of the query's head_dim.
    Cache {
        /// The values.
        data: Data<'a>,
        /// From one batch row to the next.
        batch_stride: usize,
        /// From one position to the next.
        token_stride: usize,
        /// From one head to the next.
        head_stride: usize,
        /// Number of heads.
        heads: usize,
    },
}

impl<'a> KeyValue<'a> {
    pub(super) fn heads(&self) -> usize {
        match self {
            KeyValue::Tensor(t) => t.shape.get(2).copied().unwrap_or(0),
            KeyValue::Cache { heads, .. } => *heads,
        }
    }
    pub(super) fn view(&self) -> Result<Heads<'a>> {
        Ok(match *self {
            KeyValue::Tensor(t) => tensor_heads(t)?,
            KeyValue::Cache {
                data,
                batch_stride,
                token_stride,
                head_stride,
                ..
            } => Heads {
                data,
                batch_stride,
                token_stride,
                head_stride,
            },
        })
    }
}

pub(super) fn tensor_heads(t: &Tensor) -> Result<Heads<'_>> {
    let [_, s, h, d] = t.shape[..] else {
        return shape("attention", "keys and values are [B, S, H, hd]", &t.shape);
    };
    Ok(Heads {
        data: t.data("attention")?,
        batch_stride: s * h * d,
        token_stride: h * d,
        head_stride: d,
    })
}

/// Softmax attention without a `T x S` matrix in memory: `q [B,T,Hq,hd]`, keys and values `[B,S,Hk,hd]`, gives
/// `[B,T,Hq,hd]`. Query head `a` reads key/value head `a / (Hq/Hk)`. A query that sees no key yields zeros.
///
/// # Errors
/// If shapes do not fit, or a span points beyond the keys.
pub fn attention(
    q: &Tensor,
    keys: KeyValue<'_>,
    values: KeyValue<'_>,
    spans: &[RowSpan],
    config: AttentionConfig,
) -> Result<Tensor> {
    biased(q, keys, values, spans, config, None)
}

/// [`attention`] with linear biases (`ALiBi`, Press et al. 2022): the score of a query at position p of head a with key j
/// is raised by `slopes[a] · (j - p)`, one constant slope per query head.
///
/// # Errors
/// As [`attention`], or if there is not one slope per query head.
pub fn alibi_attention(
    q: &Tensor,
    keys: KeyValue<'_>,
    values: KeyValue<'_>,
    spans: &[RowSpan],
    config: AttentionConfig,
    slopes: &[f32],
) -> Result<Tensor> {
    if slopes.len() != q.shape.get(2).copied().unwrap_or(0) {
        return shape("alibi_attention", "one slope per query head", (&q.shape, slopes.len()));
    }
    biased(q, keys, values, spans, config, Some(slopes.to_vec()))
}

/// The dimensions of `q [B,T,Hq,hd]` and the number of key heads, if keys, values and spans fit.
fn fitting(
    op: &'static str,
    q: &Tensor,
    keys: KeyValue<'_>,
    values: KeyValue<'_>,
    spans: &[RowSpan],
) -> Result<([usize; 4], usize)> {
    let [batch, q_len, q_heads, head_dim] = q.shape[..] else {
        return shape(op, "queries are [B, T, H, hd]", &q.shape);
    };
    let kv_heads = keys.heads();
    if kv_heads == 0 || q_heads % kv_heads != 0 || values.heads() != kv_heads || spans.len() != batch {
        return shape(
            op,
            "query heads are a multiple of key heads; one span per row",
            (&q.shape, kv_heads, values.heads(), spans.len()),
        );
    }
    for t in tensors(keys, values) {
        let fits = t.shape.len() == 4 && t.shape[0] == batch && t.shape[3] == head_dim;
        if !fits || spans.iter().any(|s| s.kv_len > t.shape[1]) {
            return shape(
                op,
                "keys and values are [B, S, H, hd] and spans stay inside S",
                (&q.shape, &t.shape),
            );
        }
    }
    Ok(([batch, q_len, q_heads, head_dim], kv_heads))
}

/// Those of keys and values that are tensors.
fn tensors<'a>(keys: KeyValue<'a>, values: KeyValue<'a>) -> impl Iterator<Item = &'a Tensor> {
    let tensor = |side| if let KeyValue::Tensor(t) = side { Some(t) } else { None };
    [keys, values].into_iter().filter_map(tensor)
}

fn needs_grad(q: &Tensor, keys: KeyValue<'_>, values: KeyValue<'_>) -> bool {
    q.needs_grad() || tensors(keys, values).any(Tensor::needs_grad)
}

fn biased(
    q: &Tensor,
    keys: KeyValue<'_>,
    values: KeyValue<'_>,
    spans: &[RowSpan],
    config: AttentionConfig,
    slopes: Option<Vec<f32>>,
) -> Result<Tensor> {
    const OP: &str = "attention";
    let ([batch, q_len, q_heads, head_dim], kv_heads) = fitting(OP, q, keys, values, spans)?;
    let attention_shape = AttentionShape {
        batch,
        q_len,
        q_heads,
        kv_heads,
        head_dim,
        window: config.window,
        causal: config.causal,
        scale: config.scale,
        slopes,
    };
    let spans = Spans::new(spans);
    let needs = needs_grad(q, keys, values);
    let (out, lse): (Tensor, Option<Tensor>) = real!(OP, q, T => {
        let mut out = T::buffer(q.numel());
        let mut lse = needs.then(|| T::buffer(batch * q_heads * q_len));
        k::attention(
            &attention_shape, &spans.rows(), q.get::<T>(OP)?, keys.view()?, values.view()?, &mut out,
            lse.as_deref_mut(), config.compute,
        );
        Ok((Tensor::owned(out, &q.shape), lse.map(|l| Tensor::owned(l, &[batch, q_heads, q_len]))))
    })?;
    let (Some(lse), KeyValue::Tensor(kt), KeyValue::Tensor(vt)) = (lse, keys, values) else {
        if needs {
            return Err(TensorError::Dtype {
                op: OP,
                rule: "gradients need keys and values as tensors",
                got: "a cache".into(),
            });
        }
        return Ok(out);
    };
    let (kept_q, kept_k, kept_v, kept_out) = (q.detach(), kt.detach(), vt.detach(), out.detach());
    let compute = config.compute;
    Ok(out.recorded(&[q, kt, vt], move |dy, needs| {
        real!(OP, dy, T => {
            let mut dq = T::buffer(kept_q.numel());
            let mut dk = T::buffer(kept_k.numel());
            let mut dv = T::buffer(kept_v.numel());
            k::attention_backward(
                &attention_shape, &spans.rows(), kept_q.get::<T>(OP)?, tensor_heads(&kept_k)?, tensor_heads(&kept_v)?,
                kept_out.get::<T>(OP)?, lse.get::<T>(OP)?, dy.get::<T>(OP)?, &mut dq, &mut dk, &mut dv, compute,
            );
            Ok(vec![
                needs[0].then(|| Tensor::owned(dq, &kept_q.shape)),
                needs[1].then(|| Tensor::owned(dk, &kept_k.shape)),
                needs[2].then(|| Tensor::owned(dv, &kept_v.shape)),
            ])
        })
    }))
}

/// [`attention`] of some (token, head) pairs only: `active [B·T·Hq]` says which, the others give zeros and cost nothing.
/// Each pair's bits are those of [`attention`] up to the order of sums within a tile. Not differentiable.
///
/// # Errors
/// If shapes do not fit, a span points beyond the keys, or a gradient is wanted.
pub fn attention_of(
    q: &Tensor,
    keys: KeyValue<'_>,
    values: KeyValue<'_>,
    spans: &[RowSpan],
    config: AttentionConfig,
    active: &[bool],
) -> Result<Tensor> {
    const OP: &str = "attention_of";
    let ([batch, q_len, q_heads, head_dim], kv_heads) = fitting(OP, q, keys, values, spans)?;
    if active.len() != batch * q_len * q_heads {
        return shape(OP, "one flag per token and head", (&q.shape, active.len()));
    }
    if needs_grad(q, keys, values) {
        return Err(TensorError::Dtype {
            op: OP,
            rule: "skipping heads is for inference",
            got: "a tensor that needs a gradient".into(),
        });
    }
    let group = q_heads / kv_heads;
    real!(OP, q, T => {
        let from = q.get::<T>(OP)?;
        let mut out = T::buffer(q.numel());
        out.fill(T::default());
        for (b, span) in spans.iter().enumerate() {
            for kv_head in 0..kv_heads {
                // Queries of one key head, by position: what one kernel call wants, and keys are packed once for all.
                let pairs: Vec<usize> = (0..q_len)
                    .flat_map(|t| (kv_head * group..(kv_head + 1) * group).map(move |a| (b * q_len + t) * q_heads + a))
                    .filter(|&pair| active[pair])
                    .collect();
                if pairs.is_empty() {
                    continue;
                }
                let positions: Vec<usize> = pairs.iter().map(|p| span.q_start + p / q_heads % q_len).collect();
                let mut gathered = T::buffer(pairs.len() * head_dim);
                k::gather_rows(from, head_dim, &pairs, &mut gathered);
                let mut made = T::buffer(gathered.len());
                let (keys, values) = (keys.view()?.only(b, kv_head), values.view()?.only(b, kv_head));
                let attention_shape = AttentionShape {
                    batch: 1,
                    q_len: pairs.len(),
                    q_heads: 1,
                    kv_heads: 1,
                    head_dim,
                    window: config.window,
                    causal: config.causal,
                    scale: config.scale,
                    slopes: None,
                };
                let rows = AttentionRows {
                    q_start: &[span.q_start],
                    kv_begin: &[span.kv_begin],
                    kv_len: &[span.kv_len],
                    positions: Some(&positions),
                };
                k::attention(
                    &attention_shape, &rows, &gathered, keys, values, &mut made, None, config.compute,
                );
                for (row, &pair) in made.chunks_exact(head_dim).zip(&pairs) {
                    out[pair * head_dim..(pair + 1) * head_dim].copy_from_slice(row);
                }
            }
        }
        Ok(Tensor::owned(out, &q.shape))
    })
}

/// Spans as the three arrays the kernel reads.
struct Spans {
    q_start: Vec<usize>,
    kv_begin: Vec<usize>,
    kv_len: Vec<usize>,
}

impl Spans {
    fn new(spans: &[RowSpan]) -> Self {
        Self {
            q_start: spans.iter().map(|s| s.q_start).collect(),
            kv_begin: spans.iter().map(|s| s.kv_begin).collect(),
            kv_len: spans.iter().map(|s| s.kv_len).collect(),
        }
    }
    fn rows(&self) -> AttentionRows<'_> {
        AttentionRows {
            q_start: &self.q_start,
            kv_begin: &self.kv_begin,
            kv_len: &self.kv_len,
            positions: None,
        }
    }
}

/// Rotary positions on `x [B,T,H,hd]` in the split-half layout: pairs `(i, i + hd/2)` turn by the angle whose cosine and
/// sine are in `cos`, `sin [B·T, hd/2]` (constants).
///
/// # Errors
/// If the tables do not have one row per token.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    turn(x, cos, sin, false)
}

fn turn(x: &Tensor, cos: &Tensor, sin: &Tensor, inverse: bool) -> Result<Tensor> {
    const OP: &str = "rope";
    let [b, t, heads, head_dim] = x.shape[..] else {
        return shape(OP, "x is [B, T, H, hd]", &x.shape);
    };
    if head_dim % 2 != 0 || cos.numel() != b * t * head_dim / 2 || sin.numel() != cos.numel() {
        return shape(OP, "tables are [B·T, hd/2]", (&x.shape, &cos.shape, &sin.shape));
    }
    let y: Tensor = real!(OP, x, T => {
        let mut y = T::buffer(x.numel());
        y.copy_from_slice(x.get::<T>(OP)?);
        k::rope(&mut y, heads, head_dim, cos.get::<T>(OP)?, sin.get::<T>(OP)?, inverse);
        Ok(Tensor::owned(y, &x.shape))
    })?;
    let (cos, sin) = (cos.detach(), sin.detach());
    // A rotation's transpose is the rotation back.
    Ok(y.recorded(&[x], move |dy, _| Ok(vec![Some(turn(&dy, &cos, &sin, !inverse)?)])))
}
