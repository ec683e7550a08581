//! Files made to cost more than they should.

use ounce_model::tokenizer::Tokenizer;
use serde_json::{Value, json};

use crate::pieces;

fn refusal(change: impl FnOnce(&mut Value)) -> String {
    let mut value = pieces();
    change(&mut value);
    match Tokenizer::from_bytes(value.to_string().as_bytes()) {
        Ok(_) => "accepted".into(),
        Err(error) => format!("{error} (hint: {})", error.hint().unwrap_or_default()),
    }
}

fn replace(pattern: &Value, content: &str) -> Value {
    json!({"type": "Replace", "pattern": pattern, "content": content})
}

#[test]
fn a_text_cannot_be_multiplied() {
    let long = "x".repeat(5000);
    let doubling = vec![replace(&json!({"String": "a"}), "aa"); 40];
    for (change, part) in [
        (
            json!({"normalizer": replace(&json!({"String": "a"}), &long)}),
            "`normalizer`",
        ),
        (
            json!({"normalizer": replace(&json!({"Regex": "x*"}), &long)}),
            "`normalizer`",
        ),
        (
            json!({"normalizer": {"type": "Sequence", "normalizers": doubling.clone()}}),
            "`normalizer`",
        ),
        (
            json!({"normalizer": {"type": "Prepend", "prepend": "x".repeat(100_000)}}),
            "`normalizer`",
        ),
        (
            json!({"decoder": {"type": "Sequence", "decoders": doubling}}),
            "`decoder`",
        ),
    ] {
        let said = refusal(|value| {
            for (key, part) in change.as_object().unwrap() {
                value[key] = part.clone();
            }
        });
        assert!(said.contains(part) && said.contains("1024"), "{change}: {said}");
    }
    let said = refusal(|value| {
        let text = json!({"Sequence": {"id": "A", "type_id": 0}});
        value["post_processor"]["single"] = Value::Array(vec![text; 1000]);
    });
    assert!(said.contains("`post_processor`"), "{said}");
    // What real files do is far below the bound.
    assert_eq!(refusal(|_| ()), "accepted");
    let real = [
        replace(&json!({"Regex": " {2,}"}), "▁"),
        replace(&json!({"String": "``"}), "\""),
        json!({"type": "NFKD"}),
    ];
    assert_eq!(
        refusal(|value| value["normalizer"] = json!({"type": "Sequence", "normalizers": real})),
        "accepted"
    );
}

#[test]
fn between_the_bounds_long_texts_are_refused() {
    let mut value = pieces();
    value["normalizer"] = replace(&json!({"String": "a"}), &"b".repeat(1000));
    let tokenizer = Tokenizer::from_bytes(value.to_string().as_bytes()).unwrap();
    assert_eq!(tokenizer.encode("ca", false).unwrap().len(), 1001);
    let error = tokenizer.encode(&"a".repeat(1 << 20), false).unwrap_err().to_string();
    assert!(error.contains("1000"), "{error}");
}

/// Steps of the allocator say more than seconds on a busy machine; here the count of tokens grows tenfold and all of
/// them must be found, in files that name them in three ways.
#[test]
fn many_added_tokens_load() {
    let many: Vec<String> = (0..50_000).map(|i| format!("<|t{i}|>")).collect();
    let mut value = pieces();
    let first = 266;
    value["added_tokens"] = many
        .iter()
        .enumerate()
        .map(|(i, token)| {
            json!({"id": first + i, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": i % 2 == 0, "special": i % 3 == 0})
        })
        .collect();
    let dir = crate::folder(&[
        ("tokenizer.json", &value.to_string()),
        (
            "tokenizer_config.json",
            &json!({"additional_special_tokens": many}).to_string(),
        ),
    ]);
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    assert_eq!(tokenizer.vocab_size(), first + many.len());
    assert_eq!(
        tokenizer.encode("<|t49999|>", false).unwrap(),
        [(first + 49_999) as u32]
    );
}
