//! Rows picked, added and scaled by index.

use crate::Float;

/// See [`crate::gather_rows`].
pub(crate) fn gather_rows<T: Float>(x: &[T], d: usize, ids: &[usize], y: &mut [T]) {
    for (&id, y) in ids.iter().zip(y.chunks_exact_mut(d)) {
        y.copy_from_slice(&x[id * d..][..d]);
    }
}

/// See [`crate::scatter_add_rows`].
pub(crate) fn scatter_add_rows<T: Float>(src: &[T], d: usize, ids: &[usize], dst: &mut [T]) {
    for (&id, src) in ids.iter().zip(src.chunks_exact(d)) {
        for (dst, &src) in dst[id * d..][..d].iter_mut().zip(src) {
            *dst += src;
        }
    }
}

/// See [`crate::scale_rows`].
pub(crate) fn scale_rows<T: Float>(x: &[T], d: usize, s: &[T], y: &mut [T]) {
    for ((x, y), &s) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)).zip(s) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x * s;
        }
    }
}

/// See [`crate::row_dots`].
pub(crate) fn row_dots<T: Float>(a: &[T], b: &[T], d: usize, out: &mut [T]) {
    for ((a, b), out) in a.chunks_exact(d).zip(b.chunks_exact(d)).zip(out) {
        *out = a.iter().zip(b).fold(T::ZERO, |sum, (&a, &b)| sum + a * b);
    }
}
