//! The divergence as training computes it: gradients in closed form, logits a block at a time.

use super::{Divergence, StopGrad};
use crate::error::Result;
use ounce_eval::Divergences;
use ounce_tensor::{Compute, DType, Element, Gradients, Tensor, TensorError, no_grad, ops};

/// As [`divergence_reference`](super::divergence_reference), with gradients in closed form: the sum over rows of logits
/// `long, short [n, V]` divided by `count`, and the sums of all divergences.
///
/// # Errors
/// If shapes differ, or the logits are neither f32 nor f64.
pub fn divergence_sum(
    long: &Tensor,
    short: &Tensor,
    divergence: Divergence,
    count: usize,
) -> Result<(Tensor, Divergences)> {
    if long.shape() != short.shape() {
        return Err(TensorError::Shape {
            op: "divergence",
            rule: "both views have one shape",
            got: format!("{:?} and {:?}", long.shape(), short.shape()),
        }
        .into());
    }
    let (found, [d_long, d_short]) = match long.dtype() {
        DType::F64 => rows::<f64>(long, short, divergence, count, |x| x)?,
        _ => rows::<f32>(long, short, divergence, count, |x| x as f32)?,
    };
    let mean = match divergence {
        Divergence::Sce => found.sce,
        Divergence::Jeffreys => found.jeffreys,
    } / count as f64;
    let loss = match long.dtype() {
        DType::F64 => Tensor::scalar(mean),
        _ => Tensor::scalar(mean as f32),
    };
    let loss = loss.recorded(&[long, short], move |dy, _| {
        let upstream = dy.item()?;
        let scaled = |g: Option<Tensor>| g.map(|g| ops::scale(&g, upstream)).transpose();
        Ok(vec![scaled(d_long)?, scaled(d_short)?])
    });
    Ok((loss, found))
}

/// Sums over rows, and the gradients of the sum divided by `count` for the views that need one.
fn rows<T: Element + Into<f64>>(
    long: &Tensor,
    short: &Tensor,
    divergence: Divergence,
    count: usize,
    narrow: fn(f64) -> T,
) -> Result<(Divergences, [Option<Tensor>; 2])> {
    let parts = no_grad(|| -> Result<[Tensor; 4]> {
        Ok([
            ops::softmax(long)?,
            ops::log_softmax(long)?,
            ops::softmax(short)?,
            ops::log_softmax(short)?,
        ])
    })?;
    let values: Vec<&[T]> = parts.iter().filter_map(|t| t.values::<T>()).collect();
    let [p, log_p, q, log_q] = values[..] else {
        return Err(TensorError::Dtype {
            op: "divergence",
            rule: "both views have one dtype",
            got: format!("{:?} and {:?}", long.dtype(), short.dtype()),
        }
        .into());
    };
    let v = long.last_dim().max(1);
    let mut sum = Divergences::default();
    let empty = |x: &Tensor| x.needs_grad().then(|| Vec::with_capacity(p.len()));
    let (mut d_long, mut d_short) = (empty(long), empty(short));
    for at in (0..p.len()).step_by(v) {
        let row = at..at + v;
        let (p, log_p, q, log_q) = (&p[row.clone()], &log_p[row.clone()], &q[row.clone()], &log_q[row]);
        let found = Divergences::of(p, log_p, q, log_q);
        sum.add(found, 1.0);
        let gradient = |into: &mut Option<Vec<T>>, [p, log_p, q, log_q]: [&[T]; 4]| {
            let Some(into) = into else { return };
            // `-log q` for SCE, `log p - log q` for J; its mean under p is taken off.
            let pull = |i: usize| match divergence {
                Divergence::Sce => -log_q[i].into(),
                Divergence::Jeffreys => log_p[i].into() - log_q[i].into(),
            };
            let mean: f64 = (0..v).map(|i| p[i].into() * pull(i)).sum();
            into.extend((0..v).map(|i| {
                let (p, q): (f64, f64) = (p[i].into(), q[i].into());
                narrow((p * (pull(i) - mean) + (p - q)) / count as f64)
            }));
        };
        gradient(&mut d_long, [p, log_p, q, log_q]);
        gradient(&mut d_short, [q, log_q, p, log_p]);
    }
    let tensor = |values: Option<Vec<T>>, like: &Tensor| values.map(|v| Tensor::new(v, like.shape())).transpose();
    Ok((sum, [tensor(d_long, long)?, tensor(d_short, short)?]))
}

/// Pairs whose logits exist at a time.
const BLOCK: usize = 256;

/// The mean divergence over `pairs` of rows of `x [N, D] Wᵀ` for the head `W [V, D]`, a block of logits at a time: as with
/// the fused cross-entropy, both gradients are complete when the loss is known. Also returns all mean divergences.
///
/// # Errors
/// If shapes do not fit, or there is no pair.
pub fn linear_divergence(
    x: &Tensor,
    w: &Tensor,
    pairs: &[(usize, usize)],
    divergence: Divergence,
    stop: StopGrad,
    compute: Compute,
) -> Result<(Tensor, Divergences)> {
    if pairs.is_empty() {
        return Err(TensorError::Shape {
            op: "divergence",
            rule: "at least one pair of positions",
            got: "none".into(),
        }
        .into());
    }
    let leaf = |t: &Tensor| {
        if t.needs_grad() {
            t.detach().requires_grad()
        } else {
            t.detach()
        }
    };
    let head = leaf(w);
    let mut gradients = Gradients::new();
    let (mut value, mut found) = (0.0, Divergences::default());
    let (mut rows, mut parts): (Vec<usize>, Vec<Tensor>) = (Vec::new(), Vec::new());
    for block in pairs.chunks(BLOCK) {
        let view = |ids: Vec<usize>, fixed: bool| -> Result<(Vec<usize>, Tensor, Tensor)> {
            let gathered = no_grad(|| ops::gather_rows(x, &ids))?;
            let input = if x.needs_grad() && !fixed {
                gathered.requires_grad()
            } else {
                gathered
            };
            let logits = if fixed {
                no_grad(|| ops::linear(&input, &head, compute))?
            } else {
                ops::linear(&input, &head, compute)?
            };
            Ok((ids, input, logits))
        };
        let long = view(block.iter().map(|p| p.0).collect(), stop == StopGrad::Long)?;
        let short = view(block.iter().map(|p| p.1).collect(), stop == StopGrad::Short)?;
        let (loss, sums) = divergence_sum(&long.2, &short.2, divergence, pairs.len())?;
        value += loss.item()?;
        found.add(sums, 1.0 / pairs.len() as f64);
        loss.backward(&mut gradients)?;
        for (ids, input, _) in [long, short] {
            if let Some(gradient) = gradients.take(&input) {
                rows.extend(ids);
                parts.push(gradient);
            }
        }
    }
    let dx = if parts.is_empty() {
        None
    } else {
        let all = ops::concat_rows(&parts.iter().collect::<Vec<_>>())?;
        Some(ops::reshape(&ops::scatter_add_rows(&all, &rows, x.rows())?, x.shape())?)
    };
    let dw = gradients.take(&head);
    let loss = match x.dtype() {
        DType::F64 => Tensor::scalar(value),
        _ => Tensor::scalar(value as f32),
    };
    let loss = loss.recorded(&[x, w], move |dy, _| {
        let upstream = dy.item()?;
        let scaled = |g: Option<Tensor>| g.map(|g| ops::scale(&g, upstream)).transpose();
        Ok(vec![scaled(dx)?, scaled(dw)?])
    });
    Ok((loss, found))
}
