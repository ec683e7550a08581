//! The laboratory: what measures, checks and reports the rest of Ounce.
//!
//! This crate owns `verify` (golden cases), `logits`, `inspect`, `doctor`, `bench`, `demo`, `reproduce` and the report
//! writer. It
//! exists so that the crates below it hold no measuring code, and it must hold no arithmetic of its own: every figure
//! comes from the same forward and the same training step that users run.

pub mod bench;
pub mod demo;
pub mod doctor;
mod error;
pub mod inspect;
pub mod logits;
pub mod report;
pub mod reproduce;
pub mod verify;

pub use error::LabError;

/// What results were measured on: threads and instruction set.
pub(crate) fn machine() -> String {
    format!(
        "{} threads, instruction set {:?}",
        ounce_kernels::threads(),
        ounce_kernels::isa()
    )
}
