//! Softmax over the rows of a matrix, its logarithm, and their gradients.

use super::{same_length, whole_rows};
use crate::{
    Float,
    map::{First, Map, Product, map_and_sum_here, map_here, max_here, rows_per_task, sum_here},
    parallel_chunks_mut,
    reference::elementwise as plain,
    simd::{Vf32, kernel},
};

/// y = softmax of each row of `x` [rows, n]. A row of -inf only becomes zeros.
///
/// # Panics
/// If the lengths differ or `x` is not whole rows.
pub fn softmax<T: Float>(x: &[T], n: usize, y: &mut [T]) {
    by_rows(x, n, y, softmax_rows, plain::softmax);
}

/// dx of [`softmax`] from its output `y`: dx = y * (dy - sum(y * dy)), row by row.
///
/// # Panics
/// If the lengths differ or `y` is not whole rows.
pub fn softmax_backward<T: Float>(y: &[T], dy: &[T], n: usize, dx: &mut [T]) {
    by_row_pairs([y, dy], n, dx, softmax_backward_rows, plain::softmax_backward);
}

/// y = log softmax of each row of `x` [rows, n].
///
/// # Panics
/// If the lengths differ or `x` is not whole rows.
pub fn log_softmax<T: Float>(x: &[T], n: usize, y: &mut [T]) {
    by_rows(x, n, y, log_softmax_rows, plain::log_softmax);
}

/// dx of [`log_softmax`] from its output `y`: dx = dy - e^y * sum(dy), row by row.
///
/// # Panics
/// If the lengths differ or `y` is not whole rows.
pub fn log_softmax_backward<T: Float>(y: &[T], dy: &[T], n: usize, dx: &mut [T]) {
    by_row_pairs([y, dy], n, dx, log_softmax_backward_rows, plain::log_softmax_backward);
}

/// `fast` on pieces of whole rows, in parallel, for f32; `plain` on everything for other types.
fn by_rows<T: Float>(
    x: &[T],
    n: usize,
    y: &mut [T],
    fast: fn(&[f32], usize, &mut [f32]),
    plain: fn(&[T], usize, &mut [T]),
) {
    same_length(&[x.len(), y.len()]);
    whole_rows(x.len(), n);
    if x.is_empty() {
        return;
    }
    if let (Some(x), Some(y)) = (T::as_f32(x), T::as_f32_mut(y)) {
        let part = rows_per_task(n) * n;
        return parallel_chunks_mut(y, part, |i, y| fast(&x[i * part..][..y.len()], n, y));
    }
    plain(x, n, y);
}

/// The same with two inputs.
fn by_row_pairs<T: Float>(
    [a, b]: [&[T]; 2],
    n: usize,
    out: &mut [T],
    fast: fn(&[f32], &[f32], usize, &mut [f32]),
    plain: fn(&[T], &[T], usize, &mut [T]),
) {
    same_length(&[a.len(), b.len(), out.len()]);
    whole_rows(a.len(), n);
    if a.is_empty() {
        return;
    }
    if let (Some(a), Some(b), Some(out)) = (T::as_f32(a), T::as_f32(b), T::as_f32_mut(out)) {
        let part = rows_per_task(n) * n;
        return parallel_chunks_mut(out, part, |i, out| {
            let here = i * part..i * part + out.len();
            fast(&a[here.clone()], &b[here], n, out);
        });
    }
    plain(a, b, n, out);
}

/// e^(x - shift)
struct ExpMinus(f32);
impl Map<1> for ExpMinus {
    #[inline(always)]
    fn at<V: Vf32>(&self, [x]: [V; 1], _old: V) -> V {
        x.sub(V::splat(self.0)).exp()
    }
}

/// x - max - log_sum, in this order: the first difference is exact where it matters.
struct Minus(f32, f32);
impl Map<1> for Minus {
    #[inline(always)]
    fn at<V: Vf32>(&self, [x]: [V; 1], _old: V) -> V {
        x.sub(V::splat(self.0)).sub(V::splat(self.1))
    }
}

/// y * (dy - dot)
struct SoftmaxSlope(f32);
impl Map<2> for SoftmaxSlope {
    #[inline(always)]
    fn at<V: Vf32>(&self, [y, dy]: [V; 2], _old: V) -> V {
        y.mul(dy.sub(V::splat(self.0)))
    }
}

/// dy - e^y * sum
struct LogSoftmaxSlope(f32);
impl Map<2> for LogSoftmaxSlope {
    #[inline(always)]
    fn at<V: Vf32>(&self, [y, dy]: [V; 2], _old: V) -> V {
        dy.sub(y.exp().mul(V::splat(self.0)))
    }
}

kernel! { fn softmax_rows(x: &[f32], n: usize, y: &mut [f32]) = softmax_body; }
kernel! { fn log_softmax_rows(x: &[f32], n: usize, y: &mut [f32]) = log_softmax_body; }
kernel! { fn softmax_backward_rows(y: &[f32], dy: &[f32], n: usize, dx: &mut [f32]) = softmax_backward_body; }
kernel! { fn log_softmax_backward_rows(y: &[f32], dy: &[f32], n: usize, dx: &mut [f32]) = log_softmax_backward_body; }

#[inline(always)]
fn softmax_body<V: Vf32>(x: &[f32], n: usize, y: &mut [f32]) {
    for (x, y) in x.chunks_exact(n).zip(y.chunks_exact_mut(n)) {
        let max = max_here::<V>(x);
        // With no finite value, exp(x - 0) is zero for every -inf and the sum must not divide.
        let shift = if max == f32::NEG_INFINITY { 0.0 } else { max };
        let sum = map_and_sum_here::<V, _>(&ExpMinus(shift), x, y);
        if sum != 0.0 {
            scale_in_place::<V>(1.0 / sum, y);
        }
    }
}

#[inline(always)]
fn scale_in_place<V: Vf32>(factor: f32, y: &mut [f32]) {
    struct Times(f32);
    impl Map<0> for Times {
        #[inline(always)]
        fn at<V: Vf32>(&self, _x: [V; 0], old: V) -> V {
            old.mul(V::splat(self.0))
        }
    }
    map_here::<V, 0, _>(&Times(factor), [], y);
}

#[inline(always)]
fn log_softmax_body<V: Vf32>(x: &[f32], n: usize, y: &mut [f32]) {
    for (x, y) in x.chunks_exact(n).zip(y.chunks_exact_mut(n)) {
        let max = max_here::<V>(x);
        let sum = map_and_sum_here::<V, _>(&ExpMinus(max), x, y);
        map_here::<V, 1, _>(&Minus(max, sum.ln()), [x], y);
    }
}

#[inline(always)]
fn softmax_backward_body<V: Vf32>(y: &[f32], dy: &[f32], n: usize, dx: &mut [f32]) {
    for ((y, dy), dx) in y.chunks_exact(n).zip(dy.chunks_exact(n)).zip(dx.chunks_exact_mut(n)) {
        let dot = sum_here::<V, 2, _>(&Product, [y, dy]);
        map_here::<V, 2, _>(&SoftmaxSlope(dot), [y, dy], dx);
    }
}

#[inline(always)]
fn log_softmax_backward_body<V: Vf32>(y: &[f32], dy: &[f32], n: usize, dx: &mut [f32]) {
    for ((y, dy), dx) in y.chunks_exact(n).zip(dy.chunks_exact(n)).zip(dx.chunks_exact_mut(n)) {
        let sum = sum_here::<V, 1, _>(&First, [dy]);
        map_here::<V, 2, _>(&LogSoftmaxSlope(sum), [y, dy], dx);
    }
}
