//! Evaluation suites: how good a model is, as numbers with their uncertainty.
//!
//! This crate owns the scoring of texts and tokens by a model (perplexity, bits per byte, multiple choice by likelihood),
//! the readers of the suites' files, and the comparison of tensors that should be equal. It exists so that every method
//! is judged by the same code, before and after. It must not know how a model was made, nor how a result is shown: all
//! results are plain values that serialise.
//!
//! Nothing here is random: a result depends on the model, the text and the instruction set only.

mod blocks;
pub mod choice;
mod compare;
mod error;
mod interval;
pub mod misalignment;
mod passkey;
mod perplexity;
mod score;
mod statistics;
pub mod suites;
#[cfg(test)]
mod testing;
mod windows;

pub use choice::{ChoiceItem, ChoiceReport, Encoder, ItemScore, choice_report, score_choices};
pub use compare::{Difference, max_abs_difference};
pub use error::{EncodeError, EvalError, Result};
pub use interval::Interval;
pub use misalignment::{Divergences, Misalignment, MisalignmentOptions, misalignment};
pub use passkey::{PasskeyReport, find_passkeys};
pub use perplexity::{Encoded, Perplexity, perplexity_of_documents, perplexity_of_ids, perplexity_of_text};
pub use score::{Passage, Progress, ScoreOptions, log_probabilities, silent};
pub use statistics::Accuracy;
pub use suites::Suite;
pub use windows::{MAX_WINDOW, Window, Windowing};
