//! Differentiable operations: a kernel plus its gradient each.
//!
//! Every operation takes f32 activations (f64 in gradient checks), returns a new tensor, and records its gradient only
//! if an input needs one; inside a gradient, work is done only for the inputs that asked for it.

mod attention;
mod elementwise;
mod gca;
mod grouped;
mod linear;
mod loss;
mod norm;
mod rows;
mod shape;

pub use attention::{AttentionConfig, KeyValue, RowSpan, alibi_attention, attention, attention_of, rope};
pub use elementwise::{add, add_bias, clamp, gelu, mul, scale, sigmoid, silu, sub, swiglu};
pub use gca::{Neighbours, gca, gca_reference};
pub use grouped::known_grouped_linear;
pub use linear::{grouped_linear, linear, linear_many};
pub use loss::{cross_entropy, linear_cross_entropy};
pub use norm::{log_softmax, normalize_rows, rms_norm, row_norms, softmax};
pub use rows::{column_mean, embedding, gather_rows, mean, mix_rows, scale_rows, scatter_add_rows, sum, take_last};
pub use shape::{concat_rows, narrow_rows, reshape};

/// Runs `$body` with `$T` bound to the element type of `$x`, f32 or f64.
macro_rules! real {
    ($op:expr, $x:expr, $T:ident => $body:expr) => {
        match $x.dtype() {
            $crate::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::DType::F64 => {
                type $T = f64;
                $body
            }
            other => Err($crate::TensorError::Dtype {
                op: $op,
                rule: "f32 activations (f64 in gradient checks)",
                got: format!("{other:?}"),
            }),
        }
    };
}
pub(crate) use real;
