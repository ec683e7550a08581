//! The forward pass: online softmax over tiles of keys, for many queries (prefill, training) and for few (decoding).
//!
//! A task owns a block of queries that share a key head, and walks over the keys they see; each tile of keys is copied
//! once for the whole block. Few queries against many keys are cut into parts of [`PART`] keys instead, whose partial
//! softmaxes are joined in order, so that one long row keeps every thread busy.

use std::ops::Range;

use super::{
    AttentionRows, AttentionShape, Heads, TILE,
    block::{Block, Left, ROWS},
    tiles::{QueryRows, pack_keys, pack_queries, padded, take, transpose, with_scratch},
};
use crate::{
    parallel_for,
    pool::SharedMut,
    simd::{Vf32, kernel},
};

/// Query rows per task, about: enough that copying the keys costs little.
const BLOCK: usize = 256;
/// Up to this many query rows count as few.
const FEW: usize = 16;
/// Keys per part when there are few queries.
const PART: usize = 8 * TILE;
/// Up to this many query rows a dot product per key is cheaper than transposing the keys.
const DOT_ROWS: usize = 8;

/// Everything that the tasks read.
struct Problem<'a> {
    q: &'a [f32],
    k: Heads<'a>,
    v: Heads<'a>,
    /// The shape's scale.
    scale: f32,
}

/// The running softmax of some query rows: weighted values [rows, width], largest score and sum of weights of each row.
struct Running<'a> {
    values: &'a mut [f32],
    max: &'a mut [f32],
    sum: &'a mut [f32],
}

impl<'a> Running<'a> {
    fn len(rows: usize, width: usize) -> usize {
        rows * (width + 2)
    }

    /// Cuts `memory` of [`Running::len`] values into the three parts.
    fn new(memory: &'a mut [f32], rows: usize, width: usize) -> Self {
        let (values, rest) = memory.split_at_mut(rows * width);
        let (max, sum) = rest.split_at_mut(rows);
        Self { values, max, sum }
    }

    fn clear(&mut self) {
        self.values.fill(0.0);
        self.max.fill(f32::NEG_INFINITY);
        self.sum.fill(0.0);
    }
}

/// See [`super::attention`].
pub(super) fn attention(
    s: &AttentionShape,
    rows: &AttentionRows<'_>,
    q: &[f32],
    k: Heads<'_>,
    v: Heads<'_>,
    out: &mut [f32],
    lse: Option<&mut [f32]>,
) {
    let count = QueryRows::count(s);
    if count == 0 || s.batch == 0 || s.head_dim == 0 {
        return;
    }
    let width = padded(s.head_dim);
    let problem = Problem {
        q,
        k,
        v,
        scale: s.scale as f32,
    };
    let (out, lse) = (SharedMut::new(out), lse.map(SharedMut::new));
    let heads = s.batch * s.kv_heads;
    let head = |h: usize| QueryRows {
        s,
        rows,
        b: h / s.kv_heads,
        kv_head: h % s.kv_heads,
    };
    let longest = rows.kv_len.iter().copied().max().unwrap_or(0);
    let parts = longest.div_ceil(PART);
    if count <= FEW && parts > 1 {
        let each = Running::len(count, width);
        let mut partial = vec![0.0; heads * parts * each];
        let shared = SharedMut::new(&mut partial);
        parallel_for(heads * parts, |t| {
            let (h, part) = (t / parts, t % parts);
            // SAFETY: every task has its own part.
            let memory = unsafe { shared.slice(t * each, each) };
            let mut running = Running::new(memory, count, width);
            running.clear();
            with_scratch(scratch_len(count, width), |scratch| {
                walk(
                    &problem,
                    head(h),
                    0..count,
                    part * PART..(part + 1) * PART,
                    &mut running,
                    scratch,
                );
            });
        });
        parallel_for(heads, |h| {
            // SAFETY: the parts of one head are used by one task.
            let memory = unsafe { shared.slice(h * parts * each, parts * each) };
            let (first, others) = memory.split_at_mut(each);
            let mut first = Running::new(first, count, width);
            for other in others.chunks_exact_mut(each) {
                join(&mut first, &Running::new(other, count, width));
            }
            finish(head(h), 0..count, &first, &out, lse.as_ref());
        });
        return;
    }
    let blocks = count.div_ceil(BLOCK);
    let block = count.div_ceil(blocks).next_multiple_of(ROWS);
    parallel_for(heads * blocks, |t| {
        // The last queries see the most keys: they go first, so that no thread is left with a long task at the end.
        let start = (blocks - 1 - t / heads) * block;
        let range = start.min(count)..(start + block).min(count);
        let n = range.len();
        with_scratch(Running::len(n, width) + scratch_len(n, width), |scratch| {
            let (memory, scratch) = scratch.split_at_mut(Running::len(n, width));
            let mut running = Running::new(memory, n, width);
            running.clear();
            walk(
                &problem,
                head(t % heads),
                range.clone(),
                0..usize::MAX,
                &mut running,
                scratch,
            );
            finish(head(t % heads), range, &running, &out, lse.as_ref());
        });
    });
}

/// Scratch of [`walk`]: queries, keys, transposed keys, values and scores.
fn scratch_len(rows: usize, width: usize) -> usize {
    rows * width + 3 * TILE * width + ROWS * TILE
}

kernel! {
    /// Adds the keys `keys` (which starts at a multiple of TILE) to the running softmax of the query rows `range`.
    fn walk(
        p: &Problem<'_>,
        of: QueryRows<'_>,
        range: Range<usize>,
        keys: Range<usize>,
        running: &mut Running<'_>,
        scratch: &mut [f32],
    ) = walk_body;
}

#[inline(always)]
fn walk_body<V: Vf32>(
    p: &Problem<'_>,
    of: QueryRows<'_>,
    range: Range<usize>,
    keys: Range<usize>,
    running: &mut Running<'_>,
    mut scratch: &mut [f32],
) {
    let (rows, hd) = (range.len(), of.s.head_dim);
    if rows == 0 {
        return;
    }
    let width = padded(hd);
    // Both ends of what a row sees grow with the row.
    let first = of.visible(range.start).start.max(keys.start);
    let end = of.visible(range.end - 1).end.min(keys.end);
    let q = take(&mut scratch, rows * width);
    let k = take(&mut scratch, TILE * width);
    let kt = take(&mut scratch, TILE * width);
    let v = take(&mut scratch, TILE * width);
    let scores = take(&mut scratch, ROWS * TILE);
    pack_queries::<V>(of, p.q, range.clone(), p.scale, q);
    let mut base = first / TILE * TILE;
    while base < end {
        let n = TILE.min(end - base);
        pack_keys::<V>(of, &p.k, base, n, k);
        pack_keys::<V>(of, &p.v, base, n, v);
        let dots = rows <= DOT_ROWS;
        if !dots {
            transpose::<V>(k, width, kt);
        }
        for x in (0..rows).step_by(ROWS) {
            let m = ROWS.min(rows - x);
            let mut seen = [const { 0..0 }; ROWS];
            let (mut lo, mut hi) = (TILE, 0);
            for (i, seen) in seen[..m].iter_mut().enumerate() {
                let keys = of.visible_in(range.start + x + i, base, n);
                if !keys.is_empty() {
                    (lo, hi) = (lo.min(keys.start), hi.max(keys.end));
                }
                *seen = keys;
            }
            if lo >= hi {
                continue;
            }
            // The scores are computed for whole vectors around what the rows see, and masked below.
            let columns = lo / (2 * V::LANES) * (2 * V::LANES)..hi.next_multiple_of(2 * V::LANES);
            if dots {
                dot_rows::<V>(&q[x * width..(x + m) * width], k, width, columns.clone(), scores);
            } else {
                let a = Left {
                    data: &q[x * width..],
                    row: width,
                    step: 1,
                };
                Block {
                    m,
                    n: columns.len(),
                    k: hd,
                    a,
                    b: &kt[columns.start..],
                    b_row: TILE,
                    c: &mut scores[columns.start..],
                    c_row: TILE,
                    accumulate: false,
                }
                .run::<V>();
            }
            for (i, seen) in seen[..m].iter().enumerate() {
                let scores = &mut scores[i * TILE..(i + 1) * TILE][columns.clone()];
                if seen.is_empty() {
                    scores.fill(0.0);
                    continue;
                }
                of.add_bias(range.start + x + i, base + columns.start, scores);
                scores[..seen.start - columns.start].fill(f32::NEG_INFINITY);
                scores[seen.end - columns.start..].fill(f32::NEG_INFINITY);
                let r = x + i;
                let values = &mut running.values[r * width..(r + 1) * width];
                online_softmax::<V>(scores, &mut running.max[r], &mut running.sum[r], values);
            }
            Block {
                m,
                n: width,
                k: hi - lo,
                a: Left {
                    data: &scores[lo..],
                    row: TILE,
                    step: 1,
                },
                b: &v[lo * width..],
                b_row: width,
                c: &mut running.values[x * width..],
                c_row: width,
                accumulate: true,
            }
            .run::<V>();
        }
        base += TILE;
    }
}

/// scores[i][j] = q[i] · k[j] for the columns j; TILE scores per row.
#[inline(always)]
fn dot_rows<V: Vf32>(q: &[f32], k: &[f32], width: usize, columns: Range<usize>, scores: &mut [f32]) {
    for (q, scores) in q.chunks_exact(width).zip(scores.chunks_exact_mut(TILE)) {
        // Four keys at a time: their sums are independent, so the multipliers need not wait for each other.
        for j in columns.clone().step_by(4) {
            let k = &k[j * width..(j + 4) * width];
            let mut sums = [V::zero(); 4];
            let mut c = 0;
            while c < width {
                let q = V::load(&q[c..]);
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = q.fma(V::load(&k[i * width + c..]), *sum);
                }
                c += V::LANES;
            }
            for (score, sum) in scores[j..j + 4].iter_mut().zip(sums) {
                *score = sum.sum();
            }
        }
    }
}

/// Turns scores into weights relative to the largest score so far, and brings what was summed before to that level.
#[inline(always)]
fn online_softmax<V: Vf32>(scores: &mut [f32], max: &mut f32, sum: &mut f32, values: &mut [f32]) {
    let mut largest = V::splat(*max);
    for scores in scores.chunks_exact(V::LANES) {
        largest = V::load(scores).max(largest);
    }
    let largest = largest.hmax();
    if largest > *max {
        let down = V::splat(*max - largest).exp();
        for values in values.chunks_exact_mut(V::LANES) {
            V::load(values).mul(down).store(values);
        }
        // All lanes are equal.
        *sum *= down.hmax();
        *max = largest;
    }
    let shift = V::splat(largest);
    let mut total = V::zero();
    for scores in scores.chunks_exact_mut(V::LANES) {
        let weight = V::load(scores).sub(shift).exp();
        weight.store(scores);
        total = total.add(weight);
    }
    *sum += total.sum();
}

/// Adds the running softmax of later keys to that of earlier ones.
fn join(into: &mut Running<'_>, later: &Running<'_>) {
    let width = into.values.len() / into.max.len();
    for r in 0..into.max.len() {
        let max = into.max[r].max(later.max[r]);
        if max == f32::NEG_INFINITY {
            continue;
        }
        let (a, b) = ((into.max[r] - max).exp(), (later.max[r] - max).exp());
        into.max[r] = max;
        into.sum[r] = into.sum[r] * a + later.sum[r] * b;
        let range = r * width..(r + 1) * width;
        for (x, &y) in into.values[range.clone()].iter_mut().zip(&later.values[range]) {
            *x = *x * a + y * b;
        }
    }
}

/// Divides by the sums and writes rows `range` of the result.
fn finish(
    of: QueryRows<'_>,
    range: Range<usize>,
    running: &Running<'_>,
    out: &SharedMut<'_, f32>,
    lse: Option<&SharedMut<'_, f32>>,
) {
    let hd = of.s.head_dim;
    for (x, (r, values)) in range.zip(running.values.chunks_exact(padded(hd))).enumerate() {
        let (max, sum) = (running.max[x], running.sum[x]);
        // A sum of 0 means that the row saw nothing, unless scores were NaN, which must not be hidden.
        let factor = if sum == 0.0 { 0.0 } else { 1.0 / sum };
        // SAFETY: a query row belongs to one task, and rows are disjoint in `out` and `lse`.
        let out = unsafe { out.slice(of.offset(r), hd) };
        for (out, &value) in out.iter_mut().zip(values) {
            *out = value * factor;
        }
        if let Some(lse) = lse {
            // SAFETY: as above.
            let lse = unsafe { lse.slice(of.lse(r), 1) };
            lse[0] = max + sum.ln();
        }
    }
}
