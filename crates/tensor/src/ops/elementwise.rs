//! Elementwise operations.

use super::real;
use crate::{
    error::{Result, shape},
    storage::Real,
    tensor::Tensor,
};
use ounce_kernels as k;

fn same_shape(op: &'static str, a: &Tensor, b: &Tensor) -> Result<()> {
    if a.shape == b.shape {
        Ok(())
    } else {
        shape(op, "both inputs have one shape", (&a.shape, &b.shape))
    }
}

/// Output of a kernel that fills a buffer of `n` elements.
fn filled<T: Real>(dims: &[usize], fill: impl FnOnce(&mut [T])) -> Tensor {
    let mut y = T::buffer(dims.iter().product());
    fill(&mut y);
    Tensor::owned(y, dims)
}

/// `a + b`, same shape.
///
/// # Errors
/// If shapes or dtypes differ.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    same_shape("add", a, b)?;
    real!("add", a, T => {
        let (x, z) = (a.get::<T>("add")?, b.get::<T>("add")?);
        Ok(filled::<T>(&a.shape, |y| k::add(x, z, y)))
    })
    .map(|y: Tensor| {
        y.recorded(&[a, b], |dy, needs| {
            Ok(vec![needs[0].then(|| dy.clone()), needs[1].then_some(dy)])
        })
    })
}

/// `a - b`, same shape.
///
/// # Errors
/// If shapes or dtypes differ.
pub fn sub(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    same_shape("sub", a, b)?;
    real!("sub", a, T => {
        let (x, z) = (a.get::<T>("sub")?, b.get::<T>("sub")?);
        Ok(filled::<T>(&a.shape, |y| k::sub(x, z, y)))
    })
    .map(|y: Tensor| {
        y.recorded(&[a, b], |dy, needs| {
            let db = if needs[1] { Some(scale(&dy, -1.0)?) } else { None };
            Ok(vec![needs[0].then_some(dy), db])
        })
    })
}

/// `a * b`, elementwise, same shape.
///
/// # Errors
/// If shapes or dtypes differ.
pub fn mul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    same_shape("mul", a, b)?;
    let (sa, sb) = (a.detach(), b.detach());
    real!("mul", a, T => {
        let (x, z) = (a.get::<T>("mul")?, b.get::<T>("mul")?);
        Ok(filled::<T>(&a.shape, |y| k::mul(x, z, y)))
    })
    .map(|y: Tensor| {
        y.recorded(&[a, b], move |dy, needs| {
            let da = if needs[0] { Some(mul(&dy, &sb)?) } else { None };
            let db = if needs[1] { Some(mul(&dy, &sa)?) } else { None };
            Ok(vec![da, db])
        })
    })
}

/// `a * s` for a constant `s`.
///
/// # Errors
/// If the dtype is not f32 or f64.
pub fn scale(a: &Tensor, s: f64) -> Result<Tensor> {
    real!("scale", a, T => {
        let x = a.get::<T>("scale")?;
        Ok(filled::<T>(&a.shape, |y| k::scale(x, s, y)))
    })
    .map(|y: Tensor| y.recorded(&[a], move |dy, _| Ok(vec![Some(scale(&dy, s)?)])))
}

/// `x [.., n] + bias [n]`.
///
/// # Errors
/// If the bias is not as long as the last dimension.
pub fn add_bias(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let n = x.last_dim();
    if bias.shape != [n] {
        return shape("add_bias", "bias has the last dimension of x", (&x.shape, &bias.shape));
    }
    let bias_real = if bias.dtype() == x.dtype() {
        bias.detach()
    } else {
        bias.cast(x.dtype())?
    };
    real!("add_bias", x, T => {
        let (xs, bs) = (x.get::<T>("add_bias")?, bias_real.get::<T>("add_bias")?);
        Ok(filled::<T>(&x.shape, |y| {
            y.copy_from_slice(xs);
            k::add_bias(y, bs);
        }))
    })
    .map(|y: Tensor| {
        y.recorded(&[x, bias], move |dy, needs| {
            let db = if needs[1] {
                Some(real!("add_bias", dy, T => {
                    let d = dy.get::<T>("add_bias")?;
                    Ok(filled::<T>(&[n], |out| k::column_sum(d, n, out)))
                })?)
            } else {
                None
            };
            Ok(vec![needs[0].then_some(dy), db])
        })
    })
}

macro_rules! unary {
    ($(#[$doc:meta])* $name:ident, $forward:path, $backward:path, saves $saved:ident) => {
        $(#[$doc])*
        ///
        /// # Errors
        /// If the dtype is not f32 or f64.
        pub fn $name(x: &Tensor) -> Result<Tensor> {
            const OP: &str = stringify!($name);
            let y: Tensor = real!(OP, x, T => {
                let xs = x.get::<T>(OP)?;
                Ok(filled::<T>(&x.shape, |y| $forward(xs, y)))
            })?;
            let kept = unary!(@keep $saved, x, y);
            Ok(y.recorded(&[x], move |dy, _| {
                let dx = real!(OP, dy, T => {
                    let (d, s) = (dy.get::<T>(OP)?, kept.get::<T>(OP)?);
                    Ok(filled::<T>(&dy.shape, |dx| $backward(s, d, dx)))
                })?;
                Ok(vec![Some(dx)])
            }))
        }
    };
    (@keep input, $x:ident, $y:ident) => { $x.detach() };
    (@keep output, $x:ident, $y:ident) => { $y.detach() };
}

unary!(
    /// `x · sigmoid(x)`.
    silu, k::silu, k::silu_backward, saves input
);
unary!(
    /// Exact GELU: `x · Φ(x)` through the error function.
    gelu, k::gelu_erf, k::gelu_erf_backward, saves input
);
unary!(
    /// `1 / (1 + exp(-x))`.
    sigmoid, k::sigmoid, k::sigmoid_backward, saves output
);

/// Every value moved into `[low, high]`; the gradient is zero where it was moved.
///
/// # Errors
/// If the dtype is not f32 or f64.
pub fn clamp(x: &Tensor, low: f64, high: f64) -> Result<Tensor> {
    const OP: &str = "clamp";
    let kept = x.detach();
    real!(OP, x, T => {
        let (low, high) = (<T as k::Float>::from_f64(low), <T as k::Float>::from_f64(high));
        let bound = |v: T| if v < low { low } else if v > high { high } else { v };
        Ok(Tensor::owned(x.get::<T>(OP)?.iter().map(|&v| bound(v)).collect(), &x.shape))
    })
    .map(|y: Tensor| {
        y.recorded(&[x], move |dy, _| {
            let dx = real!(OP, dy, T => {
                let inside = |v: T| (low..=high).contains(&k::Float::to_f64(v));
                let pairs = kept.get::<T>(OP)?.iter().zip(dy.get::<T>(OP)?);
                let dx = pairs.map(|(&v, &d)| if inside(v) { d } else { T::default() }).collect();
                Ok(Tensor::owned(dx, &dy.shape))
            })?;
            Ok(vec![Some(dx)])
        })
    })
}

/// SwiGLU's product: `silu(gate) * up`, same shape.
///
/// # Errors
/// If shapes or dtypes differ.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    same_shape("swiglu", gate, up)?;
    let (sg, su) = (gate.detach(), up.detach());
    real!("swiglu", gate, T => {
        let (g, u) = (gate.get::<T>("swiglu")?, up.get::<T>("swiglu")?);
        Ok(filled::<T>(&gate.shape, |y| k::swiglu(g, u, y)))
    })
    .map(|y: Tensor| {
        y.recorded(&[gate, up], move |dy, needs| {
            real!("swiglu", dy, T => {
                let (g, u, d) = (sg.get::<T>("swiglu")?, su.get::<T>("swiglu")?, dy.get::<T>("swiglu")?);
                let mut dg = needs[0].then(|| T::buffer(d.len()));
                let mut du = needs[1].then(|| T::buffer(d.len()));
                k::swiglu_backward(g, u, d, dg.as_deref_mut(), du.as_deref_mut());
                Ok(vec![dg.map(|v| Tensor::owned(v, &dy.shape)), du.map(|v| Tensor::owned(v, &dy.shape))])
            })
        })
    })
}
