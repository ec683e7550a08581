//! Perplexity and bits per byte of documents.
//!
//! Owns the bookkeeping that scores every token of a document but its first exactly once, in overlapping windows (see
//! [`Windowing`]), and the standard error of the result. Documents do not see each other. Perplexity is per token and
//! compares models of one tokenizer; bits per byte compares any models.

use crate::{
    blocks::Blocks,
    error::{EncodeError, EvalError, Result},
    score::{Passage, Progress, ScoreOptions, log_probabilities},
    windows::Windowing,
};
use ounce_model::Model;
use serde::Serialize;
use std::time::Instant;

/// Tokens of documents that are scored together: enough to fill batches, few enough to hold their scores.
const GROUP_TOKENS: usize = 1 << 18;

/// Ids of one document and the bytes of the text they stand for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// The ids.
    pub ids: Vec<u32>,
    /// Bytes of the text.
    pub bytes: usize,
}

/// What documents cost under a model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Perplexity {
    /// exp of the mean negative log-likelihood of a scored token.
    pub perplexity: f64,
    /// Negative log-likelihood of all scored tokens in bits, per byte of the text.
    pub bits_per_byte: f64,
    /// Standard error of `perplexity`, from the spread between the windows' shares; `None` for a single window. It says
    /// how much another text of the same kind and size might differ, not how well two models can be told apart: on one
    /// text their errors go together.
    pub standard_error: Option<f64>,
    /// Tokens of the text.
    pub tokens: usize,
    /// Tokens scored: all but the first of each document.
    pub scored: usize,
    /// Bytes of the text.
    pub bytes: usize,
    /// Documents.
    pub documents: usize,
    /// Negative log-likelihood of all scored tokens, in nats.
    pub nll: f64,
    /// Tokens of a window.
    pub window: usize,
    /// Tokens from the start of a window to the start of the next.
    pub stride: usize,
    /// Wall-clock time of scoring (tokenisation not included).
    pub seconds: f64,
    #[serde(skip)]
    blocks: Blocks,
}

impl Perplexity {
    fn new(blocks: Blocks, size: [usize; 3], windowing: Windowing, seconds: f64) -> Self {
        let [documents, tokens, bytes] = size;
        let perplexity = blocks.mean().exp();
        Self {
            perplexity,
            bits_per_byte: blocks.nats / std::f64::consts::LN_2 / bytes as f64,
            standard_error: blocks.standard_error().map(|e| e * perplexity),
            tokens,
            scored: blocks.tokens,
            bytes,
            documents,
            nll: blocks.nats,
            window: windowing.window,
            stride: windowing.stride,
            seconds,
            blocks,
        }
    }

    /// Several texts as one corpus: totals are added, means are taken over all tokens and bytes. `None` for no text.
    pub fn combine(texts: &[Self]) -> Option<Self> {
        let widest = texts.iter().max_by_key(|t| t.window)?;
        let windowing = Windowing {
            window: widest.window,
            stride: widest.stride,
        };
        let mut blocks = Blocks::default();
        for text in texts {
            blocks.add(&text.blocks);
        }
        let count = |f: fn(&Self) -> usize| texts.iter().map(f).sum();
        let size = [count(|t| t.documents), count(|t| t.tokens), count(|t| t.bytes)];
        Some(Self::new(
            blocks,
            size,
            windowing,
            texts.iter().map(|t| t.seconds).sum(),
        ))
    }
}

/// Scores documents, each on its own; a document of one token has nothing to score, but counts among tokens and bytes.
/// Documents are taken as they are needed, so that a corpus need not fit in memory.
///
/// # Errors
/// Those of the documents; if nothing is left to score, or the model cannot score an id.
pub fn perplexity_of_documents<E: From<EvalError>>(
    model: &Model,
    documents: impl IntoIterator<Item = std::result::Result<Encoded, E>>,
    windowing: Windowing,
    options: &ScoreOptions,
    progress: Progress<'_>,
) -> std::result::Result<Perplexity, E> {
    let (mut blocks, mut size, mut seconds) = (Blocks::default(), [0; 3], 0.0);
    let mut group: Vec<Vec<u32>> = Vec::new();
    let mut waiting = 0;
    let mut documents = documents.into_iter();
    loop {
        let document = documents.next().transpose()?;
        let last = document.is_none();
        if let Some(Encoded { ids, bytes }) = document {
            size = [size[0] + 1, size[1] + ids.len(), size[2] + bytes];
            waiting += ids.len();
            group.push(ids);
        }
        if waiting >= GROUP_TOKENS || (last && !group.is_empty()) {
            let start = Instant::now();
            let done = blocks.tokens;
            let mut show = |now: usize, total: usize| progress(done + now, done + total);
            score(model, &group, windowing, options, &mut show, &mut blocks)?;
            seconds += start.elapsed().as_secs_f64();
            group.clear();
            waiting = 0;
        }
        if last {
            break;
        }
    }
    let [count, tokens, bytes] = size;
    if blocks.tokens > 0 && bytes > 0 {
        return Ok(Perplexity::new(blocks, size, windowing, seconds));
    }
    let rule = match count {
        _ if bytes == 0 => "is empty".to_owned(),
        1 => format!("has {tokens} token(s), so none has one before it"),
        _ => format!("none of its {count} documents has a token with one before it"),
    };
    Err(EvalError::Input {
        what: "text".into(),
        rule,
        hint: "perplexity needs a text of two tokens or more",
    }
    .into())
}

/// Scores a group of documents into `blocks`, a block a window.
fn score(
    model: &Model,
    group: &[Vec<u32>],
    windowing: Windowing,
    options: &ScoreOptions,
    progress: Progress<'_>,
    blocks: &mut Blocks,
) -> Result<()> {
    let passages: Vec<Passage<'_>> = group
        .iter()
        .flat_map(|ids| {
            windowing.windows(ids.len()).into_iter().map(move |w| Passage {
                ids: &ids[w.begin..w.end],
                from: w.from - w.begin,
            })
        })
        .collect();
    for scores in log_probabilities(model, &passages, options, progress)? {
        blocks.push(&scores);
    }
    Ok(())
}

/// Scores a text given as ids in the windows of [`Windowing::of`]; `bytes` is the length of the text they stand for.
///
/// # Errors
/// As [`perplexity_of_documents`]; if the model has fewer than two positions.
pub fn perplexity_of_ids(
    model: &Model,
    ids: &[u32],
    bytes: usize,
    options: &ScoreOptions,
    progress: Progress<'_>,
) -> Result<Perplexity> {
    let ids = ids.to_vec();
    let windowing = Windowing::of(model)?;
    perplexity_of_documents(model, [Ok(Encoded { ids, bytes })], windowing, options, progress)
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

    /// Documents of these ids, a byte a token.
    fn documents(all: &[&[u32]]) -> Vec<Result<Encoded>> {
        all.iter()
            .map(|ids| {
                Ok(Encoded {
                    ids: ids.to_vec(),
                    bytes: ids.len(),
                })
            })
            .collect()
    }

    #[test]
    fn documents_are_scored_apart_and_combine_like_texts() {
        let model = tiny(37, 9);
        let ids = ids(60, 37);
        let windowing = Windowing::of(&model).unwrap();
        let run = |all: &[&[u32]]| perplexity_of_documents(&model, documents(all), windowing, &F32, &mut silent);
        // One of a single token between them: counted, and nothing to score.
        let both = run(&[&ids[..25], &ids[25..26], &ids[26..]]).unwrap();
        let apart = [run(&[&ids[..25]]).unwrap(), run(&[&ids[26..]]).unwrap()];
        let combined = Perplexity::combine(&apart).unwrap();
        assert!((both.nll - apart[0].nll - apart[1].nll).abs() < 1e-4);
        assert_eq!((both.documents, both.tokens, both.scored, both.bytes), (3, 60, 57, 60));
        assert_eq!((combined.documents, combined.tokens, combined.scored), (2, 59, 57));
        assert!((combined.perplexity - both.perplexity).abs() < 1e-4);
        assert!((combined.standard_error.unwrap() - both.standard_error.unwrap()).abs() < 1e-4);
        assert_eq!(Perplexity::combine(&[]), None);
        let joined = run(&[&ids]).unwrap();
        assert!(
            (joined.nll - both.nll).abs() > 1e-2,
            "documents see each other: {joined:?}"
        );
        let error = run(&[&ids[..1], &ids[1..2]]).unwrap_err().to_string();
        assert!(error.contains("none of its 2 documents"), "{error}");
    }

    #[test]
    fn a_longer_window_and_a_shorter_stride_give_each_token_more_to_see() {
        let model = tiny(37, 32);
        let ids = ids(64, 37);
        let run = |window, stride| {
            let windowing = Windowing::chosen(&model, Some(window), Some(stride)).unwrap();
            perplexity_of_documents(&model, documents(&[&ids]), windowing, &F32, &mut silent).unwrap()
        };
        let results = [run(32, 16), run(32, 1), run(8, 7)];
        assert!(results.iter().all(|r| r.scored == 63));
        assert!(results[0].nll != results[1].nll && results[0].nll != results[2].nll);
        assert_eq!((results[2].window, results[2].stride), (8, 7));
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
