//! RMS normalisation and its gradient.
//!
//! Owns the reduction over each row; knows nothing of what a row means (a token, or a head for q/k norms).

use crate::{
    Float,
    elementwise::sums::{add_partials, partial_rows},
    map::{Map, Product, map_here, rows_per_task, sum_here},
    parallel_for,
    pool::SharedMut,
    reference,
    simd::{Vf32, kernel},
};

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
    if rows == 0 {
        return;
    }
    let (Some(x), Some(w)) = (T::as_f32(x), T::as_f32(w)) else {
        return reference::norm::rms_norm(x, w, eps, y, rstd);
    };
    let y = T::as_f32_mut(y)
        .map(SharedMut::new)
        .expect("invariant: x and y have one type");
    let rstd = rstd.and_then(T::as_f32_mut).map(SharedMut::new);
    let (d, part) = (w.len(), rows_per_task(w.len()));
    parallel_for(rows.div_ceil(part), |i| {
        let (start, n) = (i * part, part.min(rows - i * part));
        // SAFETY: every row of y belongs to one task.
        let y = unsafe { y.slice(start * d, n * d) };
        // SAFETY: every entry of rstd belongs to one task.
        let rstd = rstd.as_ref().map(|rstd| unsafe { rstd.slice(start, n) });
        norm_rows(&x[start * d..(start + n) * d], w, eps as f32, y, rstd);
    });
}

/// x * scale * w
struct Normed(f32);
impl Map<2> for Normed {
    #[inline(always)]
    fn at<V: Vf32>(&self, [x, w]: [V; 2], _old: V) -> V {
        x.mul(V::splat(self.0)).mul(w)
    }
}

/// scale * (w * dy - x * pull)
struct NormSlope {
    scale: f32,
    pull: f32,
}
impl Map<3> for NormSlope {
    #[inline(always)]
    fn at<V: Vf32>(&self, [x, w, dy]: [V; 3], _old: V) -> V {
        w.mul(dy).sub(x.mul(V::splat(self.pull))).mul(V::splat(self.scale))
    }
}

/// Adds x * dy * scale.
struct WeightSlope(f32);
impl Map<2> for WeightSlope {
    #[inline(always)]
    fn at<V: Vf32>(&self, [x, dy]: [V; 2], old: V) -> V {
        x.mul(V::splat(self.0)).fma(dy, old)
    }
}

kernel! { fn norm_rows(x: &[f32], w: &[f32], eps: f32, y: &mut [f32], rstd: Option<&mut [f32]>) = norm_body; }

#[inline(always)]
fn norm_body<V: Vf32>(x: &[f32], w: &[f32], eps: f32, y: &mut [f32], mut rstd: Option<&mut [f32]>) {
    let d = w.len();
    for (r, (x, y)) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)).enumerate() {
        let scale = 1.0 / (sum_here::<V, 2, _>(&Product, [x, x]) / d as f32 + eps).sqrt();
        map_here::<V, 2, _>(&Normed(scale), [x, w], y);
        if let Some(rstd) = &mut rstd {
            rstd[r] = scale;
        }
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
    let f32s = (T::as_f32(x), T::as_f32(w), T::as_f32(rstd), T::as_f32(dy));
    let (Some(x), Some(w), Some(rstd), Some(dy)) = f32s else {
        return reference::norm::rms_norm_backward(x, w, rstd, dy, dx, dw);
    };
    let (d, rows) = (w.len(), rstd.len());
    let dx = dx.and_then(T::as_f32_mut).map(SharedMut::new);
    let run = |start: usize, n: usize, dw: Option<&mut [f32]>| {
        let part = start * d..(start + n) * d;
        // SAFETY: every row of dx belongs to one task.
        let dx = dx.as_ref().map(|dx| unsafe { dx.slice(part.start, part.len()) });
        norm_backward_rows(&x[part.clone()], w, &rstd[start..start + n], &dy[part], dx, dw);
    };
    if d == 0 {
        return;
    }
    if let Some(dw) = dw.and_then(T::as_f32_mut) {
        let part = partial_rows(rows, d);
        add_partials(d, rows.div_ceil(part), dw, |i, dw| {
            run(i * part, part.min(rows - i * part), Some(dw))
        });
    } else {
        let part = rows_per_task(d);
        parallel_for(rows.div_ceil(part), |i| run(i * part, part.min(rows - i * part), None));
    }
}

kernel! {
    /// The gradients of some rows; what they give to dw is added there.
    fn norm_backward_rows(
        x: &[f32],
        w: &[f32],
        rstd: &[f32],
        dy: &[f32],
        dx: Option<&mut [f32]>,
        dw: Option<&mut [f32]>,
    ) = norm_backward_body;
}

#[inline(always)]
fn norm_backward_body<V: Vf32>(
    x: &[f32],
    w: &[f32],
    rstd: &[f32],
    dy: &[f32],
    mut dx: Option<&mut [f32]>,
    mut dw: Option<&mut [f32]>,
) {
    let d = w.len();
    for ((r, &scale), (x, dy)) in rstd.iter().enumerate().zip(x.chunks_exact(d).zip(dy.chunks_exact(d))) {
        if let Some(dx) = &mut dx {
            let pull = scale * scale * sum_here::<V, 3, _>(&Product, [w, dy, x]) / d as f32;
            map_here::<V, 3, _>(&NormSlope { scale, pull }, [x, w, dy], &mut dx[r * d..(r + 1) * d]);
        }
        if let Some(dw) = &mut dw {
            map_here::<V, 2, _>(&WeightSlope(scale), [x, dy], dw);
        }
    }
}

/// How many rows of `d` values `len` values are; none if there are no values.
fn row_count(len: usize, d: usize) -> usize {
    assert!(
        len == 0 || (d > 0 && len.is_multiple_of(d)),
        "{len} values are not whole rows of {d}"
    );
    len.checked_div(d).unwrap_or(0)
}
