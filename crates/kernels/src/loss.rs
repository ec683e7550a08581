//! Cross-entropy with its gradient, in the memory of the logits.
//!
//! Owns the softmax over the vocabulary, which is the largest activation of a training step: loss and gradient take one
//! buffer. Averaging over tokens and what is ignored are the caller's.

use crate::{Float, reference};

/// -log softmax(logits)[target] of each row, in nats.
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
    if v > 0 {
        reference::loss::cross_entropy_rows(logits, v, targets, loss, grad_scale);
    }
}
