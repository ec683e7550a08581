//! Numeric kernels: slices in, slices out.
//!
//! This crate owns the SIMD code (AVX-512, AVX2 and a portable path, chosen when the process starts) and the thread
//! pool. It exists so that everything above it is safe code: it is the only crate of the workspace that may hold
//! `unsafe`. It must not know tensors, models or files' meaning, and does no input or output beyond mapping a file.

pub mod mapped;
