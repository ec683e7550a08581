//! Long-short misalignment: how much a model's next-token distribution moves when it reads the same ending with a longer
//! or a shorter context; always beside a probe of whether it uses distant context at all.
//!
//! From "Long-Short Alignment for Effective Long-Context Modeling in LLMs" (Du et al., ICML 2025, arXiv 2506.11769).
//! With p after the longer and q after the shorter suffix of one text,
//! `SCE = -Σ p log q - Σ q log p = H(p) + H(q) + J`, where J (Jeffreys) is the part that is zero for equal
//! distributions. A low SCE may just be a confident model; J is the one to compare. A model that is blind to distant
//! context has J = 0, too: therefore the probe, which repeats a passage at a distance and asks how much better than
//! without its first occurrence it is predicted. Blind models gain nothing.
//!
//! What the paper leaves open, and what we chose: both lengths are drawn uniformly from `[l/2, l]` and differ; texts end
//! at uniformly drawn places; draws are counter-based, so a result depends on model, text, length and seed only.
//!
//! Shape suffixes: V vocabulary.

use crate::{
    error::{EvalError, Result},
    interval::Interval,
    score::{Passage, Progress, ScoreOptions, log_probabilities, silent},
};
use ounce_data::RandomStream;
use ounce_model::{Batch, Model};
use ounce_tensor::{Compute, no_grad, ops};
use serde::Serialize;

/// How far two distributions are apart, in nats.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Divergences {
    /// `-Σ p log q - Σ q log p`.
    pub sce: f64,
    /// `KL(p|q) + KL(q|p)`.
    pub jeffreys: f64,
    /// Entropy of p, after the longer context.
    pub h_long: f64,
    /// Entropy of q, after the shorter context.
    pub h_short: f64,
}

impl Divergences {
    /// Of the distributions p and q `[V]`, given with their logarithms.
    pub fn of<T: Copy + Into<f64>>(p: &[T], log_p: &[T], q: &[T], log_q: &[T]) -> Self {
        let (mut pq, mut qp, mut pp, mut qq) = (0.0, 0.0, 0.0, 0.0);
        for (((&p, &log_p), &q), &log_q) in p.iter().zip(log_p).zip(q).zip(log_q) {
            let (p, log_p, q, log_q): (f64, f64, f64, f64) = (p.into(), log_p.into(), q.into(), log_q.into());
            pq -= p * log_q;
            qp -= q * log_p;
            pp -= p * log_p;
            qq -= q * log_q;
        }
        Self {
            sce: pq + qp,
            // Not sce - H(p) - H(q): both terms are differences of neighbours, so nothing cancels for equal inputs.
            jeffreys: (pq - pp) + (qp - qq),
            h_long: pp,
            h_short: qq,
        }
    }

    /// Adds `other`, `weight` times.
    pub fn add(&mut self, other: Self, weight: f64) {
        self.sce += weight * other.sce;
        self.jeffreys += weight * other.jeffreys;
        self.h_long += weight * other.h_long;
        self.h_short += weight * other.h_short;
    }
}

/// What to measure.
#[derive(Debug, Clone, Copy)]
pub struct MisalignmentOptions {
    /// l, the length the model was trained on; contexts have l/2 to l tokens.
    pub length: usize,
    /// Comparisons.
    pub samples: usize,
    /// Seed of places and lengths.
    pub seed: u64,
    /// Arithmetic.
    pub compute: Compute,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Misalignment {
    /// l.
    pub l_train: usize,
    /// Comparisons.
    pub n: usize,
    /// Mean length of the longer contexts.
    pub l_long: f64,
    /// Mean length of the shorter contexts.
    pub l_short: f64,
    /// Means over the comparisons.
    #[serde(flatten)]
    pub divergences: Divergences,
    /// Cross-entropy of the true next token after the longer context.
    pub ce_long: f64,
    /// Cross-entropy of the true next token after the shorter context.
    pub ce_short: f64,
    /// Share of comparisons with the same most likely token.
    pub top1_agree: f64,
    /// The probe.
    pub long_range: LongRange,
}

/// Does the model use distant context? A passage is repeated at a distance.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LongRange {
    /// Tokens from the first occurrence to the second.
    pub distance: usize,
    /// Tokens of the passage.
    pub repeated: usize,
    /// Nats per token by which the second occurrence is predicted better than without the first; 0 for a blind model.
    pub gain: Interval,
}

/// Streams of randomness.
const PLACES: u64 = 0x6c73_706c;
const PROBES: u64 = 0x6c73_7072;

/// Measures `model` on a text given as ids.
///
/// # Errors
/// If the length is below 8 or beyond the model's positions, the text is not longer than that, no sample is asked for, or
/// the model fails.
pub fn misalignment(
    model: &Model,
    ids: &[u32],
    options: MisalignmentOptions,
    progress: Progress<'_>,
) -> Result<Misalignment> {
    let MisalignmentOptions {
        length: l,
        samples: n,
        seed,
        compute,
    } = options;
    let refuse = |what: &str, rule: String, hint| {
        Err(EvalError::Input {
            what: what.into(),
            rule,
            hint,
        })
    };
    if l < 8 || l > model.config.max_positions {
        let rule = format!("must be in 8..={}, is {l}", model.config.max_positions);
        return refuse("misalignment length", rule, "it is the length the model was trained on");
    }
    if ids.len() <= l {
        let rule = format!("has {} tokens, contexts of {l} need one more", ids.len());
        return refuse("text", rule, "give a longer text, or a shorter length");
    }
    if n == 0 {
        return refuse("misalignment samples", "must be at least 1".into(), "");
    }
    let (mut sum, mut ce, mut agree, mut lengths) = (Divergences::default(), [0.0; 2], 0, [0; 2]);
    for sample in 0..n as u64 {
        let draw = |index, below: usize| RandomStream::at(seed, PLACES, sample, index).below(below as u64) as usize;
        // x ends before the token at `end`, which is what both contexts predict.
        let end = l + draw(0, ids.len() - l);
        let spread = l - l / 2 + 1;
        let first = l / 2 + draw(1, spread);
        // Any other length, each as likely.
        let mut second = l / 2 + draw(2, spread - 1);
        second += usize::from(second >= first);
        let target = ids[end] as usize;
        let pair = [first.max(second), first.min(second)];
        let mut log = [Vec::new(), Vec::new()];
        for (side, &len) in pair.iter().enumerate() {
            log[side] = last_log_probabilities(model, &ids[end - len..end], compute)?;
            ce[side] -= log[side].get(target).copied().unwrap_or(f64::NAN) / n as f64;
            lengths[side] += len;
        }
        let [log_p, log_q] = &log;
        let exp = |log: &[f64]| log.iter().map(|x| x.exp()).collect::<Vec<_>>();
        sum.add(Divergences::of(&exp(log_p), log_p, &exp(log_q), log_q), 1.0 / n as f64);
        agree += usize::from(best(log_p) == best(log_q));
        progress(sample as usize + 1, n);
    }
    Ok(Misalignment {
        l_train: l,
        n,
        l_long: lengths[0] as f64 / n as f64,
        l_short: lengths[1] as f64 / n as f64,
        divergences: sum,
        ce_long: ce[0],
        ce_short: ce[1],
        top1_agree: agree as f64 / n as f64,
        long_range: long_range(model, ids, options)?,
    })
}

/// The probe alone, with the same conditions as [`misalignment`].
fn long_range(model: &Model, ids: &[u32], options: MisalignmentOptions) -> Result<LongRange> {
    let (l, n) = (options.length, options.samples);
    let repeated = (l / 4).min(16);
    let places = ids.len() - repeated;
    let mut passages = Vec::new();
    for sample in 0..n as u64 {
        let at =
            |index, below: usize| RandomStream::at(options.seed, PROBES, sample, index).below(below as u64) as usize;
        let piece = |start: usize, len: usize| &ids[start..start + len];
        let again = at(0, places + 1);
        let other = at(1, places + 1);
        let gap = piece(at(2, ids.len() - (l - 2 * repeated) + 1), l - 2 * repeated);
        for first in [again, other] {
            passages.push([piece(first, repeated), gap, piece(again, repeated)].concat());
        }
    }
    let from = l - repeated + 1;
    let list: Vec<Passage<'_>> = passages.iter().map(|ids| Passage { ids, from }).collect();
    let score = ScoreOptions {
        compute: options.compute,
        batch_tokens: None,
    };
    let scores = log_probabilities(model, &list, &score, &mut silent)?;
    let mean = |s: &[f64]| s.iter().sum::<f64>() / s.len() as f64;
    let gains: Vec<f64> = scores
        .chunks_exact(2)
        .map(|pair| mean(&pair[0]) - mean(&pair[1]))
        .collect();
    let gain = Interval::of(&gains).expect("invariant: at least one sample");
    Ok(LongRange {
        distance: l - repeated,
        repeated,
        gain,
    })
}

/// Log-probabilities `[V]` after the last of `ids`.
fn last_log_probabilities(model: &Model, ids: &[u32], compute: Compute) -> Result<Vec<f64>> {
    let input = Batch { ids, batch: 1, compute };
    let logits = no_grad(|| -> Result<Vec<f32>> {
        let mut ctx = model.context(input)?;
        let hidden = model.hidden(&mut ctx)?;
        Ok(model
            .logits(&ops::gather_rows(&hidden, &[ids.len() - 1])?, compute)?
            .to_f32())
    })?;
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    Ok(logits.iter().map(|&x| f64::from(x - max) - total.ln()).collect())
}

fn best(log: &[f64]) -> usize {
    let better = |a: &usize, b: &usize| log[*a].total_cmp(&log[*b]).then(b.cmp(a));
    (0..log.len()).max_by(better).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{ids, tiny, uniform};

    const OPTIONS: MisalignmentOptions = MisalignmentOptions {
        length: 24,
        samples: 12,
        seed: 3,
        compute: Compute::F32,
    };

    #[test]
    fn equal_distributions_have_no_jeffreys_and_an_sce_of_twice_their_entropy() {
        let p = [0.5f64, 0.3, 0.2];
        let log = p.map(f64::ln);
        let d = Divergences::of(&p, &log, &p, &log);
        let h: f64 = -p.iter().map(|p| p * p.ln()).sum::<f64>();
        assert_eq!(d.jeffreys, 0.0);
        assert!((d.sce - 2.0 * h).abs() < 1e-15 && (d.h_long - h).abs() < 1e-15);
    }

    #[test]
    fn both_divergences_are_symmetric_and_sce_is_their_sum_with_the_entropies() {
        let (p, q) = ([0.7f64, 0.2, 0.1], [0.1f64, 0.4, 0.5]);
        let (lp, lq) = (p.map(f64::ln), q.map(f64::ln));
        let (d, e) = (Divergences::of(&p, &lp, &q, &lq), Divergences::of(&q, &lq, &p, &lp));
        assert!((d.sce - e.sce).abs() < 1e-15 && (d.jeffreys - e.jeffreys).abs() < 1e-15);
        assert!((d.sce - (d.h_long + d.h_short + d.jeffreys)).abs() < 1e-14 && d.jeffreys > 0.5);
    }

    #[test]
    fn a_model_that_reads_nothing_is_aligned_and_blind() {
        let model = uniform(37, 32);
        let m = misalignment(&model, &ids(200, 37), OPTIONS, &mut silent).unwrap();
        assert!(m.divergences.jeffreys.abs() < 1e-12, "{m:?}");
        assert!((m.divergences.sce - 2.0 * 37f64.ln()).abs() < 1e-6 && (m.ce_long - 37f64.ln()).abs() < 1e-6);
        assert_eq!((m.top1_agree, m.n), (1.0, 12));
        assert!(m.long_range.gain.mean.abs() < 1e-9);
    }

    #[test]
    fn a_model_that_reads_is_not_and_its_lengths_are_in_range() {
        let model = tiny(37, 32);
        let run = |seed| {
            misalignment(
                &model,
                &ids(200, 37),
                MisalignmentOptions { seed, ..OPTIONS },
                &mut silent,
            )
        };
        let m = run(3).unwrap();
        assert!(m.divergences.jeffreys > 1e-6, "{m:?}");
        assert!(m.l_short >= 12.0 && m.l_long <= 24.0 && m.l_short < m.l_long);
        assert_eq!((m.long_range.distance, m.long_range.repeated), (18, 6));
        assert_eq!(run(3).unwrap(), m);
        assert_ne!(run(4).unwrap(), m);
    }

    #[test]
    fn lengths_and_texts_out_of_range_are_refused() {
        let model = tiny(37, 32);
        let error = |options, n| {
            misalignment(&model, &ids(n, 37), options, &mut silent)
                .unwrap_err()
                .to_string()
        };
        let with = |length| MisalignmentOptions { length, ..OPTIONS };
        assert_eq!(error(with(33), 99), "misalignment length: must be in 8..=32, is 33");
        assert!(error(with(7), 99).contains("is 7"));
        assert_eq!(error(OPTIONS, 24), "text: has 24 tokens, contexts of 24 need one more");
        assert!(error(MisalignmentOptions { samples: 0, ..OPTIONS }, 99).contains("at least 1"));
    }
}
