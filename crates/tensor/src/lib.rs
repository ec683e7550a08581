//! Tensors and the tape: everything above this crate computes with [`Tensor`] and gets gradients from it.
//!
//! This crate owns contiguous row-major tensors, their storage (in memory or file-backed), reverse-mode automatic
//! differentiation, and the differentiable operations, each of which is a kernel plus its gradient. It exists so that
//! methods can be written as formulas. It must not know models, files' meaning or training recipes.
//!
//! The tape is define-by-run and implicit: a tensor that needs a gradient carries the node that made it, an operation
//! records a node only if one of its inputs carries one, and therefore inference records nothing and frozen weights
//! cost nothing. Activations are f32 (f64 in gradient checks only); weights may also be bf16 or f16.
//!
//! Shape suffixes used in this crate: B batch, T time, N rows (B·T), D model width, H heads, V vocabulary, E experts.

mod autograd;
mod collective;
mod error;
mod gradcheck;
pub mod ops;
mod storage;
mod tensor;

pub use autograd::{Gradients, checkpoint, no_grad, recomputed};
pub use collective::{Collective, Pending, Solo};
pub use error::{Result, TensorError};
pub use gradcheck::{gradcheck, largest_difference};
pub use ounce_kernels::Compute;
pub use storage::{DType, Element};
pub use tensor::Tensor;
