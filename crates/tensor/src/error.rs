//! The one error of this crate: an operation was given tensors that break its rule.

/// Result of every tensor operation.
pub type Result<T> = std::result::Result<T, TensorError>;

/// An operation's rule was broken. `op` names the operation.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum TensorError {
    /// Shapes that do not fit.
    #[error("{op}: {rule}; got {got}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// What it asks of its inputs.
        rule: &'static str,
        /// The shapes it was given.
        got: String,
    },
    /// A dtype the operation does not take.
    #[error("{op}: {rule}; got {got}")]
    Dtype {
        /// The operation.
        op: &'static str,
        /// What it asks of its inputs.
        rule: &'static str,
        /// The dtype it was given.
        got: String,
    },
    /// An index outside its table.
    #[error("{op}: index {index} is outside 0..{bound}")]
    Index {
        /// The operation.
        op: &'static str,
        /// The offending index.
        index: i64,
        /// Number of rows of the table.
        bound: usize,
    },
}

/// A shape error in one call.
pub(crate) fn shape<T>(op: &'static str, rule: &'static str, got: impl std::fmt::Debug) -> Result<T> {
    Err(TensorError::Shape {
        op,
        rule,
        got: format!("{got:?}"),
    })
}
