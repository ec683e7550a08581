//! Attention over single tokens and groups, forward and backward, in plain loops that also run in f64.

use super::{
    DgaCache, DgaConfig, Layout, Selection, fast,
    layout::{Pair, Rows, add_scaled, aggregate, bias, decide, dot, softmax},
};
use crate::{cache::CacheType, error::Result};
use ounce_kernels::{Compute, Float, parallel_chunks_mut, parallel_for};
use ounce_tensor::{DType, Element, Tensor, TensorError, ops::RowSpan};
use std::sync::{Arc, Mutex};

/// Shape of one call: queries `[B,T,H,hd]`, keys and values `[B,T,Hk,hd]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// B.
    pub batch: usize,
    /// T.
    pub len: usize,
    /// H.
    pub heads: usize,
    /// Hk.
    pub kv_heads: usize,
    /// hd.
    pub head_dim: usize,
    /// Factor on scores.
    pub scale: f64,
}

impl Shape {
    /// Query heads per key head.
    pub(super) fn rep(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Tokens of row `b` that are no padding, as indices of this call.
    pub(super) fn real(&self, spans: &[RowSpan], b: usize) -> std::ops::Range<usize> {
        let span = spans[b];
        let from = span.kv_begin.saturating_sub(span.q_start).min(self.len);
        from..span.kv_len.saturating_sub(span.q_start).clamp(from, self.len)
    }

    pub(super) fn check(&self, q: &Tensor, k: &Tensor, v: &Tensor, spans: &[RowSpan]) -> Result<()> {
        let kv = [self.batch, self.len, self.kv_heads, self.head_dim];
        let fits = self.kv_heads > 0
            && self.heads.is_multiple_of(self.kv_heads)
            && q.shape() == [self.batch, self.len, self.heads, self.head_dim]
            && k.shape() == kv
            && v.shape() == kv
            && spans.len() == self.batch;
        if fits {
            return Ok(());
        }
        Err(TensorError::Shape {
            op: "grouped attention",
            rule: "q is [B,T,H,hd], k and v are [B,T,Hk,hd], one span per row",
            got: format!("{:?} {:?} {:?} for {self:?}", q.shape(), k.shape(), v.shape()),
        }
        .into())
    }
}

/// One row and one key head, ready to be attended to. Tokens are those that are no padding.
pub struct Head<T> {
    /// What became of each token.
    pub layout: Layout,
    /// Importance of each token, where it was computed for the whole row.
    pub score: Vec<f64>,
    /// Queries `[rep, len, hd]`.
    pub(super) q: Vec<T>,
    /// Keys of tokens, then of groups, `[len + J, hd]`.
    pub(super) keys: Vec<T>,
    /// Values of tokens, then of groups, `[len + J, hd]`.
    pub(super) values: Vec<T>,
    /// Added to scores `[len + J]`.
    pub(super) bias: Vec<T>,
    pub(super) pairs: Vec<Pair<T>>,
    hd: usize,
    rep: usize,
    scale: T,
}

impl<T: Float> Head<T> {
    /// Aggregated keys `[J, hd]`.
    pub fn group_keys(&self) -> &[T] {
        &self.keys[self.layout.len * self.hd..]
    }

    /// Aggregated values `[J, hd]`.
    pub fn group_values(&self) -> &[T] {
        &self.values[self.layout.len * self.hd..]
    }

    /// Entropy of each group's weights `[J]`.
    pub fn group_entropy(&self) -> Vec<T> {
        self.pairs.iter().map(|p| p.entropy).collect()
    }

    pub(super) fn query(&self, a: usize, t: usize) -> &[T] {
        &self.q[(a * self.layout.len + t) * self.hd..][..self.hd]
    }

    /// Weights of what `seen` names, for one query.
    fn weights(&self, query: &[T], seen: &[usize], out: &mut Vec<T>) {
        out.clear();
        let score = |&s: &usize| dot(query, &self.keys[s * self.hd..(s + 1) * self.hd]) * self.scale + self.bias[s];
        out.extend(seen.iter().map(score));
        softmax(out);
    }

    fn new(q: Vec<T>, mut keys: Vec<T>, mut values: Vec<T>, of: &Shape, layout: Given<'_>, dga: &DgaConfig) -> Self {
        let (hd, rep, scale) = (of.head_dim, of.rep(), T::from_f64(of.scale));
        let rows = Rows {
            q: &q,
            keys: &keys,
            rep,
            len: keys.len() / hd,
            hd,
            scale,
        };
        let (layout, score) = match layout {
            Some(layout) => (layout.clone(), Vec::new()),
            None => decide(&rows, dga),
        };
        let pairs: Vec<Pair<T>> = layout
            .groups
            .iter()
            .map(|group| {
                let queries: Vec<&[T]> = (0..rep).map(|a| rows.query(a, group.query)).collect();
                let members = || group.members.iter().map(|t| t * hd..(t + 1) * hd);
                let k: Vec<&[T]> = members().map(|at| &keys[at]).collect();
                let v: Vec<&[T]> = members().map(|at| &values[at]).collect();
                let scores = queries.iter().map(|q| k.iter().map(|k| dot(q, k) * scale).collect());
                aggregate(scores.collect(), &k, &v)
            })
            .collect();
        let mut biases = vec![T::ZERO; layout.len];
        for pair in &pairs {
            keys.extend_from_slice(&pair.key);
            values.extend_from_slice(&pair.value);
            biases.push(bias(dga.group_bias, pair.entropy, dga.group_size));
        }
        Self {
            layout,
            score,
            q,
            keys,
            values,
            bias: biases,
            pairs,
            hd,
            rep,
            scale,
        }
    }

    /// Gradients of queries `[rep, len, hd]`, keys and values `[len, hd]` from that of the outputs `[rep, len, hd]`.
    fn backward(&self, dout: &[T], dga: &DgaConfig) -> [Vec<T>; 3] {
        let (len, hd) = (self.layout.len, self.hd);
        let mut dq = vec![T::ZERO; self.q.len()];
        let (mut dk, mut dv) = (vec![T::ZERO; self.keys.len()], vec![T::ZERO; self.values.len()]);
        let mut dbias = vec![T::ZERO; self.bias.len()];
        let (mut seen, mut p) = (Vec::new(), Vec::new());
        for i in 0..len {
            self.layout.visible(i, &mut seen);
            for a in 0..self.rep {
                let at = (a * len + i) * hd;
                let dout = &dout[at..at + hd];
                self.weights(self.query(a, i), &seen, &mut p);
                let dp: Vec<T> = seen
                    .iter()
                    .map(|s| dot(dout, &self.values[s * hd..(s + 1) * hd]))
                    .collect();
                let mean = p.iter().zip(&dp).fold(T::ZERO, |m, (&p, &d)| m + p * d);
                for ((&s, &p), &dp) in seen.iter().zip(&p).zip(&dp) {
                    let (range, dz) = (s * hd..(s + 1) * hd, p * (dp - mean));
                    add_scaled(&mut dv[range.clone()], p, dout);
                    dbias[s] += dz;
                    let dz = dz * self.scale;
                    add_scaled(&mut dq[at..at + hd], dz, &self.keys[range.clone()]);
                    add_scaled(&mut dk[range], dz, self.query(a, i));
                }
            }
        }
        let (mut dk_tokens, mut dv_tokens) = (dk[..len * hd].to_vec(), dv[..len * hd].to_vec());
        for (j, (group, pair)) in self.layout.groups.iter().zip(&self.pairs).enumerate() {
            let at = (len + j) * hd;
            let (dkey, dvalue) = (&dk[at..at + hd], &dv[at..at + hd]);
            let mut dw = Vec::with_capacity(group.members.len());
            for (&t, &w) in group.members.iter().zip(&pair.weights) {
                let row = t * hd..(t + 1) * hd;
                let mut d = dot(dkey, &self.keys[row.clone()]) + dot(dvalue, &self.values[row.clone()]);
                if dga.group_bias == super::GroupBias::Entropy && w > T::ZERO {
                    d -= dbias[len + j] * (w.ln() + T::ONE);
                }
                dw.push(d);
                add_scaled(&mut dk_tokens[row.clone()], w, dkey);
                add_scaled(&mut dv_tokens[row], w, dvalue);
            }
            // Each head's softmax has an equal share in the mean.
            let share = self.scale / T::from_f64(self.rep as f64);
            for (a, w) in pair.per_head.iter().enumerate() {
                let mean = w.iter().zip(&dw).fold(T::ZERO, |m, (&w, &d)| m + w * d);
                let query = (a * len + group.query) * hd;
                for ((&t, &w), &d) in group.members.iter().zip(w).zip(&dw) {
                    let dz = w * (d - mean) * share;
                    add_scaled(&mut dk_tokens[t * hd..(t + 1) * hd], dz, self.query(a, group.query));
                    add_scaled(&mut dq[query..query + hd], dz, &self.keys[t * hd..(t + 1) * hd]);
                }
            }
        }
        [dq, dk_tokens, dv_tokens]
    }
}

/// A layout decided elsewhere (tests freeze it).
type Given<'a> = Option<&'a Layout>;

/// Grouped attention of `q [B,T,H,hd]` over `k`, `v [B,T,Hk,hd]` of the same tokens: `[B,T,H,hd]`, zeros for padding.
///
/// # Errors
/// If shapes do not fit, or dtypes are neither f32 nor f64.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    shape: &Shape,
    spans: &[RowSpan],
    dga: &DgaConfig,
    compute: Compute,
) -> Result<Tensor> {
    if dga.selection == Selection::CausalBlock && q.dtype() == DType::F32 {
        // The outputs are what a cache makes of the text; a tape needs the groups, too.
        let mut cache = DgaCache::new(dga.clone(), CacheType::F32, shape.batch, shape.kv_heads, shape.head_dim);
        let out = cache.attend(q, k, v, shape, spans, compute)?;
        if ![q, k, v].iter().any(|t| t.needs_grad()) {
            return Ok(out);
        }
        let heads = heads_with::<f32>(q, k, v, shape, spans, dga, &[])?;
        return Ok(recorded(q, k, v, out, heads, shape, spans, dga));
    }
    attention_with(q, k, v, shape, spans, dga, &[])
}

/// [`attention`] with layouts given per row and key head, or decided here if there are none.
pub(super) fn attention_with(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    shape: &Shape,
    spans: &[RowSpan],
    dga: &DgaConfig,
    layouts: &[Layout],
) -> Result<Tensor> {
    if q.dtype() == DType::F64 {
        let heads = heads_with::<f64>(q, k, v, shape, spans, dga, layouts)?;
        let out = Tensor::new(outputs(&heads, shape, spans), q.shape())?;
        return Ok(recorded(q, k, v, out, heads, shape, spans, dga));
    }
    let heads = heads_with::<f32>(q, k, v, shape, spans, dga, layouts)?;
    let out = if dga.selection == Selection::Global {
        fast::outputs(&heads, shape, spans)
    } else {
        outputs(&heads, shape, spans)
    };
    let out = Tensor::new(out, q.shape())?;
    Ok(recorded(q, k, v, out, heads, shape, spans, dga))
}

/// All rows and key heads `[B·Hk]`: their layouts and aggregated pairs.
///
/// # Errors
/// If shapes do not fit, or dtypes differ from `T`.
pub fn heads<T: Float + Element>(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    shape: &Shape,
    spans: &[RowSpan],
    dga: &DgaConfig,
) -> Result<Vec<Head<T>>> {
    heads_with(q, k, v, shape, spans, dga, &[])
}

pub(super) fn heads_with<T: Float + Element>(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    shape: &Shape,
    spans: &[RowSpan],
    dga: &DgaConfig,
    layouts: &[Layout],
) -> Result<Vec<Head<T>>> {
    shape.check(q, k, v, spans)?;
    let (q, k, v) = (values::<T>(q)?, values::<T>(k)?, values::<T>(v)?);
    let (hd, rep, hk) = (shape.head_dim, shape.rep(), shape.kv_heads);
    let made = collect(shape.batch * hk, |n| {
        let (b, g) = (n / hk, n % hk);
        let real = shape.real(spans, b);
        let take = |from: &[T], heads: usize, head: usize| -> Vec<T> {
            real.clone()
                .flat_map(|t| {
                    let at = ((b * shape.len + t) * heads + head) * hd;
                    from[at..at + hd].iter().copied()
                })
                .collect()
        };
        let queries: Vec<T> = (0..rep).flat_map(|a| take(q, shape.heads, g * rep + a)).collect();
        Head::new(queries, take(k, hk, g), take(v, hk, g), shape, layouts.get(n), dga)
    });
    Ok(made)
}

/// Outputs `[B,T,H,hd]` of prepared heads, key by key: the reference, and the form for f64.
pub(super) fn outputs<T: Float>(heads: &[Head<T>], shape: &Shape, spans: &[RowSpan]) -> Vec<T> {
    /// Tokens per task.
    const TOKENS: usize = 16;
    let (rep, hd, hk) = (shape.rep(), shape.head_dim, shape.kv_heads);
    let width = rep * hd;
    // [B·Hk, T, rep, hd] first: a task then owns neighbouring tokens of a head.
    let mut by_head = vec![T::ZERO; shape.batch * shape.len * shape.heads * hd];
    parallel_chunks_mut(&mut by_head, TOKENS * width, |task, out| {
        let (mut seen, mut p) = (Vec::new(), Vec::new());
        for (x, out) in out.chunks_exact_mut(width).enumerate() {
            let row = task * TOKENS + x;
            let (n, t) = (row / shape.len, row % shape.len);
            let real = shape.real(spans, n / hk);
            if !real.contains(&t) {
                continue;
            }
            let (head, i) = (&heads[n], t - real.start);
            head.layout.visible(i, &mut seen);
            for (a, out) in out.chunks_exact_mut(hd).enumerate() {
                head.weights(head.query(a, i), &seen, &mut p);
                for (s, &p) in seen.iter().zip(&p) {
                    add_scaled(out, p, &head.values[s * hd..(s + 1) * hd]);
                }
            }
        }
    });
    let mut out = vec![T::ZERO; by_head.len()];
    for (row, values) in by_head.chunks_exact(width).enumerate() {
        let (n, t) = (row / shape.len, row % shape.len);
        let at = ((n / hk * shape.len + t) * shape.heads + n % hk * rep) * hd;
        out[at..at + width].copy_from_slice(values);
    }
    out
}

fn recorded<T: Float + Element>(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    out: Tensor,
    heads: Vec<Head<T>>,
    shape: &Shape,
    spans: &[RowSpan],
    dga: &DgaConfig,
) -> Tensor {
    let (shape, spans, dga): (Shape, Arc<[RowSpan]>, DgaConfig) = (*shape, spans.into(), dga.clone());
    out.recorded(&[q, k, v], move |dy, _| {
        let dout = dy.values::<T>().ok_or_else(|| dtype(&dy))?;
        let (hd, rep, hk) = (shape.head_dim, shape.rep(), shape.kv_heads);
        let rows = |n: usize| shape.real(&spans, n / hk);
        let at = |n: usize, t: usize, a: usize| ((n / hk * shape.len + t) * shape.heads + n % hk * rep + a) * hd;
        let parts = collect(heads.len(), |n| {
            let local: Vec<T> = (0..rep)
                .flat_map(|a| rows(n).flat_map(move |t| dout[at(n, t, a)..at(n, t, a) + hd].iter().copied()))
                .collect();
            heads[n].backward(&local, &dga)
        });
        let kv = shape.batch * shape.len * hk * hd;
        let mut dq = vec![T::ZERO; shape.batch * shape.len * shape.heads * hd];
        let (mut dk, mut dv) = (vec![T::ZERO; kv], vec![T::ZERO; kv]);
        for (n, [part_q, part_k, part_v]) in parts.iter().enumerate() {
            let len = rows(n).len();
            for (i, t) in rows(n).enumerate() {
                for a in 0..rep {
                    dq[at(n, t, a)..][..hd].copy_from_slice(&part_q[(a * len + i) * hd..][..hd]);
                }
                let to = ((n / hk * shape.len + t) * hk + n % hk) * hd;
                dk[to..to + hd].copy_from_slice(&part_k[i * hd..(i + 1) * hd]);
                dv[to..to + hd].copy_from_slice(&part_v[i * hd..(i + 1) * hd]);
            }
        }
        let kv_dims = [shape.batch, shape.len, hk, hd];
        Ok(vec![
            Some(Tensor::new(dq, &[shape.batch, shape.len, shape.heads, hd])?),
            Some(Tensor::new(dk, &kv_dims)?),
            Some(Tensor::new(dv, &kv_dims)?),
        ])
    })
}

fn values<T: Element>(t: &Tensor) -> Result<&[T]> {
    Ok(t.values::<T>().ok_or_else(|| dtype(t))?)
}

fn dtype(t: &Tensor) -> TensorError {
    TensorError::Dtype {
        op: "grouped attention",
        rule: "f32 throughout (f64 in gradient checks)",
        got: format!("{:?}", t.dtype()),
    }
}

/// `f(0..n)` in parallel, in order.
pub(super) fn collect<R: Send>(n: usize, f: impl Fn(usize) -> R + Sync) -> Vec<R> {
    let slots: Vec<Mutex<Option<R>>> = (0..n).map(|_| Mutex::new(None)).collect();
    parallel_for(n, |i| {
        let made = f(i);
        if let Ok(mut slot) = slots[i].lock() {
            *slot = Some(made);
        }
    });
    slots
        .into_iter()
        .map(|slot| {
            slot.into_inner()
                .ok()
                .flatten()
                .expect("invariant: every task filled its slot")
        })
        .collect()
}
