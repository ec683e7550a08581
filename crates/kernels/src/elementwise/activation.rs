//! Activation functions and their gradients.

use super::same_length;
use crate::{Float, reference::elementwise as plain};

/// y = 1 / (1 + e^-x).
///
/// # Panics
/// If the lengths differ.
pub fn sigmoid<T: Float>(x: &[T], y: &mut [T]) {
    same_length(&[x.len(), y.len()]);
    plain::sigmoid(x, y);
}

/// dx from the output `y` of [`sigmoid`]: dx = dy * y * (1 - y).
///
/// # Panics
/// If the lengths differ.
pub fn sigmoid_backward<T: Float>(y: &[T], dy: &[T], dx: &mut [T]) {
    same_length(&[y.len(), dy.len(), dx.len()]);
    plain::sigmoid_backward(y, dy, dx);
}

/// y = x * sigmoid(x).
///
/// # Panics
/// If the lengths differ.
pub fn silu<T: Float>(x: &[T], y: &mut [T]) {
    same_length(&[x.len(), y.len()]);
    plain::silu(x, y);
}

/// dx of [`silu`] from its input `x`.
///
/// # Panics
/// If the lengths differ.
pub fn silu_backward<T: Float>(x: &[T], dy: &[T], dx: &mut [T]) {
    same_length(&[x.len(), dy.len(), dx.len()]);
    plain::silu_backward(x, dy, dx);
}

/// y = x * (1 + erf(x / √2)) / 2: the exact GELU, not the one with tanh.
///
/// # Panics
/// If the lengths differ.
pub fn gelu_erf<T: Float>(x: &[T], y: &mut [T]) {
    same_length(&[x.len(), y.len()]);
    plain::gelu_erf(x, y);
}

/// dx of [`gelu_erf`] from its input `x`.
///
/// # Panics
/// If the lengths differ.
pub fn gelu_erf_backward<T: Float>(x: &[T], dy: &[T], dx: &mut [T]) {
    same_length(&[x.len(), dy.len(), dx.len()]);
    plain::gelu_erf_backward(x, dy, dx);
}

/// y = silu(g) * u.
///
/// # Panics
/// If the lengths differ.
pub fn swiglu<T: Float>(g: &[T], u: &[T], y: &mut [T]) {
    same_length(&[g.len(), u.len(), y.len()]);
    plain::swiglu(g, u, y);
}

/// Gradients of [`swiglu`]; overwrites those that are asked for.
///
/// # Panics
/// If the lengths differ.
pub fn swiglu_backward<T: Float>(g: &[T], u: &[T], dy: &[T], dg: Option<&mut [T]>, du: Option<&mut [T]>) {
    same_length(&[g.len(), u.len(), dy.len()]);
    for d in [&dg, &du].into_iter().flatten() {
        same_length(&[g.len(), d.len()]);
    }
    plain::swiglu_backward(g, u, dy, dg, du);
}
