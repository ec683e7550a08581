//! Log-probabilities of tokens: the one forward that every suite here stands on.
//!
//! Owns batching and the size of what is in memory at a time. Passages of one length share a forward; nothing is padded,
//! so that a score never depends on how a decoder plan treats padding. Logits exist only for scored positions, a chunk of
//! rows at a time, because `[T, V]` is the largest tensor of a small model. It must not know texts or suites.
//!
//! Shape suffixes: B batch, T time, D model width, V vocabulary, S scored positions.

use crate::error::{EvalError, Result};
use ounce_model::Model;
use ounce_tensor::{Compute, no_grad, ops};

/// Called with (tokens scored so far, tokens to score), after every forward.
pub type Progress<'a> = &'a mut dyn FnMut(usize, usize);

/// Progress for those who do not show any.
pub fn silent(_done: usize, _total: usize) {}

/// How the model is run.
#[derive(Debug, Clone, Copy)]
pub struct ScoreOptions {
    /// Arithmetic of the matrix products.
    pub compute: Compute,
    /// Tokens of one forward, at least one passage in any case; `None` lets the model's width decide. Scores differ
    /// between settings by rounding only.
    pub batch_tokens: Option<usize>,
}

impl ScoreOptions {
    /// The options that follow the weights of `model`, see [`Model::compute`].
    pub fn for_model(model: &Model) -> Self {
        Self {
            compute: model.compute(),
            batch_tokens: None,
        }
    }
}

/// Ids, and from where on they are scored.
#[derive(Debug, Clone, Copy)]
pub struct Passage<'a> {
    /// The tokens, at most one more than the model has positions (the last one is only predicted).
    pub ids: &'a [u32],
    /// First scored token: the tokens before it are context. At least 1.
    pub from: usize,
}

/// Floats of the widest activation of one forward: 64 MiB.
const ACTIVATION_FLOATS: usize = 1 << 24;
/// Beyond this many tokens the matrix products gain nothing.
const MAX_BATCH_TOKENS: usize = 4096;
/// Floats of the logits that exist at a time: 64 MiB.
const LOGIT_FLOATS: usize = 1 << 24;
/// Beyond this many rows the product with the head gains nothing.
const MAX_LOGIT_ROWS: usize = 512;

/// Natural log-probabilities of the tokens `ids[from..]` of each passage, in the order given. Runs without a tape.
///
/// # Errors
/// If a passage scores nothing or is too long for the model, an id is outside the vocabulary, or a probability is not
/// finite.
pub fn log_probabilities(
    model: &Model,
    passages: &[Passage<'_>],
    options: &ScoreOptions,
    progress: Progress<'_>,
) -> Result<Vec<Vec<f64>>> {
    for passage in passages {
        check(model, *passage)?;
    }
    // Neighbours of one length are computed as one.
    let mut order: Vec<usize> = (0..passages.len()).collect();
    order.sort_by_key(|&i| passages[i].ids.len());
    let total = passages.iter().map(|p| p.ids.len() - p.from).sum();
    let mut done = 0;
    let mut scores = vec![Vec::new(); passages.len()];
    let batch_tokens = options.batch_tokens.unwrap_or_else(|| batch_tokens(model));
    let mut left = &order[..];
    while !left.is_empty() {
        let mut tokens = 0;
        let fits = |i: &&usize| {
            tokens += passages[**i].ids.len();
            tokens <= batch_tokens
        };
        let (batch, later) = left.split_at(left.iter().take_while(fits).count().max(1));
        left = later;
        let rows: Vec<Passage<'_>> = batch.iter().map(|&i| passages[i]).collect();
        let flat = no_grad(|| forward(model, &rows, options.compute))?;
        let mut rest = flat.as_slice();
        for (&i, row) in batch.iter().zip(&rows) {
            let (own, others) = rest.split_at(row.ids.len() - row.from);
            scores[i] = own.to_vec();
            rest = others;
        }
        done += flat.len();
        progress(done, total);
    }
    Ok(scores)
}

fn check(model: &Model, passage: Passage<'_>) -> Result<()> {
    let (len, positions) = (passage.ids.len(), model.config.max_positions);
    let refuse = |rule, hint| {
        Err(EvalError::Input {
            what: "passage".into(),
            rule,
            hint,
        })
    };
    if passage.from == 0 || passage.from >= len {
        return refuse(
            format!(
                "tokens {}..{len} are to be scored, which must leave one token of context and score one",
                passage.from
            ),
            "a model predicts a token from those before it, so a text needs two tokens",
        );
    }
    if len - 1 > positions {
        return refuse(
            format!("{len} tokens, more than the model's {positions} positions predict"),
            "cut it into windows",
        );
    }
    // The last id is only a target, so the model's own check of its inputs would not see it.
    match passage.ids.iter().find(|&&id| id as usize >= model.config.vocab_size) {
        Some(id) => refuse(
            format!("token id {id} is outside the vocabulary of {}", model.config.vocab_size),
            "were the ids made by the tokenizer of this model?",
        ),
        None => Ok(()),
    }
}

/// Tokens whose widest activation stays within [`ACTIVATION_FLOATS`].
fn batch_tokens(model: &Model) -> usize {
    let config = &model.config;
    let widest = config.layers.iter().map(|layer| layer.ffn.width());
    let widest = widest
        .max()
        .unwrap_or(0)
        .max(config.hidden_size)
        .max(config.heads * config.head_dim)
        .max(1);
    (ACTIVATION_FLOATS / widest).min(MAX_BATCH_TOKENS)
}

/// Scores passages in one forward: their log-probabilities, passage after passage.
fn forward(model: &Model, rows: &[Passage<'_>], compute: Compute) -> Result<Vec<f64>> {
    let inputs = |row: &Passage<'_>| row.ids.len() - 1;
    let ids: Vec<u32> = rows.iter().flat_map(|row| &row.ids[..inputs(row)]).copied().collect();
    let lengths: Vec<usize> = rows.iter().map(inputs).collect();
    let hidden = model.hidden(&mut model.ragged_context(&ids, &lengths, Vec::new(), compute)?)?;
    let mut first = 0;
    // (row of `hidden` that predicts it, its position in the passage, the token)
    let scored: Vec<(usize, usize, u32)> = rows
        .iter()
        .flat_map(|row| {
            let begin = first;
            first += inputs(row);
            (row.from..row.ids.len()).map(move |t| (begin + t - 1, t, row.ids[t]))
        })
        .collect();
    let v = model.config.vocab_size;
    let mut out = Vec::with_capacity(scored.len());
    for chunk in scored.chunks((LOGIT_FLOATS / v).clamp(1, MAX_LOGIT_ROWS)) {
        let at: Vec<usize> = chunk.iter().map(|&(row, ..)| row).collect();
        let logits_sv = model.logits(&ops::gather_rows(&hidden, &at)?, compute)?.to_f32();
        for (logits, &(_, position, id)) in logits_sv.chunks_exact(v).zip(chunk) {
            let value = log_probability(logits, id as usize);
            if !value.is_finite() {
                return Err(EvalError::NotFinite { position, id, value });
            }
            out.push(value);
        }
    }
    Ok(out)
}

/// `log softmax(logits)[target]` in nats. Exponentials are f32 like the logits; their sum over V terms is f64.
fn log_probability(logits: &[f32], target: usize) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from((x - max).exp())).sum();
    f64::from(logits[target]) - f64::from(max) - sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{ids, tiny};
    use ounce_model::Batch;

    fn single(model: &Model, ids: &[u32], from: usize) -> Vec<f64> {
        let options = ScoreOptions {
            compute: Compute::F32,
            batch_tokens: Some(1),
        };
        log_probabilities(model, &[Passage { ids, from }], &options, &mut silent)
            .unwrap()
            .remove(0)
    }

    #[test]
    fn scores_equal_a_softmax_over_the_full_forward() {
        let model = tiny(37, 32);
        let ids = ids(20, 37);
        let logits = model
            .forward(Batch {
                ids: &ids,
                batch: 1,
                compute: Compute::F32,
            })
            .unwrap()
            .to_f32();
        for (t, score) in (3..20).zip(single(&model, &ids, 3)) {
            let row = &logits[(t - 1) * 37..t * 37];
            let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
            let expected = f64::from(row[ids[t] as usize]) - sum.ln();
            assert!((score - expected).abs() < 1e-6, "token {t}: {score} {expected}");
        }
    }

    #[test]
    fn a_batch_of_mixed_lengths_scores_like_single_passages_in_their_order() {
        let model = tiny(37, 32);
        let ids = ids(60, 37);
        let passages: Vec<Passage<'_>> = [(0, 9, 1), (5, 30, 4), (9, 18, 8), (20, 45, 1), (2, 4, 1)]
            .map(|(begin, end, from)| Passage {
                ids: &ids[begin..end],
                from,
            })
            .to_vec();
        let options = ScoreOptions {
            compute: Compute::F32,
            batch_tokens: Some(64),
        };
        let mut seen = Vec::new();
        let batch =
            log_probabilities(&model, &passages, &options, &mut |done, total| seen.push((done, total))).unwrap();
        for (passage, scores) in passages.iter().zip(&batch) {
            let alone = single(&model, passage.ids, passage.from);
            assert_eq!(scores.len(), passage.ids.len() - passage.from);
            assert!(
                scores.iter().zip(&alone).all(|(a, b)| (a - b).abs() < 1e-5),
                "{scores:?} {alone:?}"
            );
        }
        // Two, nine, nine and twenty-five tokens, then the other twenty-five: two forwards.
        assert_eq!(seen.len(), 2);
        assert_eq!(seen.last(), Some(&(8 + 21 + 1 + 24 + 1, 55)));
    }

    #[test]
    fn the_sum_keeps_what_f32_would_lose() {
        // 2^25 equal terms: an f32 sum stops growing at 2^24.
        let logits = vec![3f32; 1 << 25];
        assert!((log_probability(&logits, 7) + f64::from(1u32 << 25).ln()).abs() < 1e-12);
    }

    #[test]
    fn broken_weights_give_an_error_and_no_number() {
        let mut model = tiny(37, 8);
        model.visit(&mut |param| {
            if param.name == "model.norm.weight" {
                param.tensor = ounce_tensor::Tensor::new(vec![f32::NAN; 16], &[16]).unwrap();
            }
        });
        let (ids, options) = (ids(6, 37), ScoreOptions::for_model(&model));
        let error = log_probabilities(&model, &[Passage { ids: &ids, from: 2 }], &options, &mut silent).unwrap_err();
        assert!(
            matches!(error, EvalError::NotFinite { position: 2, id, .. } if id == ids[2]),
            "{error}"
        );
    }

    #[test]
    fn impossible_passages_are_refused() {
        let model = tiny(37, 8);
        let long = ids(10, 37);
        let run = |ids: &[u32], from| {
            let options = ScoreOptions::for_model(&model);
            log_probabilities(&model, &[Passage { ids, from }], &options, &mut silent).map_err(|e| e.to_string())
        };
        assert!(run(&long[..4], 0).unwrap_err().contains("context"));
        assert!(run(&long[..4], 4).unwrap_err().contains("score one"));
        assert!(run(&long, 1).unwrap_err().contains("8 positions"));
        assert!(run(&[1, 37], 1).unwrap_err().contains("vocabulary of 37"));
        assert_eq!(run(&long[..9], 8).unwrap()[0].len(), 1);
    }
}
