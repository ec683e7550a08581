//! Compression of trained models: fewer experts for the same router, and other forms of the same function.
//!
//! This crate owns the decisions of expert merging (HC-SMoE) and of its pruning baselines: which experts are alike
//! ([`geometry`], [`cluster`], [`grouping`]), how many each layer keeps ([`budget`]), how a group becomes one expert
//! ([`merge_rule`], [`align`]), which experts a pruning score keeps ([`prune`], [`oprune`]) and how a user asks for all that
//! ([`recipe`]). The decisions exist apart from the pass over a checkpoint so that every one of them is a pure function
//! of small arrays, checked to the last label without a model. The measuring ([`gather`], [`statistics`], [`hc_smoe`])
//! streams: weights stay file-backed. What writes a checkpoint, by [`merge`] or [`mod@convert`], is one pass (`pass`), for
//! which both make plans. It must not know training or serving.

pub mod align;
pub mod budget;
pub mod cluster;
pub mod geometry;
pub mod grouping;
pub mod merge_rule;
pub mod oprune;
pub mod prune;
pub mod recipe;
pub mod statistics;

mod calibrate;
mod calibration_pass;
pub mod convert;
mod error;
pub mod hc_smoe;
mod hidden;

mod ladder;
mod merge;
mod moh;
mod mole_lut;
mod output;
mod pass;

pub use calibrate::{CALIBRATION_TEXT_BYTES, CalibrationIds};
pub use calibration_pass::gather;
pub use convert::{CONVERSIONS, ConvertJob, ConvertReport, convert, estimate_conversion};
pub use error::{CompressError, LayerError};
pub use merge::{LayerReport, MergeEstimate, MergeEvent, MergeJob, MergeReport, estimate, merge};
pub use recipe::{MergeRecipe, RecipeError};
