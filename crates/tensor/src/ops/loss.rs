//! Cross-entropy, plain and fused with the language-model head.

use super::real;
use crate::{
    error::{Result, TensorError, shape},
    storage::Real,
    tensor::Tensor,
};
use ounce_kernels::{self as k, Compute, Gemm, Mat};

fn check_targets(op: &'static str, targets: &[i64], rows: usize, vocabulary: usize) -> Result<usize> {
    if targets.len() != rows {
        return shape(op, "one target per row", (rows, targets.len()));
    }
    match targets.iter().find(|&&t| t < -1 || t >= vocabulary as i64) {
        Some(&index) => Err(TensorError::Index {
            op,
            index,
            bound: vocabulary,
        }),
        None => Ok(targets.iter().filter(|&&t| t >= 0).count()),
    }
}

/// Mean negative log-likelihood (nats) of `targets` under `logits [.., V]`; targets of -1 are ignored.
///
/// # Errors
/// If no target counts, or one is outside the vocabulary.
pub fn cross_entropy(logits: &Tensor, targets: &[i64]) -> Result<Tensor> {
    const OP: &str = "cross_entropy";
    let (rows, v) = (logits.rows(), logits.last_dim());
    let counted = check_targets(OP, targets, rows, v)?;
    if counted == 0 {
        return shape(OP, "at least one target is not ignored", rows);
    }
    let wants = logits.needs_grad();
    let (loss, gradient): (Tensor, Option<Tensor>) = real!(OP, logits, T => {
        let mut work = T::buffer(rows * v);
        work.copy_from_slice(logits.get::<T>(OP)?);
        let mut per_row = vec![T::default(); rows];
        k::cross_entropy_rows(&mut work, v, targets, &mut per_row, wants.then_some(1.0 / counted as f64));
        let loss = Tensor::scalar(<T as k::Float>::from_f64(k::sum(&per_row) / counted as f64));
        Ok((loss, wants.then(|| Tensor::owned(work, &logits.shape))))
    })?;
    let Some(gradient) = gradient else { return Ok(loss) };
    Ok(loss.recorded(&[logits], move |dy, _| {
        Ok(vec![Some(super::scale(&gradient, dy.item()?)?)])
    }))
}

/// Rows of logits that exist at one time in [`linear_cross_entropy`].
const CHUNK: usize = 512;

/// `cross_entropy(x Wᵀ, targets)` for `x [.., D]` and the head `W [V, D]`, without ever holding all logits: chunks of
/// rows are projected, scored and turned into their gradient at once, so that both gradients are complete when the loss
/// is known. Returns the mean loss in nats; targets of -1 are ignored.
///
/// # Errors
/// As for [`cross_entropy`].
pub fn linear_cross_entropy(x: &Tensor, w: &Tensor, targets: &[i64], compute: Compute) -> Result<Tensor> {
    const OP: &str = "linear_cross_entropy";
    let (rows, d) = (x.rows(), x.last_dim());
    let [v, w_in] = w.shape[..] else {
        return shape(OP, "the head is [V, D]", &w.shape);
    };
    if w_in != d {
        return shape(OP, "last dimension of x = in of the head", (&x.shape, &w.shape));
    }
    let counted = check_targets(OP, targets, rows, v)?;
    if counted == 0 {
        return shape(OP, "at least one target is not ignored", rows);
    }
    let (wants_x, wants_w) = (x.needs_grad(), w.needs_grad());
    let (loss, dx, dw): (Tensor, Option<Tensor>, Option<Tensor>) = real!(OP, x, T => {
        let xs = x.get::<T>(OP)?;
        let head = w.data(OP)?;
        let mut dx = wants_x.then(|| T::buffer(rows * d));
        let mut dw = wants_w.then(|| T::buffer(v * d));
        let mut logits = T::buffer(CHUNK.min(rows) * v);
        let mut per_row = vec![T::default(); rows];
        let scale = (wants_x || wants_w).then_some(1.0 / counted as f64);
        for (chunk, ((xs, targets), per_row)) in
            xs.chunks(CHUNK * d).zip(targets.chunks(CHUNK)).zip(per_row.chunks_mut(CHUNK)).enumerate()
        {
            let m = targets.len();
            let logits = &mut logits[..m * v];
            let x_rows = Mat { data: super::linear::data_of(xs), row_stride: d, col_stride: 1 };
            let b = Mat { data: head, row_stride: 1, col_stride: d };
            k::gemm(&mut [Gemm { m, n: v, k: d, a: x_rows, b, c: logits, ldc: v, accumulate: false }], compute);
            k::cross_entropy_rows(logits, v, targets, per_row, scale);
            if let Some(dx) = &mut dx {
                let a = Mat { data: super::linear::data_of(logits), row_stride: v, col_stride: 1 };
                let b = Mat { data: head, row_stride: d, col_stride: 1 };
                let c = &mut dx[chunk * CHUNK * d..][..m * d];
                k::gemm(&mut [Gemm { m, n: d, k: v, a, b, c, ldc: d, accumulate: false }], compute);
            }
            if let Some(dw) = &mut dw {
                let a = Mat { data: super::linear::data_of(logits), row_stride: 1, col_stride: v };
                k::gemm(&mut [Gemm { m: v, n: d, k: m, a, b: x_rows, c: dw, ldc: d, accumulate: chunk > 0 }], compute);
            }
        }
        let loss = Tensor::scalar(<T as k::Float>::from_f64(k::sum(&per_row) / counted as f64));
        Ok((loss, dx.map(|g| Tensor::owned(g, &x.shape)), dw.map(|g| Tensor::owned(g, &w.shape))))
    })?;
    Ok(loss.recorded(&[x, w], move |dy, _| {
        let upstream = dy.item()?;
        // The usual upstream gradient is one: then nothing is left to do.
        let scaled = |g: Option<Tensor>| match g {
            Some(g) if upstream == 1.0 => Ok(Some(g)),
            Some(g) => super::scale(&g, upstream).map(Some),
            None => Ok(None),
        };
        Ok(vec![scaled(dx)?, scaled(dw)?])
    }))
}
