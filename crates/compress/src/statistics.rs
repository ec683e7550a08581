//! What the experts of a layer do on calibration tokens. The streaming pass ([`crate::gather`]) brings the tokens.
//!
//! Symbols: n experts, k experts per token, N calibration tokens, d model width.

use crate::{
    calibration_pass::not_finite,
    error::{CompressError, LayerError},
    geometry::{Geometry, PairAccumulator},
    oprune::SubsetLosses,
    prune::Score,
};
use ounce_kernels::{column_sum, row_dots};
use ounce_model::{Routing, ffn::MoeFfn};
use ounce_tensor::{Compute, Tensor, no_grad, ops};

/// Which statistics are wanted; the rest is not computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wanted {
    /// Mean outputs and output norms: every expert on every token, n/k times the usual work.
    pub outputs: bool,
    /// Distances of router-logit columns.
    pub router_columns: bool,
    /// Losses of all subsets of this many experts, for O-prune: the outputs of all experts at once.
    pub subsets: Option<usize>,
}

/// Statistics of one mixture layer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LayerStatistics {
    /// Layer index.
    pub layer: usize,
    /// Selections of each expert, `[n]`; they sum to k·N.
    pub usage_counts: Vec<u64>,
    /// Mean router probability over all experts, `[n]`.
    pub router_prob_mean: Vec<f64>,
    /// Mean output of each expert over all tokens, `[n, d]`; empty unless wanted.
    pub mean_output: Vec<f64>,
    /// Distances of the mean outputs, if wanted.
    pub output_geometry: Option<Geometry>,
    /// Distances of router-logit columns, if wanted.
    pub router_geometry: Option<Geometry>,
    /// Sum over routed tokens of the norm of each expert's output, `[n]`; zeros unless outputs are wanted.
    pub norm_sum: Vec<f64>,
    /// The same, each norm weighted by the full-softmax probability.
    pub norm_sum_softmax: Vec<f64>,
    /// The same, weighted by the probability divided by the sum over the selected experts.
    pub norm_sum_renorm: Vec<f64>,
    /// O-prune: loss of each subset, in the order of [`crate::oprune::subsets`]; empty unless wanted.
    pub subset_losses: Vec<f64>,
}

impl LayerStatistics {
    /// Share of all selections, `[n]`.
    pub fn usage_freq(&self) -> Vec<f64> {
        let total: u64 = self.usage_counts.iter().sum();
        self.usage_counts
            .iter()
            .map(|&c| c as f64 / total.max(1) as f64)
            .collect()
    }

    /// A pruning score of every expert, `[n]`.
    pub fn scores(&self, score: Score) -> Vec<f64> {
        match score {
            Score::UsageCounts => self.usage_counts.iter().map(|&c| c as f64).collect(),
            Score::RouterProbMean => self.router_prob_mean.clone(),
            Score::EanSum => self.norm_sum.clone(),
            Score::EanMean => self.per_selection(&self.norm_sum),
            Score::ReapSoftmax => self.per_selection(&self.norm_sum_softmax),
            Score::ReapRenorm => self.per_selection(&self.norm_sum_renorm),
        }
    }

    /// A sum over routed tokens divided by their number; never routed gives 0.
    fn per_selection(&self, sums: &[f64]) -> Vec<f64> {
        sums.iter()
            .zip(&self.usage_counts)
            .map(|(&s, &c)| if c == 0 { 0.0 } else { s / c as f64 })
            .collect()
    }
}

/// Adds up the statistics of a layer, piece by piece of its tokens.
pub(crate) struct Observer<'a> {
    moe: &'a MoeFfn,
    wanted: Wanted,
    sums: LayerStatistics,
    columns: Option<PairAccumulator>,
    subsets: Option<SubsetLosses>,
}

impl<'a> Observer<'a> {
    /// # Errors
    /// If the layer has no expert.
    pub(crate) fn new(layer: usize, moe: &'a MoeFfn, d: usize, wanted: Wanted) -> Result<Self, CompressError> {
        let n = moe.map.len();
        let columns = wanted.router_columns.then(|| PairAccumulator::new(n)).transpose();
        Ok(Self {
            moe,
            wanted,
            sums: LayerStatistics {
                layer,
                usage_counts: vec![0; n],
                router_prob_mean: vec![0.0; n],
                mean_output: if wanted.outputs { vec![0.0; n * d] } else { Vec::new() },
                norm_sum: vec![0.0; n],
                norm_sum_softmax: vec![0.0; n],
                norm_sum_renorm: vec![0.0; n],
                ..LayerStatistics::default()
            },
            columns: columns.map_err(|e| LayerError::from(e).at(layer))?,
            subsets: wanted.subsets.map(|kept| SubsetLosses::new(n, kept)),
        })
    }

    /// Adds tokens: inputs of the mixture `x [T, d]` and what the router made of them.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub(crate) fn add(&mut self, x: &Tensor, routing: &Routing) -> Result<(), CompressError> {
        let n = self.moe.map.len();
        let logits = routing.logits.to_f32();
        if let Some(columns) = &mut self.columns {
            let added = columns.add_columns(&logits);
            added.map_err(|e| LayerError::from(e).at(self.sums.layer))?;
        }
        let probabilities = no_grad(|| ops::softmax(&routing.logits))?.to_f32();
        for &e in &routing.experts {
            self.sums.usage_counts[e] += 1;
        }
        for row in probabilities.chunks_exact(n) {
            for (sum, &p) in self.sums.router_prob_mean.iter_mut().zip(row) {
                *sum += f64::from(p);
            }
        }
        let mut outputs = Vec::new();
        if self.wanted.outputs || self.subsets.is_some() {
            for e in 0..n {
                let y = no_grad(|| self.moe.experts[self.moe.map[e]].apply(x, Compute::F32))?;
                if self.wanted.outputs {
                    self.add_output(e, &y, &routing.experts, &probabilities);
                }
                if self.subsets.is_some() {
                    outputs.push(y);
                }
            }
        }
        if let Some(subsets) = &mut self.subsets {
            subsets.add(&logits, &outputs, &routing.experts, self.moe.norm_topk);
        }
        Ok(())
    }

    /// Adds the outputs `y [T, d]` of expert `e`; `chosen [T·k]`, `probabilities [T, n]`.
    fn add_output(&mut self, e: usize, y: &Tensor, chosen: &[usize], probabilities: &[f32]) {
        let (n, d, k) = (self.moe.map.len(), y.last_dim(), self.moe.top_k);
        let mut norms = vec![0f32; y.rows()];
        let mut column = vec![0f32; d];
        let y = y.values::<f32>().unwrap_or(&[]);
        column_sum(y, d, &mut column);
        let sums = &mut self.sums;
        for (sum, &v) in sums.mean_output[e * d..(e + 1) * d].iter_mut().zip(&column) {
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
            sums.norm_sum[e] += norm;
            sums.norm_sum_softmax[e] += norm * f64::from(row[e]);
            sums.norm_sum_renorm[e] += norm * f64::from(row[e]) / selected;
        }
    }

    /// A sequence is over: what is added next belongs to another one.
    pub(crate) fn end_sequence(&mut self) {
        if let Some(subsets) = &mut self.subsets {
            subsets.end_sequence();
        }
    }

    /// Closes the sums over `tokens` tokens.
    ///
    /// # Errors
    /// If something is not finite.
    pub(crate) fn finish(self, tokens: usize) -> Result<LayerStatistics, CompressError> {
        let (mut sums, n) = (self.sums, self.moe.map.len());
        let layer = sums.layer;
        for p in sums.router_prob_mean.iter_mut().chain(&mut sums.mean_output) {
            *p /= tokens as f64;
        }
        if let Some(subsets) = self.subsets {
            sums.subset_losses = subsets.finish();
        }
        let bad = |values: &[f64]| values.iter().any(|v| !v.is_finite());
        if bad(&sums.router_prob_mean) || bad(&sums.mean_output) || bad(&sums.subset_losses) {
            return Err(not_finite(layer));
        }
        let geometry = || -> Result<_, LayerError> {
            let outputs = if self.wanted.outputs {
                Some(Geometry::from_points(&sums.mean_output, n)?)
            } else {
                None
            };
            Ok((outputs, self.columns.map(PairAccumulator::finish).transpose()?))
        };
        (sums.output_geometry, sums.router_geometry) = geometry().map_err(|e| e.at(layer))?;
        Ok(sums)
    }
}
