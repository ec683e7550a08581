//! What a merge will cost, before it is done.

use super::{
    MergeJob, calibration,
    decide::{check, experts, wanted},
    open,
};
use crate::error::CompressError;
use ounce_model::config::MoeConfig;
use serde::Serialize;

/// What a merge will cost.
#[derive(Debug, Clone, Serialize)]
pub struct MergeEstimate {
    /// Calibration tokens.
    pub calibration_tokens: usize,
    /// Floating-point operations of the statistics.
    pub calibration_flops: f64,
    /// Bound on memory that is not file-backed.
    pub memory_bytes: u64,
    /// Bytes on the disk while measuring, beside the result: hidden states of all tokens, twice.
    pub scratch_bytes: u64,
    /// Bytes of weights before.
    pub bytes_before: u64,
    /// Bytes of weights after; for a global budget, the same number of experts is assumed in every layer.
    pub bytes_after: u64,
}

/// What the job will cost, without doing it.
///
/// # Errors
/// If the model or the calibration cannot be read, or the budget does not fit.
pub fn estimate(job: &MergeJob) -> Result<MergeEstimate, CompressError> {
    let (checkpoint, model) = open(job)?;
    let c = &model.config;
    check(job, &model)?;
    let tokens = calibration(job, &model)?.map_or(0, |ids| ids.tokens());
    let experts = experts(&model);
    let kept = job.recipe.budget.uniform(&experts)?;
    let wanted = wanted(&job.recipe, &experts)?;
    let all = wanted.outputs || wanted.subsets.is_some();
    let attention = c.layers.len() * c.hidden_size * c.head_dim * (2 * c.heads + 2 * c.kv_heads);
    let expert = |m: &MoeConfig| 3 * c.hidden_size * m.width;
    let per_token: usize = attention
        + c.moe_layers()
            .map(|(_, m)| (m.top_k + if all { m.experts } else { 0 }) * expert(m))
            .sum::<usize>();
    let element = model.dtype().bytes_of(1);
    let dropped: usize = c
        .moe_layers()
        .zip(&kept)
        .map(|((_, m), &r)| (m.experts - r) * expert(m) * element)
        .sum();
    let largest = c.moe_layers().map(|(_, m)| expert(m)).max().unwrap_or(0);
    let hidden = 2 * tokens * c.hidden_size * size_of::<f32>();
    Ok(MergeEstimate {
        calibration_tokens: tokens,
        calibration_flops: 2.0 * per_token as f64 * tokens as f64,
        memory_bytes: (hidden + 3 * largest * size_of::<f32>() + (200 << 20)) as u64,
        scratch_bytes: hidden as u64,
        bytes_before: checkpoint.total_bytes(),
        bytes_after: checkpoint.total_bytes() - if job.expanded { 0 } else { dropped as u64 },
    })
}
