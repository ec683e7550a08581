//! Activations, arithmetic on whole buffers, and softmax over rows.

use crate::Float;

/// 1 / (1 + exp(-x)), written so that neither tail overflows.
fn logistic<T: Float>(x: T) -> T {
    let e = (-x.abs()).exp();
    if x < T::ZERO {
        e / (T::ONE + e)
    } else {
        T::ONE / (T::ONE + e)
    }
}

/// Calls `f` on each element of `x` and writes the result to `y`.
fn map<T: Float>(x: &[T], y: &mut [T], f: impl Fn(T) -> T) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = f(x);
    }
}

/// Calls `f` on each pair of elements and writes the result to `y`.
fn map2<T: Float>(a: &[T], b: &[T], y: &mut [T], f: impl Fn(T, T) -> T) {
    for ((y, &a), &b) in y.iter_mut().zip(a).zip(b) {
        *y = f(a, b);
    }
}

/// See [`crate::sigmoid`].
pub(crate) fn sigmoid<T: Float>(x: &[T], y: &mut [T]) {
    map(x, y, logistic);
}

/// See [`crate::sigmoid_backward`].
pub(crate) fn sigmoid_backward<T: Float>(y: &[T], dy: &[T], dx: &mut [T]) {
    map2(y, dy, dx, |y, dy| dy * y * (T::ONE - y));
}

/// See [`crate::silu`].
pub(crate) fn silu<T: Float>(x: &[T], y: &mut [T]) {
    map(x, y, |x| x * logistic(x));
}

/// The derivative of silu: with s = sigmoid(x), s * (1 + x * (1 - s)).
fn silu_slope<T: Float>(x: T) -> T {
    let s = logistic(x);
    s * (T::ONE + x * (T::ONE - s))
}

/// See [`crate::silu_backward`].
pub(crate) fn silu_backward<T: Float>(x: &[T], dy: &[T], dx: &mut [T]) {
    map2(x, dy, dx, |x, dy| dy * silu_slope(x));
}

/// See [`crate::swiglu`].
pub(crate) fn swiglu<T: Float>(g: &[T], u: &[T], y: &mut [T]) {
    map2(g, u, y, |g, u| g * logistic(g) * u);
}

/// See [`crate::swiglu_backward`].
pub(crate) fn swiglu_backward<T: Float>(g: &[T], u: &[T], dy: &[T], dg: Option<&mut [T]>, du: Option<&mut [T]>) {
    if let Some(dg) = dg {
        for (i, dg) in dg.iter_mut().enumerate() {
            *dg = dy[i] * u[i] * silu_slope(g[i]);
        }
    }
    if let Some(du) = du {
        for (i, du) in du.iter_mut().enumerate() {
            *du = dy[i] * g[i] * logistic(g[i]);
        }
    }
}

/// The standard normal's distribution function.
fn normal_cdf<T: Float>(x: T) -> T {
    T::from_f64(0.5) * (T::ONE + (x * T::from_f64(std::f64::consts::FRAC_1_SQRT_2)).erf())
}

/// See [`crate::gelu_erf`].
pub(crate) fn gelu_erf<T: Float>(x: &[T], y: &mut [T]) {
    map(x, y, |x| x * normal_cdf(x));
}

/// See [`crate::gelu_erf_backward`].
pub(crate) fn gelu_erf_backward<T: Float>(x: &[T], dy: &[T], dx: &mut [T]) {
    let norm = T::from_f64(1.0 / (2.0 * std::f64::consts::PI).sqrt());
    map2(x, dy, dx, |x, dy| {
        dy * (normal_cdf(x) + x * norm * (T::from_f64(-0.5) * x * x).exp())
    });
}

/// See [`crate::add`].
pub(crate) fn add<T: Float>(a: &[T], b: &[T], y: &mut [T]) {
    map2(a, b, y, |a, b| a + b);
}

/// See [`crate::sub`].
pub(crate) fn sub<T: Float>(a: &[T], b: &[T], y: &mut [T]) {
    map2(a, b, y, |a, b| a - b);
}

/// See [`crate::mul`].
pub(crate) fn mul<T: Float>(a: &[T], b: &[T], y: &mut [T]) {
    map2(a, b, y, |a, b| a * b);
}

/// See [`crate::scale`].
pub(crate) fn scale<T: Float>(a: &[T], s: f64, y: &mut [T]) {
    map(a, y, |a| a * T::from_f64(s));
}

/// See [`crate::add_assign`].
pub(crate) fn add_assign<T: Float>(y: &mut [T], x: &[T]) {
    axpy(y, 1.0, x);
}

/// See [`crate::axpy`].
pub(crate) fn axpy<T: Float>(y: &mut [T], a: f64, x: &[T]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y += T::from_f64(a) * x;
    }
}

/// See [`crate::add_bias`].
pub(crate) fn add_bias<T: Float>(y: &mut [T], bias: &[T]) {
    for y in y.chunks_exact_mut(bias.len()) {
        add_assign(y, bias);
    }
}

/// See [`crate::column_sum`].
pub(crate) fn column_sum<T: Float>(x: &[T], n: usize, out: &mut [T]) {
    out.fill(T::ZERO);
    for x in x.chunks_exact(n) {
        add_assign(out, x);
    }
}

/// See [`crate::softmax`]. A row of -inf only becomes zeros.
pub(crate) fn softmax<T: Float>(x: &[T], n: usize, y: &mut [T]) {
    for (x, y) in x.chunks_exact(n).zip(y.chunks_exact_mut(n)) {
        let max = row_max(x);
        if max.to_f64() == f64::NEG_INFINITY {
            y.fill(T::ZERO);
            continue;
        }
        map(x, y, |x| (x - max).exp());
        let sum = y.iter().fold(T::ZERO, |a, &y| a + y);
        for y in y {
            *y /= sum;
        }
    }
}

/// See [`crate::softmax_backward`].
pub(crate) fn softmax_backward<T: Float>(y: &[T], dy: &[T], n: usize, dx: &mut [T]) {
    for ((y, dy), dx) in y.chunks_exact(n).zip(dy.chunks_exact(n)).zip(dx.chunks_exact_mut(n)) {
        let dot = y.iter().zip(dy).fold(T::ZERO, |a, (&y, &dy)| a + y * dy);
        map2(y, dy, dx, |y, dy| y * (dy - dot));
    }
}

/// See [`crate::log_softmax`].
pub(crate) fn log_softmax<T: Float>(x: &[T], n: usize, y: &mut [T]) {
    for (x, y) in x.chunks_exact(n).zip(y.chunks_exact_mut(n)) {
        let max = row_max(x);
        let log_sum = x.iter().fold(T::ZERO, |a, &x| a + (x - max).exp()).ln();
        map(x, y, |x| x - max - log_sum);
    }
}

/// See [`crate::log_softmax_backward`].
pub(crate) fn log_softmax_backward<T: Float>(y: &[T], dy: &[T], n: usize, dx: &mut [T]) {
    for ((y, dy), dx) in y.chunks_exact(n).zip(dy.chunks_exact(n)).zip(dx.chunks_exact_mut(n)) {
        let sum = dy.iter().fold(T::ZERO, |a, &dy| a + dy);
        map2(y, dy, dx, |y, dy| dy - y.exp() * sum);
    }
}

/// The largest value; -inf of nothing.
pub(crate) fn row_max<T: Float>(x: &[T]) -> T {
    x.iter().copied().fold(T::from_f64(f64::NEG_INFINITY), T::max)
}
