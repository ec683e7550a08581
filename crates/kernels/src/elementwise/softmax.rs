//! Softmax over the rows of a matrix, its logarithm, and their gradients.

use super::{same_length, whole_rows};
use crate::{Float, reference::elementwise as plain};

/// y = softmax of each row of `x` [rows, n]. A row of -inf only becomes zeros.
///
/// # Panics
/// If the lengths differ or `x` is not whole rows.
pub fn softmax<T: Float>(x: &[T], n: usize, y: &mut [T]) {
    same_length(&[x.len(), y.len()]);
    whole_rows(x.len(), n);
    if !x.is_empty() {
        plain::softmax(x, n, y);
    }
}

/// dx of [`softmax`] from its output `y`: dx = y * (dy - sum(y * dy)), row by row.
///
/// # Panics
/// If the lengths differ or `y` is not whole rows.
pub fn softmax_backward<T: Float>(y: &[T], dy: &[T], n: usize, dx: &mut [T]) {
    same_length(&[y.len(), dy.len(), dx.len()]);
    whole_rows(y.len(), n);
    if !y.is_empty() {
        plain::softmax_backward(y, dy, n, dx);
    }
}

/// y = log softmax of each row of `x` [rows, n].
///
/// # Panics
/// If the lengths differ or `x` is not whole rows.
pub fn log_softmax<T: Float>(x: &[T], n: usize, y: &mut [T]) {
    same_length(&[x.len(), y.len()]);
    whole_rows(x.len(), n);
    if !x.is_empty() {
        plain::log_softmax(x, n, y);
    }
}

/// dx of [`log_softmax`] from its output `y`: dx = dy - e^y * sum(dy), row by row.
///
/// # Panics
/// If the lengths differ or `y` is not whole rows.
pub fn log_softmax_backward<T: Float>(y: &[T], dy: &[T], n: usize, dx: &mut [T]) {
    same_length(&[y.len(), dy.len(), dx.len()]);
    whole_rows(y.len(), n);
    if !y.is_empty() {
        plain::log_softmax_backward(y, dy, n, dx);
    }
}
