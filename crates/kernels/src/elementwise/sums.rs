//! Sums of whole buffers and of columns, over fixed chunks and a fixed tree.

use super::whole_rows;
use crate::{
    Float,
    map::{Add, CHUNK, map_here, rows_per_task},
    parallel_chunks_mut,
    reference::elementwise as plain,
    simd::{Vf32, kernel},
};

/// The sum of all values, in f64.
pub fn sum<T: Float>(x: &[T]) -> f64 {
    reduce(x, |x| x)
}

/// The sum of the squares of all values, in f64.
pub fn sum_squares<T: Float>(x: &[T]) -> f64 {
    reduce(x, |x| x * x)
}

/// Adds up f(x) in each chunk in eight interleaved sums (so that the compiler can use vectors), then the chunks in order.
fn reduce<T: Float>(x: &[T], f: impl Fn(f64) -> f64 + Sync) -> f64 {
    let mut partial = vec![0.0; x.len().div_ceil(CHUNK)];
    parallel_chunks_mut(&mut partial, 1, |i, partial| {
        let chunk = &x[i * CHUNK..x.len().min((i + 1) * CHUNK)];
        let mut lanes = [0.0; 8];
        for x in chunk.chunks(8) {
            for (lane, &x) in lanes.iter_mut().zip(x) {
                *lane += f(x.to_f64());
            }
        }
        partial[0] = lanes.iter().sum();
    });
    // Not `sum`, whose empty result is -0.
    partial.iter().fold(0.0, |total, x| total + x)
}

/// `out[j]` is the sum of column j of `x [rows, n]`; `out [n]`.
///
/// # Panics
/// If the slices do not fit each other.
pub fn column_sum<T: Float>(x: &[T], n: usize, out: &mut [T]) {
    whole_rows(x.len(), n);
    assert_eq!(out.len(), n, "out must have one entry per column");
    if n == 0 {
        return;
    }
    if let (Some(x), Some(out)) = (T::as_f32(x), T::as_f32_mut(out)) {
        let rows = partial_rows(x.len() / n, n);
        return add_partials(n, x.len().div_ceil(rows * n), out, |i, partial| {
            add_rows(&x[i * rows * n..x.len().min((i + 1) * rows * n)], partial);
        });
    }
    plain::column_sum(x, n, out);
}

/// Rows per partial sum of a reduction over `rows` rows: enough that there are at most 32 partial sums to keep and add.
pub(crate) fn partial_rows(rows: usize, n: usize) -> usize {
    rows_per_task(n).max(rows.div_ceil(32))
}

/// `out` [n] = the sum of the `parts` partial sums that `f` adds to zeros in parallel, in the order of the parts.
pub(crate) fn add_partials(n: usize, parts: usize, out: &mut [f32], f: impl Fn(usize, &mut [f32]) + Sync) {
    let mut partial = vec![0.0; parts * n];
    parallel_chunks_mut(&mut partial, n, f);
    out.fill(0.0);
    add_rows(&partial, out);
}

kernel! {
    /// Adds every row of `x` to `out`.
    fn add_rows(x: &[f32], out: &mut [f32]) = add_rows_body;
}

#[inline(always)]
fn add_rows_body<V: Vf32>(x: &[f32], out: &mut [f32]) {
    for x in x.chunks_exact(out.len()) {
        map_here::<V, 1, _>(&Add, [x], out);
    }
}
