//! Finding passkeys: how often a model answers with the key that was hidden somewhere in a long text.
//!
//! The texts are those of [`ounce_data::passkey`], from the held-out stream. The prompt is read in pieces through a cache, as
//! a long document would be in use. Right is an answer whose every digit is the arg-max given those before it, which is what
//! greedy decoding writes; the share with a right first digit is given too, because papers count that. For a model that
//! retrieves chunks, the report says how often the chunk with the key's first digit was among those that the answer could
//! see, and with what weight: whether a wrong answer was not found or not read.

use crate::{
    error::{EncodeError, EvalError, Result},
    score::Progress,
    statistics::Accuracy,
};
use ounce_data::passkey::{Item, Passkey};
use ounce_model::{Model, PIECE, Retrieved};
use ounce_tensor::{Compute, no_grad};
use serde::Serialize;
use std::time::Instant;

/// How the hidden chunk fared among those retrieved for the answer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Retrieval {
    /// Items in which any retrieval group chose it.
    pub found: Accuracy,
    /// Mean of its largest weight over all items; 0 where it was not found.
    pub weight: f64,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PasskeyReport {
    /// What the items look like.
    pub passkey: Passkey,
    /// Seed of the items.
    pub seed: u64,
    /// Whole keys.
    pub keys: Accuracy,
    /// First digits.
    pub first_digits: Accuracy,
    /// None for a model that retrieves nothing.
    pub retrieval: Option<Retrieval>,
    /// Wall-clock time.
    pub seconds: f64,
    /// Tokens read per second.
    pub tokens_per_second: f64,
    /// Bytes of the cache after the last item.
    pub cache_bytes: usize,
}

impl PasskeyReport {
    /// One paragraph for a terminal.
    pub fn in_words(&self) -> String {
        let share = |a: &Accuracy| {
            let [low, high] = a.ci95;
            format!(
                "{:.4} (95 % interval {low:.4} to {high:.4}, n = {})",
                a.accuracy, a.items
            )
        };
        let found = self.retrieval.map_or(String::new(), |r| {
            format!(
                "\nchunk with the key retrieved: {}, mean weight {:.3}",
                share(&r.found),
                r.weight
            )
        });
        format!(
            "keys of {} digits found in {} tokens: {}\nfirst digit right: {}{found}\n{:.1} s, {:.0} tokens/s, cache of {:.1} MiB",
            self.passkey.digits,
            self.passkey.length,
            share(&self.keys),
            share(&self.first_digits),
            self.seconds,
            self.tokens_per_second,
            self.cache_bytes as f64 / f64::from(1 << 20),
        )
    }
}

/// Looks for the keys of `items` held-out items made from `seed`.
///
/// # Errors
/// If the sizes leave no room, the tokenizer does not make one token of each byte, the text is longer than the model allows,
/// or the model fails.
pub fn find_passkeys(
    model: &Model,
    passkey: Passkey,
    (seed, items): (u64, usize),
    compute: Compute,
    encode: &dyn Fn(&str) -> std::result::Result<Vec<u32>, EncodeError>,
    progress: Progress<'_>,
) -> Result<PasskeyReport> {
    let refuse = |what: &str, rule: String, hint| {
        let what = what.into();
        Err(EvalError::Input { what, rule, hint })
    };
    if passkey.length > model.config.max_positions {
        let rule = format!(
            "{} tokens are more than the model's {}",
            passkey.length, model.config.max_positions
        );
        return refuse("passkeys", rule, "use shorter texts");
    }
    let made = match passkey.generate(seed, items, true) {
        Ok(made) => made,
        Err(e) => return refuse("passkeys", e.to_string(), e.hint().unwrap_or_default()),
    };
    let start = Instant::now();
    let (mut keys, mut firsts, mut found, mut weight, mut read, mut cache_bytes) =
        (Vec::new(), Vec::new(), Vec::new(), 0.0, 0, 0);
    for (i, item) in made.enumerate() {
        let ids = encode(&item.text).map_err(|source| EvalError::Encode {
            what: "text with a passkey".into(),
            source,
        })?;
        if ids.len() != item.text.len() {
            let rule = format!("{} bytes are {} tokens", item.text.len(), ids.len());
            return refuse(
                "tokenizer",
                rule,
                "keys stand at chunk boundaries in texts of one token per byte only",
            );
        }
        let answer = one(model, &item, passkey.digits, &ids, compute)?;
        keys.push(answer.right.iter().all(|&right| right));
        firsts.push(answer.right[0]);
        if let Some(w) = answer.weight(item.key / passkey.chunk) {
            found.push(w > 0.0);
            weight += f64::from(w);
        }
        (read, cache_bytes) = (read + item.answer, answer.cache_bytes);
        progress(i + 1, items);
    }
    let seconds = start.elapsed().as_secs_f64();
    let (Some(keys), Some(first_digits)) = (Accuracy::of(keys), Accuracy::of(firsts)) else {
        return refuse("passkeys", "0 items were asked for".into(), "ask for at least one");
    };
    let retrieval = Accuracy::of(found).map(|found| Retrieval {
        found,
        weight: weight / found.items as f64,
    });
    Ok(PasskeyReport {
        passkey,
        seed,
        keys,
        first_digits,
        retrieval,
        seconds,
        tokens_per_second: read as f64 / seconds.max(1e-9),
        cache_bytes,
    })
}

struct Answer {
    /// Per digit: is it the arg-max?
    right: Vec<bool>,
    /// What each group's last finished chunk before the answer retrieved.
    retrieved: Vec<Retrieved>,
    cache_bytes: usize,
}

impl Answer {
    /// The largest weight of `chunk` in any group; none if nothing was retrieved by any.
    fn weight(&self, chunk: usize) -> Option<f32> {
        let weights = self.retrieved.iter().map(|group| {
            let pairs = group.chunks.iter().zip(&group.weights);
            pairs
                .filter(|(c, _)| **c == Some(chunk))
                .map(|(_, w)| *w)
                .fold(0.0, f32::max)
        });
        weights.reduce(f32::max)
    }
}

/// Reads the prompt in pieces, and the key's digits but the last behind it.
fn one(model: &Model, item: &Item, digits: usize, ids: &[u32], compute: Compute) -> Result<Answer> {
    let mut cache = model.cache(item.answer + digits);
    // The question's last token is the first of a chunk: with it and the digits no chunk is finished.
    let asked = item.answer - 1;
    no_grad(|| {
        let (mut at, mut retrieved) = (0, Vec::new());
        while at < asked {
            let end = asked.min(at + PIECE);
            let mut ctx = model.sequence_context(&ids[at..end], &mut *cache, compute)?;
            ctx.wanted = Some(1);
            ctx.sink.want_retrieved = end == asked;
            model.hidden(&mut ctx)?;
            retrieved = std::mem::take(&mut ctx.sink.retrieved);
            // The answer sees what the last of the chunks retrieved.
            for group in &mut retrieved {
                group.chunks.drain(..group.chunks.len() - group.per_chunk);
                group.weights.drain(..group.weights.len() - group.per_chunk);
            }
            at = end;
        }
        let mut ctx = model.sequence_context(&ids[asked..asked + digits], &mut *cache, compute)?;
        let hidden = model.hidden(&mut ctx)?;
        let logits = model.logits(&hidden, compute)?;
        let rows = logits.to_f32();
        let right = rows
            .chunks(logits.last_dim())
            .zip(&ids[item.answer..])
            .map(|(row, &id)| {
                let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(i, _)| i);
                best == Some(id as usize)
            });
        Ok(Answer {
            right: right.collect(),
            retrieved,
            cache_bytes: cache.bytes(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::score::silent;
    use ounce_data::passkey::Haystack;
    use ounce_model::{Batch, config::ModelShape, weights::FreshWeights};
    use serde_json::json;

    const PASSKEY: Passkey = Passkey {
        length: 9000,
        chunk: 16,
        digits: 3,
        haystack: Haystack::Stories,
        copies: 1,
    };

    /// A fresh retrieval decoder of 257 tokens and at most `max_positions`.
    fn retriever(max_positions: usize) -> Model {
        let shape: ModelShape = serde_json::from_value(json!({
            "family": "drt", "hidden_size": 16, "layers": 2, "heads": 2, "intermediate_size": 24, "tied": true,
            "max_positions": max_positions,
            "config": { "decoder_layers": [1, 1], "encoder_layers": 1, "enc_chunk_size": 16, "landmark_null_slot": false,
                        "chunk_topk": 2, "slide_window": 20, "chunk_id": 256 }
        }))
        .unwrap();
        let config = shape.to_config(257, None, None).unwrap();
        Model::new(config, &mut FreshWeights { seed: 5, std: 0.3 }).unwrap()
    }

    fn bytes(text: &str) -> Vec<u32> {
        text.bytes().map(u32::from).collect()
    }

    fn found(model: &Model, passkey: Passkey, items: usize) -> Result<PasskeyReport> {
        find_passkeys(
            model,
            passkey,
            (3, items),
            Compute::F32,
            &|text| Ok(bytes(text)),
            &mut silent,
        )
    }

    /// What pieces and a cache find is what one forward over the whole text finds, digit by digit.
    #[test]
    fn pieces_see_what_one_forward_sees() {
        let model = retriever(1 << 20);
        for item in PASSKEY.generate(3, 2, true).unwrap() {
            let ids = bytes(&item.text);
            let answer = one(&model, &item, PASSKEY.digits, &ids, Compute::F32).unwrap();
            let batch = Batch {
                ids: &ids,
                batch: 1,
                compute: Compute::F32,
            };
            let (logits, retrieved) = no_grad(|| {
                let mut ctx = model.context(batch).unwrap();
                ctx.sink.want_retrieved = true;
                let hidden = model.hidden(&mut ctx).unwrap();
                let logits = model.logits(&hidden, Compute::F32).unwrap();
                (logits.to_f32(), std::mem::take(&mut ctx.sink.retrieved))
            });
            let rows: Vec<&[f32]> = logits.chunks(257).collect();
            for (i, &right) in answer.right.iter().enumerate() {
                let row = rows[item.answer - 1 + i];
                let target = row[ids[item.answer + i] as usize];
                assert_eq!(right, row.iter().all(|&other| other <= target), "digit {i}");
            }
            // The chunk before the answer's is number (answer - 1) / 16 - 1.
            let at = ((item.answer - 1) / 16 - 1) * 2;
            assert_eq!(answer.retrieved[0].chunks, retrieved[0].chunks[at..at + 2]);
            for (ours, whole) in answer.retrieved[0].weights.iter().zip(&retrieved[0].weights[at..]) {
                assert!((ours - whole).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn a_fresh_model_is_counted_as_such() {
        let report = found(&retriever(1 << 20), Passkey { length: 400, ..PASSKEY }, 20).unwrap();
        assert_eq!(report.keys.items, 20);
        assert!(report.keys.correct <= report.first_digits.correct && report.first_digits.correct < 20);
        let retrieval = report.retrieval.unwrap();
        assert_eq!(retrieval.found.items, 20);
        assert!((0.0..=1.0).contains(&retrieval.weight) && retrieval.weight <= retrieval.found.accuracy);
        assert!(report.in_words().contains("first digit right"), "{}", report.in_words());
        // A model without chunks retrieves nothing.
        let window = crate::testing::tiny(257, 1024);
        assert_eq!(
            found(&window, Passkey { length: 400, ..PASSKEY }, 2).unwrap().retrieval,
            None
        );
    }

    #[test]
    fn the_weight_is_the_largest_of_any_group() {
        let group = |chunks: &[usize], weights: &[f32]| Retrieved {
            chunks: chunks.iter().map(|&c| Some(c)).collect(),
            weights: weights.to_vec(),
            per_chunk: chunks.len(),
        };
        let answer = Answer {
            right: vec![true],
            retrieved: vec![group(&[4, 1], &[0.9, 0.1]), group(&[2, 4], &[0.7, 0.3])],
            cache_bytes: 0,
        };
        assert_eq!(
            (answer.weight(4), answer.weight(1), answer.weight(3)),
            (Some(0.9), Some(0.1), Some(0.0))
        );
    }

    #[test]
    fn what_cannot_be_asked_is_refused() {
        let model = retriever(1024);
        let said = |passkey, items| found(&model, passkey, items).unwrap_err().to_string();
        assert!(said(PASSKEY, 1).contains("9000 tokens are more than the model's 1024"));
        assert!(said(Passkey { length: 40, ..PASSKEY }, 1).contains("too short"));
        let short = Passkey { length: 400, ..PASSKEY };
        assert!(said(short, 0).contains("0 items"));
        let pairs = |text: &str| Ok(bytes(&text[..text.len() / 2]));
        let error = find_passkeys(&model, short, (0, 1), Compute::F32, &pairs, &mut silent).unwrap_err();
        assert!(error.to_string().contains("399 bytes are 199 tokens"), "{error}");
    }
}
