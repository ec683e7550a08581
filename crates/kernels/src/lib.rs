//! Numeric kernels: slices in, slices out.
//!
//! This crate owns the SIMD code (AVX-512, AVX2 and a portable path, chosen when the process starts) and the thread
//! pool. It exists so that everything above it is safe code: it is the only crate of the workspace that may hold
//! `unsafe`. It must not know tensors, models or files' meaning, and does no input or output beyond mapping a file and
//! asking the system how many cores there are.

pub mod float;
pub mod gemm;
pub mod isa;
pub mod mapped;
pub mod pool;
pub mod random;
mod simd;

pub use float::Float;
pub use gemm::{Compute, Data, Gemm, Mat, gemm};
pub use isa::{Isa, check_isa, isa, supported, with_isa};
pub use random::Philox;
pub use pool::{parallel_chunks_mut, parallel_for, set_threads, threads, with_threads};
