//! Arithmetic on whole buffers.

use super::{same_length, whole_rows};
use crate::{Float, reference::elementwise as plain};

/// y = a + b.
///
/// # Panics
/// If the lengths differ.
pub fn add<T: Float>(a: &[T], b: &[T], y: &mut [T]) {
    same_length(&[a.len(), b.len(), y.len()]);
    plain::add(a, b, y);
}

/// y = a - b.
///
/// # Panics
/// If the lengths differ.
pub fn sub<T: Float>(a: &[T], b: &[T], y: &mut [T]) {
    same_length(&[a.len(), b.len(), y.len()]);
    plain::sub(a, b, y);
}

/// y = a * b, element by element.
///
/// # Panics
/// If the lengths differ.
pub fn mul<T: Float>(a: &[T], b: &[T], y: &mut [T]) {
    same_length(&[a.len(), b.len(), y.len()]);
    plain::mul(a, b, y);
}

/// y = a * s.
///
/// # Panics
/// If the lengths differ.
pub fn scale<T: Float>(a: &[T], s: f64, y: &mut [T]) {
    same_length(&[a.len(), y.len()]);
    plain::scale(a, s, y);
}

/// y += x.
///
/// # Panics
/// If the lengths differ.
pub fn add_assign<T: Float>(y: &mut [T], x: &[T]) {
    same_length(&[y.len(), x.len()]);
    plain::add_assign(y, x);
}

/// y += a * x.
///
/// # Panics
/// If the lengths differ.
pub fn axpy<T: Float>(y: &mut [T], a: f64, x: &[T]) {
    same_length(&[y.len(), x.len()]);
    plain::axpy(y, a, x);
}

/// Adds `bias` [n] to every row of `y` [rows, n].
///
/// # Panics
/// If `y` is not whole rows.
pub fn add_bias<T: Float>(y: &mut [T], bias: &[T]) {
    whole_rows(y.len(), bias.len());
    if !bias.is_empty() {
        plain::add_bias(y, bias);
    }
}
