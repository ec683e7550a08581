//! The grouped product of experts whose weights lie in one tensor, for a result that is at hand already.

use super::{
    linear::{data_of, group_inputs, rows_of, transposed},
    narrow_rows, real,
};
use crate::{
    error::{Result, TensorError, shape},
    storage::Real,
    tensor::Tensor,
};
use ounce_kernels::{Compute, Gemm, gemm};

/// Records that `y [R, out]` is the product of the rows of `x [R, in]`, sorted into groups, with the weights `w [E·out,
/// in]`: rows `offsets[e]..offsets[e+1]` of `x` with rows `e·out..(e+1)·out` of `w`. Nothing is multiplied now: the
/// caller took `y` out of a larger product. The gradients cost the arithmetic of the R rows only, and `x` is all they
/// keep.
///
/// # Errors
/// If the offsets are not a non-decreasing partition of the rows, or shapes or dtypes do not fit.
pub fn known_grouped_linear(x: &Tensor, w: &Tensor, offsets: &[usize], y: &Tensor, compute: Compute) -> Result<Tensor> {
    const OP: &str = "known_grouped_linear";
    let (rows, k, n) = (x.rows(), x.last_dim(), y.last_dim());
    let groups = offsets.len().saturating_sub(1);
    let partition = groups > 0 && offsets[0] == 0 && offsets[groups] == rows && offsets.is_sorted();
    if !partition || w.shape != [groups * n, k] || y.shape != [rows, n] {
        return shape(
            OP,
            "offsets cut the rows into groups, w is [groups·out, in], y [rows, out]",
            (&x.shape, &w.shape, &y.shape, offsets),
        );
    }
    if w.needs_grad() && w.dtype() != x.dtype() {
        return Err(TensorError::Dtype {
            op: OP,
            rule: "a trained weight has the dtype of x",
            got: format!("{:?}", w.dtype()),
        });
    }
    if !x.needs_grad() && !w.needs_grad() {
        return Ok(y.detach());
    }
    let kept_x = x.detach();
    let slices = (0..groups)
        .map(|e| narrow_rows(&w.detach(), e * n, (e + 1) * n))
        .collect::<Result<Vec<_>>>()?;
    let offsets = offsets.to_vec();
    Ok(y.detach().recorded(&[x, w], move |dy, needs| {
        real!(OP, dy, T => {
            let (ds, xs) = (dy.get::<T>(OP)?, kept_x.get::<T>(OP)?);
            let mut dx = needs[0].then(|| T::buffer(rows * k));
            let mut dw = needs[1].then(|| T::buffer(groups * n * k));
            let mut problems = Vec::with_capacity(2 * groups);
            if let Some(dx) = &mut dx {
                group_inputs(OP, &slices, &offsets, (ds, n), (dx, k), &mut problems)?;
            }
            for (e, c) in dw.iter_mut().flat_map(|dw| dw.chunks_exact_mut((n * k).max(1))).enumerate() {
                let (from, to) = (offsets[e], offsets[e + 1]);
                let a = transposed(data_of(&ds[from * n..to * n]), n);
                let b = rows_of(data_of(&xs[from * k..to * k]), k);
                problems.push(Gemm { m: n, n: k, k: to - from, a, b, c, ldc: k, accumulate: false });
            }
            gemm(&mut problems, compute);
            drop(problems);
            Ok(vec![
                dx.map(|v| Tensor::owned(v, &kept_x.shape)),
                dw.map(|v| Tensor::owned(v, &[groups * n, k])),
            ])
        })
    }))
}
