//! Activation functions and their gradients.

use super::same_length;
use crate::{
    Float,
    map::{CHUNK, Map, map1, map2},
    parallel_for,
    pool::SharedMut,
    reference::elementwise as plain,
    simd::{Vf32, kernel},
};

/// 1 / (1 + e^-x), from e^-|x| so that neither tail overflows.
#[inline(always)]
fn logistic<V: Vf32>(x: V) -> V {
    let (e, one) = (x.abs().neg().exp(), V::splat(1.0));
    x.select_lt(V::zero(), e, one).div(e.add(one))
}

/// The derivative of silu: with s = sigmoid(x), s * (1 + x * (1 - s)).
#[inline(always)]
fn silu_slope<V: Vf32>(x: V) -> V {
    let (s, one) = (logistic(x), V::splat(1.0));
    x.mul(one.sub(s)).add(one).mul(s)
}

/// (e^(-x²/2), the standard normal's distribution function), the latter within 1e-7 (Abramowitz and Stegun 7.1.26).
#[inline(always)]
fn normal<V: Vf32>(x: V) -> (V, V) {
    let z = x.abs().mul(V::splat(std::f32::consts::FRAC_1_SQRT_2));
    let bell = z.mul(z).neg().exp();
    let one = V::splat(1.0);
    let t = one.div(z.fma(V::splat(0.327_591_1), one));
    let mut p = V::splat(1.061_405_4);
    for c in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        p = p.fma(t, V::splat(c));
    }
    let tail = p.mul(t).mul(bell).mul(V::splat(0.5));
    (bell, x.select_lt(V::zero(), tail, one.sub(tail)))
}

struct Sigmoid;
impl Map<1> for Sigmoid {
    #[inline(always)]
    fn at<V: Vf32>(&self, [x]: [V; 1], _old: V) -> V {
        logistic(x)
    }
}

struct SigmoidBackward;
impl Map<2> for SigmoidBackward {
    #[inline(always)]
    fn at<V: Vf32>(&self, [y, dy]: [V; 2], _old: V) -> V {
        dy.mul(y).mul(V::splat(1.0).sub(y))
    }
}

struct Silu;
impl Map<1> for Silu {
    #[inline(always)]
    fn at<V: Vf32>(&self, [x]: [V; 1], _old: V) -> V {
        x.mul(logistic(x))
    }
}

struct SiluBackward;
impl Map<2> for SiluBackward {
    #[inline(always)]
    fn at<V: Vf32>(&self, [x, dy]: [V; 2], _old: V) -> V {
        dy.mul(silu_slope(x))
    }
}

struct Gelu;
impl Map<1> for Gelu {
    #[inline(always)]
    fn at<V: Vf32>(&self, [x]: [V; 1], _old: V) -> V {
        x.mul(normal(x).1)
    }
}

struct GeluBackward;
impl Map<2> for GeluBackward {
    #[inline(always)]
    fn at<V: Vf32>(&self, [x, dy]: [V; 2], _old: V) -> V {
        let (bell, below) = normal(x);
        // 1 / sqrt(2π)
        dy.mul(x.mul(bell).fma(V::splat(0.398_942_3), below))
    }
}

struct SwiGlu;
impl Map<2> for SwiGlu {
    #[inline(always)]
    fn at<V: Vf32>(&self, [g, u]: [V; 2], _old: V) -> V {
        g.mul(logistic(g)).mul(u)
    }
}

/// y = 1 / (1 + e^-x).
///
/// # Panics
/// If the lengths differ.
pub fn sigmoid<T: Float>(x: &[T], y: &mut [T]) {
    same_length(&[x.len(), y.len()]);
    if let (Some(x), Some(y)) = (T::as_f32(x), T::as_f32_mut(y)) {
        return map1(&Sigmoid, x, y);
    }
    plain::sigmoid(x, y);
}

/// dx from the output `y` of [`sigmoid`]: dx = dy * y * (1 - y).
///
/// # Panics
/// If the lengths differ.
pub fn sigmoid_backward<T: Float>(y: &[T], dy: &[T], dx: &mut [T]) {
    same_length(&[y.len(), dy.len(), dx.len()]);
    if let (Some(y), Some(dy), Some(dx)) = (T::as_f32(y), T::as_f32(dy), T::as_f32_mut(dx)) {
        return map2(&SigmoidBackward, y, dy, dx);
    }
    plain::sigmoid_backward(y, dy, dx);
}

/// y = x * sigmoid(x).
///
/// # Panics
/// If the lengths differ.
pub fn silu<T: Float>(x: &[T], y: &mut [T]) {
    same_length(&[x.len(), y.len()]);
    if let (Some(x), Some(y)) = (T::as_f32(x), T::as_f32_mut(y)) {
        return map1(&Silu, x, y);
    }
    plain::silu(x, y);
}

/// dx of [`silu`] from its input `x`.
///
/// # Panics
/// If the lengths differ.
pub fn silu_backward<T: Float>(x: &[T], dy: &[T], dx: &mut [T]) {
    same_length(&[x.len(), dy.len(), dx.len()]);
    if let (Some(x), Some(dy), Some(dx)) = (T::as_f32(x), T::as_f32(dy), T::as_f32_mut(dx)) {
        return map2(&SiluBackward, x, dy, dx);
    }
    plain::silu_backward(x, dy, dx);
}

/// y = x * (1 + erf(x / √2)) / 2: the exact GELU, not the one with tanh.
///
/// # Panics
/// If the lengths differ.
pub fn gelu_erf<T: Float>(x: &[T], y: &mut [T]) {
    same_length(&[x.len(), y.len()]);
    if let (Some(x), Some(y)) = (T::as_f32(x), T::as_f32_mut(y)) {
        return map1(&Gelu, x, y);
    }
    plain::gelu_erf(x, y);
}

/// dx of [`gelu_erf`] from its input `x`.
///
/// # Panics
/// If the lengths differ.
pub fn gelu_erf_backward<T: Float>(x: &[T], dy: &[T], dx: &mut [T]) {
    same_length(&[x.len(), dy.len(), dx.len()]);
    if let (Some(x), Some(dy), Some(dx)) = (T::as_f32(x), T::as_f32(dy), T::as_f32_mut(dx)) {
        return map2(&GeluBackward, x, dy, dx);
    }
    plain::gelu_erf_backward(x, dy, dx);
}

/// y = silu(g) * u.
///
/// # Panics
/// If the lengths differ.
pub fn swiglu<T: Float>(g: &[T], u: &[T], y: &mut [T]) {
    same_length(&[g.len(), u.len(), y.len()]);
    if let (Some(g), Some(u), Some(y)) = (T::as_f32(g), T::as_f32(u), T::as_f32_mut(y)) {
        return map2(&SwiGlu, g, u, y);
    }
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
    let (Some(g32), Some(u32), Some(dy32)) = (T::as_f32(g), T::as_f32(u), T::as_f32(dy)) else {
        return plain::swiglu_backward(g, u, dy, dg, du);
    };
    let [dg, du] = [dg, du].map(|d| d.and_then(T::as_f32_mut).map(SharedMut::new));
    let len = g.len();
    parallel_for(len.div_ceil(CHUNK), |i| {
        let (start, n) = (i * CHUNK, CHUNK.min(len - i * CHUNK));
        // SAFETY: every chunk of either gradient belongs to one task.
        let [dg, du] = [&dg, &du].map(|d| d.as_ref().map(|d| unsafe { d.slice(start, n) }));
        let part = start..start + n;
        swiglu_backward_chunk(&g32[part.clone()], &u32[part.clone()], &dy32[part], dg, du);
    });
}

kernel! {
    /// Both gradients in one pass: the sigmoid is computed once, and g and dy are read once.
    fn swiglu_backward_chunk(g: &[f32], u: &[f32], dy: &[f32], dg: Option<&mut [f32]>, du: Option<&mut [f32]>)
        = swiglu_backward_body;
}

#[inline(always)]
fn swiglu_backward_body<V: Vf32>(
    g: &[f32],
    u: &[f32],
    dy: &[f32],
    mut dg: Option<&mut [f32]>,
    mut du: Option<&mut [f32]>,
) {
    let one = V::splat(1.0);
    let mut i = 0;
    while i < g.len() {
        let whole = i + V::LANES <= g.len();
        let mut x = [V::zero(); 3];
        for (x, from) in x.iter_mut().zip([g, u, dy]) {
            *x = if whole {
                V::load(&from[i..])
            } else {
                V::load_partial(&from[i..], 0.0)
            };
        }
        let [g, u, dy] = x;
        let s = logistic(g);
        let gate = g.mul(s);
        // The slope of silu is s (1 + g (1 - s)) = s + gate (1 - s).
        let slope = gate.fma(one.sub(s), s);
        let values = [dy.mul(u).mul(slope), dy.mul(gate)];
        for (to, value) in [dg.as_deref_mut(), du.as_deref_mut()].into_iter().zip(values) {
            let Some(to) = to else { continue };
            if whole {
                value.store(&mut to[i..]);
            } else {
                value.store_partial(&mut to[i..]);
            }
        }
        i += V::LANES;
    }
}
