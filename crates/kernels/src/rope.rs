//! Rotary position embedding.
//!
//! Owns the rotation, in place; angles (and with them every flavour of scaled RoPE) are the caller's tables.

use crate::{Float, reference};

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
    if !x.is_empty() {
        reference::rope::rope(x, heads, head_dim, cos, sin, inverse);
    }
}
