//! Numeric kernels: slices in, slices out.
//!
//! This crate owns the SIMD code (AVX-512, AVX2 and a portable path, chosen when the process starts) and the thread
//! pool. It exists so that everything above it is safe code: it is the only crate of the workspace that may hold
//! `unsafe`. It must not know tensors, models or files' meaning, and does no input or output beyond mapping a file,
//! hinting at pages and asking the system how many cores there are.

pub mod attention;
pub mod blocks;
pub mod elementwise;
pub mod float;
pub mod gemm;
pub mod isa;
pub mod loss;
mod map;
pub mod mapped;
pub mod norm;
pub mod optim;
mod pages;
pub mod pool;
pub mod random;
mod reference;
pub mod rope;
#[cfg(test)]
mod row_tests;
pub mod rows;
mod simd;
#[cfg(test)]
mod test_support;

pub use attention::{AttentionRows, AttentionShape, Heads, attention, attention_backward};
pub use blocks::{BlockKind, Blocks};
pub use elementwise::{
    add, add_assign, add_bias, axpy, column_sum, gelu_erf, gelu_erf_backward, log_softmax, log_softmax_backward, mul,
    scale, sigmoid, sigmoid_backward, silu, silu_backward, softmax, softmax_backward, sub, sum, sum_squares, swiglu,
    swiglu_backward,
};
pub use float::Float;
pub use gemm::{Compute, Data, Gemm, Mat, gemm};
pub use isa::{Isa, check_isa, isa, supported, with_isa};
pub use loss::cross_entropy_rows;
pub use norm::{rms_norm, rms_norm_backward};
pub use optim::{AdamW, adamw};
pub use pages::prefer_large_pages;
pub use pool::{parallel_chunks_mut, parallel_for, set_threads, threads, with_threads};
pub use random::Philox;
pub use rope::rope;
pub use rows::{gather_rows, row_dots, scale_rows, scatter_add_rows, to_bf16, to_f16, widen};
