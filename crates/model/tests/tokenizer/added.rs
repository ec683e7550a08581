//! Tokens that stand in one file alone, chat templates, and what is off in our encoding.

use ounce_model::tokenizer::Tokenizer;
use serde_json::{Value, json};

use crate::{folder, pieces, trained};

/// The tokenizer of [`pieces`] without BOS and EOS, with the files `files` beside it.
fn with(files: &[(&str, Value)]) -> Result<Tokenizer, String> {
    let mut tokenizer = pieces();
    tokenizer["post_processor"] = Value::Null;
    let texts: Vec<(&str, String)> = files.iter().map(|(name, value)| (*name, value.to_string())).collect();
    let mut all = vec![("tokenizer.json", tokenizer.to_string())];
    all.extend(texts);
    let all: Vec<(&str, &str)> = all.iter().map(|(name, text)| (*name, text.as_str())).collect();
    Tokenizer::open(folder(&all).path()).map_err(|e| format!("{e} (hint: {})", e.hint().unwrap_or_default()))
}

const SPECIAL: u32 = 266;

/// The ids are those of transformers 5.24 for the same folders.
#[test]
fn a_token_named_by_one_file_alone_is_not_split() {
    let named = |content: &str| json!({"content": content, "lstrip": false, "normalized": false, "rstrip": false});
    let cases: [(&str, Vec<(&str, Value)>); 9] = [
        (
            "special_tokens_map",
            vec![("special_tokens_map.json", json!({"additional_special_tokens": ["<T>"]}))],
        ),
        (
            "special_tokens_map, object",
            vec![("special_tokens_map.json", json!({"eos_token": named("<T>")}))],
        ),
        (
            "tokenizer_config, list",
            vec![("tokenizer_config.json", json!({"additional_special_tokens": ["<T>"]}))],
        ),
        (
            "tokenizer_config, named",
            vec![(
                "tokenizer_config.json",
                json!({"pad_token": "<T>", "add_bos_token": true}),
            )],
        ),
        (
            "tokenizer_config, of this model",
            vec![("tokenizer_config.json", json!({"boi_token": "<T>"}))],
        ),
        (
            "tokenizer_config, object of names",
            vec![(
                "tokenizer_config.json",
                json!({"extra_special_tokens": {"image_token": "<T>"}}),
            )],
        ),
        (
            "added_tokens_decoder",
            vec![(
                "tokenizer_config.json",
                json!({"added_tokens_decoder": {"266": named("<T>")}}),
            )],
        ),
        (
            "added_tokens and a name",
            vec![
                ("added_tokens.json", json!({"<T>": SPECIAL})),
                ("tokenizer_config.json", json!({"eos_token": "<T>"})),
            ],
        ),
        (
            "both lists",
            vec![
                ("tokenizer_config.json", json!({"additional_special_tokens": ["<T>"]})),
                (
                    "special_tokens_map.json",
                    json!({"additional_special_tokens": ["<T>", "<U>"]}),
                ),
            ],
        ),
    ];
    for (name, files) in cases {
        let tokenizer = with(&files).unwrap();
        let ids = tokenizer.encode("ab<T> ab", false).unwrap();
        let (ab, space) = (tokenizer.id_of("▁ab").unwrap(), tokenizer.id_of("▁").unwrap());
        assert_eq!(ids, [ab, SPECIAL, space, ab], "{name}");
        assert_eq!(tokenizer.is_special(SPECIAL), name != "added_tokens_decoder", "{name}");
    }
}

#[test]
fn flags_of_added_tokens_are_followed() {
    let flags = |lstrip: bool, rstrip: bool, special: bool| {
        let token = json!({"content": "<T>", "lstrip": lstrip, "rstrip": rstrip, "normalized": false,
            "single_word": false, "special": special});
        with(&[("tokenizer_config.json", json!({"added_tokens_decoder": {"266": token}}))]).unwrap()
    };
    let strips = flags(true, true, false);
    let (ab, space) = (strips.id_of("▁ab").unwrap(), strips.id_of("▁").unwrap());
    assert_eq!(strips.encode("ab <T> ab", false).unwrap(), [ab, SPECIAL, ab]);
    assert_eq!(strips.decode(&[ab, SPECIAL], true).unwrap(), "ab<T>");
    let keeps = flags(false, false, true);
    assert_eq!(
        keeps.encode("ab <T> ab", false).unwrap(),
        [ab, space, SPECIAL, space, ab]
    );
    assert_eq!(keeps.decode(&[ab, SPECIAL], true).unwrap(), "ab");
    // A token that is not special and read after normalisation has the `▁` of this normaliser before it, as in the
    // reference: it is found at the beginning, not inside.
    let normalized = with(&[("added_tokens.json", json!({"<T>": SPECIAL}))]).unwrap();
    assert_eq!(normalized.encode("<T>", false).unwrap(), [SPECIAL]);
    assert_ne!(normalized.encode("ab<T>", false).unwrap()[1], SPECIAL);
    // With a decoder in tokenizer_config.json, the older two files are not read.
    let newer = with(&[
        ("tokenizer_config.json", json!({"added_tokens_decoder": {}})),
        ("special_tokens_map.json", json!({"additional_special_tokens": ["<T>"]})),
        ("added_tokens.json", json!({"<U>": 300})),
    ]);
    assert_eq!(newer.unwrap().vocab_size(), 266);
}

#[test]
fn a_special_token_of_the_vocabulary_is_not_split_either() {
    let json = trained(300).to_json().unwrap();
    let mut value: Value = serde_json::from_str(&json).unwrap();
    let id = value["model"]["vocab"]["the"].as_u64().unwrap() as u32;
    value["added_tokens"] = json!([]);
    let dir = folder(&[
        ("tokenizer.json", &value.to_string()),
        ("tokenizer_config.json", r#"{"eos_token": "the", "bos_token": null}"#),
    ]);
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    assert!(tokenizer.is_special(id));
    assert_eq!(tokenizer.eos_ids(), [id]);
    assert_eq!(tokenizer.special_tokens()["eos_token"], "the");
    assert!(!tokenizer.special_tokens().contains_key("bos_token"));
}

#[test]
fn sources_that_contradict_are_refused_by_name() {
    let says = |files: &[(&str, Value)], parts: &[&str]| {
        let error = with(files).unwrap_err();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    };
    says(
        &[("added_tokens.json", json!({"<T>": 400}))],
        &["added_tokens.json", "`<T>`", "400", "266", "without a gap"],
    );
    says(
        &[("added_tokens.json", json!({"<T>": 266, "<U>": 266}))],
        &["added_tokens.json", "`<U>`", "266", "\"<T>\""],
    );
    says(
        &[("added_tokens.json", json!({"<T>": "x"}))],
        &["added_tokens.json", "`<T>`", "\"x\""],
    );
    says(
        &[(
            "tokenizer_config.json",
            json!({"added_tokens_decoder": {"x": {"content": "<T>"}}}),
        )],
        &["tokenizer_config.json", "`added_tokens_decoder`", "\"x\""],
    );
    says(
        &[("tokenizer_config.json", json!({"added_tokens_decoder": {"266": "<T>"}}))],
        &["tokenizer_config.json", "`added_tokens_decoder`", "266"],
    );
    says(
        &[("tokenizer_config.json", json!({"pad_token": false}))],
        &["tokenizer_config.json", "`pad_token`", "false"],
    );
    says(
        &[("tokenizer_config.json", json!({"chat_template": 3}))],
        &["tokenizer_config.json", "`chat_template`"],
    );
}

#[test]
fn saved_tokens_come_back_as_they_were() {
    let tokenizer = with(&[
        ("special_tokens_map.json", json!({"additional_special_tokens": ["<T>"]})),
        (
            "tokenizer_config.json",
            json!({"eos_token": "<U>", "chat_template": "{{ messages }}"}),
        ),
    ])
    .unwrap();
    let dir = tempfile::tempdir().unwrap();
    tokenizer.save(dir.path()).unwrap();
    let again = Tokenizer::open(dir.path()).unwrap();
    let text = "ab<T>b<U>";
    assert_eq!(
        again.encode(text, false).unwrap(),
        tokenizer.encode(text, false).unwrap()
    );
    assert_eq!(again.chat_template(), Some("{{ messages }}"));
}

#[test]
fn chat_templates_come_from_their_files_or_the_configuration() {
    let list = json!({"chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]});
    let listed = with(&[("tokenizer_config.json", list.clone())]).unwrap();
    assert_eq!(listed.chat_template(), Some("D"));
    assert_eq!(listed.chat_templates()["tool_use"], "T");
    let json = trained(300).to_json().unwrap();
    let dir = folder(&[
        ("tokenizer.json", &json),
        ("tokenizer_config.json", &list.to_string()),
        ("chat_template.jinja", "file\n"),
    ]);
    std::fs::create_dir(dir.path().join("additional_chat_templates")).unwrap();
    std::fs::write(dir.path().join("additional_chat_templates/rag.jinja"), "R").unwrap();
    let filed = Tokenizer::open(dir.path()).unwrap();
    assert_eq!(filed.chat_template(), Some("file\n"));
    assert_eq!(filed.chat_templates().len(), 2);
    let out = tempfile::tempdir().unwrap();
    filed.save(out.path()).unwrap();
    assert_eq!(
        Tokenizer::open(out.path()).unwrap().chat_templates(),
        filed.chat_templates()
    );
    assert_eq!(trained(300).chat_template(), None);
}

#[test]
fn dropout_is_off_and_special_tokens_may_be_text() {
    let mut value: Value = serde_json::from_str(&trained(300).to_json().unwrap()).unwrap();
    value["model"]["dropout"] = json!(0.9);
    let dropping = Tokenizer::from_bytes(value.to_string().as_bytes()).unwrap();
    for _ in 0..8 {
        let ids = trained(300).encode("the cat", false).unwrap();
        assert_eq!(dropping.encode("the cat", false).unwrap(), ids);
    }
    let literal = with(&[("tokenizer_config.json", json!({"split_special_tokens": true}))]).unwrap();
    assert!(literal.encode("a</s>", false).unwrap().len() > 2);
}
