//! Cross-entropy with its gradient, in the memory of the logits.
//!
//! Owns the softmax over the vocabulary, which is the largest activation of a training step: loss and gradient take one
//! buffer. Averaging over tokens and what is ignored are the caller's.

use crate::{
    Float,
    map::{Map, map_here, max_here, rows_per_task},
    parallel_for,
    pool::SharedMut,
    reference,
    simd::{Vf32, kernel},
};

/// `-log softmax(logits)[target]` of each row, in nats.
///
/// `logits`: [rows, v]; `targets`: [rows], -1 = ignored; `loss`: [rows], 0 where ignored. With `grad_scale`, the logits
/// are overwritten by `grad_scale` * (softmax - onehot), zeros where ignored; without it they are left as they are.
///
/// # Panics
/// If the slices do not fit each other or a target is not -1 or below `v`.
pub fn cross_entropy_rows<T: Float>(
    logits: &mut [T],
    v: usize,
    targets: &[i64],
    loss: &mut [T],
    grad_scale: Option<f64>,
) {
    assert_eq!(logits.len(), targets.len() * v, "logits must be [rows, v]");
    assert_eq!(loss.len(), targets.len(), "loss must have one entry per row");
    for &target in targets {
        assert!(
            target == -1 || usize::try_from(target).is_ok_and(|t| t < v),
            "target {target} is not a class of {v}"
        );
    }
    if v == 0 {
        return;
    }
    if let (Some(logits), Some(loss)) = (T::as_f32_mut(logits), T::as_f32_mut(loss)) {
        let (logits, loss) = (SharedMut::new(logits), SharedMut::new(loss));
        let (part, rows) = (rows_per_task(v), targets.len());
        return parallel_for(rows.div_ceil(part), |i| {
            let (start, n) = (i * part, part.min(rows - i * part));
            // SAFETY: every row of logits belongs to one task.
            let logits = unsafe { logits.slice(start * v, n * v) };
            // SAFETY: every entry of loss belongs to one task.
            let loss = unsafe { loss.slice(start, n) };
            entropy_rows(
                logits,
                v,
                &targets[start..start + n],
                loss,
                grad_scale.map(|scale| scale as f32),
            );
        });
    }
    reference::loss::cross_entropy_rows(logits, v, targets, loss, grad_scale);
}

/// Most blocks that a row is cut into. The largest logit so far is kept for each, so memory is read once for the sum.
const BLOCKS: usize = 64;

/// Σ e^(x - shift), and with `KEEP` the terms take the place of x.
#[inline(always)]
fn exp_sum<V: Vf32, const KEEP: bool>(x: &mut [f32], shift: f32) -> f32 {
    let shift = V::splat(shift);
    let mut sums = [V::zero(); 2];
    for (i, x) in x.chunks_mut(V::LANES).enumerate() {
        // Missing lanes are e^-inf = 0.
        let whole = x.len() == V::LANES;
        let old = if whole {
            V::load(x)
        } else {
            V::load_partial(x, f32::NEG_INFINITY)
        };
        let term = old.sub(shift).exp();
        sums[i % 2] = sums[i % 2].add(term);
        if KEEP && whole {
            term.store(x);
        } else if KEEP {
            term.store_partial(x);
        }
    }
    sums[0].add(sums[1]).sum()
}

/// Multiplies what is there.
struct Times(f32);
impl Map<0> for Times {
    #[inline(always)]
    fn at<V: Vf32>(&self, _x: [V; 0], old: V) -> V {
        old.mul(V::splat(self.0))
    }
}

kernel! {
    fn entropy_rows(logits: &mut [f32], v: usize, targets: &[i64], loss: &mut [f32], grad_scale: Option<f32>)
        = entropy_body;
}

#[inline(always)]
fn entropy_body<V: Vf32>(logits: &mut [f32], v: usize, targets: &[i64], loss: &mut [f32], grad_scale: Option<f32>) {
    let block = v.div_ceil(BLOCKS).max(1024).next_multiple_of(V::LANES);
    for ((x, &target), loss) in logits.chunks_exact_mut(v).zip(targets).zip(loss) {
        let Ok(target) = usize::try_from(target) else {
            *loss = 0.0;
            if grad_scale.is_some() {
                x.fill(0.0);
            }
            continue;
        };
        let target_logit = x[target];
        let (mut max, mut sum) = (f32::NEG_INFINITY, 0.0f32);
        let mut shifts = [0.0; BLOCKS];
        for (x, shift) in x.chunks_mut(block).zip(&mut shifts) {
            let largest = max_here::<V>(x).max(max);
            // As long as every logit is -inf there is nothing to sum, and -inf - -inf must not become NaN.
            *shift = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
            if largest > max {
                sum *= (max - largest).exp();
                max = largest;
            }
            sum += if grad_scale.is_some() {
                exp_sum::<V, true>(x, *shift)
            } else {
                exp_sum::<V, false>(x, *shift)
            };
        }
        *loss = sum.ln() + (max - target_logit);
        if let Some(scale) = grad_scale {
            for (x, shift) in x.chunks_mut(block).zip(&shifts) {
                map_here::<V, 0, _>(&Times(scale * (shift - max).exp() / sum), [], x);
            }
            x[target] -= scale;
        }
    }
}
