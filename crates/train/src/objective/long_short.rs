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
//!   read fewer tokens (a far shorter context than the metric compares).
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

use super::{At, LossParts, Objective, Problem, add_side_losses};
use crate::error::Result;
use ounce_data::{Batch, Philox};
use ounce_eval::Divergences;
use ounce_model::{Batch as ModelBatch, Model};
use ounce_tensor::{Compute, DType, Element, Gradients, Tensor, TensorError, no_grad, ops};
use serde::{Deserialize, Serialize};

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
    /// Pairs count from this many tokens of view B on.
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
        least + Philox::at(at.seed, EXTRA, at.step, 0).below((most - least + 1) as u64) as usize
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

    fn loss(&self, model: &Model, batch: &Batch, at: At, compute: Compute) -> Result<LossParts> {
        let LongShortConfig { alpha, ce, .. } = self.config;
        let extra = self.extra(at);
        let views = self.views(batch, extra);
        let input = ModelBatch {
            ids: &views.inputs,
            batch: views.rows,
            compute,
        };
        let mut ctx = model.context(input, None)?;
        ctx.noise = at.noise();
        let hidden = model.hidden(&mut ctx)?;
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
            ops::narrow_rows(&hidden, 0, counted)?
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
                &ops::reshape(&hidden, &[views.rows * self.length, hidden.last_dim()])?,
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

/// The reference: the mean divergence of rows of logits `long, short [n, V]`, of primitive operations.
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

/// The same with gradients in closed form: the sum over rows divided by `count`, and the sums of all divergences.
///
/// # Errors
/// If shapes differ, or the logits are neither f32 nor f64.
pub fn divergence_sum(
    long: &Tensor,
    short: &Tensor,
    divergence: Divergence,
    count: usize,
) -> Result<(Tensor, Divergences)> {
    if long.shape() != short.shape() {
        return Err(TensorError::Shape {
            op: "divergence",
            rule: "both views have one shape",
            got: format!("{:?} and {:?}", long.shape(), short.shape()),
        }
        .into());
    }
    let (found, [d_long, d_short]) = match long.dtype() {
        DType::F64 => rows::<f64>(long, short, divergence, count, |x| x)?,
        _ => rows::<f32>(long, short, divergence, count, |x| x as f32)?,
    };
    let mean = match divergence {
        Divergence::Sce => found.sce,
        Divergence::Jeffreys => found.jeffreys,
    } / count as f64;
    let loss = match long.dtype() {
        DType::F64 => Tensor::scalar(mean),
        _ => Tensor::scalar(mean as f32),
    };
    let loss = loss.recorded(&[long, short], move |dy, _| {
        let upstream = dy.item()?;
        let scaled = |g: Option<Tensor>| g.map(|g| ops::scale(&g, upstream)).transpose();
        Ok(vec![scaled(d_long)?, scaled(d_short)?])
    });
    Ok((loss, found))
}

/// Sums over rows, and the gradients of the sum divided by `count` for the views that need one.
fn rows<T: Element + Into<f64>>(
    long: &Tensor,
    short: &Tensor,
    divergence: Divergence,
    count: usize,
    narrow: fn(f64) -> T,
) -> Result<(Divergences, [Option<Tensor>; 2])> {
    let parts = no_grad(|| -> Result<[Tensor; 4]> {
        Ok([
            ops::softmax(long)?,
            ops::log_softmax(long)?,
            ops::softmax(short)?,
            ops::log_softmax(short)?,
        ])
    })?;
    let values: Vec<&[T]> = parts.iter().filter_map(|t| t.values::<T>()).collect();
    let [p, log_p, q, log_q] = values[..] else {
        return Err(TensorError::Dtype {
            op: "divergence",
            rule: "both views have one dtype",
            got: format!("{:?} and {:?}", long.dtype(), short.dtype()),
        }
        .into());
    };
    let v = long.last_dim().max(1);
    let mut sum = Divergences::default();
    let empty = |x: &Tensor| x.needs_grad().then(|| Vec::with_capacity(p.len()));
    let (mut d_long, mut d_short) = (empty(long), empty(short));
    for at in (0..p.len()).step_by(v) {
        let row = at..at + v;
        let (p, log_p, q, log_q) = (&p[row.clone()], &log_p[row.clone()], &q[row.clone()], &log_q[row]);
        let found = Divergences::of(p, log_p, q, log_q);
        sum.add(found, 1.0);
        let gradient = |into: &mut Option<Vec<T>>, [p, log_p, q, log_q]: [&[T]; 4]| {
            let Some(into) = into else { return };
            // `-log q` for SCE, `log p - log q` for J; its mean under p is taken off.
            let pull = |i: usize| match divergence {
                Divergence::Sce => -log_q[i].into(),
                Divergence::Jeffreys => log_p[i].into() - log_q[i].into(),
            };
            let mean: f64 = (0..v).map(|i| p[i].into() * pull(i)).sum();
            into.extend((0..v).map(|i| {
                let (p, q): (f64, f64) = (p[i].into(), q[i].into());
                narrow((p * (pull(i) - mean) + (p - q)) / count as f64)
            }));
        };
        gradient(&mut d_long, [p, log_p, q, log_q]);
        gradient(&mut d_short, [q, log_q, p, log_p]);
    }
    let tensor = |values: Option<Vec<T>>, like: &Tensor| values.map(|v| Tensor::new(v, like.shape())).transpose();
    Ok((sum, [tensor(d_long, long)?, tensor(d_short, short)?]))
}

/// Pairs whose logits exist at a time.
const BLOCK: usize = 256;

/// The mean divergence over `pairs` of rows of `x [N, D] Wᵀ` for the head `W [V, D]`, a block of logits at a time: as with
/// the fused cross-entropy, both gradients are complete when the loss is known. Also returns all mean divergences.
///
/// # Errors
/// If shapes do not fit, or there is no pair.
pub fn linear_divergence(
    x: &Tensor,
    w: &Tensor,
    pairs: &[(usize, usize)],
    divergence: Divergence,
    stop: StopGrad,
    compute: Compute,
) -> Result<(Tensor, Divergences)> {
    if pairs.is_empty() {
        return Err(TensorError::Shape {
            op: "divergence",
            rule: "at least one pair of positions",
            got: "none".into(),
        }
        .into());
    }
    let leaf = |t: &Tensor| {
        if t.needs_grad() {
            t.detach().requires_grad()
        } else {
            t.detach()
        }
    };
    let head = leaf(w);
    let mut gradients = Gradients::new();
    let (mut value, mut found) = (0.0, Divergences::default());
    let (mut rows, mut parts): (Vec<usize>, Vec<Tensor>) = (Vec::new(), Vec::new());
    for block in pairs.chunks(BLOCK) {
        let view = |ids: Vec<usize>, fixed: bool| -> Result<(Vec<usize>, Tensor, Tensor)> {
            let gathered = no_grad(|| ops::gather_rows(x, &ids))?;
            let input = if x.needs_grad() && !fixed {
                gathered.requires_grad()
            } else {
                gathered
            };
            let logits = if fixed {
                no_grad(|| ops::linear(&input, &head, compute))?
            } else {
                ops::linear(&input, &head, compute)?
            };
            Ok((ids, input, logits))
        };
        let long = view(block.iter().map(|p| p.0).collect(), stop == StopGrad::Long)?;
        let short = view(block.iter().map(|p| p.1).collect(), stop == StopGrad::Short)?;
        let (loss, sums) = divergence_sum(&long.2, &short.2, divergence, pairs.len())?;
        value += loss.item()?;
        found.add(sums, 1.0 / pairs.len() as f64);
        loss.backward(&mut gradients)?;
        for (ids, input, _) in [long, short] {
            if let Some(gradient) = gradients.take(&input) {
                rows.extend(ids);
                parts.push(gradient);
            }
        }
    }
    let dx = if parts.is_empty() {
        None
    } else {
        let all = ops::concat_rows(&parts.iter().collect::<Vec<_>>())?;
        Some(ops::reshape(&ops::scatter_add_rows(&all, &rows, x.rows())?, x.shape())?)
    };
    let dw = gradients.take(&head);
    let loss = match x.dtype() {
        DType::F64 => Tensor::scalar(value),
        _ => Tensor::scalar(value as f32),
    };
    let loss = loss.recorded(&[x, w], move |dy, _| {
        let upstream = dy.item()?;
        let scaled = |g: Option<Tensor>| g.map(|g| ops::scale(&g, upstream)).transpose();
        Ok(vec![scaled(dx)?, scaled(dw)?])
    });
    Ok((loss, found))
}
