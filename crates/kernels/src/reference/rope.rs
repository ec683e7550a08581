//! Rotary position embedding in Hugging Face's split-half layout.

use crate::Float;

/// See [`crate::rope`]: dimension i of the first half and dimension i of the second half are one rotated pair.
pub(crate) fn rope<T: Float>(x: &mut [T], heads: usize, head_dim: usize, cos: &[T], sin: &[T], inverse: bool) {
    let half = head_dim / 2;
    for (t, token) in x.chunks_exact_mut(heads * head_dim).enumerate() {
        for head in token.chunks_exact_mut(head_dim) {
            for i in 0..half {
                let (c, s) = (cos[t * half + i], sin[t * half + i]);
                let s = if inverse { -s } else { s };
                let (a, b) = (head[i], head[i + half]);
                head[i] = a * c - b * s;
                head[i + half] = b * c + a * s;
            }
        }
    }
}
