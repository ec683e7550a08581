//! The forward pass: online softmax over tiles of keys, for many queries (prefill, training) and for few (decoding).
//!
//! A task owns a block of queries that share a key head, and walks over the keys they see; each tile of keys is copied
//! once for the whole block. Few queries against many keys are cut into parts of [`PART`] keys instead, whose partial
//! softmaxes are joined in order, so that one long row keeps every thread busy.

use half::{bf16, f16};
use std::ops::Range;

use super::{
    AttentionRows, AttentionShape, Heads, TILE,
    block::{Block, Left, ROWS},
    running::{Running, join, online_softmax},
    tiles::{QueryRows, Tile, in_place, pack_keys, pack_queries, padded, take, transpose, with_scratch},
};
use crate::{
    Compute, Data, parallel_for,
    pool::SharedMut,
    simd::{Element, Vf32, ask, kernel},
};

/// Query rows per task, about: enough that copying the keys costs little.
const BLOCK: usize = 512;
/// Up to this many query rows count as few.
const FEW: usize = 16;
/// Keys per part when there are few queries.
const PART: usize = 8 * TILE;
/// Up to this many query rows a dot product per key is cheaper than transposing the keys.
const DOT_ROWS: usize = 8;

/// Query rows that take a tile's keys before its values: both together do not fit the nearest cache, so that each is
/// fetched once for so many rows.
const PANEL: usize = 16 * ROWS;

/// Keys ahead of the current one that are asked for.
const AHEAD: usize = 12;
/// Bytes of a cache line.
const LINE: usize = 64;
/// Up to this many query rows, half precision keys and values are widened where they are used, not copied first.
const WIDEN_ROWS: usize = 2;

/// Everything that the tasks read.
pub(super) struct Problem<'a> {
    pub(super) q: &'a [f32],
    pub(super) k: Heads<'a>,
    pub(super) v: Heads<'a>,
    /// The shape's scale.
    pub(super) scale: f32,
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
    compute: Compute,
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
    #[cfg(target_arch = "x86_64")]
    if compute == Compute::Bf16 && crate::isa::isa() == crate::Isa::Amx && lse.is_none() && super::amx::pays(count) {
        return super::amx::attention(&problem, s, rows, &out);
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
    rows * width + 3 * TILE * width + PANEL * TILE
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
    let scores = take(&mut scratch, PANEL * TILE);
    pack_queries::<V>(of, p.q, range.clone(), p.scale, q);
    let mut walk = Walk {
        of,
        range,
        q,
        kt,
        scores,
        running,
    };
    let dots = rows <= DOT_ROWS;
    let mut base = first / TILE * TILE;
    while base < end {
        let n = TILE.min(end - base);
        match (p.k.data, p.v.data) {
            (Data::F32(k), Data::F32(v))
                if let (Some(k), Some(v)) = (in_place(of, &p.k, k, base, dots), in_place(of, &p.v, v, base, dots)) =>
            {
                walk.tile::<V, f32>(base, n, k, v);
            }
            (Data::F16(k), Data::F16(v))
                if rows <= WIDEN_ROWS
                    && let (Some(k), Some(v)) =
                        (in_place(of, &p.k, k, base, true), in_place(of, &p.v, v, base, true)) =>
            {
                walk.tile::<V, f16>(base, n, k, v);
            }
            (Data::Bf16(k), Data::Bf16(v))
                if rows <= WIDEN_ROWS
                    && let (Some(k), Some(v)) =
                        (in_place(of, &p.k, k, base, true), in_place(of, &p.v, v, base, true)) =>
            {
                walk.tile::<V, bf16>(base, n, k, v);
            }
            _ => {
                pack_keys::<V>(of, &p.k, base, n, k);
                pack_keys::<V>(of, &p.v, base, n, v);
                let packed = |data| Tile { data, row: width };
                walk.tile::<V, f32>(base, n, packed(&*k), packed(&*v));
            }
        }
        base += TILE;
    }
}

/// What [`walk`] carries from tile to tile: packed queries [rows, width], room for transposed keys and for scores.
struct Walk<'a, 'r> {
    of: QueryRows<'a>,
    range: Range<usize>,
    q: &'a [f32],
    kt: &'a mut [f32],
    scores: &'a mut [f32],
    running: &'a mut Running<'r>,
}

impl Walk<'_, '_> {
    /// The `n` keys from `base` on.
    #[inline(always)]
    fn tile<V: Vf32, E: Element>(&mut self, base: usize, n: usize, k: Tile<'_, E>, v: Tile<'_, E>) {
        let rows = self.range.len();
        let width = padded(self.of.s.head_dim);
        // Keys of less than f32 come here for few rows only.
        let transposed = match E::as_f32(k.data) {
            Some(data) if rows > DOT_ROWS => {
                transpose::<V>(Tile { data, row: k.row }, width, self.kt);
                true
            }
            _ => false,
        };
        for panel in (0..rows).step_by(PANEL) {
            let strips = (panel..rows.min(panel + PANEL)).step_by(ROWS);
            let mut seen = [const { 0..0 }; PANEL / ROWS];
            for (x, seen) in strips.clone().zip(&mut seen) {
                *seen = self.weigh::<V, E>(x, panel, (base, n), (k, v), transposed);
            }
            for (x, seen) in strips.zip(seen) {
                if seen.is_empty() {
                    continue;
                }
                Block {
                    m: ROWS.min(rows - x),
                    n: width,
                    k: seen.len(),
                    a: Left {
                        data: &self.scores[(x - panel) * TILE + seen.start..],
                        row: TILE,
                        step: 1,
                    },
                    b: &v.data[seen.start * v.row..],
                    b_row: v.row,
                    c: &mut self.running.values[x * width..],
                    c_row: width,
                    accumulate: true,
                }
                .run::<V>();
            }
        }
    }

    /// Makes scores of the strip of rows from `x` on with the `n` keys from `base` on, and weights of those; they lie where
    /// the strip stands in its panel. Returns the keys that any row sees: the other weights are nothing.
    #[inline(always)]
    fn weigh<V: Vf32, E: Element>(
        &mut self,
        x: usize,
        panel: usize,
        (base, n): (usize, usize),
        (k, v): (Tile<'_, E>, Tile<'_, E>),
        transposed: bool,
    ) -> Range<usize> {
        let (of, rows, hd) = (self.of, self.range.len(), self.of.s.head_dim);
        let (width, first) = (padded(hd), self.range.start);
        let m = ROWS.min(rows - x);
        let mut seen = [const { 0..0 }; ROWS];
        let (mut lo, mut hi) = (TILE, 0);
        for (i, seen) in seen[..m].iter_mut().enumerate() {
            let keys = of.visible_in(first + x + i, base, n);
            if !keys.is_empty() {
                (lo, hi) = (lo.min(keys.start), hi.max(keys.end));
            }
            *seen = keys;
        }
        if lo >= hi {
            return 0..0;
        }
        // The scores are computed for whole vectors around what the rows see, and masked below.
        let columns = lo / (2 * V::LANES) * (2 * V::LANES)..hi.next_multiple_of(2 * V::LANES);
        let strip = &mut self.scores[(x - panel) * TILE..];
        let a = Left {
            data: &self.q[x * width..],
            row: width,
            step: 1,
        };
        if transposed {
            Block {
                m,
                n: columns.len(),
                k: hd,
                a,
                b: &self.kt[columns.start..],
                b_row: TILE,
                c: &mut strip[columns.start..],
                c_row: TILE,
                accumulate: false,
            }
            .run::<V>();
        } else {
            dot_rows::<V, E>(&a.data[..m * width], (k, v), width, columns.clone(), strip);
        }
        for (i, seen) in seen[..m].iter().enumerate() {
            let scores = &mut strip[i * TILE..(i + 1) * TILE][columns.clone()];
            if seen.is_empty() {
                scores.fill(0.0);
                continue;
            }
            of.add_bias(first + x + i, base + columns.start, scores);
            scores[..seen.start - columns.start].fill(f32::NEG_INFINITY);
            scores[seen.end - columns.start..].fill(f32::NEG_INFINITY);
            let r = x + i;
            let values = &mut self.running.values[r * width..(r + 1) * width];
            online_softmax::<V>(scores, &mut self.running.max[r], &mut self.running.sum[r], values);
        }
        lo..hi
    }
}

/// scores[i][j] = q[i] · k[j] for the columns j; TILE scores per row.
///
/// The time is that of memory. While the first row reads keys it asks for keys further on, and for the values of the keys
/// at hand, which are needed next.
#[inline(always)]
fn dot_rows<V: Vf32, E: Element>(
    q: &[f32],
    (k, v): (Tile<'_, E>, Tile<'_, E>),
    width: usize,
    columns: Range<usize>,
    scores: &mut [f32],
) {
    let line = LINE / size_of::<E>();
    for (first, (q, scores)) in q.chunks_exact(width).zip(scores.chunks_exact_mut(TILE)).enumerate() {
        // Four keys at a time: their sums are independent, so the multipliers need not wait for each other.
        for j in columns.clone().step_by(4) {
            let keys: [&[E]; 4] = std::array::from_fn(|i| &k.data[(j + i) * k.row..][..width]);
            let mut sums = [V::zero(); 4];
            let mut c = 0;
            while c < width {
                let q = V::load(&q[c..]);
                for (i, sum) in sums.iter_mut().enumerate() {
                    if first == 0 && c.is_multiple_of(line) {
                        ask(k.data, (j + i + AHEAD) * k.row + c);
                        ask(v.data, (j + i) * v.row + c);
                    }
                    debug_assert!(c + V::LANES <= keys[i].len(), "rows are whole vectors");
                    // SAFETY: a key has `width` values, a multiple of LANES.
                    *sum = q.fma(unsafe { E::load_ptr::<V>(keys[i].as_ptr().add(c)) }, *sum);
                }
                c += V::LANES;
            }
            for (score, sum) in scores[j..j + 4].iter_mut().zip(sums) {
                *score = sum.sum();
            }
        }
    }
}

/// Divides by the sums and writes rows `range` of the result.
pub(super) fn finish(
    of: QueryRows<'_>,
    range: Range<usize>,
    running: &Running<'_>,
    out: &SharedMut<'_, f32>,
    lse: Option<&SharedMut<'_, f32>>,
) {
    let hd = of.s.head_dim;
    for (x, (r, values)) in range.zip(running.values.chunks_exact(running.width())).enumerate() {
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
