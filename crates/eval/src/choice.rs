//! Multiple choice by likelihood: the answer of a model is the choice it finds most probable after the context.
//!
//! Follows lm-evaluation-harness, so that numbers can be compared: context and choice are encoded as one string, spaces at
//! the end of the context count as part of the choice, an empty context becomes the token a text begins with, and what is
//! too long loses its beginning. Two things differ. Where a token spans the boundary, scoring starts at the first token
//! that differs from those of the context alone, so that no part of a choice goes unscored. And a tie is a wrong answer:
//! a model that gives all choices the same probability has not chosen, whichever stands first in the file.

use crate::{
    error::{EncodeError, EvalError, Result},
    score::{Passage, Progress, ScoreOptions, log_probabilities},
    statistics::Accuracy,
};
use ounce_model::Model;
use serde::Serialize;
use std::{collections::BTreeMap, time::Instant};

/// One question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChoiceItem {
    /// What stands before every choice; may be empty.
    pub context: String,
    /// The choices, each as it follows the context (with its leading space, where there is one).
    pub choices: Vec<String>,
    /// Index of the right one.
    pub answer: usize,
    /// What the item belongs to, as (kind of group, group): accuracies are also given per group.
    pub groups: Vec<(String, String)>,
}

/// Text to ids.
#[derive(Clone, Copy)]
pub struct Encoder<'a> {
    /// Encodes a text, with whatever the tokenizer puts in front of one.
    pub encode: &'a dyn Fn(&str) -> std::result::Result<Vec<u32>, EncodeError>,
    /// The id a text begins with (BOS, or EOS where there is none). It is put in front of a choice without context, unless
    /// `encode` has put it there; without it the first token of such a choice is not scored.
    pub start: Option<u32>,
}

/// How a model answered one item.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ItemScore {
    /// Log-probability of each choice given the context, in nats.
    pub log_likelihoods: Vec<f64>,
    /// The same, divided by the bytes of the choice (leading spaces not counted).
    pub per_byte: Vec<f64>,
    /// Is the right choice more probable than every other?
    pub correct: bool,
    /// Is it by `per_byte`?
    pub correct_norm: bool,
}

/// A suite's result.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChoiceReport {
    /// By log-probability.
    pub accuracy: Accuracy,
    /// By log-probability per byte: fair to long choices.
    pub accuracy_norm: Accuracy,
    /// `accuracy` per kind of group and group.
    pub groups: BTreeMap<String, BTreeMap<String, Accuracy>>,
    /// Wall-clock time, tokenisation included.
    pub seconds: f64,
}

/// Ids of context and choice, and the first one that belongs to the choice.
struct Encoded {
    ids: Vec<u32>,
    from: usize,
}

/// Encodes context and choice as one string; keeps the last `positions + 1` ids.
fn encode_pair(encoder: Encoder<'_>, context: &str, choice: &str, positions: usize, what: &str) -> Result<Encoded> {
    let encode = |text: &str| {
        (encoder.encode)(text).map_err(|source| EvalError::Encode {
            what: what.to_owned(),
            source,
        })
    };
    let trimmed = context.trim_end();
    let mut ids = encode(&format!("{context}{choice}"))?;
    let from = if trimmed.is_empty() {
        match encoder.start {
            Some(start) if ids.first() != Some(&start) => ids.insert(0, start),
            _ => {}
        }
        1
    } else {
        let alone = encode(trimmed)?;
        // At least one token is context, even if none is shared.
        ids.iter().zip(&alone).take_while(|(a, b)| a == b).count().max(1)
    };
    let (scored, cut) = (ids.len().saturating_sub(from), ids.len().saturating_sub(positions + 1));
    let refuse = |rule: String, hint| {
        Err(EvalError::Input {
            what: what.to_owned(),
            rule,
            hint,
        })
    };
    if scored == 0 {
        return refuse(
            "has no token to score".into(),
            "a choice needs a token, and one before it (is there a BOS?)",
        );
    }
    if cut >= from {
        return refuse(
            format!("has {scored} tokens, but the model has only {positions} positions"),
            "take a model with more positions, or leave the item out",
        );
    }
    Ok(Encoded {
        ids: ids.split_off(cut),
        from: from - cut,
    })
}

/// Scores every choice of every item.
///
/// # Errors
/// If an item has fewer than two choices or no right one, a choice cannot be encoded, has no tokens, or is longer than the
/// model's context, or the model cannot score it.
pub fn score_choices(
    model: &Model,
    items: &[ChoiceItem],
    encoder: Encoder<'_>,
    options: &ScoreOptions,
    progress: Progress<'_>,
) -> Result<Vec<ItemScore>> {
    let mut encoded = Vec::new();
    for (n, item) in items.iter().enumerate() {
        if item.choices.len() < 2 || item.answer >= item.choices.len() {
            return Err(EvalError::Input {
                what: format!("item {}", n + 1),
                rule: format!(
                    "{} choices, the right one being number {}",
                    item.choices.len(),
                    item.answer + 1
                ),
                hint: "an item has two choices or more, one of them right",
            });
        }
        for (c, choice) in item.choices.iter().enumerate() {
            let what = format!("choice {} of item {}", c + 1, n + 1);
            encoded.push(encode_pair(
                encoder,
                &item.context,
                choice,
                model.config.max_positions,
                &what,
            )?);
        }
    }
    let passages: Vec<Passage<'_>> = encoded
        .iter()
        .map(|e| Passage {
            ids: &e.ids,
            from: e.from,
        })
        .collect();
    let scores = log_probabilities(model, &passages, options, progress)?;
    let mut sums = scores.iter().map(|tokens| tokens.iter().sum::<f64>());
    Ok(items
        .iter()
        .map(|item| {
            let mut log_likelihoods: Vec<f64> = sums.by_ref().take(item.choices.len()).collect();
            // Equal choices are an exact tie: two rows of a batch may differ by rounding, which must not decide.
            for (c, choice) in item.choices.iter().enumerate() {
                if let Some(first) = item.choices[..c].iter().position(|earlier| earlier == choice) {
                    log_likelihoods[c] = log_likelihoods[first];
                }
            }
            let bytes = item
                .choices
                .iter()
                .map(|choice| choice.trim_start().len().max(1) as f64);
            let per_byte: Vec<f64> = log_likelihoods
                .iter()
                .zip(bytes)
                .map(|(sum, bytes)| sum / bytes)
                .collect();
            let (correct, correct_norm) = (wins(&log_likelihoods, item.answer), wins(&per_byte, item.answer));
            ItemScore {
                log_likelihoods,
                per_byte,
                correct,
                correct_norm,
            }
        })
        .collect())
}

/// Is `scores[answer]` above all others?
fn wins(scores: &[f64], answer: usize) -> bool {
    scores
        .iter()
        .enumerate()
        .all(|(i, &score)| i == answer || score < scores[answer])
}

/// Scores a suite and sums it up.
///
/// # Errors
/// If there is no item, and as [`score_choices`].
pub fn choice_report(
    model: &Model,
    items: &[ChoiceItem],
    encoder: Encoder<'_>,
    options: &ScoreOptions,
    progress: Progress<'_>,
) -> Result<ChoiceReport> {
    let start = Instant::now();
    let scores = score_choices(model, items, encoder, options, progress)?;
    let (Some(accuracy), Some(accuracy_norm)) = (
        Accuracy::of(scores.iter().map(|s| s.correct)),
        Accuracy::of(scores.iter().map(|s| s.correct_norm)),
    ) else {
        return Err(EvalError::Input {
            what: "suite".into(),
            rule: "has no items".into(),
            hint: "is the file empty?",
        });
    };
    let mut verdicts: BTreeMap<String, BTreeMap<String, Vec<bool>>> = BTreeMap::new();
    for (item, score) in items.iter().zip(&scores) {
        for (kind, group) in &item.groups {
            verdicts
                .entry(kind.clone())
                .or_default()
                .entry(group.clone())
                .or_default()
                .push(score.correct);
        }
    }
    let groups = verdicts
        .into_iter()
        .map(|(kind, groups)| {
            let accuracies = groups
                .into_iter()
                .filter_map(|(group, v)| Some((group, Accuracy::of(v)?)));
            (kind, accuracies.collect())
        })
        .collect();
    Ok(ChoiceReport {
        accuracy,
        accuracy_norm,
        groups,
        seconds: start.elapsed().as_secs_f64(),
    })
}

#[cfg(test)]
#[path = "choice_tests.rs"]
mod tests;
