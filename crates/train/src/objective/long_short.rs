//! Long-Short Alignment: next-token prediction plus a penalty on how much the prediction depends on the length of the
//! context.
//!
//! # Paper and idea
//! "Long-Short Alignment for Effective Long-Context Modeling in LLMs", Du, Huang, Wang, Wang, ICML 2025, arXiv
//! 2506.11769. A model whose outputs do not move when it reads the same ending with a somewhat longer or shorter context
//! generalises better to lengths it was not trained on. The objective reads one stretch of text twice, as two
//! overlapping windows, and adds a small multiple of the divergence between the two predictions of the same token.
//! Inference does not change.
//!
//! # Symbols
//! l window length, e = `l_extra` in `extra_min..=extra_max`, z a stretch of l + `extra_max` tokens, B rows, V vocabulary,
//! D width. View A = `z[0..l]` (long), view B = `z[e..e + l]` (short). For t in e..l both predict token t + 1 of z:
//! `p_t` after t + 1 tokens, `q_t` after t + 1 - e. n pairs (A, t) – (B, t - e), all rows together.
//!
//! - `SCE(p, q) = -Σ p log q - Σ q log p = H(p) + H(q) + J(p, q)`; Jeffreys `J = KL(p|q) + KL(q|p)`.
//! - `loss = CE + alpha · mean over pairs of SCE (or J)`.
//! - With logits a, b: `dSCE/da = p (-log q - T1) + (p - q)`, `T1 = -Σ p log q`; `dJ/da = p (log p - log q - KL(p|q)) +
//!   (p - q)`; for b with p and q exchanged.
//!
//! # What the paper leaves open, and what we chose
//! - SCE has weight 1 in both directions and no factor 1/2. It is not zero for equal predictions but twice their
//!   entropy, so it also sharpens; J does not. Both are offered and both are logged, with both entropies.
//! - e is drawn once per *step*, uniformly, from (seed, step): then every micro-batch has equally many pairs, and the mean
//!   of micro-batch means is the mean over all pairs.
//! - All overlapping positions count, as write-ups of the paper agree; `min_short_ctx` leaves out those where view B has
//!   read no more than so many tokens (a far shorter context than the metric compares).
//! - Of the variants that write-ups name, one-sided KL, Jensen-Shannon, pairs at the last or at random positions only, and a
//!   warm-up of alpha are not here.
//! - Where a model draws noise (DRT's Gumbel selection), both views draw their own: J then holds the noise of the choice, too.
//! - The cross-entropy is the mean over both views (`ce = "both"`) or over A alone (`"first"`).
//! - Gradients go through both views; `stop_grad` holds one of them fixed.
//! - View B is a raw suffix: no beginning-of-text token is put in front of it. Windows are cut from packed documents without
//!   document masks, for A and B alike.
//! - Validation losses of a run are plain next-token losses: comparable between objectives.
//! - With `alpha = 0` nothing of the penalty is computed: loss and gradients are bit for bit those of plain training on
//!   both views.
//!
//! # Configuration
//! `[objective]`: `kind = "long_short"`, `alpha` (0.1; the paper finds harm from 0.5 on), `divergence` (`"sce"`,
//! `"jeffreys"`), `extra_min` (1), `extra_max` (half the window, which is also the most it may be), `min_short_ctx` (0),
//! `stop_grad` (`"none"`, `"long"`, `"short"`), `ce` (`"both"`, `"first"`).
//!
//! # Cost
//! Two windows per row instead of one, in one forward of 2B rows. The pairs' logits exist a block at a time.

mod fused;

use super::{At, How, LossParts, Objective, Problem, add_side_losses, hidden};
use crate::error::Result;
use ounce_data::{Batch, RandomStream};
use ounce_model::Model;
use ounce_tensor::{Tensor, ops};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

pub use fused::{divergence_sum, linear_divergence};

/// What is made small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Divergence {
    /// Symmetric cross-entropy.
    #[default]
    Sce,
    /// Symmetric cross-entropy without both entropies.
    Jeffreys,
}

/// Which view's predictions are held fixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StopGrad {
    /// Neither.
    #[default]
    None,
    /// The long one: the short one learns from it.
    Long,
    /// The short one: the long one learns from it.
    Short,
}

/// Which views the cross-entropy is taken of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CeViews {
    /// Both.
    #[default]
    Both,
    /// The long one.
    First,
}

/// `[objective]` with `kind = "long_short"`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LongShortConfig {
    /// Weight of the divergence.
    pub alpha: f64,
    /// What is made small.
    pub divergence: Divergence,
    /// Least tokens that view B lacks.
    pub extra_min: usize,
    /// Most tokens that view B lacks; half the window if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extra_max: Option<usize>,
    /// Pairs count where view B has read more than this many tokens.
    pub min_short_ctx: usize,
    /// Which view is held fixed.
    pub stop_grad: StopGrad,
    /// Which views the cross-entropy is taken of.
    pub ce: CeViews,
}

impl Default for LongShortConfig {
    fn default() -> Self {
        Self {
            alpha: 0.1,
            divergence: Divergence::Sce,
            extra_min: 1,
            extra_max: None,
            min_short_ctx: 0,
            stop_grad: StopGrad::None,
            ce: CeViews::Both,
        }
    }
}

impl LongShortConfig {
    fn extra_max(&self, length: usize) -> usize {
        self.extra_max.unwrap_or(length / 2)
    }

    /// The first key out of range for windows of `length`.
    pub(super) fn problem(&self, length: usize) -> Option<Problem> {
        let most = self.extra_max(length);
        let half = length / 2;
        let bad = |key, rule: String, hint| Some(Problem { key, rule, hint });
        if !(self.alpha >= 0.0 && self.alpha.is_finite()) {
            let rule = format!("must not be negative, is {}", self.alpha);
            return bad(
                "objective.alpha",
                rule,
                "the paper recommends 0.1, and finds harm from 0.5 on",
            );
        }
        if half == 0 {
            let rule = format!("must be at least 2 for two views, is {length}");
            return bad(
                "run.length",
                rule,
                "lengthen the windows, or use objective.kind = \"next_token\"",
            );
        }
        if most == 0 || most > half {
            let rule = format!("must be in 1..={half}, half of run.length = {length}, is {most}");
            return bad("objective.extra_max", rule, "views that share less than half do worse");
        }
        if self.extra_min == 0 || self.extra_min > most {
            let rule = format!("must be in 1..={most}, is {}", self.extra_min);
            let hint = "views that share everything have no divergence, only entropy";
            return bad("objective.extra_min", rule, hint);
        }
        let shared = length - most;
        if self.min_short_ctx >= shared {
            let rule = format!(
                "must be below {shared}, the positions that two views share at least, is {}",
                self.min_short_ctx
            );
            return bad("objective.min_short_ctx", rule, "nothing would be left to compare");
        }
        None
    }
}

/// Stream of randomness.
const EXTRA: u64 = 0x6c73_6578;

/// The objective for windows of a given length.
pub struct LongShort {
    config: LongShortConfig,
    length: usize,
}

impl LongShort {
    /// For windows of `length` tokens; the configuration must have no problem with it.
    pub fn new(config: LongShortConfig, length: usize) -> Self {
        Self { config, length }
    }

    /// `l_extra` of a step.
    pub fn extra(&self, at: At) -> usize {
        let (least, most) = (self.config.extra_min, self.config.extra_max(self.length));
        least + RandomStream::at(at.seed, EXTRA, at.step, 0).below((most - least + 1) as u64) as usize
    }

    /// Both views of every row as one batch of 2B rows, long ones first.
    pub fn views(&self, batch: &Batch, extra: usize) -> Batch {
        let (l, all) = (self.length, batch.length);
        let cut = |from: &[u32]| -> Vec<u32> {
            let starts = [0, extra];
            starts
                .iter()
                .flat_map(|&e| from.chunks_exact(all).flat_map(move |row| &row[e..e + l]))
                .copied()
                .collect()
        };
        Batch {
            rows: 2 * batch.rows,
            length: l,
            inputs: cut(&batch.inputs),
            targets: cut(&batch.targets),
        }
    }
}

impl Objective for LongShort {
    fn tokens_needed(&self, length: usize) -> usize {
        length + self.config.extra_max(length) + 1
    }

    fn forward_rows(&self, rows: usize) -> usize {
        2 * rows
    }

    fn input<'a>(&self, batch: &'a Batch, at: At) -> Cow<'a, Batch> {
        Cow::Owned(self.views(batch, self.extra(at)))
    }

    fn loss(&self, model: &Model, batch: &Batch, how: &How) -> Result<LossParts> {
        let LongShortConfig { alpha, ce, .. } = self.config;
        let compute = how.compute;
        let extra = self.extra(how.at);
        let views = self.views(batch, extra);
        let (hidden, mut ctx) = hidden(model, &views, how)?;
        let counted = match ce {
            CeViews::Both => views.rows,
            CeViews::First => batch.rows,
        };
        let targets: Vec<i64> = views.targets[..counted * self.length]
            .iter()
            .map(|&t| i64::from(t))
            .collect();
        let scored = if counted == views.rows {
            hidden.clone()
        } else {
            ops::narrow_rows(&hidden, 0, counted * self.length)?
        };
        let mut total = ops::linear_cross_entropy(&scored, model.head(), &targets, compute)?;
        let mut parts = vec![("cross_entropy", total.item()?)];
        if alpha > 0.0 {
            let pairs = pairs(
                self.length,
                &vec![extra; batch.rows],
                self.config.min_short_ctx,
                &|_, _, _| true,
            );
            let (penalty, found) = linear_divergence(
                &hidden,
                model.head(),
                &pairs,
                self.config.divergence,
                self.config.stop_grad,
                compute,
            )?;
            total = ops::add(&total, &ops::scale(&penalty, alpha)?)?;
            parts.extend([
                ("sce", found.sce),
                ("jeffreys", found.jeffreys),
                ("h_long", found.h_long),
                ("h_short", found.h_short),
            ]);
        }
        add_side_losses(total, parts, &mut ctx)
    }
}

/// Rows of logits that predict the same token: `(row of A, row of B)`, both among `[2B·l]` with all rows of A first. Row b
/// of the batch has `l_extra = extras[b]`; pairs where B has read at most `min_short_ctx` tokens do not count, nor those
/// for which `counts(b, t, t - l_extra)` is false (padding).
pub fn pairs(
    length: usize,
    extras: &[usize],
    min_short_ctx: usize,
    counts: &dyn Fn(usize, usize, usize) -> bool,
) -> Vec<(usize, usize)> {
    let rows = extras.len();
    let mut pairs = Vec::new();
    for (b, &extra) in extras.iter().enumerate() {
        for t in extra + min_short_ctx..length {
            if counts(b, t, t - extra) {
                pairs.push((b * length + t, (rows + b) * length + t - extra));
            }
        }
    }
    pairs
}

/// The reference, to which the form used in training is held: the mean divergence of rows of logits `long, short [n, V]`, of primitive operations.
///
/// # Errors
/// If shapes differ, or there is no row.
pub fn divergence_reference(long: &Tensor, short: &Tensor, divergence: Divergence) -> Result<Tensor> {
    let (p, log_p) = (ops::softmax(long)?, ops::log_softmax(long)?);
    let (q, log_q) = (ops::softmax(short)?, ops::log_softmax(short)?);
    let cross = |p: &Tensor, log_q: &Tensor| -> Result<Tensor> { Ok(ops::sum(&ops::mul(p, log_q)?)?) };
    let mut sum = ops::scale(&ops::add(&cross(&p, &log_q)?, &cross(&q, &log_p)?)?, -1.0)?;
    if divergence == Divergence::Jeffreys {
        sum = ops::add(&sum, &ops::add(&cross(&p, &log_p)?, &cross(&q, &log_q)?)?)?;
    }
    Ok(ops::scale(&sum, 1.0 / long.rows() as f64)?)
}
