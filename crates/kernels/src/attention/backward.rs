//! The backward pass: probabilities recomputed tile by tile from the forward pass's lse.
//!
//! A task owns one key head of one batch row with all queries that use it, so the gradients of its queries, keys and
//! values are written by nobody else: no atomics, and sums in a fixed order. Tiles of keys are the outer loop, tiles of
//! queries the inner one; with p = softmax weights and dp = dout · v, the scores' gradient is ds = p (dp - dout · out).

use std::ops::Range;

use super::{
    AttentionRows, AttentionShape, Heads, TILE,
    block::{Block, Left, ROWS},
    tiles::{QueryRows, Tile, pack_keys, pack_queries, padded, take, transpose, with_scratch},
};
use crate::{
    parallel_for,
    pool::SharedMut,
    simd::{Vf32, kernel},
};

/// Query rows per tile: whole register tiles, and deep enough that dk and dv stay in registers for a while.
const QUERIES: usize = 8 * ROWS;

/// Everything that the tasks read, and the three results.
struct Problem<'a> {
    q: &'a [f32],
    k: Heads<'a>,
    v: Heads<'a>,
    out: &'a [f32],
    lse: &'a [f32],
    dout: &'a [f32],
    dq: SharedMut<'a, f32>,
    dk: SharedMut<'a, f32>,
    dv: SharedMut<'a, f32>,
    /// Tokens per batch row of dk and dv.
    capacity: usize,
    /// The shape's scale.
    scale: f32,
}

/// See [`super::attention_backward`].
pub(super) fn attention_backward(
    s: &AttentionShape,
    rows: &AttentionRows<'_>,
    q: &[f32],
    k: Heads<'_>,
    v: Heads<'_>,
    out: &[f32],
    lse: &[f32],
    dout: &[f32],
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
) {
    if s.batch == 0 || s.head_dim == 0 {
        return;
    }
    let capacity = s.kv_capacity(dk.len());
    let (dq, dk, dv) = (SharedMut::new(dq), SharedMut::new(dk), SharedMut::new(dv));
    let problem = Problem {
        q,
        k,
        v,
        out,
        lse,
        dout,
        dq,
        dk,
        dv,
        capacity,
        scale: s.scale as f32,
    };
    let (count, width) = (QueryRows::count(s), padded(s.head_dim));
    // delta; keys, transposed keys, transposed values, dk, dv; queries, dout, dq; weights and their gradients.
    let scratch = count + 5 * TILE * width + 3 * QUERIES * width + 2 * QUERIES * TILE;
    parallel_for(s.batch * s.kv_heads, |t| {
        let of = QueryRows {
            s,
            rows,
            b: t / s.kv_heads,
            kv_head: t % s.kv_heads,
        };
        with_scratch(scratch, |scratch| task(&problem, of, scratch));
    });
}

kernel! {
    /// All gradients of one key head of one batch row.
    fn task(p: &Problem<'_>, of: QueryRows<'_>, scratch: &mut [f32]) = task_body;
}

#[inline(always)]
fn task_body<V: Vf32>(p: &Problem<'_>, of: QueryRows<'_>, mut scratch: &mut [f32]) {
    let (count, hd) = (QueryRows::count(of.s), of.s.head_dim);
    let width = padded(hd);
    let delta = take(&mut scratch, count);
    for (r, delta) in delta.iter_mut().enumerate() {
        let at = of.offset(r);
        *delta = dot::<V>(&p.out[at..at + hd], &p.dout[at..at + hd]);
        // SAFETY: the query rows of this task are its own.
        unsafe { p.dq.slice(at, hd) }.fill(0.0);
    }
    let keys = of.rows.kv_len[of.b];
    let mut base = 0;
    while base < keys {
        let n = TILE.min(keys - base);
        let (dk, dv) = key_tile::<V>(p, of, base, n, delta, scratch);
        for j in 0..n {
            let at = ((of.b * p.capacity + base + j) * of.s.kv_heads + of.kv_head) * hd;
            // SAFETY: the key rows of this task are its own.
            unsafe { p.dk.slice(at, hd) }.copy_from_slice(&dk[j * width..j * width + hd]);
            // SAFETY: as above.
            unsafe { p.dv.slice(at, hd) }.copy_from_slice(&dv[j * width..j * width + hd]);
        }
        base += TILE;
    }
    for j in keys..p.capacity {
        let at = ((of.b * p.capacity + j) * of.s.kv_heads + of.kv_head) * hd;
        // SAFETY: the key rows of this task are its own.
        unsafe { p.dk.slice(at, hd) }.fill(0.0);
        // SAFETY: as above.
        unsafe { p.dv.slice(at, hd) }.fill(0.0);
    }
}

/// The gradients of `n` keys and values from `base` on, in two tiles; what these keys give to dq is added there.
#[inline(always)]
fn key_tile<'a, V: Vf32>(
    p: &Problem<'_>,
    of: QueryRows<'_>,
    base: usize,
    n: usize,
    delta: &[f32],
    mut scratch: &'a mut [f32],
) -> (&'a [f32], &'a [f32]) {
    let (hd, width) = (of.s.head_dim, padded(of.s.head_dim));
    let k = take(&mut scratch, TILE * width);
    let kt = take(&mut scratch, TILE * width);
    let vt = take(&mut scratch, TILE * width);
    let dk = take(&mut scratch, TILE * width);
    let dv = take(&mut scratch, TILE * width);
    let q = take(&mut scratch, QUERIES * width);
    let dout = take(&mut scratch, QUERIES * width);
    let dq = take(&mut scratch, QUERIES * width);
    let weights = take(&mut scratch, QUERIES * TILE);
    let slopes = take(&mut scratch, QUERIES * TILE);
    pack_keys::<V>(of, &p.v, base, n, k);
    transpose::<V>(Tile { data: k, row: width }, width, vt);
    pack_keys::<V>(of, &p.k, base, n, k);
    transpose::<V>(Tile { data: k, row: width }, width, kt);
    dk.fill(0.0);
    dv.fill(0.0);
    // Both ends of what a row sees grow with the row, so the rows that see one of these keys are neighbours.
    let count = delta.len();
    let first = partition(0..count, |r| of.visible(r).end <= base);
    let last = partition(first..count, |r| of.visible(r).start < base + n);
    for start in (first..last).step_by(QUERIES) {
        let rows = QUERIES.min(last - start);
        pack_queries::<V>(of, p.q, start..start + rows, p.scale, q);
        pack_queries::<V>(of, p.dout, start..start + rows, 1.0, dout);
        for x in (0..rows).step_by(ROWS) {
            let m = ROWS.min(rows - x);
            let mut seen = [const { 0..0 }; ROWS];
            let (mut lo, mut hi) = (TILE, 0);
            for (i, seen) in seen[..m].iter_mut().enumerate() {
                let keys = of.visible_in(start + x + i, base, n);
                if !keys.is_empty() {
                    (lo, hi) = (lo.min(keys.start), hi.max(keys.end));
                }
                *seen = keys;
            }
            let (weights, slopes) = (&mut weights[x * TILE..], &mut slopes[x * TILE..]);
            let dq = &mut dq[x * width..(x + m) * width];
            if lo >= hi {
                weights[..m * TILE].fill(0.0);
                slopes[..m * TILE].fill(0.0);
                dq.fill(0.0);
                continue;
            }
            let columns = lo / (2 * V::LANES) * (2 * V::LANES)..hi.next_multiple_of(2 * V::LANES);
            for (left, right, to) in [(&*q, &*kt, &mut *weights), (&*dout, &*vt, &mut *slopes)] {
                Block {
                    m,
                    n: columns.len(),
                    k: hd,
                    a: Left {
                        data: &left[x * width..],
                        row: width,
                        step: 1,
                    },
                    b: &right[columns.start..],
                    b_row: TILE,
                    c: &mut to[columns.start..],
                    c_row: TILE,
                    accumulate: false,
                }
                .run::<V>();
            }
            for (i, seen) in seen[..m].iter().enumerate() {
                let r = start + x + i;
                let (weights, slopes) = (&mut weights[i * TILE..][..TILE], &mut slopes[i * TILE..][..TILE]);
                if !seen.is_empty() {
                    let (lse, delta) = (p.lse[of.lse(r)], delta[r]);
                    of.add_bias(r, base + columns.start, &mut weights[columns.clone()]);
                    probabilities::<V>(&mut weights[columns.clone()], &mut slopes[columns.clone()], lse, delta);
                }
                for x in [weights, slopes] {
                    x[..seen.start].fill(0.0);
                    x[seen.end..].fill(0.0);
                }
            }
            Block {
                m,
                n: width,
                k: hi - lo,
                a: Left {
                    data: &slopes[lo..],
                    row: TILE,
                    step: 1,
                },
                b: &k[lo * width..],
                b_row: width,
                c: dq,
                c_row: width,
                accumulate: false,
            }
            .run::<V>();
        }
        // Keys of one register tile are seen by neighbouring queries only: skip the others.
        for j in (0..n).step_by(ROWS) {
            let m = ROWS.min(n - j);
            let from = partition(start..start + rows, |r| of.visible(r).end <= base + j) - start;
            let to = partition(start + from..start + rows, |r| of.visible(r).start < base + j + m) - start;
            if from >= to {
                continue;
            }
            for (left, right, to_add) in [(&*weights, &*dout, &mut *dv), (&*slopes, &*q, &mut *dk)] {
                Block {
                    m,
                    n: width,
                    k: to - from,
                    a: Left {
                        data: &left[from * TILE + j..],
                        row: 1,
                        step: TILE,
                    },
                    b: &right[from * width..],
                    b_row: width,
                    c: &mut to_add[j * width..],
                    c_row: width,
                    accumulate: true,
                }
                .run::<V>();
            }
        }
        for (r, tile) in (start..start + rows).zip(dq.chunks_exact(width)) {
            // SAFETY: the query rows of this task are its own.
            let dq = unsafe { p.dq.slice(of.offset(r), hd) };
            for (dq, &x) in dq.iter_mut().zip(tile) {
                *dq += p.scale * x;
            }
        }
    }
    (dk, dv)
}

/// Scores become softmax weights, and the weights' gradients become the scores'. The factor `scale` is already in the
/// queries that the scores were made of; for dq it is applied at the end.
#[inline(always)]
fn probabilities<V: Vf32>(weights: &mut [f32], slopes: &mut [f32], lse: f32, delta: f32) {
    let (lse, delta) = (V::splat(lse), V::splat(delta));
    for (w, s) in weights
        .chunks_exact_mut(V::LANES)
        .zip(slopes.chunks_exact_mut(V::LANES))
    {
        let p = V::load(w).sub(lse).exp();
        p.store(w);
        V::load(s).sub(delta).mul(p).store(s);
    }
}

/// a · b.
#[inline(always)]
fn dot<V: Vf32>(a: &[f32], b: &[f32]) -> f32 {
    let mut sum = V::zero();
    let mut tail = 0.0;
    for (a, b) in a.chunks(V::LANES).zip(b.chunks(V::LANES)) {
        if a.len() == V::LANES {
            sum = V::load(a).fma(V::load(b), sum);
        } else {
            tail = a.iter().zip(b).fold(0.0, |sum, (a, b)| sum + a * b);
        }
    }
    sum.sum() + tail
}

/// The first row of `range` for which `before` does not hold; `before` holds for a prefix.
#[inline(always)]
fn partition(range: Range<usize>, before: impl Fn(usize) -> bool) -> usize {
    let (mut lo, mut hi) = (range.start, range.end);
    while lo < hi {
        let middle = usize::midpoint(lo, hi);
        if before(middle) { lo = middle + 1 } else { hi = middle }
    }
    lo
}
