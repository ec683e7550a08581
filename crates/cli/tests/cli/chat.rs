//! Generating and chatting: what goes where, and when it ends.

use crate::support::{ounce, run, stdout, text};
use serde_json::{Value, json};
use std::{fs, io::Write, path::Path, process::Stdio};

/// A model of random weights with words for tokens and a template.
fn model(dir: &Path) {
    crate::support::random_mixture(
        dir,
        &json!({"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_local_experts": 2,
            "num_experts_per_tok": 1, "eos_token_id": 63}),
    );
    let words: serde_json::Map<String, Value> = (0..64).map(|i| (format!("w{i}"), json!(i))).collect();
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "truncation": null, "padding": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"},
    });
    fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let template = "{% for m in messages %}w1 {{ m.content }} w2 {% endfor %}";
    fs::write(dir.join("chat_template.jinja"), template).unwrap();
}

fn parsed(args: &[&str]) -> Value {
    serde_json::from_str(&stdout(args)).unwrap()
}

#[test]
fn a_pipe_gets_the_continuation_and_echo_the_prompt() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    let base = [
        "generate",
        text(dir.path()),
        "--prompt",
        "w5 w6",
        "--max-new-tokens",
        "3",
    ];
    let all = parsed(&[&base[..], &["--json"]].concat());
    let plain = run(&base);
    let completion = all["completion"].as_str().unwrap();
    assert_eq!(String::from_utf8(plain.stdout).unwrap(), format!("{completion}\n"));
    assert_eq!(String::from_utf8(plain.stderr).unwrap(), "w5 w6");
    let echoed = run(&[&base[..], &["--echo"]].concat());
    assert_eq!(
        String::from_utf8(echoed.stdout).unwrap(),
        format!("w5 w6{completion}\n")
    );
    assert!(echoed.stderr.is_empty());
    assert_eq!(all["prompt_ids"], json!([5, 6]));
    assert_eq!(all["finish_reason"], "length");
    assert_eq!(all["completion_tokens"], 3);
    let second = completion.split(' ').nth(1).unwrap();
    let stopped = parsed(&[&base[..], &["--json", "--stop", second]].concat());
    assert_eq!(stopped["stopped_by"], json!({ "text": second }));
    assert!(!stopped["completion"].as_str().unwrap().contains(second));
}

#[test]
fn a_chat_keeps_what_it_has_read() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    let args = [
        "chat",
        text(dir.path()),
        "--max-new-tokens",
        "3",
        "--ignore-eos",
        "--json",
    ];
    let mut child = ounce(&args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"w7\nw8\n/reset\nw7\n/exit\n")
        .unwrap();
    let out = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    let turns: Vec<Value> = out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(turns.len(), 3);
    assert_eq!(turns[0]["prompt_ids"], json!([1, 7, 2]));
    assert!(turns[1]["cached_tokens"].as_u64().unwrap() >= 3, "{}", turns[1]);
    assert_eq!(turns[0]["ids"], turns[2]["ids"]);
    let one = parsed(&[&args[..], &["--prompt", "w7"]].concat());
    assert_eq!((&one["ids"], &one["text"]), (&turns[0]["ids"], &turns[0]["text"]));
}
