//! The optimiser's update, one pass over parameters, gradients and moments.
//!
//! Owns AdamW's arithmetic; schedules, parameter groups and the clipping norm are the caller's.

/// Hyper-parameters of one AdamW step (PyTorch's meaning: decoupled decay, bias correction, eps outside the root).
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Share of the parameter, times `lr`, that is taken away.
    pub weight_decay: f64,
    /// Number of this step, from 1.
    pub step: u64,
    /// Factor on every gradient (1, or less to clip).
    pub grad_scale: f64,
}

/// Updates parameters `p` and moments `m`, `v` from gradients `g`; all of one length.
///
/// # Panics
/// If the lengths differ or `step` is 0.
pub fn adamw(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], h: &AdamW) {
    assert!(
        g.len() == p.len() && m.len() == p.len() && v.len() == p.len(),
        "adamw needs slices of one length"
    );
    assert!(h.step > 0, "steps are counted from 1");
    for i in 0..p.len() {
        let (p64, m64, v64) = crate::reference::optim::adamw(p[i].into(), g[i].into(), m[i].into(), v[i].into(), h);
        (p[i], m[i], v[i]) = (p64 as f32, m64 as f32, v64 as f32);
    }
}
