//! Few rows times a weight matrix: Y[m, n] = X[m, k] · W[n, k]ᵀ for small m, the product of decoding.
//!
//! The time is the time to read W, so W is read once, straight from its storage type, and never packed. Rows that are
//! read together lie [`APART`]: the processor's prefetcher follows one stream per page, and two rows of one page, read
//! in turns, cost a quarter of the memory's speed. Every result is one chain of vector multiply-adds and one sum over
//! lanes, so a row's bits depend neither on the rows beside it nor on how rows are grouped.

use super::pack::Lines;
use crate::isa::{Isa, isa};
use crate::simd::{Element, Vf32, ask, kernel};

/// Bytes between rows of W that are read together, at least: four pages.
const APART: usize = 16 * 1024;
/// Bytes ahead of the current ones that are asked for: with less, memory is too late; with more, the first-level cache
/// forgets them before they are used.
const AHEAD: usize = 512;
/// Bytes of a cache line.
const LINE: usize = 64;
/// Rows of X that meet a vector of W while it is in a register.
const BATCH: usize = 4;

/// The rows of X, and where their results go.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub(super) m: usize,
    pub(super) k: usize,
    /// Row i of X is at `x + i * x_stride`.
    pub(super) x: *const f32,
    pub(super) x_stride: usize,
    /// Row i of the results is at `c + i * ldc`.
    pub(super) c: *mut f32,
    pub(super) ldc: usize,
    pub(super) add: bool,
    /// Whether W is rounded to bf16.
    pub(super) round: bool,
}

#[inline(always)]
fn round<V: Vf32, E: Element>(w: V, rows: &Rows) -> V {
    if rows.round && !E::IS_BF16 { w.round_bf16() } else { w }
}

/// Rows of W that meet one row of X together: as many sums as hide the latency of a multiply-add and fit into the
/// registers.
fn together(lanes: usize) -> usize {
    if lanes == 16 { 8 } else { 6 }
}

/// How many rows of `bytes` bytes further the next row that is read together with one lies.
fn apart(bytes: usize) -> usize {
    APART.div_ceil(bytes.max(1))
}

/// Rows of W, each of `bytes` bytes, that make one round: tasks should be multiples of it.
pub(super) fn round_of_rows(bytes: usize) -> usize {
    together(if isa() == Isa::Avx512 { 16 } else { 8 }) * apart(bytes)
}

/// Adds the products of elements p .. p + LANES to the sums.
///
/// # Safety
/// As [`dots`]; `w` is its first row.
#[inline(always)]
unsafe fn step<V: Vf32, E: Element, const R: usize, const M: usize>(
    w: *const E,
    stride: usize,
    p: usize,
    rows: &Rows,
    sums: &mut [[V; M]; R],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut line = [V::zero(); R];
        for r in 0..R {
            line[r] = round::<V, E>(E::load_ptr(w.add(r * stride + p)), rows);
        }
        for i in 0..M {
            let x = V::load_ptr(rows.x.add(i * rows.x_stride + p));
            for r in 0..R {
                sums[r][i] = line[r].fma(x, sums[r][i]);
            }
        }
    }
}

/// R rows of W times M rows of X. Result (i, r) goes to `c + i * ldc + r * c_stride`.
///
/// # Safety
/// As [`gemv`], for these rows.
#[inline(always)]
unsafe fn dots<V: Vf32, E: Element, const R: usize, const M: usize>(w: Lines<'_, E>, c_stride: usize, rows: &Rows) {
    let k = rows.k;
    let whole = k - k % V::LANES;
    let mut sums = [[V::zero(); M]; R];
    let first = &w.data[w.start..][..(R - 1) * w.stride + k];
    let per_line = LINE / size_of::<E>();
    // SAFETY: R lines of k elements were just found in W; M rows of k values are in X by the caller's promise.
    unsafe {
        let mut p = 0;
        while p + per_line <= k {
            for r in 0..R {
                ask(first, r * w.stride + p + AHEAD / size_of::<E>());
            }
            for q in (0..per_line).step_by(V::LANES) {
                step::<V, E, R, M>(first.as_ptr(), w.stride, p + q, rows, &mut sums);
            }
            p += per_line;
        }
        while p < whole {
            step::<V, E, R, M>(first.as_ptr(), w.stride, p, rows, &mut sums);
            p += V::LANES;
        }
        if whole < k {
            for i in 0..M {
                let x = std::slice::from_raw_parts(rows.x.add(i * rows.x_stride + whole), k - whole);
                let x = V::load_partial(x, 0.0);
                for r in 0..R {
                    let w = E::load_partial(&first[r * w.stride + whole..][..k - whole]);
                    sums[r][i] = round::<V, E>(w, rows).fma(x, sums[r][i]);
                }
            }
        }
        for i in 0..M {
            for r in 0..R {
                let c = rows.c.add(i * rows.ldc + r * c_stride);
                *c = if rows.add {
                    *c + sums[r][i].sum()
                } else {
                    sums[r][i].sum()
                };
            }
        }
    }
}

/// `n` rows of W, R at a time, times M rows of X.
///
/// # Safety
/// As [`gemv`], for these rows.
#[inline(always)]
unsafe fn sweep<V: Vf32, E: Element, const R: usize, const M: usize>(w: Lines<'_, E>, n: usize, rows: &Rows) {
    let apart = apart(w.stride * size_of::<E>());
    let mut j = 0;
    while j < n {
        let distance = apart.min((n - j) / R);
        for j in j..j + distance.max(1) {
            // SAFETY: rows j, j + distance, … or, with fewer than R left, row j alone, of the n that the caller vouches
            // for.
            unsafe {
                let w = Lines {
                    start: w.start + j * w.stride,
                    stride: distance * w.stride,
                    ..w
                };
                let rows = Rows {
                    c: rows.c.add(j),
                    ..*rows
                };
                if distance > 0 {
                    dots::<V, E, R, M>(w, distance, &rows);
                } else {
                    dots::<V, E, 1, M>(w, 1, &rows);
                }
            }
        }
        j += (R * distance).max(1);
    }
}

#[inline(always)]
unsafe fn gemv_body<V: Vf32, E: Element>(w: Lines<'_, E>, n: usize, rows: &Rows) {
    let round = together(V::LANES) * apart(w.stride * size_of::<E>());
    for j in (0..n).step_by(round) {
        let group = (n - j).min(round);
        // Later batches of X find the group's rows of W in the cache.
        for i in (0..rows.m).step_by(BATCH) {
            // SAFETY: the caller vouches for all rows and columns; these are parts of them.
            unsafe {
                let w = Lines {
                    start: w.start + j * w.stride,
                    ..w
                };
                let part = Rows {
                    x: rows.x.add(i * rows.x_stride),
                    c: rows.c.add(i * rows.ldc + j),
                    ..*rows
                };
                // See `together`: there are 32 registers of 16 lanes, and 16 of 8.
                match (V::LANES, rows.m - i) {
                    (16, 1) => sweep::<V, E, 8, 1>(w, group, &part),
                    (16, 2) => sweep::<V, E, 8, 2>(w, group, &part),
                    (16, 3) => sweep::<V, E, 4, 3>(w, group, &part),
                    (16, _) => sweep::<V, E, 4, 4>(w, group, &part),
                    (_, 1) => sweep::<V, E, 6, 1>(w, group, &part),
                    (_, 2) => sweep::<V, E, 6, 2>(w, group, &part),
                    (_, 3) => sweep::<V, E, 4, 3>(w, group, &part),
                    _ => sweep::<V, E, 3, 4>(w, group, &part),
                }
            }
        }
    }
}

kernel! {
    /// All rows of X times `n` lines of W.
    ///
    /// # Safety
    /// The pointers of `rows` must be good for m rows of k and n values; nobody else may touch the results.
    pub(super) unsafe fn gemv<E: Element>(w: Lines<'_, E>, n: usize, rows: &Rows) = gemv_body;
}
