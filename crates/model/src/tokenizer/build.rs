//! From a list of tokens to the `tokenizers` crate's own form.
//!
//! Owns the two kinds that files without a `tokenizer.json` hold: byte-level BPE with merges, and sentencepiece's BPE,
//! whose merges follow from the scores of the pieces. It must not know which file the lists came from.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

/// The kinds of `tokenizer.ggml.token_type` and of sentencepiece that matter here.
pub(super) const UNKNOWN: u8 = 2;
pub(super) const CONTROL: u8 = 3;
pub(super) const USER_DEFINED: u8 = 4;
const NORMAL: u8 = 1;
/// Longest piece whose halves are tried; real ones have 16 characters or a run of spaces.
const LONGEST_PIECE: usize = 1024;

/// Ids by token; the broken rule if two have one text.
pub(super) fn vocabulary<'a>(tokens: impl IntoIterator<Item = &'a str>) -> Result<Map<String, Value>, String> {
    let mut vocab = Map::new();
    for (id, token) in tokens.into_iter().enumerate() {
        let token = match token {
            "" => format!("[EMPTY_{id}]"),
            token => token.to_owned(),
        };
        if let Some(first) = vocab.insert(token.clone(), json!(id)) {
            return Err(format!("has the token {token:?} twice, as {first} and as {id}"));
        }
    }
    Ok(vocab)
}

/// A byte-level BPE; `pre` are the steps before the bytes are written in GPT-2's table.
pub(super) fn byte_level(vocab: Map<String, Value>, merges: &[(&str, &str)], keeps_whole: bool) -> Value {
    let merges: Vec<Value> = merges.iter().map(|(a, b)| json!([a, b])).collect();
    let mut value = frame();
    value["decoder"] = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    value["model"] = json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": keeps_whole,
        "merges": merges
    });
    value["model"]["vocab"] = Value::Object(vocab);
    value
}

/// The steps that cut words by `cuts` and write bytes in GPT-2's table.
pub(super) fn cutting(cuts: &[&str]) -> Value {
    let cut =
        |regex: &&str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
    let mut steps: Vec<Value> = cuts.iter().map(cut).collect();
    steps.push(json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}));
    json!({"type": "Sequence", "pretokenizers": steps})
}

/// Sentencepiece's BPE. `space` puts a space before each text.
pub(super) fn pieces(
    tokens: &[&str],
    scores: &[f64],
    kinds: &[u8],
    unknown: Option<usize>,
    space: bool,
) -> Result<Value, String> {
    let vocab = vocabulary(tokens.iter().copied())?;
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, &token)| (token, id)).collect();
    let mut merges: Vec<(f64, usize, &str, &str)> = Vec::new();
    for (id, &piece) in tokens.iter().enumerate() {
        if !matches!(kinds[id], NORMAL | USER_DEFINED) {
            continue;
        }
        if piece.len() > LONGEST_PIECE {
            return Err(format!("has a piece of {} bytes, the token {id}", piece.len()));
        }
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            if ids.contains_key(left) && ids.contains_key(right) {
                merges.push((scores[id], ids[left], left, right));
            }
        }
    }
    // The best score first; of one piece's halves, those of the earlier left half.
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let merges: Vec<Value> = merges.iter().map(|(_, _, a, b)| json!([a, b])).collect();
    let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let mut normalizers = vec![replace(" ", "▁")];
    let mut decoders = vec![
        replace("▁", " "),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if space {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let mut value = frame();
    value["normalizer"] = json!({"type": "Sequence", "normalizers": normalizers});
    value["decoder"] = json!({"type": "Sequence", "decoders": decoders});
    value["model"] = json!({
        "type": "BPE", "dropout": null, "unk_token": unknown.map(|id| tokens[id]),
        "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
        "ignore_merges": false, "merges": merges
    });
    value["model"]["vocab"] = Value::Object(vocab);
    Ok(value)
}

/// Control and unknown tokens are special, user-defined ones are found whole in any text.
pub(super) fn added(tokens: &[&str], kinds: &[u8]) -> Value {
    let one = |(id, (&token, &kind)): (usize, (&&str, &u8))| {
        let special = matches!(kind, CONTROL | UNKNOWN);
        (!token.is_empty() && (special || kind == USER_DEFINED)).then(|| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": special})
        })
    };
    tokens.iter().zip(kinds).enumerate().filter_map(one).collect()
}

/// A post-processor that adds BOS and EOS.
pub(super) fn ends(bos: Option<(&str, u32)>, eos: Option<(&str, u32)>) -> Value {
    if bos.is_none() && eos.is_none() {
        return Value::Null;
    }
    let part = |token: &(&str, u32)| json!({"SpecialToken": {"id": token.0, "type_id": 0}});
    let text = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    let around = |id: &str| -> Vec<Value> {
        let (first, last) = (bos.iter().map(part), eos.iter().map(part));
        first.chain([text(id)]).chain(last).collect()
    };
    let mut named = Map::new();
    for (token, id) in bos.iter().chain(&eos) {
        named.insert(
            (*token).to_owned(),
            json!({"id": token, "ids": [id], "tokens": [token]}),
        );
    }
    let (single, pair) = (around("A"), [around("A"), around("B")].concat());
    json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": named})
}

fn frame() -> Value {
    json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null})
}
