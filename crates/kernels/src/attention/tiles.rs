//! Moving heads between the caller's strided memory and contiguous tiles, and the scratch those tiles lie in.
//!
//! Rows in a tile are padded with zeros to whole vectors, so that the arithmetic needs no tails. Knows nothing of
//! softmax or masks.

use std::{cell::Cell, ops::Range};

use super::{AttentionRows, AttentionShape, Heads, TILE};
use crate::{Data, simd::Vf32};

/// Values a tile's rows are padded to a multiple of: the lanes of the widest vector.
const PAD: usize = 16;

/// Length of a tile's row.
pub(super) fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(PAD)
}

/// Runs `f` on `len` values of this thread's scratch. What they hold is left over from earlier calls.
pub(super) fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    thread_local! {
        static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    }
    let mut memory = SCRATCH.take();
    if memory.len() < len + PAD {
        memory.resize(len + PAD, 0.0);
    }
    // Whole vectors start on cache lines: a vector that straddles two costs twice.
    let start = memory.as_ptr().align_offset(64).min(PAD);
    let result = f(&mut memory[start..start + len]);
    SCRATCH.set(memory);
    result
}

/// Cuts `len` values off the front of `rest`.
pub(super) fn take<'a>(rest: &mut &'a mut [f32], len: usize) -> &'a mut [f32] {
    let (part, after) = std::mem::take(rest).split_at_mut(len);
    *rest = after;
    part
}

/// The queries that share one key head of one batch row: row r is query r / group of head r % group within the group.
/// Neighbours in r are neighbours in memory as long as they have the same position.
#[derive(Clone, Copy)]
pub(super) struct QueryRows<'a> {
    pub(super) s: &'a AttentionShape,
    pub(super) rows: &'a AttentionRows<'a>,
    pub(super) b: usize,
    pub(super) kv_head: usize,
}

impl QueryRows<'_> {
    /// How many there are.
    pub(super) fn count(s: &AttentionShape) -> usize {
        s.q_len * s.group()
    }

    /// Index in [B, Tq, Hq, hd] of the row's first value.
    #[inline(always)]
    pub(super) fn offset(&self, r: usize) -> usize {
        let group = self.s.group();
        let (i, g) = (r / group, r % group);
        ((self.b * self.s.q_len + i) * self.s.q_heads + self.kv_head * group + g) * self.s.head_dim
    }

    /// Index in [B, Hq, Tq].
    #[inline(always)]
    pub(super) fn lse(&self, r: usize) -> usize {
        let group = self.s.group();
        (self.b * self.s.q_heads + self.kv_head * group + r % group) * self.s.q_len + r / group
    }

    /// The keys that the row sees; empty if start >= end.
    #[inline(always)]
    pub(super) fn visible(&self, r: usize) -> Range<usize> {
        let (lo, hi) = self.s.visible(self.rows, self.b, r / self.s.group());
        lo..hi
    }

    /// Adds the row's linear biases, if there are any, to its scores with the keys from `first` on.
    #[inline(always)]
    pub(super) fn add_bias(&self, r: usize, first: usize, scores: &mut [f32]) {
        let group = self.s.group();
        let (i, head) = (r / group, self.kv_head * group + r % group);
        let Some((position, slope)) = self.s.bias(self.rows, self.b, i, head) else {
            return;
        };
        // Distances, not positions: within a window they are small, so that f32 holds them exactly.
        let start = (first as i64 - position as i64) as f32;
        for (j, score) in scores.iter_mut().enumerate() {
            *score += slope * (start + j as u32 as f32);
        }
    }

    /// The keys that the row sees among the `n` from `base`, counted from there; 0..0 if there are none.
    #[inline(always)]
    pub(super) fn visible_in(&self, r: usize, base: usize, n: usize) -> Range<usize> {
        let Range { start, end } = self.visible(r);
        let (start, end) = (start.max(base), end.min(base + n));
        if start < end { start - base..end - base } else { 0..0 }
    }
}

/// Copies `factor` times the rows `range` of x [B, Tq, Hq, hd] to `tile` [rows, padded(hd)].
#[inline(always)]
pub(super) fn pack_queries<V: Vf32>(of: QueryRows<'_>, x: &[f32], range: Range<usize>, factor: f32, tile: &mut [f32]) {
    let hd = of.s.head_dim;
    let factor = V::splat(factor);
    for (r, row) in range.zip(tile.chunks_exact_mut(padded(hd))) {
        let at = of.offset(r);
        let x = &x[at..at + hd];
        let whole = hd - hd % V::LANES;
        let mut c = 0;
        while c < whole {
            V::load(&x[c..]).mul(factor).store(&mut row[c..]);
            c += V::LANES;
        }
        if c < hd {
            V::load_partial(&x[c..], 0.0).mul(factor).store(&mut row[c..]);
            c += V::LANES;
        }
        row[c..].fill(0.0);
    }
}

/// Copies `n` keys (or values) from `base` on, widened, to `tile` [TILE, padded(hd)]; the tile's other rows become zeros.
#[inline(always)]
pub(super) fn pack_keys<V: Vf32>(of: QueryRows<'_>, heads: &Heads<'_>, base: usize, n: usize, tile: &mut [f32]) {
    let hd = of.s.head_dim;
    let width = padded(hd);
    let whole = hd - hd % V::LANES;
    for (j, row) in tile[..n * width].chunks_exact_mut(width).enumerate() {
        let at = heads.offset(of.b, base + j, of.kv_head);
        match heads.data {
            Data::F32(x) => row[..hd].copy_from_slice(&x[at..at + hd]),
            Data::Bf16(x) => {
                let x = &x[at..at + hd];
                let mut c = 0;
                while c < whole {
                    V::load_bf16(&x[c..]).store(&mut row[c..]);
                    c += V::LANES;
                }
                if c < hd {
                    V::load_bf16_partial(&x[c..]).store(&mut row[c..]);
                }
            }
            Data::F16(x) => {
                let x = &x[at..at + hd];
                let mut c = 0;
                while c < whole {
                    V::load_f16(&x[c..]).store(&mut row[c..]);
                    c += V::LANES;
                }
                if c < hd {
                    V::load_f16_partial(&x[c..]).store(&mut row[c..]);
                }
            }
            Data::F64(_) => unreachable!("double precision takes the plain loops"),
            Data::Blocks(_) => unreachable!("invariant: keys and values are never in blocks"),
        }
        row[hd..].fill(0.0);
    }
    tile[n * width..TILE * width].fill(0.0);
}

/// TILE keys or values [TILE, padded(hd)], rows `row` apart: packed, or where the caller keeps them.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a, E> {
    pub(super) data: &'a [E],
    pub(super) row: usize,
}

/// The TILE keys (or values) from `base` on as they lie in `data`, the storage of `heads`, if the arithmetic can read them
/// there: rows of whole vectors, and the buffer goes on to the tile's end. `once`: they are read only once; otherwise rows
/// must be neighbours, too, as rows that lie far apart displace each other from the cache.
#[inline(always)]
pub(super) fn in_place<'a, E>(
    of: QueryRows<'_>,
    heads: &Heads<'_>,
    data: &'a [E],
    base: usize,
    once: bool,
) -> Option<Tile<'a, E>> {
    let hd = of.s.head_dim;
    let (start, row) = (heads.offset(of.b, base, of.kv_head), heads.token_stride);
    if hd != padded(hd) || !(once || row == hd) {
        return None;
    }
    let data = data.get(start..start + (TILE - 1) * row + hd)?;
    Some(Tile { data, row })
}

/// `dst` [padded(hd), TILE] = the transpose of `tile`.
#[inline(always)]
pub(super) fn transpose<V: Vf32>(tile: Tile<'_, f32>, width: usize, dst: &mut [f32]) {
    let Tile { data: tile, row } = tile;
    assert!(width.is_multiple_of(8) && tile.len() >= (TILE - 1) * row + width && dst.len() == TILE * width);
    for j in (0..TILE).step_by(8) {
        for c in (0..width).step_by(8) {
            // SAFETY: rows j..j+8 and columns c..c+8 are inside [TILE, width], both multiples of 8, in both buffers,
            // which are distinct borrows.
            unsafe {
                V::transpose8(
                    tile.as_ptr().add(j * row + c),
                    row,
                    dst.as_mut_ptr().add(c * TILE + j),
                    TILE,
                );
            }
        }
    }
}
