//! AdamW as PyTorch's documentation writes it, in f64.

use crate::optim::AdamW;

/// See [`crate::adamw`]; the update of one f32 element, computed in f64: returns (p, m, v).
pub(crate) fn adamw(p: f64, g: f64, m: f64, v: f64, h: &AdamW) -> (f64, f64, f64) {
    let g = g * h.grad_scale;
    let p = p * (1.0 - h.lr * h.weight_decay);
    let m = h.beta1 * m + (1.0 - h.beta1) * g;
    let v = h.beta2 * v + (1.0 - h.beta2) * g * g;
    let step = h.step as f64;
    let (m_hat, v_hat) = (m / (1.0 - h.beta1.powf(step)), v / (1.0 - h.beta2.powf(step)));
    (p - h.lr * m_hat / (v_hat.sqrt() + h.eps), m, v)
}
