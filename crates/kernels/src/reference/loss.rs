//! Cross-entropy of a row of logits against one target.

use crate::{Float, reference::elementwise::row_max};

/// See [`crate::cross_entropy_rows`].
pub(crate) fn cross_entropy_rows<T: Float>(
    logits: &mut [T],
    v: usize,
    targets: &[i64],
    loss: &mut [T],
    grad_scale: Option<f64>,
) {
    for ((x, &target), loss) in logits.chunks_exact_mut(v).zip(targets).zip(loss) {
        let Ok(target) = usize::try_from(target) else {
            *loss = T::ZERO;
            if grad_scale.is_some() {
                x.fill(T::ZERO);
            }
            continue;
        };
        let max = row_max(x);
        let sum = x.iter().fold(T::ZERO, |a, &x| a + (x - max).exp());
        *loss = sum.ln() + max - x[target];
        if let Some(scale) = grad_scale {
            let scale = T::from_f64(scale);
            for x in x.iter_mut() {
                *x = scale * (*x - max).exp() / sum;
            }
            x[target] -= scale;
        }
    }
}
