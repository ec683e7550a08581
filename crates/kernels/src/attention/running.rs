//! The softmax of scores that come tile by tile: its state, one step, and the union of two states.
//!
//! Owns the numbers only; which keys a row sees and where scores come from is the caller's.

use crate::simd::Vf32;

/// The running softmax of some query rows: weighted values [rows, width], largest score and sum of weights of each row.
pub(super) struct Running<'a> {
    pub(super) values: &'a mut [f32],
    pub(super) max: &'a mut [f32],
    pub(super) sum: &'a mut [f32],
}

impl<'a> Running<'a> {
    /// Values that the three parts take.
    pub(super) fn len(rows: usize, width: usize) -> usize {
        rows * (width + 2)
    }

    /// Cuts `memory` of [`Running::len`] values into the three parts.
    pub(super) fn new(memory: &'a mut [f32], rows: usize, width: usize) -> Self {
        let (values, rest) = memory.split_at_mut(rows * width);
        let (max, sum) = rest.split_at_mut(rows);
        Self { values, max, sum }
    }

    /// Values of a row.
    pub(super) fn width(&self) -> usize {
        self.values.len() / self.max.len()
    }

    /// Back to no key seen.
    pub(super) fn clear(&mut self) {
        self.values.fill(0.0);
        self.max.fill(f32::NEG_INFINITY);
        self.sum.fill(0.0);
    }
}

/// Turns scores into weights relative to the largest score so far, and brings what was summed before to that level.
#[inline(always)]
pub(super) fn online_softmax<V: Vf32>(scores: &mut [f32], max: &mut f32, sum: &mut f32, values: &mut [f32]) {
    let shift = V::splat(raise::<V>(scores, max, sum, values));
    let mut total = V::zero();
    for scores in scores.chunks_exact_mut(V::LANES) {
        let weight = V::load(scores).sub(shift).exp();
        weight.store(scores);
        total = total.add(weight);
    }
    *sum += total.sum();
}

/// Takes scores into the largest so far, which is returned, and brings what was summed before to that level.
#[inline(always)]
pub(super) fn raise<V: Vf32>(scores: &[f32], max: &mut f32, sum: &mut f32, values: &mut [f32]) -> f32 {
    let mut largest = V::splat(*max);
    for scores in scores.chunks_exact(V::LANES) {
        largest = V::load(scores).max(largest);
    }
    let largest = largest.hmax();
    if largest > *max {
        let down = V::splat(*max - largest).exp();
        for values in values.chunks_exact_mut(V::LANES) {
            V::load(values).mul(down).store(values);
        }
        // All lanes are equal.
        *sum *= down.hmax();
        *max = largest;
    }
    largest
}

/// Adds the running softmax of later keys to that of earlier ones.
pub(super) fn join(into: &mut Running<'_>, later: &Running<'_>) {
    let width = into.width();
    for r in 0..into.max.len() {
        let max = into.max[r].max(later.max[r]);
        if max == f32::NEG_INFINITY {
            continue;
        }
        let (a, b) = ((into.max[r] - max).exp(), (later.max[r] - max).exp());
        into.max[r] = max;
        into.sum[r] = into.sum[r] * a + later.sum[r] * b;
        let range = r * width..(r + 1) * width;
        for (x, &y) in into.values[range.clone()].iter_mut().zip(&later.values[range]) {
            *x = *x * a + y * b;
        }
    }
}
