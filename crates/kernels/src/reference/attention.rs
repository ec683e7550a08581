//! Attention as it is written in textbooks: all scores of one query, their softmax, the weighted sum of the values.

use crate::{
    Float,
    attention::{AttentionRows, AttentionShape, Heads},
    reference::elementwise::row_max,
};

/// See [`crate::attention()`](fn@crate::attention). Scores of one query at a time; no tiles.
pub(crate) fn attention<T: Float>(
    s: &AttentionShape,
    rows: &AttentionRows<'_>,
    q: &[T],
    k: Heads<'_>,
    v: Heads<'_>,
    out: &mut [T],
    mut lse: Option<&mut [T]>,
) {
    let scale = T::from_f64(s.scale);
    let mut scores = Vec::new();
    for_each_query(s, |b, h, i, at| {
        let (lo, hi) = s.visible(rows, b, i);
        let o = &mut out[at..at + s.head_dim];
        o.fill(T::ZERO);
        let row = (b * s.q_heads + h) * s.q_len + i;
        if lo >= hi {
            if let Some(lse) = lse.as_deref_mut() {
                lse[row] = T::from_f64(f64::NEG_INFINITY);
            }
            return;
        }
        let (kh, q) = (h / s.group(), &q[at..at + s.head_dim]);
        scores.clear();
        scores.extend((lo..hi).map(|j| {
            let dot = (0..s.head_dim).fold(T::ZERO, |a, c| a + q[c] * k.get(b, j, kh, c));
            scale * dot + bias::<T>(s, rows, (b, i, h), j)
        }));
        let total = log_sum_exp(&scores);
        for (j, &score) in (lo..hi).zip(&scores) {
            let p = (score - total).exp();
            for (c, o) in o.iter_mut().enumerate() {
                *o += p * v.get(b, j, kh, c);
            }
        }
        if let Some(lse) = lse.as_deref_mut() {
            lse[row] = total;
        }
    });
}

/// See [`crate::attention_backward`]. With p the softmax weights and dp = dout · v, the scores' gradient is
/// p * (dp - sum(p * dp)), and that sum equals dout · out.
pub(crate) fn attention_backward<T: Float>(
    s: &AttentionShape,
    rows: &AttentionRows<'_>,
    q: &[T],
    k: Heads<'_>,
    v: Heads<'_>,
    out: &[T],
    lse: &[T],
    dout: &[T],
    dq: &mut [T],
    dk: &mut [T],
    dv: &mut [T],
) {
    let (scale, hd) = (T::from_f64(s.scale), s.head_dim);
    let kv_cap = s.kv_capacity(dk.len());
    dq.fill(T::ZERO);
    dk.fill(T::ZERO);
    dv.fill(T::ZERO);
    for_each_query(s, |b, h, i, at| {
        let (lo, hi) = s.visible(rows, b, i);
        let kh = h / s.group();
        let delta = (at..at + hd).fold(T::ZERO, |a, x| a + dout[x] * out[x]);
        let total = lse[(b * s.q_heads + h) * s.q_len + i];
        for j in lo..hi {
            let (mut score, mut dp) = (T::ZERO, T::ZERO);
            for c in 0..hd {
                score += q[at + c] * k.get(b, j, kh, c);
                dp += dout[at + c] * v.get(b, j, kh, c);
            }
            let p = (scale * score + bias::<T>(s, rows, (b, i, h), j) - total).exp();
            let ds = scale * p * (dp - delta);
            let kv = ((b * kv_cap + j) * s.kv_heads + kh) * hd;
            for c in 0..hd {
                dq[at + c] += ds * k.get(b, j, kh, c);
                dk[kv + c] += ds * q[at + c];
                dv[kv + c] += p * dout[at + c];
            }
        }
    });
}

/// The linear bias on the score of query (batch row, query, head) with key `j`.
fn bias<T: Float>(s: &AttentionShape, rows: &AttentionRows<'_>, (b, i, h): (usize, usize, usize), j: usize) -> T {
    s.bias(rows, b, i, h).map_or(T::ZERO, |(position, slope)| {
        T::from_f64(f64::from(slope) * (j as f64 - position as f64))
    })
}

/// Calls `f(batch row, query head, query, offset of its head_dim values in q)` for every query.
fn for_each_query(s: &AttentionShape, mut f: impl FnMut(usize, usize, usize, usize)) {
    for b in 0..s.batch {
        for i in 0..s.q_len {
            for h in 0..s.q_heads {
                f(b, h, i, ((b * s.q_len + i) * s.q_heads + h) * s.head_dim);
            }
        }
    }
}

fn log_sum_exp<T: Float>(x: &[T]) -> T {
    let max = row_max(x);
    max + x.iter().fold(T::ZERO, |a, &x| a + (x - max).exp()).ln()
}
