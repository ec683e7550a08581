//! Perplexity and bits per byte of a text.
//!
//! Owns the cutting of a text into overlapping windows and the bookkeeping that scores every token but the first exactly
//! once. A window has W = min(positions of the model, 2048) tokens and starts W/2 after the one before it; it scores what
//! no earlier window has scored, so that every token sees at least W/2 tokens before it, or all there are. Perplexity is
//! per token and compares models of one tokenizer; bits per byte compares any models.

use crate::{
    error::{EncodeError, EvalError, Result},
    score::{Passage, Progress, ScoreOptions, log_probabilities},
};
use ounce_model::Model;
use serde::Serialize;
use std::time::Instant;

/// Longest window, whatever the model: the cost of attention grows with it, and results stay comparable between models.
pub const MAX_WINDOW: usize = 2048;

/// Tokens `begin..end` of a text, of which `from..end` are scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Window {
    /// First token.
    pub begin: usize,
    /// First scored token.
    pub from: usize,
    /// One past the last token.
    pub end: usize,
}

/// The windows of a text of `tokens` tokens, each of at most `window` tokens. None if there is nothing to predict.
///
/// # Panics
/// If `window` is below 2: a window must hold a token and one before it.
pub fn windows(tokens: usize, window: usize) -> Vec<Window> {
    assert!(window >= 2, "a window holds at least two tokens, not {window}");
    let (mut all, mut begin, mut from) = (Vec::new(), 0, 1);
    while from < tokens {
        let end = tokens.min(begin + window);
        all.push(Window { begin, from, end });
        (begin, from) = (begin + window / 2, end);
    }
    all
}

/// What a text costs under a model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Perplexity {
    /// exp of the mean negative log-likelihood of a scored token.
    pub perplexity: f64,
    /// Negative log-likelihood of all scored tokens in bits, per byte of the text.
    pub bits_per_byte: f64,
    /// Tokens of the text.
    pub tokens: usize,
    /// Tokens scored: all but the first of each text.
    pub scored: usize,
    /// Bytes of the text.
    pub bytes: usize,
    /// Negative log-likelihood of all scored tokens, in nats.
    pub nll: f64,
    /// Tokens of a window.
    pub window: usize,
    /// Wall-clock time of scoring (tokenisation not included).
    pub seconds: f64,
}

impl Perplexity {
    fn new(nll: f64, tokens: usize, scored: usize, bytes: usize, window: usize, seconds: f64) -> Self {
        let perplexity = (nll / scored as f64).exp();
        let bits_per_byte = nll / std::f64::consts::LN_2 / bytes as f64;
        Self {
            perplexity,
            bits_per_byte,
            tokens,
            scored,
            bytes,
            nll,
            window,
            seconds,
        }
    }

    /// Several texts as one corpus: totals are added, means are taken over all tokens and bytes. `None` for no text.
    pub fn combine(texts: &[Self]) -> Option<Self> {
        let window = texts.iter().map(|t| t.window).max()?;
        let count = |f: fn(&Self) -> usize| texts.iter().map(f).sum();
        let sum = |f: fn(&Self) -> f64| texts.iter().map(f).sum();
        Some(Self::new(
            sum(|t| t.nll),
            count(|t| t.tokens),
            count(|t| t.scored),
            count(|t| t.bytes),
            window,
            sum(|t| t.seconds),
        ))
    }
}

/// Scores a text given as ids; `bytes` is the length of the text they stand for.
///
/// # Errors
/// If there are fewer than two ids, no bytes, the model has fewer than two positions, or the model cannot score an id.
pub fn perplexity_of_ids(
    model: &Model,
    ids: &[u32],
    bytes: usize,
    options: &ScoreOptions,
    progress: Progress<'_>,
) -> Result<Perplexity> {
    let refuse = |rule: String, hint| {
        Err(EvalError::Input {
            what: "text".into(),
            rule,
            hint,
        })
    };
    if bytes == 0 {
        return refuse("is empty".into(), "perplexity needs a text of two tokens or more");
    }
    if ids.len() < 2 {
        return refuse(
            format!("has {} token(s), so none has one before it", ids.len()),
            "perplexity needs two tokens or more",
        );
    }
    let window = model.config.max_positions.min(MAX_WINDOW);
    if window < 2 {
        return refuse(
            format!("cannot be cut into windows of {window} token(s)"),
            "max_position_embeddings must be 2 or more",
        );
    }
    let start = Instant::now();
    let windows = windows(ids.len(), window);
    let passages: Vec<Passage<'_>> = windows
        .iter()
        .map(|w| Passage {
            ids: &ids[w.begin..w.end],
            from: w.from - w.begin,
        })
        .collect();
    let scores = log_probabilities(model, &passages, options, progress)?;
    let nll = -scores.iter().flatten().sum::<f64>();
    let scored = scores.iter().map(Vec::len).sum();
    Ok(Perplexity::new(
        nll,
        ids.len(),
        scored,
        bytes,
        window,
        start.elapsed().as_secs_f64(),
    ))
}

/// Scores a text; `encode` turns it into ids, with whatever the tokenizer puts in front of a text.
///
/// # Errors
/// If the text is empty or cannot be encoded, and as [`perplexity_of_ids`].
pub fn perplexity_of_text(
    model: &Model,
    text: &str,
    encode: &dyn Fn(&str) -> std::result::Result<Vec<u32>, EncodeError>,
    options: &ScoreOptions,
    progress: Progress<'_>,
) -> Result<Perplexity> {
    let ids = encode(text).map_err(|source| EvalError::Encode {
        what: "text".into(),
        source,
    })?;
    perplexity_of_ids(model, &ids, text.len(), options, progress)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        score::silent,
        testing::{ids, tiny, uniform},
    };
    use ounce_model::Batch;
    use ounce_tensor::{Compute, ops};

    const F32: ScoreOptions = ScoreOptions {
        compute: Compute::F32,
        batch_tokens: None,
    };

    #[test]
    fn every_token_but_the_first_is_scored_once_with_half_a_window_before_it() {
        for window in 2..20 {
            for tokens in 0..90 {
                let mut scored = vec![0; tokens];
                for w in windows(tokens, window) {
                    assert!(w.end - w.begin <= window, "{w:?}");
                    for t in w.from..w.end {
                        scored[t] += 1;
                        assert!(t - w.begin >= t.min(window / 2), "{tokens} {window} {w:?} {t}");
                    }
                }
                assert!(scored.iter().skip(1).all(|&n| n == 1), "{tokens} {window} {scored:?}");
                assert!(scored.first().is_none_or(|&n| n == 0));
            }
        }
    }

    #[test]
    fn a_uniform_model_is_as_perplexed_as_its_vocabulary_is_large() {
        let model = uniform(37, 16);
        let result = perplexity_of_ids(&model, &ids(101, 37), 400, &F32, &mut silent).unwrap();
        assert!((result.perplexity - 37.0).abs() < 1e-10, "{result:?}");
        assert!(
            (result.bits_per_byte - 37f64.log2() * 100.0 / 400.0).abs() < 1e-12,
            "{result:?}"
        );
        assert_eq!(
            (result.tokens, result.scored, result.bytes, result.window),
            (101, 100, 400, 16)
        );
    }

    #[test]
    fn a_text_of_one_window_equals_cross_entropy_of_a_full_forward() {
        let model = tiny(37, 32);
        for n in [2, 17, 32] {
            let ids = ids(n, 37);
            let result = perplexity_of_ids(&model, &ids, n, &F32, &mut silent).unwrap();
            let logits = model
                .forward(Batch {
                    ids: &ids,
                    batch: 1,
                    compute: Compute::F32,
                })
                .unwrap();
            let targets: Vec<i64> = ids[1..].iter().map(|&id| i64::from(id)).chain([-1]).collect();
            let mean = ops::cross_entropy(&logits, &targets).unwrap().item().unwrap();
            assert!((result.perplexity.ln() - mean).abs() < 1e-5, "{result:?} {mean}");
        }
    }

    #[test]
    fn longer_texts_equal_a_forward_per_token_from_the_start_of_its_window() {
        let model = tiny(37, 9);
        let ids = ids(40, 37);
        let mut nll = 0.0;
        for t in 1..40usize {
            // Windows of 9 start every 4; the first that reaches t scores it.
            let begin = (0..).step_by(4).find(|begin| begin + 9 > t).unwrap();
            let logits = model
                .forward(Batch {
                    ids: &ids[begin..t],
                    batch: 1,
                    compute: Compute::F32,
                })
                .unwrap();
            let last = ops::narrow_rows(
                &ops::reshape(&logits, &[t - begin, 37]).unwrap(),
                t - begin - 1,
                t - begin,
            )
            .unwrap();
            nll += ops::cross_entropy(&last, &[i64::from(ids[t])]).unwrap().item().unwrap();
        }
        for batch_tokens in [None, Some(1)] {
            let options = ScoreOptions { batch_tokens, ..F32 };
            let result = perplexity_of_ids(&model, &ids, 40, &options, &mut silent).unwrap();
            assert!((result.nll - nll).abs() < 1e-4, "{} {nll}", result.nll);
        }
    }

    #[test]
    fn the_same_text_gives_the_same_bits_twice() {
        let model = tiny(37, 16);
        let run = || {
            perplexity_of_ids(&model, &ids(200, 37), 200, &F32, &mut silent)
                .unwrap()
                .nll
                .to_bits()
        };
        assert_eq!(run(), run());
    }

    #[test]
    fn texts_combine_by_tokens_and_bytes() {
        let a = Perplexity::new(10.0, 6, 5, 20, 16, 1.0);
        let b = Perplexity::new(2.0, 16, 15, 60, 16, 2.0);
        let both = Perplexity::combine(&[a, b]).unwrap();
        assert_eq!(both, Perplexity::new(12.0, 22, 20, 80, 16, 3.0));
        assert!((both.perplexity - 0.6f64.exp()).abs() < 1e-12);
        assert_eq!(Perplexity::combine(&[]), None);
    }

    #[test]
    fn texts_go_through_the_encoder_and_empty_ones_are_refused() {
        let model = tiny(256, 16);
        let encode = |text: &str| Ok(text.bytes().map(u32::from).collect());
        let run = |text| perplexity_of_text(&model, text, &encode, &F32, &mut silent).map_err(|e| e.to_string());
        let result = run("Näher").unwrap();
        assert_eq!((result.bytes, result.tokens, result.scored), (6, 6, 5));
        assert_eq!(run("").unwrap_err(), "text: is empty");
        assert!(run("x").unwrap_err().contains("1 token(s)"));
        let fails = |_: &str| Err("no unknown token".into());
        let error = perplexity_of_text(&model, "x", &fails, &F32, &mut silent).unwrap_err();
        assert_eq!(error.to_string(), "cannot encode the text: no unknown token");
    }
}
