//! Training a byte-level BPE.
//!
//! Owns the merge search. The `tokenizers` crate has one too, but its order among equal counts follows the iteration
//! order of randomly seeded hash maps, and a recipe here must give the same bytes every time. Words are counted in a
//! sorted map and ties go to the smaller pair, so nothing depends on hashing or threads. It must not know what the
//! texts are for.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet};

use serde_json::{Map, Value, json};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

use super::alphabet::byte_chars;
use super::error::{Result, TokenizerError, guard};
use super::files::Files;
use super::{Tokenizer, parse};

/// A merge seen once only memorises the corpus.
const LEAST_COUNT: i64 = 2;

/// The special tokens of a new tokenizer; they take the first ids in the order `eos`, `bos`, `others`.
#[derive(Clone, Copy, Debug)]
pub struct SpecialTokens<'a> {
    /// Ends a sequence and separates documents.
    pub eos: &'a str,
    /// Begins a sequence; may equal `eos`, as in GPT-2.
    pub bos: Option<&'a str>,
    /// Any others (padding, roles).
    pub others: &'a [&'a str],
}

impl Default for SpecialTokens<'_> {
    fn default() -> Self {
        Self {
            eos: "<|endoftext|>",
            bos: None,
            others: &[],
        }
    }
}

type Pair = (u32, u32);

/// Trains a GPT-2 style byte-level BPE with at most `vocab_size` tokens (fewer when the texts hold no more pairs
/// seen twice). Special tokens, then the 256 bytes, then merges. The same texts, in any order, give the same
/// tokenizer, byte for byte. No BOS or EOS is added by `encode`, as in GPT-2.
///
/// # Errors
/// A `vocab_size` below 256 plus the special tokens, an empty or repeated special token, no text at all.
pub fn train_byte_level_bpe<S: AsRef<str>>(
    texts: impl IntoIterator<Item = S>,
    vocab_size: usize,
    special: SpecialTokens<'_>,
) -> Result<Tokenizer> {
    let specials = ordered(special)?;
    let floor = 256 + specials.len();
    if vocab_size < floor {
        return Err(TokenizerError::Training(format!(
            "vocab_size {vocab_size} is below {floor} (256 bytes and {} special tokens)",
            specials.len()
        )));
    }
    let words = count_words(texts)?;
    if words.is_empty() {
        return Err(TokenizerError::Training("the texts are empty".into()));
    }
    let mut tokens: Vec<String> = specials.iter().map(ToString::to_string).collect();
    let mut alphabet = byte_chars();
    alphabet.sort_unstable();
    tokens.extend(alphabet.iter().map(ToString::to_string));
    let merges = find_merges(&words, &mut tokens, specials.len(), vocab_size);

    let json = tokenizer_json(&tokens, &merges, &specials);
    let inner = parse("tokenizer.json".as_ref(), json.to_string().as_bytes())?;
    let files = Files {
        tokenizer_config: tokenizer_config(special, &specials),
        special_map: special_map(special),
        ..Files::default()
    };
    Tokenizer::assemble(inner, files, "tokenizer.json".as_ref())
}

fn ordered(special: SpecialTokens<'_>) -> Result<Vec<&str>> {
    let bos = special.bos.filter(|&bos| bos != special.eos);
    let all: Vec<&str> = [special.eos]
        .into_iter()
        .chain(bos)
        .chain(special.others.iter().copied())
        .collect();
    let distinct: HashSet<&str> = all.iter().copied().collect();
    if all.contains(&"") || distinct.len() != all.len() {
        return Err(TokenizerError::Training(format!(
            "special tokens must be distinct and not empty: {all:?}"
        )));
    }
    // One character would collide with the byte alphabet and steal its id.
    if let Some(short) = all.iter().find(|token| token.chars().count() < 2) {
        return Err(TokenizerError::Training(format!(
            "special token {short:?} needs at least two characters"
        )));
    }
    Ok(all)
}

/// Words (in the byte alphabet) and how often each occurs.
fn count_words<S: AsRef<str>>(texts: impl IntoIterator<Item = S>) -> Result<BTreeMap<String, i64>> {
    let splitter = ByteLevel::new(false, true, true);
    let mut words = BTreeMap::new();
    for text in texts {
        let mut pieces = PreTokenizedString::from(text.as_ref());
        guard("splitting words", || splitter.pre_tokenize(&mut pieces))?;
        for (word, _, _) in pieces.get_splits(OffsetReferential::Original, OffsetType::Byte) {
            if let Some(count) = words.get_mut(word) {
                *count += 1;
            } else {
                words.insert(word.to_owned(), 1);
            }
        }
    }
    Ok(words)
}

/// Appends merged tokens to `tokens` until there are `vocab_size`, and returns the merges in order.
fn find_merges(
    words: &BTreeMap<String, i64>,
    tokens: &mut Vec<String>,
    first_byte: usize,
    vocab_size: usize,
) -> Vec<Pair> {
    let id_of: HashMap<char, u32> = (first_byte..tokens.len())
        .map(|id| {
            (
                tokens[id]
                    .chars()
                    .next()
                    .expect("invariant: byte tokens hold one character"),
                id as u32,
            )
        })
        .collect();
    let mut known: HashSet<String> = tokens.iter().cloned().collect();
    let counts: Vec<i64> = words.values().copied().collect();
    let mut words: Vec<Vec<u32>> = words
        .keys()
        .map(|word| word.chars().map(|c| id_of[&c]).collect())
        .collect();

    let mut pair_count: HashMap<Pair, i64> = HashMap::new();
    let mut pair_words: HashMap<Pair, BTreeSet<usize>> = HashMap::new();
    for (w, word) in words.iter().enumerate() {
        for pair in word.windows(2) {
            let pair = (pair[0], pair[1]);
            *pair_count.entry(pair).or_default() += counts[w];
            pair_words.entry(pair).or_default().insert(w);
        }
    }
    // Entries may be stale (too high, never too low); a stale one is corrected when it comes up.
    let mut queue: BinaryHeap<(i64, Reverse<Pair>)> = pair_count.iter().map(|(&p, &n)| (n, Reverse(p))).collect();
    let mut merges = Vec::new();
    while tokens.len() < vocab_size {
        let Some((count, Reverse(pair))) = queue.pop() else {
            break;
        };
        let now = pair_count.get(&pair).copied().unwrap_or(0);
        if now != count {
            queue.push((now, Reverse(pair)));
            continue;
        }
        if count < LEAST_COUNT {
            break;
        }
        let merged = format!("{}{}", tokens[pair.0 as usize], tokens[pair.1 as usize]);
        // Another path already spells this token; a second merge to the same id would make training and encoding
        // disagree about which comes first, so the pair stays apart in both.
        if !known.insert(merged.clone()) {
            continue;
        }
        let new = tokens.len() as u32;
        tokens.push(merged);
        merges.push(pair);

        let mut grown = BTreeSet::new();
        for w in pair_words.remove(&pair).unwrap_or_default() {
            let old = std::mem::take(&mut words[w]);
            for p in old.windows(2) {
                *pair_count.entry((p[0], p[1])).or_default() -= counts[w];
            }
            let word = merge_word(&old, pair, new);
            for p in word.windows(2) {
                let p = (p[0], p[1]);
                *pair_count.entry(p).or_default() += counts[w];
                if p.0 == new || p.1 == new {
                    pair_words.entry(p).or_default().insert(w);
                    grown.insert(p);
                }
            }
            words[w] = word;
        }
        pair_count.remove(&pair);
        queue.extend(grown.into_iter().map(|p| (pair_count[&p], Reverse(p))));
    }
    merges
}

fn merge_word(word: &[u32], pair: Pair, new: u32) -> Vec<u32> {
    let mut out = Vec::with_capacity(word.len());
    let mut at = 0;
    while at < word.len() {
        if at + 1 < word.len() && (word[at], word[at + 1]) == pair {
            out.push(new);
            at += 2;
        } else {
            out.push(word[at]);
            at += 1;
        }
    }
    out
}

fn added_token(token: &str) -> Map<String, Value> {
    let Value::Object(fields) = json!({
        "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true
    }) else {
        unreachable!("an object literal is an object")
    };
    fields
}

fn tokenizer_json(tokens: &[String], merges: &[Pair], specials: &[&str]) -> Value {
    let added: Vec<Value> = specials
        .iter()
        .enumerate()
        .map(|(id, token)| {
            let mut fields = Map::from_iter([("id".to_owned(), json!(id))]);
            fields.extend(added_token(token));
            Value::Object(fields)
        })
        .collect();
    let vocab: Map<String, Value> = tokens
        .iter()
        .enumerate()
        .map(|(id, t)| (t.clone(), json!(id)))
        .collect();
    let merges: Vec<Value> = merges
        .iter()
        .map(|&(a, b)| json!([tokens[a as usize], tokens[b as usize]]))
        .collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": byte_level, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": merges
        }
    })
}

fn tokenizer_config(special: SpecialTokens<'_>, specials: &[&str]) -> Value {
    let decoder: Map<String, Value> = specials
        .iter()
        .enumerate()
        .map(|(id, token)| (id.to_string(), Value::Object(added_token(token))))
        .collect();
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": special.bos, "eos_token": special.eos,
        "additional_special_tokens": special.others, "added_tokens_decoder": decoder,
        "clean_up_tokenization_spaces": false, "model_max_length": 1_000_000_000_000_000_019_884_624_838_656_f64
    })
}

/// Stock loaders refuse nulls here, so an absent BOS is left out.
fn special_map(special: SpecialTokens<'_>) -> Value {
    let mut map = Map::new();
    if let Some(bos) = special.bos {
        map.insert("bos_token".into(), json!(bos));
    }
    map.insert("eos_token".into(), json!(special.eos));
    if !special.others.is_empty() {
        map.insert("additional_special_tokens".into(), json!(special.others));
    }
    Value::Object(map)
}
