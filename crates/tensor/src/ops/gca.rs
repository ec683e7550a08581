//! Grouped cross-attention (GCA): queries attend to each of a few retrieved chunks *separately*, and the k outputs are
//! mixed by the weights of the chunks. The weights are an input with a gradient: that is how retrieval learns.
//!
//! Paper: Hu et al., "Efficient Length-Generalizable Attention via Causal Retrieval for Long-Context Language Modeling",
//! ICML 2025, arXiv 2410.01651.
//!
//! N queries, h heads, d values per head, M chunks of C rows in memory, R runs (neighbouring queries that share their
//! chunks), k chunks per run. With `P_j = softmax(scale · Q K_jᵀ)` and `O_j = P_j V_j`: `O = Σ_j w_j O_j`. For the gradient
//! `dO`, per query and head `delta_j = dO · O_j`; then `dw_j = Σ delta_j`, `dV_j = w_j P_jᵀ dO`,
//! `dS_j = w_j P_j (dO V_jᵀ - delta_j)`, `dQ = scale · Σ_j dS_j K_j`, `dK_j = scale · dS_jᵀ Q`.
//!
//! Chunks are read where they lie: no copy of the k chunks of every run exists, neither here nor on the tape. Kept are the
//! inputs and one logarithm of a sum per (query, head, neighbour); `O_j` is computed again in the backward walk.

use super::{
    KeyValue, add, attention::tensor_heads, gather_rows, linear, mix_rows, real, reshape, scale as scaled, scale_rows,
    scatter_add_rows, softmax,
};
use crate::{
    error::{Result, TensorError, shape},
    storage::Real,
    tensor::Tensor,
};
use ounce_kernels::{self as k, AttentionRows, AttentionShape, Compute, Float as _, Heads};
use std::ops::Range;

const OP: &str = "gca";

/// Which chunks of a memory each run of queries attends to.
#[derive(Debug, Clone)]
pub struct Neighbours {
    /// The queries of each run `[R]`; runs do not overlap. Queries in no run get zeros.
    pub runs: Vec<Range<usize>>,
    /// Chunks `[R·k]` in memory; `None` is an empty slot, whatever its weight.
    pub chunks: Vec<Option<usize>>,
}

impl Neighbours {
    /// `(run, slot, chunk)` of every slot that is not empty and whose run has queries.
    fn pairs(&self) -> impl Iterator<Item = (Range<usize>, usize, usize)> + '_ {
        let per_run = self.chunks.len().checked_div(self.runs.len()).unwrap_or(0);
        self.chunks.iter().enumerate().filter_map(move |(slot, chunk)| {
            let run = self.runs[slot / per_run].clone();
            chunk.filter(|_| !run.is_empty()).map(|chunk| (run, slot, chunk))
        })
    }

    fn check(&self, queries: usize, weights: &Tensor) -> Result<()> {
        let mut sorted: Vec<_> = self.runs.iter().filter(|r| !r.is_empty()).collect();
        sorted.sort_by_key(|r| r.start);
        let apart = sorted.windows(2).all(|w| w[0].end <= w[1].start);
        if !apart || self.runs.iter().any(|r| r.end > queries) {
            return shape(OP, "runs of queries that do not overlap", (queries, &self.runs));
        }
        if weights.rows() != self.runs.len() || weights.numel() != self.chunks.len() {
            return shape(
                OP,
                "weights [R, k] and R·k chunks",
                (&weights.shape, self.runs.len(), self.chunks.len()),
            );
        }
        Ok(())
    }
}

/// Sizes that every call of one operation shares.
#[derive(Clone, Copy)]
struct Sizes {
    /// h.
    heads: usize,
    /// d.
    head_dim: usize,
    /// C.
    rows: usize,
    scale: f64,
    compute: Compute,
}

impl Sizes {
    fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// One run of queries against one chunk.
    fn shape(&self, queries: usize) -> AttentionShape {
        AttentionShape {
            batch: 1,
            q_len: queries,
            q_heads: self.heads,
            kv_heads: self.heads,
            head_dim: self.head_dim,
            window: None,
            causal: false,
            scale: self.scale,
            slopes: None,
        }
    }
}

/// Chunk `m` of a memory, as the only batch row.
fn chunk(memory: Heads<'_>, m: usize) -> Heads<'_> {
    let at = m * memory.batch_stride;
    Heads {
        data: memory.data.part(at..usize::MAX),
        batch_stride: 0,
        ..memory
    }
}

/// Every query sees all rows of the chunk; `lens` is their number.
fn every(lens: &[usize; 1]) -> AttentionRows<'_> {
    AttentionRows {
        q_start: &[0],
        kv_begin: &[0],
        kv_len: lens,
        positions: None,
    }
}

/// Grouped cross-attention: queries `q [N,h,d]`, a memory of keys and values `[M,C,h,d]` (tensors, or parts of a cache whose
/// chunks have `rows` = C rows), and the weights `[R,k]` of the chunks that `neighbours` names give `[N,h,d]`.
///
/// # Errors
/// If shapes do not fit, a chunk is beyond the memory, or a gradient is wanted and the memory is a cache.
pub fn gca(
    q: &Tensor,
    keys: KeyValue<'_>,
    values: KeyValue<'_>,
    rows: usize,
    neighbours: &Neighbours,
    weights: &Tensor,
    (scale, compute): (f64, Compute),
) -> Result<Tensor> {
    let [n, heads, head_dim] = q.shape[..] else {
        return shape(OP, "queries are [N, h, d]", &q.shape);
    };
    let s = Sizes {
        heads,
        head_dim,
        rows,
        scale,
        compute,
    };
    neighbours.check(n, weights)?;
    for side in [keys, values] {
        let fits = side.heads() == heads
            && match side {
                KeyValue::Tensor(t) => t.shape.get(1..) == Some(&[rows, heads, head_dim][..]),
                KeyValue::Cache { .. } => true,
            };
        let (view, last) = (side.view()?, neighbours.chunks.iter().flatten().max());
        let end = last.map_or(0, |&m| {
            m * view.batch_stride
                + rows.saturating_sub(1) * view.token_stride
                + heads.saturating_sub(1) * view.head_stride
                + head_dim
        });
        if !fits || end > view.data.len() || rows == 0 {
            return shape(
                OP,
                "keys and values are [M, C, h, d], and every chunk is among them",
                (&q.shape, rows, last),
            );
        }
    }
    let mut inputs = vec![q, weights];
    for side in [keys, values] {
        if let KeyValue::Tensor(t) = side {
            inputs.push(t);
        }
    }
    let needs = inputs.iter().any(|t| t.needs_grad());
    let (out, sums): (Tensor, Option<Tensor>) = real!(OP, q, T => {
        let (queries, w) = (q.get::<T>(OP)?, weights.get::<T>(OP)?);
        let mut out = T::buffer(q.numel());
        out.fill(T::default());
        let lens = [rows];
        let visible = every(&lens);
        // Log-sums of a run's slots lie one after the other, in the order of the pairs.
        let mut sums: Vec<T> = Vec::new();
        for (run, slot, m) in neighbours.pairs() {
            let part = run.start * s.width()..run.end * s.width();
            let mut made = T::buffer(part.len());
            let mut lse = T::buffer(heads * run.len());
            k::attention(
                &s.shape(run.len()), &visible, &queries[part.clone()], chunk(keys.view()?, m), chunk(values.view()?, m),
                &mut made, needs.then_some(&mut lse), compute,
            );
            k::axpy(&mut out[part], w[slot].to_f64(), &made);
            if needs {
                sums.extend_from_slice(&lse);
            }
        }
        let len = sums.len();
        Ok((Tensor::owned(out, &q.shape), needs.then(|| Tensor::owned(sums, &[len]))))
    })?;
    let Some(sums) = sums else { return Ok(out) };
    let (KeyValue::Tensor(kt), KeyValue::Tensor(vt)) = (keys, values) else {
        return Err(TensorError::Dtype {
            op: OP,
            rule: "gradients need the memory as tensors",
            got: "a cache".into(),
        });
    };
    let kept = [q, kt, vt, weights].map(Tensor::detach);
    let neighbours = neighbours.clone();
    Ok(out.recorded(&[q, kt, vt, weights], move |dy, needs| {
        backward(&s, &neighbours, &kept, &sums, &dy, needs)
    }))
}

fn backward(
    s: &Sizes,
    neighbours: &Neighbours,
    [q, keys, values, weights]: &[Tensor; 4],
    sums: &Tensor,
    dy: &Tensor,
    needs: &[bool],
) -> Result<Vec<Option<Tensor>>> {
    let chunk_len = s.rows * s.width();
    real!(OP, dy, T => {
        let (queries, w, dout, sums) = (q.get::<T>(OP)?, weights.get::<T>(OP)?, dy.get::<T>(OP)?, sums.get::<T>(OP)?);
        let lens = [s.rows];
        let visible = every(&lens);
        let zeros = |n: usize| {
            let mut v = T::buffer(n);
            v.fill(T::default());
            v
        };
        let (mut dq, mut dw) = (zeros(q.numel()), zeros(weights.numel()));
        let (mut dk, mut dv) = (zeros(keys.numel()), zeros(values.numel()));
        let mut at = 0;
        for (run, slot, m) in neighbours.pairs() {
            let part = run.start * s.width()..run.end * s.width();
            let (shape, n) = (s.shape(run.len()), part.len());
            let (kc, vc) = (chunk(tensor_heads(keys)?, m), chunk(tensor_heads(values)?, m));
            let lse = &sums[at..at + s.heads * run.len()];
            at += lse.len();
            let mut made = T::buffer(n);
            k::attention(&shape, &visible, &queries[part.clone()], kc, vc, &mut made, None, s.compute);
            // Its share of dO; the kernel's delta then carries the weight already.
            let mut share = zeros(n);
            k::axpy(&mut share, w[slot].to_f64(), &dout[part.clone()]);
            let mut dot = [T::default()];
            k::row_dots(&dout[part.clone()], &made, n, &mut dot);
            dw[slot] = dot[0];
            if needs[..3].iter().any(|&need| need) {
                let (mut a, mut b, mut c) = (T::buffer(n), T::buffer(chunk_len), T::buffer(chunk_len));
                k::attention_backward(
                    &shape, &visible, &queries[part.clone()], kc, vc, &made, lse, &share, &mut a, &mut b, &mut c,
                    s.compute,
                );
                let memory = m * chunk_len..(m + 1) * chunk_len;
                k::add_assign(&mut dq[part], &a);
                k::add_assign(&mut dk[memory.clone()], &b);
                k::add_assign(&mut dv[memory], &c);
            }
        }
        let give = |need: bool, v: Vec<T>, like: &Tensor| need.then(|| Tensor::owned(v, &like.shape));
        Ok(vec![
            give(needs[0], dq, q), give(needs[1], dk, keys), give(needs[2], dv, values), give(needs[3], dw, weights),
        ])
    })
}

/// [`gca`] written out in primitive operations, every product and every copy of a chunk on the tape: what the fused form
/// is tested against. The memory is a pair of tensors `[M,C,h,d]`.
///
/// # Errors
/// If shapes do not fit.
pub fn gca_reference(
    q: &Tensor,
    (keys, values): (&Tensor, &Tensor),
    neighbours: &Neighbours,
    weights: &Tensor,
    scale: f64,
) -> Result<Tensor> {
    let ([n, heads, d], [chunks, rows, ..]) = (&q.shape[..], &keys.shape[..]) else {
        return shape(OP, "queries are [N, h, d], keys [M, C, h, d]", (&q.shape, &keys.shape));
    };
    let (n, heads, d, rows) = (*n, *heads, *d, *rows);
    neighbours.check(n, weights)?;
    let memory = [chunks * rows * heads, d];
    let (q, keys, values) = (
        reshape(q, &[n * heads, d])?,
        reshape(keys, &memory)?,
        reshape(values, &memory)?,
    );
    let weights = reshape(weights, &[weights.numel(), 1])?;
    let mut out = scaled(&q, 0.0)?;
    for (run, slot, m) in neighbours.pairs() {
        for head in 0..heads {
            let at: Vec<usize> = run.clone().map(|t| t * heads + head).collect();
            let of: Vec<usize> = (0..rows).map(|r| (m * rows + r) * heads + head).collect();
            let scores = linear(&gather_rows(&q, &at)?, &gather_rows(&keys, &of)?, Compute::F32)?;
            let p = softmax(&scaled(&scores, scale)?)?;
            let every: Vec<usize> = (0..at.len()).flat_map(|_| 0..rows).collect();
            let made = mix_rows(&gather_rows(&values, &of)?, &every, &p)?;
            let share = scale_rows(&made, &gather_rows(&weights, &vec![slot; at.len()])?)?;
            out = add(&out, &scatter_add_rows(&share, &at, n * heads)?)?;
        }
    }
    reshape(&out, &[n, heads, d])
}
