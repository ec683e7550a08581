//! Normalisations along the last dimension.

use super::real;
use crate::{
    error::{Result, shape},
    storage::Real,
    tensor::Tensor,
};
use ounce_kernels as k;

/// RMSNorm: `x / sqrt(mean(x²) + eps) * w`, over the last dimension of `x [.., D]`, `w [D]` of any float dtype.
///
/// # Errors
/// If the weight is not as long as the last dimension.
pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor> {
    const OP: &str = "rms_norm";
    if w.shape != [x.last_dim()] {
        return shape(OP, "weight has the last dimension of x", (&x.shape, &w.shape));
    }
    let kept_w = w.cast(x.dtype())?;
    let kept_x = x.detach();
    let needs = x.needs_grad() || w.needs_grad();
    let (y, rstd) = real!(OP, x, T => {
        let mut y = T::buffer(x.numel());
        let mut rstd = needs.then(|| T::buffer(x.rows()));
        k::rms_norm(x.get::<T>(OP)?, kept_w.get::<T>(OP)?, eps, &mut y, rstd.as_deref_mut());
        Ok((Tensor::owned(y, &x.shape), rstd.map(|r| Tensor::owned(r, &[x.rows()]))))
    })?;
    let Some(rstd) = rstd else { return Ok(y) };
    Ok(y.recorded(&[x, w], move |dy, needs| {
        real!(OP, dy, T => {
            let mut dx = needs[0].then(|| T::buffer(dy.numel()));
            let mut dw = needs[1].then(|| T::buffer(dy.last_dim()));
            k::rms_norm_backward(
                kept_x.get::<T>(OP)?, kept_w.get::<T>(OP)?, rstd.get::<T>(OP)?, dy.get::<T>(OP)?,
                dx.as_deref_mut(), dw.as_deref_mut(),
            );
            Ok(vec![dx.map(|v| Tensor::owned(v, &dy.shape)), dw.map(|v| Tensor::owned(v, &[dy.last_dim()]))])
        })
    }))
}

macro_rules! softmax_like {
    ($(#[$doc:meta])* $name:ident, $forward:path, $backward:path) => {
        $(#[$doc])*
        ///
        /// # Errors
        /// If the dtype is not f32 or f64.
        pub fn $name(x: &Tensor) -> Result<Tensor> {
            const OP: &str = stringify!($name);
            let n = x.last_dim();
            let y: Tensor = real!(OP, x, T => {
                let mut y = T::buffer(x.numel());
                $forward(x.get::<T>(OP)?, n, &mut y);
                Ok(Tensor::owned(y, &x.shape))
            })?;
            let kept = y.detach();
            Ok(y.recorded(&[x], move |dy, _| {
                let dx = real!(OP, dy, T => {
                    let mut dx = T::buffer(dy.numel());
                    $backward(kept.get::<T>(OP)?, dy.get::<T>(OP)?, n, &mut dx);
                    Ok(Tensor::owned(dx, &dy.shape))
                })?;
                Ok(vec![Some(dx)])
            }))
        }
    };
}
softmax_like!(
    /// Softmax over the last dimension.
    softmax, k::softmax, k::softmax_backward
);
softmax_like!(
    /// Logarithm of the softmax over the last dimension (natural log).
    log_softmax, k::log_softmax, k::log_softmax_backward
);

/// Divides each row by its sum: `x [N, n] / sum over n`. Rows must have a positive sum.
///
/// # Errors
/// If the dtype is not f32 or f64.
pub fn normalize_rows(x: &Tensor) -> Result<Tensor> {
    const OP: &str = "normalize_rows";
    let n = x.last_dim();
    let y: Tensor = real!(OP, x, T => {
        let xs = x.get::<T>(OP)?;
        let mut y = T::buffer(xs.len());
        for (row, out) in xs.chunks_exact(n).zip(y.chunks_exact_mut(n)) {
            let sum = row.iter().fold(0.0, |s, &v| s + v);
            for (o, &v) in out.iter_mut().zip(row) {
                *o = v / sum;
            }
        }
        Ok(Tensor::owned(y, &x.shape))
    })?;
    let (kept_x, kept_y) = (x.detach(), y.detach());
    Ok(y.recorded(&[x], move |dy, _| {
        // y = x/s: dx_j = (dy_j - sum_i dy_i y_i) / s
        let dx = real!(OP, dy, T => {
            let (xs, ys, ds) = (kept_x.get::<T>(OP)?, kept_y.get::<T>(OP)?, dy.get::<T>(OP)?);
            let mut dx = T::buffer(ds.len());
            for (((row, out), d), y) in
                xs.chunks_exact(n).zip(dx.chunks_exact_mut(n)).zip(ds.chunks_exact(n)).zip(ys.chunks_exact(n))
            {
                let zero = 0.0;
                let sum = row.iter().fold(zero, |s, &v| s + v);
                let dot = d.iter().zip(y).fold(zero, |s, (&a, &b)| s + a * b);
                for (o, &g) in out.iter_mut().zip(d) {
                    *o = (g - dot) / sum;
                }
            }
            Ok(Tensor::owned(dx, &dy.shape))
        })?;
        Ok(vec![Some(dx)])
    }))
}

/// L2 norm of each row: `x [.., D]` gives `[rows]`. The norm has no gradient at a row of zeros; zero is used there.
///
/// # Errors
/// If the dtype is not f32 or f64.
pub fn row_norms(x: &Tensor) -> Result<Tensor> {
    const OP: &str = "row_norms";
    let d = x.last_dim();
    let y: Tensor = real!(OP, x, T => {
        let xs = x.get::<T>(OP)?;
        let mut y = T::buffer(x.rows());
        k::row_dots(xs, xs, d, &mut y);
        for v in &mut y {
            *v = v.sqrt();
        }
        Ok(Tensor::owned(y, &[x.rows()]))
    })?;
    let (kept_x, kept_y) = (x.detach(), y.detach());
    Ok(y.recorded(&[x], move |dy, _| {
        let factor: Tensor = real!(OP, dy, T => {
            let pairs = dy.get::<T>(OP)?.iter().zip(kept_y.get::<T>(OP)?);
            let factor = pairs.map(|(&d, &y)| if y > 0.0 { d / y } else { 0.0 }).collect();
            Ok(Tensor::owned(factor, &dy.shape))
        })?;
        Ok(vec![Some(super::scale_rows(&kept_x, &factor)?)])
    }))
}
