//! RMS normalisation, row by row.

use crate::Float;

/// See [`crate::rms_norm`].
pub(crate) fn rms_norm<T: Float>(x: &[T], w: &[T], eps: f64, y: &mut [T], mut rstd: Option<&mut [T]>) {
    let d = w.len();
    for (r, (x, y)) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)).enumerate() {
        let squares = x.iter().fold(T::ZERO, |a, &x| a + x * x);
        let scale = T::ONE / (squares / T::from_f64(d as f64) + T::from_f64(eps)).sqrt();
        for ((y, &x), &w) in y.iter_mut().zip(x).zip(w) {
            *y = x * scale * w;
        }
        if let Some(rstd) = rstd.as_deref_mut() {
            rstd[r] = scale;
        }
    }
}

/// See [`crate::rms_norm_backward`]. With s = rstd: dx = s * (w dy - x * s^2 * mean(w dy x)), dw = sum over rows of dy x s.
pub(crate) fn rms_norm_backward<T: Float>(
    x: &[T],
    w: &[T],
    rstd: &[T],
    dy: &[T],
    mut dx: Option<&mut [T]>,
    mut dw: Option<&mut [T]>,
) {
    let d = w.len();
    if let Some(dw) = dw.as_deref_mut() {
        dw.fill(T::ZERO);
    }
    for (r, &s) in rstd.iter().enumerate() {
        let (x, dy) = (&x[r * d..][..d], &dy[r * d..][..d]);
        if let Some(dx) = dx.as_deref_mut() {
            let dot = (0..d).fold(T::ZERO, |a, i| a + w[i] * dy[i] * x[i]);
            let pull = s * s * dot / T::from_f64(d as f64);
            for i in 0..d {
                dx[r * d + i] = s * (w[i] * dy[i] - x[i] * pull);
            }
        }
        if let Some(dw) = dw.as_deref_mut() {
            for i in 0..d {
                dw[i] += dy[i] * x[i] * s;
            }
        }
    }
}
