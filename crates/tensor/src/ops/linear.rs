//! Matrix products with weights stored as `[out, in]`.

use super::real;
use crate::{
    error::{Result, TensorError, shape},
    storage::Real,
    tensor::Tensor,
};
use ounce_kernels::{Compute, Data, Gemm, Mat, gemm};

/// A row-major `[rows, cols]` matrix as operand.
pub(super) fn rows_of(data: Data<'_>, cols: usize) -> Mat<'_> {
    Mat {
        data,
        row_stride: cols,
        col_stride: 1,
    }
}
/// The transpose of a row-major `[rows, cols]` matrix as operand.
pub(super) fn transposed(data: Data<'_>, cols: usize) -> Mat<'_> {
    Mat {
        data,
        row_stride: 1,
        col_stride: cols,
    }
}

fn check(op: &'static str, x: &Tensor, w: &Tensor) -> Result<(usize, usize)> {
    let [n, k] = w.shape[..] else {
        return shape(op, "weight is [out, in]", &w.shape);
    };
    if x.last_dim() != k || x.shape.is_empty() {
        return shape(op, "last dimension of x = in of the weight", (&x.shape, &w.shape));
    }
    if w.needs_grad() && w.dtype() != x.dtype() {
        return Err(TensorError::Dtype {
            op,
            rule: "a trained weight has the dtype of x",
            got: format!("{:?}", w.dtype()),
        });
    }
    Ok((n, k))
}

/// `dx = dy · W` for `dy [.., n]`, `W [n, k]`.
fn input_gradient(op: &'static str, dy: &Tensor, w: &Tensor, compute: Compute) -> Result<Tensor> {
    let (n, k, m) = (w.dim(0), w.dim(1), dy.rows());
    let mut dims = dy.shape.clone();
    if let Some(last) = dims.last_mut() {
        *last = k;
    }
    real!(op, dy, T => {
        let mut dx = T::buffer(m * k);
        let a = rows_of(dy.data(op)?, n);
        let b = rows_of(w.data(op)?, k);
        gemm(&mut [Gemm { m, n: k, k: n, a, b, c: &mut dx, ldc: k, accumulate: false }], compute);
        Ok(Tensor::owned(dx, &dims))
    })
}

/// `dW = dyᵀ · x` for `dy [.., n]`, `x [.., k]`.
fn weight_gradient(op: &'static str, dy: &Tensor, x: &Tensor, compute: Compute) -> Result<Tensor> {
    let (n, k, m) = (dy.last_dim(), x.last_dim(), dy.rows());
    real!(op, dy, T => {
        let mut dw = T::buffer(n * k);
        let a = transposed(dy.data(op)?, n);
        let b = rows_of(x.data(op)?, k);
        gemm(&mut [Gemm { m: n, n: k, k: m, a, b, c: &mut dw, ldc: k, accumulate: false }], compute);
        Ok(Tensor::owned(dw, &[n, k]))
    })
}

/// `y = x Wᵀ` for `x [.., in]` and `W [out, in]` of any float dtype.
///
/// # Errors
/// If shapes do not fit, or a trained weight has another dtype than `x`.
pub fn linear(x: &Tensor, w: &Tensor, compute: Compute) -> Result<Tensor> {
    let mut all = linear_many(x, &[w], compute)?;
    all.pop().ok_or(TensorError::Shape {
        op: "linear",
        rule: "one output per weight",
        got: String::new(),
    })
}

/// Several linear maps of one input in one parallel region (queries, keys and values; gate and up).
///
/// # Errors
/// As for [`linear`].
pub fn linear_many(x: &Tensor, weights: &[&Tensor], compute: Compute) -> Result<Vec<Tensor>> {
    const OP: &str = "linear";
    let m = x.rows();
    for w in weights {
        check(OP, x, w)?;
    }
    let outputs = real!(OP, x, T => {
        let mut buffers: Vec<Vec<T>> = weights.iter().map(|w| T::buffer(m * w.dim(0))).collect();
        let mut problems = Vec::with_capacity(weights.len());
        for (w, c) in weights.iter().zip(&mut buffers) {
            let (n, k) = (w.dim(0), w.dim(1));
            let (a, b) = (rows_of(x.data(OP)?, k), transposed(w.data(OP)?, k));
            problems.push(Gemm { m, n, k, a, b, c, ldc: n, accumulate: false });
        }
        gemm(&mut problems, compute);
        drop(problems);
        Ok(weights.iter().zip(buffers).map(|(w, y)| {
            let mut dims = x.shape.clone();
            if let Some(last) = dims.last_mut() {
                *last = w.dim(0);
            }
            Tensor::owned(y, &dims)
        }).collect::<Vec<_>>())
    })?;
    Ok(outputs
        .into_iter()
        .zip(weights)
        .map(|(y, w)| {
            // Only what the gradients will read is kept: a frozen weight's gradient never reads x.
            let kept_x = w.needs_grad().then(|| x.detach());
            let kept_w = x.needs_grad().then(|| w.detach());
            y.recorded(&[x, w], move |dy, _| {
                let dx = kept_w.map(|w| input_gradient(OP, &dy, &w, compute)).transpose()?;
                let dw = kept_x.map(|x| weight_gradient(OP, &dy, &x, compute)).transpose()?;
                Ok(vec![dx, dw])
            })
        })
        .collect())
}

/// Rows of `x [R, in]`, sorted into groups, each through its own weight: rows `offsets[e]..offsets[e+1]` through
/// `weights[e] [out, in]`. Returns `[R, out]`. This is the expert product of a mixture of experts.
///
/// # Errors
/// If the offsets are not a non-decreasing partition of the rows, or shapes differ.
pub fn grouped_linear(x: &Tensor, weights: &[&Tensor], offsets: &[usize], compute: Compute) -> Result<Tensor> {
    const OP: &str = "grouped_linear";
    let rows = x.rows();
    let partition = offsets.len() == weights.len() + 1
        && offsets.first() == Some(&0)
        && offsets.last() == Some(&rows)
        && offsets.is_sorted();
    if !partition || weights.is_empty() {
        return shape(
            OP,
            "offsets cut the rows into one group per weight",
            (rows, weights.len(), offsets),
        );
    }
    let (n, k) = check(OP, x, weights[0])?;
    for w in weights {
        if check(OP, x, w)? != (n, k) {
            return shape(OP, "all weights have one shape", (&weights[0].shape, &w.shape));
        }
    }
    let y: Tensor = real!(OP, x, T => {
        let xs = x.get::<T>(OP)?;
        let mut y = T::buffer(rows * n);
        let mut problems = Vec::with_capacity(weights.len());
        let mut rest = &mut y[..];
        for (e, w) in weights.iter().enumerate() {
            let (from, to) = (offsets[e], offsets[e + 1]);
            let (c, after) = rest.split_at_mut((to - from) * n);
            rest = after;
            if to > from {
                let a = rows_of(data_of(&xs[from * k..to * k]), k);
                problems.push(Gemm { m: to - from, n, k, a, b: transposed(w.data(OP)?, k), c, ldc: n, accumulate: false });
            }
        }
        gemm(&mut problems, compute);
        drop(problems);
        Ok(Tensor::owned(y, &[rows, n]))
    })?;
    let inputs: Vec<&Tensor> = std::iter::once(x).chain(weights.iter().copied()).collect();
    let kept_x = x.detach();
    let kept_w: Vec<Tensor> = weights.iter().map(|w| w.detach()).collect();
    let offsets = offsets.to_vec();
    Ok(y.recorded(&inputs, move |dy, needs| {
        let mut all = vec![None; kept_w.len() + 1];
        real!(OP, dy, T => {
            let (ds, xs) = (dy.get::<T>(OP)?, kept_x.get::<T>(OP)?);
            if needs[0] {
                let mut dx = T::buffer(rows * k);
                let mut problems = Vec::with_capacity(kept_w.len());
                group_inputs(OP, &kept_w, &offsets, (ds, n), (&mut dx, k), &mut problems)?;
                gemm(&mut problems, compute);
                drop(problems);
                all[0] = Some(Tensor::owned(dx, &[rows, k]));
            }
            let wanted: Vec<usize> = (0..kept_w.len()).filter(|&e| needs[e + 1]).collect();
            let mut buffers: Vec<Vec<T>> = wanted.iter().map(|_| T::buffer(n * k)).collect();
            let mut problems = Vec::with_capacity(wanted.len());
            for (&e, c) in wanted.iter().zip(&mut buffers) {
                let (from, to) = (offsets[e], offsets[e + 1]);
                let a = transposed(data_of(&ds[from * n..to * n]), n);
                let b = rows_of(data_of(&xs[from * k..to * k]), k);
                problems.push(Gemm { m: n, n: k, k: to - from, a, b, c, ldc: k, accumulate: false });
            }
            gemm(&mut problems, compute);
            drop(problems);
            for (e, dw) in wanted.into_iter().zip(buffers) {
                all[e + 1] = Some(Tensor::owned(dw, &[n, k]));
            }
            Ok(())
        })?;
        Ok(all)
    }))
}

/// For each group with rows, the product that makes its rows of `dx [R, k]` from those of `dy [R, n]` and its weight
/// `[n, k]`.
pub(super) fn group_inputs<'a, T: Real>(
    op: &'static str,
    weights: &'a [Tensor],
    offsets: &[usize],
    (dy, n): (&'a [T], usize),
    (dx, k): (&'a mut [T], usize),
    problems: &mut Vec<Gemm<'a, T>>,
) -> Result<()> {
    let mut rest = dx;
    for (w, group) in weights.iter().zip(offsets.windows(2)) {
        let (from, to) = (group[0], group[1]);
        let (c, after) = rest.split_at_mut((to - from) * k);
        rest = after;
        if to > from {
            let a = rows_of(data_of(&dy[from * n..to * n]), n);
            let b = rows_of(w.data(op)?, k);
            problems.push(Gemm {
                m: to - from,
                n: k,
                k: n,
                a,
                b,
                c,
                ldc: k,
                accumulate: false,
            });
        }
    }
    Ok(())
}

/// A slice of real numbers as kernel operand.
pub(super) fn data_of<T: Real>(values: &[T]) -> Data<'_> {
    T::data(values).expect("invariant: f32 and f64 are float types")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::{Gradients, gradcheck, ops};

    fn values(n: usize, seed: u64) -> Vec<f64> {
        (0..n)
            .map(|i| ((i as f64 + 1.3) * (seed as f64 + 0.7) * 1.618).sin())
            .collect()
    }

    #[test]
    fn linear_gradient_matches_finite_differences() {
        let x = Tensor::new(values(12, 1), &[2, 2, 3]).unwrap();
        let w = Tensor::new(values(15, 2), &[5, 3]).unwrap();
        let worst = gradcheck(&[x, w], |t| {
            let y = linear(&t[0], &t[1], Compute::F32)?;
            ops::sum(&ops::mul(&y, &y)?)
        })
        .unwrap();
        assert!(worst < 1e-8, "{worst}");
    }

    #[test]
    fn grouped_gradient_matches_finite_differences_with_an_empty_group() {
        let x = Tensor::new(values(15, 1), &[5, 3]).unwrap();
        let inputs = [
            x,
            Tensor::new(values(6, 2), &[2, 3]).unwrap(),
            Tensor::new(values(6, 3), &[2, 3]).unwrap(),
            Tensor::new(values(6, 4), &[2, 3]).unwrap(),
        ];
        let worst = gradcheck(&inputs, |t| {
            let y = grouped_linear(&t[0], &[&t[1], &t[2], &t[3]], &[0, 2, 2, 5], Compute::F32)?;
            ops::sum(&ops::mul(&y, &y)?)
        })
        .unwrap();
        assert!(worst < 1e-8, "{worst}");
    }

    #[test]
    fn frozen_weights_get_no_gradient_and_frozen_inputs_record_nothing() {
        let x = Tensor::new(vec![1f32; 6], &[2, 3]).unwrap();
        let frozen = Tensor::new(vec![1f32; 6], &[2, 3]).unwrap();
        let trained = Tensor::new(vec![0.5f32; 4], &[2, 2]).unwrap().requires_grad();
        let h = linear(&x, &frozen, Compute::F32).unwrap();
        assert!(!h.needs_grad(), "nothing is recorded below the first trained weight");
        let loss = ops::sum(&linear(&h, &trained, Compute::F32).unwrap()).unwrap();
        let mut gradients = Gradients::new();
        loss.backward(&mut gradients).unwrap();
        assert_eq!(gradients.len(), 1);
        assert!(gradients.get(&frozen).is_none());
        assert_eq!(gradients.get(&trained).unwrap().to_f32(), vec![6.0; 4]);
    }

    #[test]
    fn weights_in_blocks_multiply_look_up_and_pass_gradients_as_their_widened_copy() {
        use ounce_kernels::BlockKind;
        let bytes: Vec<u8> = (0..3 * 2 * 34)
            .map(|i| if i % 34 == 1 { 36 } else { (i * 7) as u8 })
            .collect();
        let blocks = Tensor::from_le_bytes(&bytes, DType::Blocks(BlockKind::Q8_0), &[3, 64]).unwrap();
        let wide = blocks.cast(DType::F32).unwrap();
        assert!(wide.to_f32().iter().any(|&v| v != 0.0));
        let x = Tensor::new(values(2 * 64, 5).iter().map(|&v| v as f32).collect(), &[2, 64]).unwrap();
        let run = |w: &Tensor| {
            let x = x.clone().requires_grad();
            let y = linear(&x, w, Compute::F32).unwrap();
            let mut gradients = Gradients::new();
            let loss = ops::linear_cross_entropy(&x, w, &[2, 0], Compute::F32).unwrap();
            ops::add(&loss, &ops::sum(&y).unwrap())
                .unwrap()
                .backward(&mut gradients)
                .unwrap();
            let rows = ops::embedding(w, &[2, 0, 2], &[3]).unwrap();
            let part = ops::narrow_rows(w, 1, 3).unwrap();
            let pieces = [y, gradients.get(&x).unwrap().clone(), loss, rows].map(|t| t.to_f32());
            (pieces, part.to_f32(), w.piece(30, 70))
        };
        assert_eq!(run(&blocks), run(&wide));
        assert_eq!(ops::narrow_rows(&blocks, 2, 3).unwrap().bytes(), &bytes[2 * 2 * 34..]);
        assert!(Tensor::from_le_bytes(&bytes, DType::Blocks(BlockKind::Q8_0), &[6, 31]).is_err());
        assert!(ops::reshape(&blocks, &[12, 16]).is_err());
        assert!(
            ops::add(&blocks, &blocks).is_err(),
            "blocks are for products and lookups"
        );
    }

    #[test]
    fn a_bf16_weight_multiplies_as_its_widened_copy() {
        let x = Tensor::new(values(8 * 40, 5).iter().map(|&v| v as f32).collect(), &[8, 40]).unwrap();
        let w = Tensor::new(values(24 * 40, 6).iter().map(|&v| v as f32).collect(), &[24, 40])
            .unwrap()
            .cast(DType::BF16)
            .unwrap();
        let wide = w.cast(DType::F32).unwrap();
        let (a, b) = (
            linear(&x, &w, Compute::F32).unwrap(),
            linear(&x, &wide, Compute::F32).unwrap(),
        );
        for (p, q) in a.to_f32().iter().zip(b.to_f32()) {
            assert!((p - q).abs() < 1e-5);
        }
    }
}
