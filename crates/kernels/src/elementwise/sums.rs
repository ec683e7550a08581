//! Sums of whole buffers and of columns, over fixed chunks and a fixed tree.

use super::whole_rows;
use crate::{Float, parallel_chunks_mut, reference::elementwise as plain};

/// Values per partial sum: the unit that bits depend on.
const CHUNK: usize = 1 << 14;

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
    partial.iter().sum()
}

/// out[j] = sum of column j of `x` [rows, n]; `out`: [n].
///
/// # Panics
/// If the slices do not fit each other.
pub fn column_sum<T: Float>(x: &[T], n: usize, out: &mut [T]) {
    whole_rows(x.len(), n);
    assert_eq!(out.len(), n, "out must have one entry per column");
    if n > 0 {
        plain::column_sum(x, n, out);
    }
}
