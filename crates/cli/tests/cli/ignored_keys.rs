//! Keys of a `config.json` that the reference never reads: the model runs, and the user is told once.

use crate::support::{copy_of, golden, json, run, set_config, text};
use serde_json::json as value;

#[test]
fn are_named_once_on_stderr_and_in_inspect_and_change_nothing() {
    let dir = copy_of("llama");
    let model = dir.path();
    for (key, found) in [
        ("_model_name_or_path", value!("somewhere/else")),
        ("is_llama_config", value!(true)),
        ("rope_interleaved", value!(false)),
        ("use_cache", value!(true)),
        ("sliding_window", value!(null)),
    ] {
        set_config(model, key, found);
    }
    let named = "_model_name_or_path, is_llama_config, rope_interleaved";
    let plain = golden("llama");
    let generate = |model| {
        run(&[
            "generate",
            text(model),
            "--ids",
            "1,2,3",
            "--max-new-tokens",
            "4",
            "--json",
        ])
    };
    let (with, without) = (generate(model), generate(&plain));
    let ids = |o: &std::process::Output| serde_json::from_slice::<serde_json::Value>(&o.stdout).unwrap()["ids"].clone();
    assert_eq!(ids(&with), ids(&without));
    let said = String::from_utf8(with.stderr).unwrap();
    assert_eq!(said.matches("note:").count(), 1, "{said}");
    assert!(said.contains(named), "{said}");
    assert_eq!(String::from_utf8(without.stderr).unwrap(), "");

    let found = json(&["inspect", text(model), "--json"]);
    let notes = found["notes"].as_array().unwrap();
    assert!(
        notes.len() == 1 && notes[0].as_str().unwrap().contains(named),
        "{notes:?}"
    );
}
