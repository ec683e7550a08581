//! Rows picked, added and scaled by index (embeddings, routing), and conversions of whole buffers.
//!
//! Owns the order in which rows are added up, so that it never depends on threads. Knows nothing of experts or tokens.

use half::{bf16, f16};

use crate::{
    Data, Float,
    map::{Add, CHUNK, Product, Scale, map_here, rows_per_task, sum_here},
    parallel_chunks_mut, parallel_for,
    pool::SharedMut,
    reference,
    simd::{Vf32, kernel},
};

/// Columns of one task of [`scatter_add_rows`]: a few cache lines.
const COLUMNS: usize = 64;

/// y[i] = x[ids[i]]; `x`: [n, d], `y`: [ids, d].
///
/// # Panics
/// If the slices do not fit each other or an id is n or more.
pub fn gather_rows<T: Float>(x: &[T], d: usize, ids: &[usize], y: &mut [T]) {
    assert_eq!(y.len(), ids.len() * d, "y must be [ids, d]");
    check_ids(x.len(), d, ids);
    if d > 0 {
        let part = rows_per_task(d);
        parallel_chunks_mut(y, part * d, |i, y| {
            reference::rows::gather_rows(x, d, &ids[i * part..][..y.len() / d], y);
        });
    }
}

/// dst[ids[i]] += src[i], in the order of i; `src`: [ids, d], `dst`: [n, d].
///
/// # Panics
/// If the slices do not fit each other or an id is n or more.
pub fn scatter_add_rows<T: Float>(src: &[T], d: usize, ids: &[usize], dst: &mut [T]) {
    assert_eq!(src.len(), ids.len() * d, "src must be [ids, d]");
    check_ids(dst.len(), d, ids);
    if d == 0 {
        return;
    }
    let Some(src) = T::as_f32(src) else {
        return reference::rows::scatter_add_rows(src, d, ids, dst);
    };
    let dst = T::as_f32_mut(dst)
        .map(SharedMut::new)
        .expect("invariant: src and dst have one type");
    // Tasks share rows but not columns, so each sum has one writer and one order.
    parallel_for(d.div_ceil(COLUMNS), |i| add_columns(src, d, ids, &dst, i * COLUMNS));
}

kernel! {
    /// The columns `from`.. of all rows.
    fn add_columns(src: &[f32], d: usize, ids: &[usize], dst: &SharedMut<'_, f32>, from: usize) = add_columns_body;
}

#[inline(always)]
fn add_columns_body<V: Vf32>(src: &[f32], d: usize, ids: &[usize], dst: &SharedMut<'_, f32>, from: usize) {
    let n = COLUMNS.min(d - from);
    for (i, &id) in ids.iter().enumerate() {
        // SAFETY: these columns of every row belong to this task alone.
        let dst = unsafe { dst.slice(id * d + from, n) };
        map_here::<V, 1, _>(&Add, [&src[i * d + from..][..n]], dst);
    }
}

/// y[i] = x[i] * s[i]; `x`, `y`: [rows, d], `s`: [rows].
///
/// # Panics
/// If the slices do not fit each other.
pub fn scale_rows<T: Float>(x: &[T], d: usize, s: &[T], y: &mut [T]) {
    assert_eq!(x.len(), s.len() * d, "x must be [rows, d]");
    assert_eq!(y.len(), x.len(), "y must have x's shape");
    if d == 0 {
        return;
    }
    if let (Some(x), Some(s), Some(y)) = (T::as_f32(x), T::as_f32(s), T::as_f32_mut(y)) {
        let part = rows_per_task(d);
        return parallel_chunks_mut(y, part * d, |i, y| {
            scale_some(&x[i * part * d..][..y.len()], d, &s[i * part..][..y.len() / d], y);
        });
    }
    reference::rows::scale_rows(x, d, s, y);
}

kernel! { fn scale_some(x: &[f32], d: usize, s: &[f32], y: &mut [f32]) = scale_some_body; }

#[inline(always)]
fn scale_some_body<V: Vf32>(x: &[f32], d: usize, s: &[f32], y: &mut [f32]) {
    for ((x, y), &s) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)).zip(s) {
        map_here::<V, 1, _>(&Scale(s), [x], y);
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
        return out.fill(T::ZERO);
    }
    if let (Some(a), Some(b), Some(out)) = (T::as_f32(a), T::as_f32(b), T::as_f32_mut(out)) {
        let part = rows_per_task(d);
        return parallel_chunks_mut(out, part, |i, out| {
            let range = i * part * d..(i * part + out.len()) * d;
            dot_some(&a[range.clone()], &b[range], d, out);
        });
    }
    reference::rows::row_dots(a, b, d, out);
}

kernel! { fn dot_some(a: &[f32], b: &[f32], d: usize, out: &mut [f32]) = dot_some_body; }

#[inline(always)]
fn dot_some_body<V: Vf32>(a: &[f32], b: &[f32], d: usize, out: &mut [f32]) {
    for ((a, b), out) in a.chunks_exact(d).zip(b.chunks_exact(d)).zip(out) {
        *out = sum_here::<V, 2, _>(&Product, [a, b]);
    }
}

/// Converts to f32: exact for half precision and blocks, rounded for f64.
///
/// # Panics
/// If the lengths differ.
pub fn widen(src: Data<'_>, dst: &mut [f32]) {
    assert_eq!(src.len(), dst.len(), "source and destination must have one length");
    parallel_chunks_mut(dst, CHUNK, |i, dst| {
        let range = i * CHUNK..i * CHUNK + dst.len();
        match src {
            Data::F32(src) => dst.copy_from_slice(&src[range]),
            Data::F64(src) => {
                for (dst, &src) in dst.iter_mut().zip(&src[range]) {
                    *dst = src as f32;
                }
            }
            Data::Bf16(src) => widen_bf16(&src[range], dst),
            Data::F16(src) => widen_f16(&src[range], dst),
            Data::Blocks(src) => src.widen_from(range.start, dst),
        }
    });
}

kernel! { fn widen_bf16(src: &[bf16], dst: &mut [f32]) = widen_bf16_body; }
kernel! { fn widen_f16(src: &[f16], dst: &mut [f32]) = widen_f16_body; }
kernel! { fn narrow_bf16(src: &[f32], dst: &mut [bf16]) = narrow_bf16_body; }
kernel! { fn narrow_f16(src: &[f32], dst: &mut [f16]) = narrow_f16_body; }

/// Rounds to bf16, to nearest even.
///
/// # Panics
/// If the lengths differ.
pub fn to_bf16(src: &[f32], dst: &mut [bf16]) {
    assert_eq!(src.len(), dst.len(), "source and destination must have one length");
    parallel_chunks_mut(dst, CHUNK, |i, dst| narrow_bf16(&src[i * CHUNK..][..dst.len()], dst));
}

/// Rounds to f16, to nearest even; what is too large becomes infinite.
///
/// # Panics
/// If the lengths differ.
pub fn to_f16(src: &[f32], dst: &mut [f16]) {
    assert_eq!(src.len(), dst.len(), "source and destination must have one length");
    parallel_chunks_mut(dst, CHUNK, |i, dst| narrow_f16(&src[i * CHUNK..][..dst.len()], dst));
}

#[inline(always)]
fn widen_bf16_body<V: Vf32>(src: &[bf16], dst: &mut [f32]) {
    for (src, dst) in src.chunks(V::LANES).zip(dst.chunks_mut(V::LANES)) {
        if src.len() == V::LANES {
            V::load_bf16(src).store(dst);
        } else {
            V::load_bf16_partial(src).store_partial(dst);
        }
    }
}

#[inline(always)]
fn widen_f16_body<V: Vf32>(src: &[f16], dst: &mut [f32]) {
    for (src, dst) in src.chunks(V::LANES).zip(dst.chunks_mut(V::LANES)) {
        if src.len() == V::LANES {
            V::load_f16(src).store(dst);
        } else {
            V::load_f16_partial(src).store_partial(dst);
        }
    }
}

#[inline(always)]
fn narrow_bf16_body<V: Vf32>(src: &[f32], dst: &mut [bf16]) {
    for (src, dst) in src.chunks(V::LANES).zip(dst.chunks_mut(V::LANES)) {
        if src.len() == V::LANES {
            V::load(src).store_bf16(dst);
        } else {
            V::load_partial(src, 0.0).store_bf16_partial(dst);
        }
    }
}

#[inline(always)]
fn narrow_f16_body<V: Vf32>(src: &[f32], dst: &mut [f16]) {
    for (src, dst) in src.chunks(V::LANES).zip(dst.chunks_mut(V::LANES)) {
        if src.len() == V::LANES {
            V::load(src).store_f16(dst);
        } else {
            V::load_partial(src, 0.0).store_f16_partial(dst);
        }
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
