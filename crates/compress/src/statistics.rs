//! What the experts of every layer do on calibration tokens, gathered in one streaming pass.
//!
//! Hidden states are held once, sequence by sequence, and replaced as each layer is run; weights stay file-backed. All
//! statistics come from the original model: hidden states always continue through the original layer.
//!
//! Symbols: L mixture layers, n experts, k experts per token, N calibration tokens, d model width.

use crate::{
    calibrate::CalibrationIds,
    error::{CompressError, LayerError},
    geometry::{Geometry, PairAccumulator},
};
use ounce_kernels::{column_sum, row_dots};
use ounce_model::{Batch, Model, ffn::MoeFfn};
use ounce_tensor::{Compute, Tensor, no_grad, ops};
use std::sync::atomic::{AtomicBool, Ordering};

/// Which statistics are wanted; the rest is not computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wanted {
    /// Mean outputs and output norms: every expert on every token, n/k times the usual work.
    pub outputs: bool,
    /// Distances of router-logit columns.
    pub router_columns: bool,
}

/// Statistics of one mixture layer.
#[derive(Debug, Clone)]
pub struct LayerStatistics {
    /// Layer index.
    pub layer: usize,
    /// Selections of each expert, `[n]`; they sum to k·N.
    pub usage_counts: Vec<u64>,
    /// Mean router probability over all experts, `[n]`.
    pub router_prob_mean: Vec<f64>,
    /// Mean output of each expert over all tokens, `[n, d]`; empty unless wanted.
    pub mean_output: Vec<f64>,
    /// Distances of router-logit columns, if wanted.
    pub router_geometry: Option<Geometry>,
    /// Sum over routed tokens of the norm of each expert's output, `[n]`; zeros unless outputs are wanted.
    pub norm_sum: Vec<f64>,
    /// The same, each norm weighted by the full-softmax probability.
    pub norm_sum_softmax: Vec<f64>,
    /// The same, weighted by the probability divided by the sum over the selected experts.
    pub norm_sum_renorm: Vec<f64>,
}

impl LayerStatistics {
    fn new(layer: usize, n: usize, d: usize, wanted: Wanted) -> Self {
        Self {
            layer,
            usage_counts: vec![0; n],
            router_prob_mean: vec![0.0; n],
            mean_output: if wanted.outputs { vec![0.0; n * d] } else { Vec::new() },
            router_geometry: None,
            norm_sum: vec![0.0; n],
            norm_sum_softmax: vec![0.0; n],
            norm_sum_renorm: vec![0.0; n],
        }
    }

    /// Share of all selections, `[n]`.
    pub fn usage_freq(&self) -> Vec<f64> {
        let total: u64 = self.usage_counts.iter().sum();
        self.usage_counts
            .iter()
            .map(|&c| c as f64 / total.max(1) as f64)
            .collect()
    }

    /// A sum over routed tokens divided by their number; never routed gives 0.
    pub fn per_selection(&self, sums: &[f64]) -> Vec<f64> {
        sums.iter()
            .zip(&self.usage_counts)
            .map(|(&s, &c)| if c == 0 { 0.0 } else { s / c as f64 })
            .collect()
    }
}

/// Runs `model` over the calibration tokens, layer by layer, and returns the statistics of every mixture layer.
///
/// # Errors
/// If an id is outside the vocabulary, an activation is not finite, or `stop` is set.
pub fn gather(
    model: &Model,
    calibration: &CalibrationIds,
    wanted: Wanted,
    progress: &mut dyn FnMut(usize, usize),
    stop: &AtomicBool,
) -> Result<Vec<LayerStatistics>, CompressError> {
    let tokens = calibration.tokens();
    if tokens == 0 {
        return Err(CompressError::input(
            "calibration",
            "holds no token",
            "give text or ids",
        ));
    }
    let input = |row: usize| Batch {
        ids: &calibration.rows[row],
        batch: 1,
        compute: Compute::F32,
    };
    // The one hidden-state buffer: a tensor per sequence.
    let mut hidden: Vec<Tensor> = Vec::with_capacity(calibration.rows.len());
    for row in 0..calibration.rows.len() {
        hidden.push(model.embed(&model.context(input(row), None)?)?);
    }
    let blocks = model.plan().blocks();
    let mut all = Vec::new();
    for (layer, block) in blocks.iter().enumerate() {
        let moe = block.ffn().as_moe();
        let mut statistics = moe.map(|m| LayerStatistics::new(layer, m.map.len(), model.config.hidden_size, wanted));
        let mut columns = match moe {
            Some(m) if wanted.router_columns => {
                Some(PairAccumulator::new(m.map.len()).map_err(|e| LayerError::from(e).at(layer))?)
            }
            _ => None,
        };
        for (row, x) in hidden.iter_mut().enumerate() {
            if stop.load(Ordering::Relaxed) {
                return Err(CompressError::Stopped(String::new()));
            }
            let mut ctx = model.context(input(row), None)?;
            ctx.sink.want_ffn_inputs = moe.is_some();
            ctx.sink.want_routing = moe.is_some();
            *x = no_grad(|| block.forward(x, &mut ctx))?;
            if let (Some(moe), Some(statistics)) = (moe, &mut statistics) {
                let (Some((_, inputs)), Some(routing)) = (ctx.sink.ffn_inputs.pop(), ctx.sink.routing.pop()) else {
                    return Err(CompressError::input("model", "a mixture layer reported nothing", ""));
                };
                if let Some(columns) = &mut columns {
                    columns
                        .add_columns(&routing.logits.to_f32())
                        .map_err(|e| LayerError::from(e).at(layer))?;
                }
                observe(moe, &inputs, &routing.logits, &routing.experts, wanted, statistics)?;
            }
        }
        if let Some(mut statistics) = statistics {
            for p in statistics
                .router_prob_mean
                .iter_mut()
                .chain(&mut statistics.mean_output)
            {
                *p /= tokens as f64;
            }
            let bad = |values: &[f64]| values.iter().any(|v| !v.is_finite());
            if bad(&statistics.router_prob_mean) || bad(&statistics.mean_output) {
                return Err(CompressError::input(
                    format!("layer {layer}"),
                    "an expert's output or the router is not finite on the calibration tokens",
                    "the weights hold NaN or infinity; see `ounce inspect --scan`",
                ));
            }
            statistics.router_geometry = columns
                .map(PairAccumulator::finish)
                .transpose()
                .map_err(|e| LayerError::from(e).at(layer))?;
            all.push(statistics);
        }
        progress(layer + 1, blocks.len());
    }
    Ok(all)
}

/// Adds the tokens `x [T, d]` of one sequence.
fn observe(
    moe: &MoeFfn,
    x: &Tensor,
    logits: &Tensor,
    chosen: &[usize],
    wanted: Wanted,
    statistics: &mut LayerStatistics,
) -> Result<(), CompressError> {
    let (n, d, k) = (moe.map.len(), x.last_dim(), moe.top_k);
    let probabilities = no_grad(|| ops::softmax(logits))?.to_f32();
    for &e in chosen {
        statistics.usage_counts[e] += 1;
    }
    for row in probabilities.chunks_exact(n) {
        for (sum, &p) in statistics.router_prob_mean.iter_mut().zip(row) {
            *sum += f64::from(p);
        }
    }
    if !wanted.outputs {
        return Ok(());
    }
    let rows = x.rows();
    let mut norms = vec![0f32; rows];
    let mut column = vec![0f32; d];
    for e in 0..n {
        let y = no_grad(|| moe.experts[moe.map[e]].apply(x, Compute::F32))?;
        let y = y.values::<f32>().unwrap_or(&[]);
        column_sum(y, d, &mut column);
        for (sum, &v) in statistics.mean_output[e * d..(e + 1) * d].iter_mut().zip(&column) {
            *sum += f64::from(v);
        }
        row_dots(y, y, d, &mut norms);
        for (slot, _) in chosen.iter().enumerate().filter(|&(_, &c)| c == e) {
            let (token, row) = (slot / k, &probabilities[slot / k * n..][..n]);
            let norm = f64::from(norms[token]).sqrt();
            let selected: f64 = chosen[token * k..(token + 1) * k]
                .iter()
                .map(|&c| f64::from(row[c]))
                .sum();
            statistics.norm_sum[e] += norm;
            statistics.norm_sum_softmax[e] += norm * f64::from(row[e]);
            statistics.norm_sum_renorm[e] += norm * f64::from(row[e]) / selected;
        }
    }
    Ok(())
}
