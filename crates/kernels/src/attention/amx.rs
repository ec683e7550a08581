//! Many queries in bf16 on tile registers (AMX): prompts. Entered only where [`crate::isa::Isa::Amx`] is.
//!
//! Queries, keys, values and the softmax's weights are rounded to bf16 (to nearest, ties to even); scores, the softmax and
//! all sums are f32. A task owns up to [`ROWS`] query rows of one key head and walks over blocks of [`KEYS`] keys: it packs a
//! block's keys and values for the tile registers, and then for each strip of 32 rows takes scores, softmax and weighted
//! values while they are in the nearest caches.
//!
//! Bits: every row's softmax runs over blocks of keys that start at multiples of [`KEYS`], whatever the rows around it.
//! What a strip computes beyond what a row sees gets weights of zero.
//!
//! Legend: hd = values of a head, R = rows of a task, N = keys of a block, wide = hd rounded up to 32.

use super::{
    AttentionRows, AttentionShape, Heads,
    forward::{Problem, finish},
    running::{Running, raise},
    tiles::{QueryRows, pack_queries, padded, take, with_scratch},
};
use crate::{
    Data,
    gemm::{
        Mat,
        amx::{Configured, LANES, SIDE, TILE, pack_panels, panels, square, tiles},
    },
    parallel_for,
    pool::SharedMut,
    simd::{Avx512, Vf32, kernel},
};
use std::{
    arch::x86_64::{__m512bh, _mm512_cvtne2ps_pbh},
    ops::Range,
};

/// Query rows per task: enough that packing the keys costs little beside the products.
const ROWS: usize = 1024;
/// Keys per block, the unit of the online softmax. Keys, values and the running sums of a task fit the second-level cache.
const KEYS: usize = 512;

/// Are there enough query rows that tiles pay?
pub(super) fn pays(rows: usize) -> bool {
    rows >= SIDE
}

/// [`super::attention`] without the logarithms that gradients need.
pub(super) fn attention(p: &Problem<'_>, s: &AttentionShape, rows: &AttentionRows<'_>, out: &SharedMut<'_, f32>) {
    let (count, heads) = (QueryRows::count(s), s.batch * s.kv_heads);
    let blocks = count.div_ceil(ROWS);
    let block = count.div_ceil(blocks).next_multiple_of(SIDE);
    parallel_for(heads * blocks, |t| {
        let of = QueryRows {
            s,
            rows,
            b: t % heads / s.kv_heads,
            kv_head: t % heads % s.kv_heads,
        };
        // The last queries see the most keys: they go first, so that no thread is left with a long task at the end.
        let start = (blocks - 1 - t / heads) * block;
        let range = start.min(count)..(start + block).min(count);
        if !range.is_empty() {
            with_scratch(Room::len(range.len(), s.head_dim), |memory| {
                let mut room = Room::new(memory, range.len(), s.head_dim);
                // SAFETY: the processor has tile registers, or this module would not have been entered.
                unsafe { room.walk(p, of, range.clone()) };
                finish(of, range, &room.running, out, None);
            });
        }
    });
}

/// A task's scratch. Factors are packed for the tile registers; every panel of two factors of a product has the same
/// number of tiles.
struct Room<'a> {
    /// Queries, packed rows.
    q: &'a mut [f32],
    /// Keys of a block, packed columns.
    k: &'a mut [f32],
    /// Values of a block, packed: keys along k, channels as columns.
    v: &'a mut [f32],
    /// Queries of a strip [SIDE, padded(hd)].
    strip: &'a mut [f32],
    /// Scores of a strip [SIDE, KEYS].
    scores: &'a mut [f32],
    /// Weights of a strip, packed rows.
    weights: &'a mut [f32],
    /// R rounded up to whole strips, width `wide`.
    running: Running<'a>,
}

fn wide(head_dim: usize) -> usize {
    head_dim.next_multiple_of(SIDE)
}

impl<'a> Room<'a> {
    /// Values that the scratch of `rows` rows takes.
    fn len(rows: usize, head_dim: usize) -> usize {
        let rows = rows.next_multiple_of(SIDE);
        Self::sizes(rows, head_dim).iter().sum::<usize>() + Running::len(rows, wide(head_dim))
    }

    /// Of the fields but the last, in order.
    fn sizes(rows: usize, head_dim: usize) -> [usize; 6] {
        let (deep, long) = (tiles(head_dim) * TILE, tiles(KEYS) * TILE);
        [
            panels(rows) * deep,
            panels(KEYS) * deep,
            panels(head_dim) * long,
            SIDE * padded(head_dim),
            SIDE * KEYS,
            panels(SIDE) * long,
        ]
    }

    fn new(mut memory: &'a mut [f32], rows: usize, head_dim: usize) -> Self {
        let rows = rows.next_multiple_of(SIDE);
        let [q, k, v, strip, scores, weights] = Self::sizes(rows, head_dim).map(|len| take(&mut memory, len));
        let mut running = Running::new(memory, rows, wide(head_dim));
        running.clear();
        Self {
            q,
            k,
            v,
            strip,
            scores,
            weights,
            running,
        }
    }

    /// Takes the query rows `range` over all keys that they see.
    ///
    /// # Safety
    /// The processor must have tile registers.
    unsafe fn walk(&mut self, p: &Problem<'_>, of: QueryRows<'_>, range: Range<usize>) {
        let hd = of.s.head_dim;
        let _configured = Configured::new();
        // Both ends of what a row sees grow with the row.
        let first = of.visible(range.start).start;
        let end = of.visible(range.end - 1).end;
        if first >= end {
            return;
        }
        for x in (0..range.len()).step_by(SIDE) {
            let rows = range.start + x..range.end.min(range.start + x + SIDE);
            let lanes = rows.len();
            scaled_queries(of, p.q, rows, p.scale, self.strip);
            let factor = Mat {
                data: Data::F32(self.strip),
                row_stride: padded(hd),
                col_stride: 1,
            };
            let at = x / LANES * tiles(hd) * TILE;
            // SAFETY: the strip's two panels of `q`, which are this task's.
            unsafe { pack_panels(&factor, lanes, hd, 0, true, &(0..2), self.q[at..].as_mut_ptr()) };
        }
        for base in (first / KEYS * KEYS..end).step_by(KEYS) {
            let n = KEYS.min(end - base);
            self.pack_keys(p, of, base, n, first.saturating_sub(base));
            for x in (0..range.len()).step_by(SIDE) {
                // SAFETY: the caller's promise.
                unsafe { self.strip(of, &range, x, base, n) };
            }
        }
    }

    /// Packs the `n` keys and values from `base` on; nobody sees the first `skip` of them.
    fn pack_keys(&mut self, p: &Problem<'_>, of: QueryRows<'_>, base: usize, n: usize, skip: usize) {
        let hd = of.s.head_dim;
        let start = |heads: &Heads<'_>| heads.offset(of.b, base, of.kv_head);
        let keys = Mat {
            data: p.k.data,
            row_stride: p.k.token_stride,
            col_stride: 1,
        };
        // Channels are the columns of the second product.
        let values = Mat {
            data: p.v.data,
            row_stride: 1,
            col_stride: p.v.token_stride,
        };
        // SAFETY: `k` and `v` have room for KEYS keys, and are this task's.
        unsafe {
            pack_panels(&keys, n, hd, start(&p.k), false, &(0..panels(n)), self.k.as_mut_ptr());
            pack_panels(
                &values,
                hd,
                n,
                start(&p.v),
                false,
                &(0..panels(hd)),
                self.v.as_mut_ptr(),
            );
        }
        // What lies before the first key that exists may be anything, and zero times NaN is NaN.
        for panel in self.v.chunks_exact_mut(tiles(n) * TILE).take(panels(hd)) {
            let (whole, half) = panel.split_at_mut(skip / 2 * LANES);
            whole.fill(0.0);
            if skip % 2 == 1 {
                for unit in &mut half[..LANES] {
                    *unit = f32::from_bits(unit.to_bits() & 0xffff_0000);
                }
            }
        }
    }

    /// The strip of rows from `x` on (of `range`) and the `n` keys from `base` on.
    ///
    /// # Safety
    /// The processor must have tile registers, and they must be configured.
    unsafe fn strip(&mut self, of: QueryRows<'_>, range: &Range<usize>, x: usize, base: usize, n: usize) {
        let (hd, first) = (of.s.head_dim, range.start + x);
        let rows = SIDE.min(range.end - first);
        let mut seen = [const { 0..0 }; SIDE];
        let (mut lo, mut hi) = (KEYS, 0);
        for (i, seen) in seen[..rows].iter_mut().enumerate() {
            let keys = of.visible_in(first + i, base, n);
            if !keys.is_empty() {
                (lo, hi) = (lo.min(keys.start), hi.max(keys.end));
            }
            *seen = keys;
        }
        if lo >= hi {
            return;
        }
        let (deep, long) = (tiles(hd) * TILE, tiles(n) * TILE);
        let columns = lo / SIDE * SIDE..hi.next_multiple_of(SIDE);
        let nothing = (std::ptr::null_mut(), 0);
        for j in columns.clone().step_by(SIDE) {
            // SAFETY: panels come in pairs, so two of queries and two of keys are there, and `scores` has these columns.
            unsafe {
                let to = (self.scores.as_mut_ptr().add(j), KEYS);
                let (q, k) = (&self.q[x / LANES * deep..], &self.k[j / LANES * deep..]);
                square(q.as_ptr(), k.as_ptr(), deep, tiles(hd), nothing, to);
            }
        }
        // SAFETY: where tile registers are used, AVX-512-BF16 is there, too.
        unsafe {
            weigh(
                of,
                (first, base, x, long),
                &seen,
                columns.clone(),
                self.scores,
                self.weights,
                &mut self.running,
            );
        }
        let (skip, depth) = (columns.start / SIDE * TILE, columns.len() / SIDE);
        for c in (0..hd).step_by(SIDE) {
            // SAFETY: two panels of weights and two of channels, of the tiles that `columns` covers; the strip has SIDE
            // rows of `wide` values.
            unsafe {
                let sums = self.running.values[x * wide(hd)..].as_mut_ptr().add(c);
                let (w, v) = (&self.weights[skip..], &self.v[c / LANES * long + skip..]);
                square(w.as_ptr(), v.as_ptr(), long, depth, (sums, wide(hd)), (sums, wide(hd)));
            }
        }
    }
}

kernel! {
    /// See [`pack_queries`].
    fn scaled_queries(of: QueryRows<'_>, q: &[f32], rows: Range<usize>, scale: f32, tile: &mut [f32]) = pack_queries;
}

/// The softmax of a strip: scores [SIDE, KEYS] with the keys `columns` of a block become packed weights.
///
/// `place`: the first row, the first key of the block, the strip's first row among those of `running`, and units per panel
/// of weights. Weights are rounded to bf16 in the end, so 2^x is taken to 3e-6 only; below 2^-126 they become 0.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
fn weigh(
    of: QueryRows<'_>,
    (first, base, x, panel): (usize, usize, usize, usize),
    seen: &[Range<usize>; SIDE],
    columns: Range<usize>,
    scores: &mut [f32],
    weights: &mut [f32],
    running: &mut Running<'_>,
) {
    let width = running.width();
    for (i, seen) in seen.iter().enumerate() {
        let scores = &mut scores[i * KEYS..][columns.clone()];
        // Row i of each tile: 32 weights.
        let row = i / LANES * panel + columns.start / SIDE * TILE + i % LANES * LANES;
        if seen.is_empty() {
            for t in 0..scores.len() / SIDE {
                weights[row + t * TILE..][..LANES].fill(0.0);
            }
            continue;
        }
        of.add_bias(first + i, base + columns.start, scores);
        scores[..seen.start - columns.start].fill(f32::NEG_INFINITY);
        scores[seen.end - columns.start..].fill(f32::NEG_INFINITY);
        let r = x + i;
        let values = &mut running.values[r * width..(r + 1) * width];
        let largest = raise::<Avx512>(scores, &mut running.max[r], &mut running.sum[r], values);
        let mut totals = [Avx512::splat(0.0); 2];
        for (t, scores) in scores.chunks_exact(SIDE).enumerate() {
            let made = [0, LANES].map(|at| exp_of_weight(Avx512::load(&scores[at..]).sub(Avx512::splat(largest))));
            for (total, made) in totals.iter_mut().zip(made) {
                *total = total.add(made);
            }
            let units = &mut weights[row + t * TILE..][..LANES];
            let rounded = _mm512_cvtne2ps_pbh(made[1].0, made[0].0);
            // SAFETY: sixteen units are 32 values of bf16: one vector.
            unsafe { units.as_mut_ptr().cast::<__m512bh>().write_unaligned(rounded) };
        }
        running.sum[r] += totals[0].add(totals[1]).sum();
    }
}

/// e^x for x <= 0, within 3e-6 (relative); 1 at 0, 0 from -104 on, NaN stays NaN.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
fn exp_of_weight(x: Avx512) -> Avx512 {
    // `x` comes second so that NaN gets through.
    let x = Avx512::splat(-150.0).max(x.mul(Avx512::splat(std::f32::consts::LOG2_E)));
    let n = x.round();
    let r = x.sub(n);
    // The series of 2^r, its terms of degree 5 and 6 folded into the lower ones over -1/2..1/2 (Chebyshev).
    let mut p = Avx512::splat(9.675_9e-3);
    for c in [5.592_08e-2, 2.402_211e-1, 6.931_212e-1, 1.0] {
        p = p.fma(r, Avx512::splat(c));
    }
    p.scale2(n)
}
