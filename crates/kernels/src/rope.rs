//! Rotary position embedding.
//!
//! Owns the rotation, in place; angles (and with them every flavour of scaled RoPE) are the caller's tables.

use crate::{
    Float,
    map::rows_per_task,
    parallel_chunks_mut, reference,
    simd::{Vf32, kernel},
};

/// Rotates the pairs (i, i + hd/2) of every head by its token's angles: Hugging Face's split-half layout.
///
/// `x`: [tokens, heads, head_dim], in place; `cos`, `sin`: [tokens, head_dim / 2]. `inverse` rotates back, which is also
/// the gradient.
///
/// # Panics
/// If `head_dim` is odd or the slices do not fit each other.
pub fn rope<T: Float>(x: &mut [T], heads: usize, head_dim: usize, cos: &[T], sin: &[T], inverse: bool) {
    assert!(head_dim.is_multiple_of(2), "rotary embedding needs an even head_dim");
    let token = heads * head_dim;
    assert!(
        x.is_empty() || (token > 0 && x.len().is_multiple_of(token)),
        "x must be [tokens, heads, head_dim]"
    );
    let tokens = x.len().checked_div(token).unwrap_or(0);
    assert!(cos.len() == sin.len(), "cos and sin must have the same shape");
    assert!(
        x.is_empty() || cos.len() == tokens * head_dim / 2,
        "cos must be [tokens, head_dim / 2]"
    );
    if x.is_empty() {
        return;
    }
    if let (Some(cos), Some(sin)) = (T::as_f32(cos), T::as_f32(sin))
        && let Some(x) = T::as_f32_mut(x)
    {
        let (part, half) = (rows_per_task(token), head_dim / 2);
        return parallel_chunks_mut(x, part * token, |i, x| {
            let angles = i * part * half..(i * part + x.len() / token) * half;
            rotate_tokens(x, heads, head_dim, &cos[angles.clone()], &sin[angles], inverse);
        });
    }
    reference::rope::rope(x, heads, head_dim, cos, sin, inverse);
}

kernel! {
    fn rotate_tokens(x: &mut [f32], heads: usize, head_dim: usize, cos: &[f32], sin: &[f32], inverse: bool)
        = rotate_body;
}

#[inline(always)]
fn rotate_body<V: Vf32>(x: &mut [f32], heads: usize, head_dim: usize, cos: &[f32], sin: &[f32], inverse: bool) {
    let half = head_dim / 2;
    let whole = half - half % V::LANES;
    let sign = V::splat(if inverse { -1.0 } else { 1.0 });
    for (t, token) in x.chunks_exact_mut(heads * head_dim).enumerate() {
        let (cos, sin) = (&cos[t * half..(t + 1) * half], &sin[t * half..(t + 1) * half]);
        for head in token.chunks_exact_mut(head_dim) {
            let (left, right) = head.split_at_mut(half);
            let mut i = 0;
            while i < whole {
                let (c, s) = (V::load(&cos[i..]), V::load(&sin[i..]).mul(sign));
                let (a, b) = (V::load(&left[i..]), V::load(&right[i..]));
                a.mul(c).sub(b.mul(s)).store(&mut left[i..]);
                b.mul(c).add(a.mul(s)).store(&mut right[i..]);
                i += V::LANES;
            }
            if i < half {
                let (c, s) = (
                    V::load_partial(&cos[i..], 0.0),
                    V::load_partial(&sin[i..], 0.0).mul(sign),
                );
                let (a, b) = (V::load_partial(&left[i..], 0.0), V::load_partial(&right[i..], 0.0));
                a.mul(c).sub(b.mul(s)).store_partial(&mut left[i..]);
                b.mul(c).add(a.mul(s)).store_partial(&mut right[i..]);
            }
        }
    }
}
