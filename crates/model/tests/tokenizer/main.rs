//! Tokenizers against cases agreed by two independent implementations, and their behaviour on folders and streams.

mod added;
mod limits;
mod other_files;
mod stream;

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use ounce_model::tokenizer::{SpecialTokens, StreamDecoder, Tokenizer, TokenizerError, train_byte_level_bpe};
use proptest::prelude::*;
use serde_json::{Value, json};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/tokenizers")
        .join(name)
}

static GPT2: LazyLock<Tokenizer> = LazyLock::new(|| Tokenizer::open(fixture("gpt2")).unwrap());
static NEOX: LazyLock<Tokenizer> = LazyLock::new(|| Tokenizer::open(fixture("neox")).unwrap());

const CORPUS: [&str; 3] = [
    "the cat sat on the mat and the dog sat on the cat, the cat said: sit!\n",
    "höher, höher! 中文中文 🦙🦙 the the the and and 12 12 123\n\n",
    "it's the dog's mat, isn't it? the mat is the dog's.",
];

fn trained(vocab_size: usize) -> Tokenizer {
    let special = SpecialTokens {
        bos: Some("<|start|>"),
        others: &["<|pad|>"],
        ..SpecialTokens::default()
    };
    train_byte_level_bpe(CORPUS, vocab_size, special).unwrap()
}

/// A sentencepiece-style tokenizer as Llama's: BOS by template, byte fallback, first space stripped by the decoder.
fn pieces() -> Value {
    let mut vocab = serde_json::Map::new();
    for token in ["<unk>", "<s>", "</s>"] {
        vocab.insert(token.into(), json!(vocab.len()));
    }
    for byte in 0..=255u8 {
        vocab.insert(format!("<0x{byte:02X}>"), json!(vocab.len()));
    }
    for token in ["▁", "a", "b", "c", "▁a", "▁ab", "ab"] {
        vocab.insert(token.into(), json!(vocab.len()));
    }
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "<unk>"},
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]},
                "</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": [["▁", "a"], ["a", "b"], ["▁a", "b"]]}
    })
}

static PIECES: LazyLock<Tokenizer> = LazyLock::new(|| Tokenizer::from_bytes(pieces().to_string().as_bytes()).unwrap());

#[test]
fn published_cases_are_exact() {
    for (name, tokenizer, size) in [("gpt2", &*GPT2, 50_257), ("neox", &*NEOX, 50_277)] {
        assert_eq!(tokenizer.vocab_size(), size, "{name}");
        let cases = std::fs::read_to_string(fixture(name).join("cases.jsonl")).unwrap();
        let mut checked = 0;
        for line in cases.lines() {
            let case: Value = serde_json::from_str(line).unwrap();
            let text = case["text"].as_str().unwrap();
            let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
            assert_eq!(tokenizer.encode(text, false).unwrap(), ids, "{name}: {text:?}");
            // NeoX composes characters (NFC); GPT-2 gives every text back.
            if name == "gpt2" {
                assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
            }
            checked += 1;
        }
        assert_eq!(checked, 46, "{name}");
    }
}

#[test]
fn bos_and_eos_are_never_doubled() {
    let encode = |text: &str| PIECES.encode(text, true).unwrap();
    let plain = encode("ab");
    assert_eq!((plain[0], plain[plain.len() - 1]), (1, 2));
    let body = PIECES.encode("<s>ab", false).unwrap();
    assert_eq!(
        encode("<s>ab"),
        [body.as_slice(), &[2]].concat(),
        "the text's own <s> is the only one"
    );
    let end = encode("ab</s>");
    assert_eq!(end.iter().filter(|&&id| id == 2).count(), 1);
    assert_eq!(encode("<s>ab</s>").iter().filter(|&&id| id <= 2).count(), 2);
    // Two in the text were asked for; only the third would be ours.
    assert_eq!(encode("<s><s>ab").iter().filter(|&&id| id == 1).count(), 2);
    assert_eq!(PIECES.encode("<s>ab", false).unwrap()[0], 1);
    assert!(!PIECES.encode("ab", false).unwrap().contains(&1));
}

#[test]
fn saved_truncation_and_padding_are_not_applied() {
    let text = "ab ab ab ab ab ab ab ab ab ab";
    assert_eq!(PIECES.encode(text, false).unwrap().len(), 10);
    assert_eq!(PIECES.encode("ab", false).unwrap().len(), 1);
}

#[test]
fn token_bytes_follow_the_decoder() {
    assert_eq!(PIECES.token_bytes(PIECES.id_of("▁ab").unwrap()).unwrap(), b" ab");
    assert_eq!(PIECES.token_bytes(PIECES.id_of("<0x0A>").unwrap()).unwrap(), b"\n");
    assert_eq!(PIECES.token_bytes(1).unwrap(), b"<s>");
    let ids = GPT2.encode(" 🦙\n", false).unwrap();
    let bytes: Vec<u8> = ids.iter().flat_map(|&id| GPT2.token_bytes(id).unwrap()).collect();
    assert_eq!(bytes, " 🦙\n".as_bytes());
    // NeoX's added runs of spaces are outside the byte alphabet and stand for themselves.
    let id = NEOX.id_of("    ").unwrap();
    assert_eq!(NEOX.token_bytes(id).unwrap(), b"    ");
}

#[test]
fn ids_beyond_the_tokenizer_are_the_empty_text() {
    let ids = GPT2.encode("ab", false).unwrap();
    let padded = [&[60_000], ids.as_slice(), &[u32::MAX]].concat();
    assert_eq!(GPT2.decode(&padded, false).unwrap(), "ab");
    assert_eq!(PIECES.decode(&[9_999], true).unwrap(), "");
    let error = GPT2.token_bytes(60_000).unwrap_err();
    assert!(
        matches!(
            error,
            TokenizerError::OutOfRange {
                id: 60_000,
                size: 50_257
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("50256"), "{error}");
    assert!(GPT2.token_bytes(u32::MAX).is_err());
    assert_eq!(StreamDecoder::new(&GPT2, false).push(60_000), None);
}

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        std::fs::write(dir.path().join(name), content).unwrap();
    }
    dir
}

#[test]
fn eos_ids_are_the_union_in_order_of_authority() {
    let json = trained(300).to_json().unwrap();
    let dir = folder(&[
        ("tokenizer.json", &json),
        (
            "generation_config.json",
            r#"{"eos_token_id": [7, 0], "bos_token_id": null}"#,
        ),
        ("config.json", r#"{"eos_token_id": 7, "bos_token_id": -1}"#),
        (
            "tokenizer_config.json",
            r#"{"eos_token": {"content": "<|pad|>"}, "bos_token": "<|start|>"}"#,
        ),
        (
            "special_tokens_map.json",
            r#"{"eos_token": "<|nowhere|>", "bos_token": "<|endoftext|>"}"#,
        ),
    ]);
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    // A name that no vocabulary knows becomes a token, as in the reference.
    let nowhere = tokenizer.id_of("<|nowhere|>").unwrap();
    assert_eq!(tokenizer.eos_ids(), [7, 0, 2, nowhere]);
    assert_eq!(tokenizer.bos_id(), Some(1));
}

#[test]
fn broken_folders_say_which_file_and_why() {
    let says = |files: &[(&str, &str)], parts: &[&str]| {
        let dir = folder(files);
        let error = Tokenizer::open(dir.path()).unwrap_err();
        let error = format!("{error} (hint: {})", error.hint().unwrap_or_default());
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    };
    let good = trained(300).to_json().unwrap();
    says(&[], &["tokenizer.json", "needs a tokenizer.json"]);
    says(
        &[("tokenizer.json", "{\"version\": ")],
        &["tokenizer.json", "not a tokenizer", "EOF"],
    );
    says(&[("tokenizer.json", "[]")], &["tokenizer.json", "not a tokenizer"]);
    says(
        &[("tokenizer.json", &good), ("config.json", "{oops")],
        &["config.json", "not JSON"],
    );
    says(
        &[("tokenizer.json", &good), ("config.json", "[1]")],
        &["config.json", "object"],
    );
    says(
        &[
            ("tokenizer.json", &good),
            ("generation_config.json", r#"{"eos_token_id": "two"}"#),
        ],
        &["generation_config.json", "`eos_token_id`", "\"two\""],
    );
    says(
        &[
            ("tokenizer.json", &good),
            ("tokenizer_config.json", r#"{"bos_token": {"id": 3}}"#),
        ],
        &["tokenizer_config.json", "`bos_token`", "content"],
    );
}

#[test]
fn training_is_deterministic_and_round_trips() {
    let first = trained(290);
    let reversed: Vec<&str> = CORPUS.iter().rev().copied().collect();
    let special = SpecialTokens {
        bos: Some("<|start|>"),
        others: &["<|pad|>"],
        ..SpecialTokens::default()
    };
    let again = train_byte_level_bpe(&reversed, 290, special).unwrap();
    assert_eq!(
        first.to_json().unwrap(),
        again.to_json().unwrap(),
        "order of the texts must not matter"
    );
    assert_eq!(first.vocab_size(), 290);
    assert_eq!((first.bos_id(), first.eos_ids()), (Some(1), [0].as_slice()));
    for text in CORPUS.iter().chain(&["never seen: ÿ\u{0} 🧵"]) {
        let ids = first.encode(text, true).unwrap();
        assert_eq!(first.decode(&ids, true).unwrap(), *text);
    }
    let ids = first.encode(CORPUS[0], false).unwrap();
    assert!(
        ids.len() * 2 < CORPUS[0].len(),
        "merges must shorten the text: {} ids",
        ids.len()
    );
    // Counted by hand: "he" stands 13 times, "th" 11; after the merge "t" + "he" is next.
    assert_eq!(first.token_bytes(3 + 256).unwrap(), b"he");
    assert_eq!(first.token_bytes(3 + 257).unwrap(), b"the");
}

#[test]
fn training_refuses_the_impossible() {
    let train = |vocab, special| {
        train_byte_level_bpe(CORPUS, vocab, special)
            .map(|_| ())
            .unwrap_err()
            .to_string()
    };
    assert!(train(256, SpecialTokens::default()).contains("257"));
    assert!(
        train(
            300,
            SpecialTokens {
                eos: "",
                ..SpecialTokens::default()
            }
        )
        .contains("not empty")
    );
    assert!(
        train(
            300,
            SpecialTokens {
                others: &["a1", "a1"],
                ..SpecialTokens::default()
            }
        )
        .contains("distinct")
    );
    assert!(
        train(
            300,
            SpecialTokens {
                eos: "x",
                ..SpecialTokens::default()
            }
        )
        .contains("two characters")
    );
    let empty = train_byte_level_bpe([""], 300, SpecialTokens::default())
        .map(|_| ())
        .unwrap_err();
    assert!(empty.to_string().contains("empty"), "{empty}");
}

#[test]
fn saved_folders_load_again_and_carry_what_stock_loaders_read() {
    let tokenizer = trained(300);
    let dir = tempfile::tempdir().unwrap();
    tokenizer.save(dir.path()).unwrap();
    let again = Tokenizer::open(dir.path()).unwrap();
    assert_eq!(again.to_json().unwrap(), tokenizer.to_json().unwrap());
    assert_eq!(
        (again.bos_id(), again.eos_ids()),
        (tokenizer.bos_id(), tokenizer.eos_ids())
    );
    let read =
        |name: &str| -> Value { serde_json::from_slice(&std::fs::read(dir.path().join(name)).unwrap()).unwrap() };
    let config = read("tokenizer_config.json");
    assert_eq!(config["tokenizer_class"], "PreTrainedTokenizerFast");
    assert_eq!(config["eos_token"], "<|endoftext|>");
    assert_eq!(config["added_tokens_decoder"]["2"]["content"], "<|pad|>");
    assert_eq!(read("special_tokens_map.json")["bos_token"], "<|start|>");
    let second = tempfile::tempdir().unwrap();
    again.save(second.path()).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"] {
        let bytes = |dir: &tempfile::TempDir| std::fs::read(dir.path().join(name)).unwrap();
        assert_eq!(bytes(&dir), bytes(&second), "{name}");
    }
    let missing = tokenizer.save(dir.path().join("no/such/folder")).unwrap_err();
    assert!(missing.to_string().contains("no/such/folder"), "{missing}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_text_survives(text in ".{0,60}") {
        let ids = GPT2.encode(&text, true).unwrap();
        prop_assert_eq!(GPT2.decode(&ids, false).unwrap(), text);
    }
}
