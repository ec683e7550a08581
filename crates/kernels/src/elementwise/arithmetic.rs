//! Arithmetic on whole buffers.

use super::{same_length, whole_rows};
use crate::{
    Float,
    map::{Add, Map, Product, Scale, map_here, map1, map2, rows_per_task},
    parallel_chunks_mut,
    reference::elementwise as plain,
    simd::{Vf32, kernel},
};

struct Sum;
impl Map<2> for Sum {
    #[inline(always)]
    fn at<V: Vf32>(&self, [a, b]: [V; 2], _old: V) -> V {
        a.add(b)
    }
}

struct Difference;
impl Map<2> for Difference {
    #[inline(always)]
    fn at<V: Vf32>(&self, [a, b]: [V; 2], _old: V) -> V {
        a.sub(b)
    }
}

struct AddScaled(f32);
impl Map<1> for AddScaled {
    #[inline(always)]
    fn at<V: Vf32>(&self, [x]: [V; 1], old: V) -> V {
        x.fma(V::splat(self.0), old)
    }
}

/// y = a + b.
///
/// # Panics
/// If the lengths differ.
pub fn add<T: Float>(a: &[T], b: &[T], y: &mut [T]) {
    same_length(&[a.len(), b.len(), y.len()]);
    if let (Some(a), Some(b), Some(y)) = (T::as_f32(a), T::as_f32(b), T::as_f32_mut(y)) {
        return map2(&Sum, a, b, y);
    }
    plain::add(a, b, y);
}

/// y = a - b.
///
/// # Panics
/// If the lengths differ.
pub fn sub<T: Float>(a: &[T], b: &[T], y: &mut [T]) {
    same_length(&[a.len(), b.len(), y.len()]);
    if let (Some(a), Some(b), Some(y)) = (T::as_f32(a), T::as_f32(b), T::as_f32_mut(y)) {
        return map2(&Difference, a, b, y);
    }
    plain::sub(a, b, y);
}

/// y = a * b, element by element.
///
/// # Panics
/// If the lengths differ.
pub fn mul<T: Float>(a: &[T], b: &[T], y: &mut [T]) {
    same_length(&[a.len(), b.len(), y.len()]);
    if let (Some(a), Some(b), Some(y)) = (T::as_f32(a), T::as_f32(b), T::as_f32_mut(y)) {
        return map2(&Product, a, b, y);
    }
    plain::mul(a, b, y);
}

/// y = a * s.
///
/// # Panics
/// If the lengths differ.
pub fn scale<T: Float>(a: &[T], s: f64, y: &mut [T]) {
    same_length(&[a.len(), y.len()]);
    if let (Some(a), Some(y)) = (T::as_f32(a), T::as_f32_mut(y)) {
        return map1(&Scale(s as f32), a, y);
    }
    plain::scale(a, s, y);
}

/// y += x.
///
/// # Panics
/// If the lengths differ.
pub fn add_assign<T: Float>(y: &mut [T], x: &[T]) {
    same_length(&[y.len(), x.len()]);
    if let (Some(y), Some(x)) = (T::as_f32_mut(y), T::as_f32(x)) {
        return map1(&Add, x, y);
    }
    plain::add_assign(y, x);
}

/// y += a * x.
///
/// # Panics
/// If the lengths differ.
pub fn axpy<T: Float>(y: &mut [T], a: f64, x: &[T]) {
    same_length(&[y.len(), x.len()]);
    if let (Some(y), Some(x)) = (T::as_f32_mut(y), T::as_f32(x)) {
        return map1(&AddScaled(a as f32), x, y);
    }
    plain::axpy(y, a, x);
}

/// Adds `bias [n]` to every row of `y [rows, n]`.
///
/// # Panics
/// If `y` is not whole rows.
pub fn add_bias<T: Float>(y: &mut [T], bias: &[T]) {
    whole_rows(y.len(), bias.len());
    if bias.is_empty() {
        return;
    }
    if let (Some(bias), Some(y)) = (T::as_f32(bias), T::as_f32_mut(y)) {
        let rows = rows_per_task(bias.len());
        return parallel_chunks_mut(y, rows * bias.len(), |_, y| add_bias_rows(y, bias));
    }
    plain::add_bias(y, bias);
}

kernel! { fn add_bias_rows(y: &mut [f32], bias: &[f32]) = add_bias_body; }

#[inline(always)]
fn add_bias_body<V: Vf32>(y: &mut [f32], bias: &[f32]) {
    for y in y.chunks_exact_mut(bias.len()) {
        map_here::<V, 1, _>(&Add, [bias], y);
    }
}
