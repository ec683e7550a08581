//! Rows picked, added and scaled by index (embeddings, routing), and conversions of whole buffers.
//!
//! Owns the order in which rows are added up, so that it never depends on threads. Knows nothing of experts or tokens.

use half::{bf16, f16};

use crate::{Data, Float, reference};

/// y[i] = x[ids[i]]; `x`: [n, d], `y`: [ids, d].
///
/// # Panics
/// If the slices do not fit each other or an id is n or more.
pub fn gather_rows<T: Float>(x: &[T], d: usize, ids: &[usize], y: &mut [T]) {
    assert_eq!(y.len(), ids.len() * d, "y must be [ids, d]");
    check_ids(x.len(), d, ids);
    if d > 0 {
        reference::rows::gather_rows(x, d, ids, y);
    }
}

/// dst[ids[i]] += src[i], in the order of i; `src`: [ids, d], `dst`: [n, d].
///
/// # Panics
/// If the slices do not fit each other or an id is n or more.
pub fn scatter_add_rows<T: Float>(src: &[T], d: usize, ids: &[usize], dst: &mut [T]) {
    assert_eq!(src.len(), ids.len() * d, "src must be [ids, d]");
    check_ids(dst.len(), d, ids);
    if d > 0 {
        reference::rows::scatter_add_rows(src, d, ids, dst);
    }
}

/// y[i] = x[i] * s[i]; `x`, `y`: [rows, d], `s`: [rows].
///
/// # Panics
/// If the slices do not fit each other.
pub fn scale_rows<T: Float>(x: &[T], d: usize, s: &[T], y: &mut [T]) {
    assert_eq!(x.len(), s.len() * d, "x must be [rows, d]");
    assert_eq!(y.len(), x.len(), "y must have x's shape");
    if d > 0 {
        reference::rows::scale_rows(x, d, s, y);
    }
}

/// out[i] = a[i] · b[i]; `a`, `b`: [rows, d], `out`: [rows].
///
/// # Panics
/// If the slices do not fit each other.
pub fn row_dots<T: Float>(a: &[T], b: &[T], d: usize, out: &mut [T]) {
    assert_eq!(a.len(), out.len() * d, "a must be [rows, d]");
    assert_eq!(b.len(), a.len(), "b must have a's shape");
    if d == 0 {
        out.fill(T::ZERO);
    } else {
        reference::rows::row_dots(a, b, d, out);
    }
}

/// Converts to f32: exact for half precision, rounded for f64.
///
/// # Panics
/// If the lengths differ.
pub fn widen(src: Data<'_>, dst: &mut [f32]) {
    fn each<S: Copy>(src: &[S], dst: &mut [f32], f: impl Fn(S) -> f32) {
        assert_eq!(src.len(), dst.len(), "source and destination must have one length");
        for (dst, &src) in dst.iter_mut().zip(src) {
            *dst = f(src);
        }
    }
    match src {
        Data::F32(src) => each(src, dst, |x| x),
        Data::F64(src) => each(src, dst, |x| x as f32),
        Data::Bf16(src) => each(src, dst, bf16::to_f32),
        Data::F16(src) => each(src, dst, f16::to_f32),
    }
}

/// Rounds to bf16, to nearest even.
///
/// # Panics
/// If the lengths differ.
pub fn to_bf16(src: &[f32], dst: &mut [bf16]) {
    assert_eq!(src.len(), dst.len(), "source and destination must have one length");
    for (dst, &src) in dst.iter_mut().zip(src) {
        *dst = bf16::from_f32(src);
    }
}

/// Rounds to f16, to nearest even; what is too large becomes infinite.
///
/// # Panics
/// If the lengths differ.
pub fn to_f16(src: &[f32], dst: &mut [f16]) {
    assert_eq!(src.len(), dst.len(), "source and destination must have one length");
    for (dst, &src) in dst.iter_mut().zip(src) {
        *dst = f16::from_f32(src);
    }
}

fn check_ids(len: usize, d: usize, ids: &[usize]) {
    let n = len.checked_div(d).unwrap_or(0);
    assert_eq!(len, n * d, "{len} values are not whole rows of {d}");
    if d > 0 {
        for &id in ids {
            assert!(id < n, "row {id} of a matrix of {n} rows");
        }
    }
}
