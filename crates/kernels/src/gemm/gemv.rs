//! Few rows times a weight matrix: Y[m, n] = X[m, k] · W[n, k]ᵀ for small m, the product of decoding.
//!
//! The time is the time to read W, so W is read once, twelve rows at a time, straight from its storage type, and never
//! packed. Every result is one chain of vector multiply-adds and one sum over lanes, so a row's bits do not depend on
//! the rows beside it.

use super::pack::Lines;
use crate::simd::{Element, Vf32, kernel};

/// Rows of W that are read together.
pub(super) const GROUP: usize = 12;
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

/// R rows of W times M rows of X.
///
/// # Safety
/// As [`gemv`], for these rows.
#[inline(always)]
unsafe fn dots<V: Vf32, E: Element, const R: usize, const M: usize>(w: Lines<'_, E>, rows: &Rows) {
    let k = rows.k;
    let whole = k - k % V::LANES;
    let mut sums = [[V::zero(); M]; R];
    let first = &w.data[w.start..][..(R - 1) * w.stride + k];
    // SAFETY: R lines of k elements were just found in W; M rows of k values are in X by the caller's promise.
    unsafe {
        for p in (0..whole).step_by(V::LANES) {
            let mut line = [V::zero(); R];
            for r in 0..R {
                line[r] = round::<V, E>(E::load_ptr(first.as_ptr().add(r * w.stride + p)), rows);
            }
            for i in 0..M {
                let x = V::load_ptr(rows.x.add(i * rows.x_stride + p));
                for r in 0..R {
                    sums[r][i] = line[r].fma(x, sums[r][i]);
                }
            }
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
                let c = rows.c.add(i * rows.ldc + r);
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
    let mut j = 0;
    while j < n {
        // SAFETY: rows j .. j + R, or row j, of the n that the caller vouches for.
        unsafe {
            let w = Lines {
                start: w.start + j * w.stride,
                ..w
            };
            let rows = Rows {
                c: rows.c.add(j),
                ..*rows
            };
            if j + R <= n {
                dots::<V, E, R, M>(w, &rows);
                j += R;
            } else {
                dots::<V, E, 1, M>(w, &rows);
                j += 1;
            }
        }
    }
}

#[inline(always)]
unsafe fn gemv_body<V: Vf32, E: Element>(w: Lines<'_, E>, n: usize, rows: &Rows) {
    for j in (0..n).step_by(GROUP) {
        let group = (n - j).min(GROUP);
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
                // As many sums as hide the latency of a multiply-add and still fit into 16 registers.
                match rows.m - i {
                    1 => sweep::<V, E, 6, 1>(w, group, &part),
                    2 => sweep::<V, E, 6, 2>(w, group, &part),
                    3 => sweep::<V, E, 4, 3>(w, group, &part),
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
