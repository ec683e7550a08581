//! The scalar types that kernels are written for: f32 (fast) and f64 (plain loops, for gradient checks).
//!
//! `Float` exists so that every kernel has one signature: the f32 instance finds its SIMD path through
//! [`Float::as_f32`], the f64 instance runs the readable loops that are also the oracle of the tests.
//! It must not grow into a numeric tower; it holds what the kernels call and nothing else.

use std::fmt::Debug;
use std::ops::{Add, AddAssign, Div, DivAssign, Mul, MulAssign, Neg, Sub, SubAssign};

/// A floating-point scalar. Implemented for `f32` and `f64` only.
pub trait Float:
    Copy
    + Send
    + Sync
    + 'static
    + Default
    + Debug
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + DivAssign
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// Minus infinity.
    const NEG_INFINITY: Self;

    /// The nearest value of this type.
    fn from_f64(x: f64) -> Self;
    /// Exact widening.
    fn to_f64(self) -> f64;
    /// eˣ.
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// Absolute value.
    fn abs(self) -> Self;
    /// The larger of two values; the other one if one is NaN.
    fn max(self, other: Self) -> Self;
    /// The smaller of two values; the other one if one is NaN.
    fn min(self, other: Self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;
    /// `self * a + b`, rounded once.
    fn mul_add(self, a: Self, b: Self) -> Self;
    /// The error function 2/√π ∫₀ˣ e^(-t²) dt.
    fn erf(self) -> Self {
        Self::from_f64(erf(self.to_f64()))
    }

    /// The slice itself if `Self` is f32, else `None`.
    fn as_f32(x: &[Self]) -> Option<&[f32]>;
    /// The slice itself if `Self` is f32, else `None`.
    fn as_f32_mut(x: &mut [Self]) -> Option<&mut [f32]>;
}

macro_rules! float {
    ($t:ident, $widen:expr, $narrow:expr, $as_f32:expr, $as_f32_mut:expr) => {
        impl Float for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const NEG_INFINITY: Self = $t::NEG_INFINITY;

            #[inline]
            fn from_f64(x: f64) -> Self {
                $narrow(x)
            }
            #[inline]
            fn to_f64(self) -> f64 {
                $widen(self)
            }
            #[inline]
            fn exp(self) -> Self {
                $t::exp(self)
            }
            #[inline]
            fn ln(self) -> Self {
                $t::ln(self)
            }
            #[inline]
            fn sqrt(self) -> Self {
                $t::sqrt(self)
            }
            #[inline]
            fn abs(self) -> Self {
                $t::abs(self)
            }
            #[inline]
            fn max(self, other: Self) -> Self {
                $t::max(self, other)
            }
            #[inline]
            fn min(self, other: Self) -> Self {
                $t::min(self, other)
            }
            #[inline]
            fn tanh(self) -> Self {
                $t::tanh(self)
            }
            #[inline]
            fn mul_add(self, a: Self, b: Self) -> Self {
                $t::mul_add(self, a, b)
            }
            #[inline]
            fn as_f32(x: &[Self]) -> Option<&[f32]> {
                $as_f32(x)
            }
            #[inline]
            fn as_f32_mut(x: &mut [Self]) -> Option<&mut [f32]> {
                $as_f32_mut(x)
            }
        }
    };
}

float!(f32, f64::from, |x: f64| x as f32, Some, Some);
float!(f64, |x| x, |x| x, |_| None, |_| None);

/// erf to about 1e-15 by the series 2x/√π e^(-x²) Σ (2x²)ⁿ/(2n+1)!!, whose terms are all positive: nothing cancels.
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut n) = (1.0, 1.0, 1.0);
    while term > sum * 1e-17 {
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
        n += 1.0;
    }
    std::f64::consts::FRAC_2_SQRT_PI * x * (-x * x).exp() * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_matches_published_values() {
        // Abramowitz and Stegun, table 7.1.
        for (x, y) in [
            (0.0, 0.0),
            (0.1, 0.1124629160),
            (0.5, 0.5204998778),
            (1.0, 0.8427007929),
            (2.0, 0.9953222650),
        ] {
            assert!((Float::erf(x) - y).abs() < 1e-10, "erf({x})");
            assert!((Float::erf(-x) + y).abs() < 1e-10, "erf(-{x})");
        }
        assert_eq!(Float::erf(7.0f64), 1.0);
        assert!(Float::erf(f64::NAN).is_nan());
    }

    #[test]
    fn only_f32_is_f32() {
        assert_eq!(f32::as_f32(&[1.0, 2.0]), Some(&[1.0, 2.0][..]));
        assert_eq!(f64::as_f32(&[1.0]), None);
    }
}
