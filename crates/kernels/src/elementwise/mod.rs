//! Kernels that treat a buffer as a flat list or as rows of equal length.
//!
//! Owns activations, arithmetic, softmax and sums. Knows nothing of layers; every function is one pass over memory.

mod activation;
mod arithmetic;
mod softmax;
pub(crate) mod sums;

pub use activation::{
    gelu_erf, gelu_erf_backward, sigmoid, sigmoid_backward, silu, silu_backward, swiglu, swiglu_backward,
};
pub use arithmetic::{add, add_assign, add_bias, axpy, mul, scale, sub};
pub use softmax::{log_softmax, log_softmax_backward, softmax, softmax_backward};
pub use sums::{column_sum, sum, sum_squares};

/// Panics unless all lengths are equal.
fn same_length(lengths: &[usize]) {
    assert!(
        lengths.windows(2).all(|w| w[0] == w[1]),
        "slices must have one length, not {lengths:?}"
    );
}

/// Panics unless `len` values are whole rows of `n`.
fn whole_rows(len: usize, n: usize) {
    assert!(
        len == 0 || (n > 0 && len.is_multiple_of(n)),
        "{len} values are not whole rows of {n}"
    );
}
