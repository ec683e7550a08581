//! Tokenizers without a tokenizer.json: vocab.json with merges.txt, and GGUF.

use std::path::Path;

use ounce_formats::Gguf;
use ounce_model::tokenizer::{Tokenizer, TokenizerError};
use serde_json::{Value, json};

use crate::{folder, trained};

/// The vocabulary and merges of a small byte-level tokenizer.
fn parts() -> (Vec<String>, Vec<String>) {
    let value: Value = serde_json::from_str(&trained(300).to_json().unwrap()).unwrap();
    let vocab = value["model"]["vocab"].as_object().unwrap();
    let mut tokens = vec![String::new(); vocab.len()];
    for (token, id) in vocab {
        tokens[id.as_u64().unwrap() as usize].clone_from(token);
    }
    let merge = |pair: &Value| format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
    let merges = value["model"]["merges"].as_array().unwrap().iter().map(merge).collect();
    (tokens, merges)
}

fn bpe_folder(config: &Value, tokenizer_config: &Value) -> Result<Tokenizer, TokenizerError> {
    let (tokens, merges) = parts();
    let vocab: Value = tokens
        .iter()
        .enumerate()
        .map(|(id, t)| (t.clone(), json!(id)))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let dir = folder(&[
        ("vocab.json", &vocab.to_string()),
        ("merges.txt", &format!("#version: 0.2\n{}\n", merges.join("\n"))),
        ("config.json", &config.to_string()),
        ("tokenizer_config.json", &tokenizer_config.to_string()),
        ("added_tokens.json", &json!({"<|im_start|>": tokens.len()}).to_string()),
    ]);
    Tokenizer::open(dir.path())
}

#[test]
fn vocabulary_and_merges_alone_are_cut_as_their_class_does() {
    let gpt2 = bpe_folder(
        &json!({"model_type": "llama"}),
        &json!({"tokenizer_class": "GPT2Tokenizer"}),
    )
    .unwrap();
    let text = "the cat's <|im_start|>mat<|endoftext|>";
    let ids = gpt2.encode(text, true).unwrap();
    assert_eq!(gpt2.decode(&ids, false).unwrap(), text);
    let added = gpt2.vocab_size() as u32 - 1;
    assert_eq!(gpt2.id_of("<|im_start|>"), Some(added));
    assert!(ids.contains(&added) && gpt2.eos_ids() == [0] && ids.ends_with(&[0]));
    assert_eq!(
        gpt2.encode("the cat", false).unwrap(),
        trained(300).encode("the cat", false).unwrap()
    );
    let begins = json!({"tokenizer_class": "GPT2TokenizerFast", "add_bos_token": true, "bos_token": "<|start|>"});
    let begins = bpe_folder(&json!({"model_type": "llama"}), &begins).unwrap();
    assert_eq!(begins.encode("the", true).unwrap()[0], 1);
    // Qwen's digits stand alone and its characters are composed.
    let qwen = bpe_folder(&json!({"model_type": "qwen2"}), &json!({})).unwrap();
    assert_eq!(qwen.encode("12", false).unwrap().len(), 2);
    assert_eq!(
        gpt2.encode("12", false).unwrap().len(),
        1,
        "12 is a merge of this vocabulary"
    );
    assert_eq!(
        qwen.encode("e\u{301}", false).unwrap(),
        qwen.encode("é", false).unwrap()
    );
    let error = bpe_folder(&json!({"model_type": "llama"}), &json!({})).unwrap_err();
    assert!(error.to_string().contains("how words are cut"), "{error}");
}

#[test]
fn sentencepiece_alone_is_refused_for_what_it_is() {
    let dir = folder(&[("tokenizer.model", "x")]);
    let error = Tokenizer::find(dir.path()).unwrap_err();
    assert!(error.to_string().contains("tokenizer.model"), "{error}");
    assert!(error.hint().unwrap().contains("tokenizer.json"));
    assert!(Tokenizer::find(folder(&[]).path()).unwrap().is_none());
}

/// A GGUF file with no tensors and these keys.
fn gguf(path: &Path, keys: &[(&str, Value)]) {
    let text = |out: &mut Vec<u8>, text: &str| {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    };
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend(0u64.to_le_bytes());
    out.extend((keys.len() as u64).to_le_bytes());
    for (key, value) in keys {
        text(&mut out, key);
        match value {
            Value::String(s) => {
                out.extend(8u32.to_le_bytes());
                text(&mut out, s);
            }
            Value::Bool(b) => out.extend([7, 0, 0, 0, u8::from(*b)]),
            Value::Array(list) if list[0].is_string() => {
                out.extend([9u32, 8].map(u32::to_le_bytes).concat());
                out.extend((list.len() as u64).to_le_bytes());
                for s in list {
                    text(&mut out, s.as_str().unwrap());
                }
            }
            Value::Array(list) => {
                out.extend([9u32, 6].map(u32::to_le_bytes).concat());
                out.extend((list.len() as u64).to_le_bytes());
                for x in list {
                    out.extend((x.as_f64().unwrap() as f32).to_le_bytes());
                }
            }
            number => {
                out.extend(4u32.to_le_bytes());
                out.extend((number.as_u64().unwrap() as u32).to_le_bytes());
            }
        }
    }
    out.resize(out.len().next_multiple_of(32), 0);
    std::fs::write(path, out).unwrap();
}

fn opened(keys: &[(&str, Value)]) -> Result<Option<Tokenizer>, TokenizerError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let mut all = vec![("general.architecture", json!("llama"))];
    all.extend_from_slice(keys);
    gguf(&path, &all);
    Tokenizer::from_gguf(Gguf::open(&path)?.metadata())
}

#[test]
fn a_byte_level_tokenizer_comes_out_of_gguf() {
    let (tokens, merges) = parts();
    let kinds: Vec<u8> = (0..tokens.len()).map(|id| if id < 3 { 3 } else { 1 }).collect();
    let keys = |pre: &str| {
        vec![
            ("tokenizer.ggml.model", json!("gpt2")),
            ("tokenizer.ggml.pre", json!(pre)),
            ("tokenizer.ggml.tokens", json!(tokens)),
            ("tokenizer.ggml.token_type", json!(kinds)),
            ("tokenizer.ggml.merges", json!(merges)),
            ("tokenizer.ggml.bos_token_id", json!(1)),
            ("tokenizer.ggml.eos_token_id", json!(0)),
            ("tokenizer.ggml.eot_token_id", json!(2)),
            ("tokenizer.chat_template", json!("{{ messages }}")),
        ]
    };
    let tokenizer = opened(&keys("gpt-2")).unwrap().unwrap();
    let text = "the cat's mat <|endoftext|>12";
    assert_eq!(
        tokenizer.encode(text, true).unwrap(),
        trained(300).encode(text, false).unwrap()
    );
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_ids()), (Some(1), [0, 2].as_slice()));
    assert_eq!(tokenizer.chat_template(), Some("{{ messages }}"));
    assert_eq!(tokenizer.special_tokens()["eos_token"], "<|endoftext|>");
    assert!(tokenizer.is_special(0) && !tokenizer.literal().encode("<|endoftext|>", false).unwrap().contains(&0));
    // Llama 3's kind begins with BOS, and this one cuts digits.
    assert_eq!(
        opened(&keys("llama-bpe"))
            .unwrap()
            .unwrap()
            .encode("the", true)
            .unwrap()[0],
        1
    );
    assert_eq!(
        opened(&keys("smollm"))
            .unwrap()
            .unwrap()
            .encode("12", false)
            .unwrap()
            .len(),
        2
    );
    let out = tempfile::tempdir().unwrap();
    tokenizer.save(out.path()).unwrap();
    let again = Tokenizer::open(out.path()).unwrap();
    assert_eq!(again.encode(text, true).unwrap(), tokenizer.encode(text, true).unwrap());
    let error = opened(&keys("nobody")).unwrap_err().to_string();
    assert!(
        error.contains("tokenizer.ggml.pre") && error.contains("nobody"),
        "{error}"
    );
    let mut twice = keys("gpt-2");
    twice[4] = ("tokenizer.ggml.merges", json!(["x"]));
    assert!(opened(&twice).unwrap_err().to_string().contains("merges"));
    assert!(opened(&[]).unwrap().is_none());
    assert!(opened(&[("tokenizer.ggml.model", json!("bert"))]).is_err());
}

#[test]
fn sentencepieces_merge_by_score_and_fall_back_to_bytes() {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    tokens.extend((0..=255u8).map(|byte| format!("<0x{byte:02X}>")));
    let mut kinds = vec![2, 3, 3];
    kinds.extend([6; 256]);
    let mut scores = vec![0.0; 259];
    for (piece, score) in [
        ("▁", -10.0),
        ("a", -11.0),
        ("b", -12.0),
        ("ab", -1.0),
        ("▁a", -2.0),
        ("▁ab", -3.0),
    ] {
        tokens.push(piece.into());
        scores.push(score);
        kinds.push(1);
    }
    let keys = |space: bool| {
        vec![
            ("tokenizer.ggml.model", json!("llama")),
            ("tokenizer.ggml.tokens", json!(tokens)),
            ("tokenizer.ggml.token_type", json!(kinds)),
            ("tokenizer.ggml.scores", json!(scores)),
            ("tokenizer.ggml.bos_token_id", json!(1)),
            ("tokenizer.ggml.unknown_token_id", json!(0)),
            ("tokenizer.ggml.add_space_prefix", json!(space)),
        ]
    };
    let tokenizer = opened(&keys(true)).unwrap().unwrap();
    let id = |token: &str| tokenizer.id_of(token).unwrap();
    assert_eq!(
        tokenizer.encode("ab aé", true).unwrap(),
        [1, id("▁ab"), id("▁a"), 0xc3 + 3, 0xa9 + 3]
    );
    // "ab" has the better score, so "aab" is a + ab, not aa + b.
    assert_eq!(tokenizer.encode("aab", false).unwrap(), [id("▁a"), id("ab")]);
    assert_eq!(
        tokenizer
            .decode(&tokenizer.encode("ab aé", true).unwrap(), true)
            .unwrap(),
        "ab aé"
    );
    let bare = opened(&keys(false)).unwrap().unwrap();
    assert_eq!(bare.encode("ab", false).unwrap(), [id("ab")]);
    let mut short = keys(true);
    short[3] = ("tokenizer.ggml.scores", json!([1.0]));
    assert!(opened(&short).unwrap_err().to_string().contains("scores"));
}
