//! RMS normalisation and its gradient.
//!
//! Owns the reduction over each row; knows nothing of what a row means (a token, or a head for q/k norms).

use crate::{Float, reference};

/// y = x / sqrt(mean(x²) + eps) * w, row by row.
///
/// `x`, `y`: [rows, d]; `w`: [d]; `rstd`: [rows], 1 / sqrt(mean(x²) + eps), which [`rms_norm_backward`] needs.
///
/// # Panics
/// If the slices do not fit each other.
pub fn rms_norm<T: Float>(x: &[T], w: &[T], eps: f64, y: &mut [T], rstd: Option<&mut [T]>) {
    let rows = row_count(x.len(), w.len());
    assert_eq!(y.len(), x.len(), "y must have x's shape");
    if let Some(rstd) = &rstd {
        assert_eq!(rstd.len(), rows, "rstd must have one entry per row");
    }
    if rows > 0 {
        reference::norm::rms_norm(x, w, eps, y, rstd);
    }
}

/// Gradients of [`rms_norm`] with respect to x and w; overwrites `dx` [rows, d] and `dw` [d].
///
/// # Panics
/// If the slices do not fit each other.
pub fn rms_norm_backward<T: Float>(x: &[T], w: &[T], rstd: &[T], dy: &[T], dx: Option<&mut [T]>, dw: Option<&mut [T]>) {
    assert_eq!(
        rstd.len(),
        row_count(x.len(), w.len()),
        "rstd must have one entry per row"
    );
    assert_eq!(dy.len(), x.len(), "dy must have x's shape");
    if let Some(dx) = &dx {
        assert_eq!(dx.len(), x.len(), "dx must have x's shape");
    }
    if let Some(dw) = &dw {
        assert_eq!(dw.len(), w.len(), "dw must have w's shape");
    }
    reference::norm::rms_norm_backward(x, w, rstd, dy, dx, dw);
}

/// How many rows of `d` values `len` values are; none if there are no values.
fn row_count(len: usize, d: usize) -> usize {
    assert!(
        len == 0 || (d > 0 && len.is_multiple_of(d)),
        "{len} values are not whole rows of {d}"
    );
    len.checked_div(d).unwrap_or(0)
}
