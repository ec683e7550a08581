//! The optimiser's update, one pass over parameters, gradients and moments.
//!
//! Owns AdamW's arithmetic; schedules, parameter groups and the clipping norm are the caller's.

use crate::{
    map::CHUNK,
    parallel_for,
    pool::SharedMut,
    simd::{Vf32, kernel},
};

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
    let len = p.len();
    let constants = Constants::new(h);
    let [p, m, v] = [p, m, v].map(SharedMut::new);
    parallel_for(len.div_ceil(CHUNK), |i| {
        let (start, n) = (i * CHUNK, CHUNK.min(len - i * CHUNK));
        // SAFETY: every chunk of the three buffers belongs to one task.
        let [p, m, v] = [&p, &m, &v].map(|x| unsafe { x.slice(start, n) });
        step_chunk(p, &g[start..start + n], m, v, &constants);
    });
}

/// What the step's formula needs per element, worked out once in f64.
struct Constants {
    keep: f32,
    beta1: f32,
    gain1: f32,
    beta2: f32,
    gain2: f32,
    /// lr / (1 - beta1^step)
    rate: f32,
    /// 1 / sqrt(1 - beta2^step)
    root: f32,
    eps: f32,
    grad_scale: f32,
}

impl Constants {
    fn new(h: &AdamW) -> Self {
        let step = h.step as f64;
        Self {
            keep: (1.0 - h.lr * h.weight_decay) as f32,
            beta1: h.beta1 as f32,
            gain1: (1.0 - h.beta1) as f32,
            beta2: h.beta2 as f32,
            gain2: (1.0 - h.beta2) as f32,
            rate: (h.lr / (1.0 - h.beta1.powf(step))) as f32,
            root: (1.0 / (1.0 - h.beta2.powf(step)).sqrt()) as f32,
            eps: h.eps as f32,
            grad_scale: h.grad_scale as f32,
        }
    }
}

kernel! { fn step_chunk(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], c: &Constants) = step_body; }

#[inline(always)]
fn step_body<V: Vf32>(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], c: &Constants) {
    let parts = p.chunks_mut(V::LANES).zip(g.chunks(V::LANES));
    for ((p, g), (m, v)) in parts.zip(m.chunks_mut(V::LANES).zip(v.chunks_mut(V::LANES))) {
        if p.len() == V::LANES {
            let [new_p, new_m, new_v] = step::<V>(V::load(p), V::load(g), V::load(m), V::load(v), c);
            new_p.store(p);
            new_m.store(m);
            new_v.store(v);
        } else {
            let [p0, g0, m0, v0] = [
                V::load_partial(p, 0.0),
                V::load_partial(g, 0.0),
                V::load_partial(m, 0.0),
                V::load_partial(v, 0.0),
            ];
            let [new_p, new_m, new_v] = step::<V>(p0, g0, m0, v0, c);
            new_p.store_partial(p);
            new_m.store_partial(m);
            new_v.store_partial(v);
        }
    }
}

/// The new parameter and moments.
#[inline(always)]
fn step<V: Vf32>(p: V, g: V, m: V, v: V, c: &Constants) -> [V; 3] {
    let g = g.mul(V::splat(c.grad_scale));
    let m = m.mul(V::splat(c.beta1)).add(g.mul(V::splat(c.gain1)));
    let v = v.mul(V::splat(c.beta2)).add(g.mul(g).mul(V::splat(c.gain2)));
    let size = v.sqrt().mul(V::splat(c.root)).add(V::splat(c.eps));
    let p = p.mul(V::splat(c.keep)).sub(m.mul(V::splat(c.rate)).div(size));
    [p, m, v]
}
