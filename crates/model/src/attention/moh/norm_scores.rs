//! Scores of the parameter-free router: `p = softmax(n / std(n))` of the norms n of the routed heads' queries, and their
//! gradient.

use crate::error::Result;
use ounce_kernels::Float;
use ounce_tensor::{DType, Element, Tensor, TensorError};

/// L2 norm of each row of `hd` values.
pub(super) fn norms<T: Float>(q: &[T], hd: usize) -> Vec<f32> {
    q.chunks_exact(hd).map(|row| norm(row).to_f64() as f32).collect()
}

fn norm<T: Float>(row: &[T]) -> T {
    row.iter().fold(T::ZERO, |s, &x| x.mul_add(x, s)).sqrt()
}

/// A spread of norms below this share of their mean carries no preference: scores are uniform and pass no gradient.
const NO_SPREAD: f64 = 1e-6;

/// `softmax(n / std(n)) [N,h_r]` of the norms n of heads `from..` of `q [N·H,hd]`; std is unbiased.
pub(super) fn norm_scores(q: &Tensor, heads: usize, from: usize) -> Result<Tensor> {
    match q.dtype() {
        DType::F64 => norm_scores_of::<f64>(q, heads, from),
        _ => norm_scores_of::<f32>(q, heads, from),
    }
}

fn norm_scores_of<T: Float + Element>(q: &Tensor, heads: usize, from: usize) -> Result<Tensor> {
    let (hd, hr) = (q.last_dim(), heads - from);
    let values = q.values::<T>().ok_or_else(|| TensorError::Dtype {
        op: "norm_scores",
        rule: "f32 or f64 queries",
        got: format!("{:?}", q.dtype()),
    })?;
    let tokens = q.rows() / heads;
    let mut scores = vec![T::ZERO; tokens * hr];
    // Norms and their standard deviation, kept for the gradient.
    let mut kept = Vec::with_capacity(tokens);
    for (token, scores) in values.chunks_exact(heads * hd).zip(scores.chunks_exact_mut(hr)) {
        let n: Vec<T> = token[from * hd..].chunks_exact(hd).map(norm).collect();
        let std = spread(&n);
        for (score, &n) in scores.iter_mut().zip(&n) {
            *score = std.map_or(T::ZERO, |std| n / std);
        }
        softmax_in_place(scores);
        kept.push((n, std));
    }
    let scores = Tensor::new(scores, &[tokens, hr])?;
    let (p, q_kept) = (scores.detach(), q.detach());
    Ok(scores.recorded(&[q], move |dy, _| {
        let missing = || TensorError::Dtype {
            op: "norm_scores",
            rule: "one dtype throughout",
            got: format!("{:?}", dy.dtype()),
        };
        let dp = dy.values::<T>().ok_or_else(missing)?;
        let p = p.values::<T>().ok_or_else(missing)?;
        let values = q_kept.values::<T>().ok_or_else(missing)?;
        let mut dq = vec![T::ZERO; values.len()];
        for (t, (n, std)) in kept.iter().enumerate() {
            let Some(std) = *std else { continue };
            let (p, dp) = (&p[t * hr..(t + 1) * hr], &dp[t * hr..(t + 1) * hr]);
            let mean_dp = p.iter().zip(dp).fold(T::ZERO, |s, (&p, &d)| s + p * d);
            let dz: Vec<T> = p.iter().zip(dp).map(|(&p, &d)| p * (d - mean_dp)).collect();
            let count = T::from_f64(hr as f64);
            let mean = n.iter().fold(T::ZERO, |s, &n| s + n) / count;
            // z = n / std, and std itself moves with every n: d std / d n_i = (n_i - mean) / ((h_r - 1) std).
            let along = dz.iter().zip(n).fold(T::ZERO, |s, (&d, &n)| s + d * n) / (std * std);
            for i in 0..hr {
                let dn = dz[i] / std - along * (n[i] - mean) / ((count - T::ONE) * std);
                if n[i] > T::ZERO {
                    let at = (t * heads + from + i) * hd;
                    for c in at..at + hd {
                        dq[c] = dn * values[c] / n[i];
                    }
                }
            }
        }
        Ok(vec![Some(Tensor::new(dq, q_kept.shape())?)])
    }))
}

/// Unbiased standard deviation; none where it means nothing.
fn spread<T: Float>(n: &[T]) -> Option<T> {
    if n.len() < 2 {
        return None;
    }
    let count = T::from_f64(n.len() as f64);
    let mean = n.iter().fold(T::ZERO, |s, &n| s + n) / count;
    let squares = n.iter().fold(T::ZERO, |s, &n| s + (n - mean) * (n - mean));
    let std = (squares / (count - T::ONE)).sqrt();
    (std > mean * T::from_f64(NO_SPREAD)).then_some(std)
}

fn softmax_in_place<T: Float>(row: &mut [T]) {
    let max = row.iter().fold(T::NEG_INFINITY, |m, &x| m.max(x));
    let mut sum = T::ZERO;
    for x in row.iter_mut() {
        *x = (*x - max).exp();
        sum += *x;
    }
    for x in row {
        *x /= sum;
    }
}
