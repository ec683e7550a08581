//! One text is one text, whatever file it stands in: training, evaluation and calibration read alike.

use crate::support::{json, recipe, run, stdout, text};
use serde_json::{Value, json};
use std::{fs, path::Path};

const FIRST: &str = "Anna has a red lamp.\nThe lamp is “old”, and the door is höher.\n";
const SECOND: &str = "The bell rings in the morning.\n";

/// Two documents as JSON lines, with a field that is no text.
fn lines(field: &str) -> String {
    let line = |body: &str| format!("{}\n", json!({ "id": 7, field: body }));
    format!("{}\n{}", line(FIRST), line(SECOND))
}

fn trained() -> (tempfile::TempDir, String) {
    let (dir, recipe) = recipe();
    let out = dir.path().join("run");
    let args = ["train", text(&recipe), "--out", text(&out), "--data", text(dir.path())];
    stdout(&[&args[..], &["--set", "run.steps=8"]].concat());
    let model = text(&out.join("final")).to_owned();
    (dir, model)
}

#[test]
fn the_same_text_costs_the_same_in_every_kind_of_file() {
    let (dir, model) = trained();
    let eval = |name: &str, bytes: &[u8], more: &[&str]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        json(&[&["eval", &model, "--text", text(&path), "--json"], more].concat())
    };
    let figures =
        |found: &Value| ["tokens", "bytes", "nll", "perplexity", "bits_per_byte"].map(|key| found[key].clone());
    let plain = eval("plain.txt", FIRST.as_bytes(), &[]);
    assert_eq!(plain["bytes"], FIRST.len());
    let marked = ["\u{feff}", FIRST].concat();
    let one = format!("\u{feff}{}\r\n", json!({ "text": FIRST }));
    for found in [
        eval("marked.txt", marked.as_bytes(), &[]),
        eval("one.jsonl", one.as_bytes(), &[]),
        eval("one.json", one.as_bytes(), &[]),
        eval(
            "body.ndjson",
            lines("body").as_bytes(),
            &["--field", "body", "--limit", &FIRST.len().to_string()],
        ),
    ] {
        assert_eq!(figures(&found), figures(&plain));
    }
    // Two documents are two texts, not one.
    let second = eval("second.txt", SECOND.as_bytes(), &[]);
    let both = eval("both.jsonl", lines("text").as_bytes(), &[]);
    let sum = |key: &str| plain[key].as_f64().unwrap() + second[key].as_f64().unwrap();
    assert_eq!(both["documents"], 2);
    for key in ["tokens", "bytes", "nll"] {
        assert!((both[key].as_f64().unwrap() - sum(key)).abs() < 1e-4, "{key}: {both}");
    }
    // A folder stands for its files.
    let folder = dir.path().join("folder");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("a.txt"), FIRST).unwrap();
    fs::write(folder.join("b.txt"), SECOND).unwrap();
    assert_eq!(
        figures(&json(&["eval", &model, "--text", text(&folder), "--json"])),
        figures(&both)
    );
}

#[test]
fn windows_and_strides_are_chosen_and_told() {
    let (dir, model) = trained();
    let path = dir.path().join("toy-text.valid.txt");
    let eval = |more: &[&str]| json(&[&["eval", &model, "--text", text(&path), "--json"], more].concat());
    let (usual, close) = (eval(&[]), eval(&["--window", "48", "--stride", "8", "--limit", "900"]));
    assert_eq!((&usual["window"], &usual["stride"]), (&json!(64), &json!(32)));
    assert_eq!((&close["window"], &close["stride"]), (&json!(48), &json!(8)));
    assert_eq!(close["bytes"], 900);
    assert!(usual["standard_error"].as_f64().unwrap() > 0.0);
    let table = stdout(&["eval", &model, "--text", text(&path), "--window", "48"]);
    assert!(table.contains("Windows of 48 tokens, stride 24"), "{table}");
    for (more, said) in [
        (["--window", "65"], "window: must be in 2..=64"),
        (["--stride", "64"], "stride: must be in 1..=63"),
    ] {
        let output = run(&[&["eval", &model, "--text", text(&path)], &more[..]].concat());
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && err.contains(said), "{err}");
    }
}

#[test]
fn broken_lines_are_named_by_file_and_line_everywhere() {
    let (dir, model) = trained();
    let (path, merge, train) = (
        dir.path().join("broken.jsonl"),
        dir.path().join("merge.toml"),
        dir.path().join("recipe.toml"),
    );
    let out = dir.path().join("out");
    fs::write(
        &merge,
        format!(
            "budget = {{ experts = 2 }}\ncalibration = {{ text = {:?} }}\n",
            text(&path)
        ),
    )
    .unwrap();
    let data = format!("data.train=[{:?}]", text(&path));
    let commands: [&[&str]; 3] = [
        &["eval", &model, "--text", text(&path)],
        &["merge", &model, "--recipe", text(&merge), "--out", text(&out)],
        &[
            "train",
            text(&train),
            "--out",
            text(&out),
            "--set",
            &data,
            "--set",
            "data.validation=[]",
        ],
    ];
    for (broken, said) in [
        ("[1, 2]", "must be a JSON object, not a list"),
        ("{\"text\": 4}", "`text` must be a string, not a number"),
        ("{\"body\": \"x\"}", "no field `text` (found: body)"),
        ("{\"text\": \"x\"", "not JSON"),
    ] {
        fs::write(&path, format!("{{\"text\": \"good\"}}\n{broken}\n")).unwrap();
        for command in commands {
            let output = run(command);
            let err = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{err}");
            assert!(
                err.contains("broken.jsonl:2: ") && err.contains(said),
                "{command:?}: {err}"
            );
            assert!(!out.exists());
        }
    }
}

/// The groups that a merge decides on.
fn merged(dir: &Path, model: &str, calibration: &str, name: &str) -> (Value, Vec<u8>) {
    let (recipe, out) = (dir.join(format!("{name}.toml")), dir.join(name));
    fs::write(
        &recipe,
        format!("budget = {{ experts = 2 }}\ncalibration = {calibration}\n"),
    )
    .unwrap();
    let report = json(&["merge", model, "--recipe", text(&recipe), "--out", text(&out), "--json"]);
    (
        report["calibration_tokens"].clone(),
        fs::read(out.join("model.safetensors")).unwrap(),
    )
}

#[test]
fn a_merge_is_calibrated_on_documents_not_on_json() {
    let (dir, model) = trained();
    fs::write(dir.path().join("plain.txt"), FIRST).unwrap();
    fs::write(dir.path().join("one.jsonl"), json!({ "body": FIRST }).to_string()).unwrap();
    let file = |name: &str| format!("{:?}", text(&dir.path().join(name)));
    let plain = format!("{{ text = {}, length = 8 }}", file("plain.txt"));
    let lines = format!("{{ text = {}, field = \"body\", length = 8 }}", file("one.jsonl"));
    let (plain, lines) = (
        merged(dir.path(), &model, &plain, "plain"),
        merged(dir.path(), &model, &lines, "lines"),
    );
    assert_eq!(plain.0, lines.0);
    assert!(plain.1 == lines.1, "another model");
}

#[test]
fn a_run_that_continues_a_checkpoint_says_what_it_costs() {
    let (dir, model) = trained();
    let recipe = dir.path().join("on.toml");
    let toml = format!(
        "init = {model:?}\n[data]\ntrain = [\"unread\"]\n[optimizer]\nlr = 1e-3\n[run]\nsteps = 10\nbatch = 2\nlength = 32\n\
         checkpoint_every = 2\n"
    );
    fs::write(&recipe, toml).unwrap();
    let out = dir.path().join("out");
    let args = ["train", text(&recipe), "--out", text(&out), "--dry-run"];
    let cost = json(&[&args[..], &["--json"]].concat());
    let n = json(&["inspect", &model, "--json"])["parameters"].as_u64().unwrap();
    assert_eq!(cost["parameters"], n);
    assert_eq!((&cost["steps"], &cost["tokens"]), (&json!(10), &json!(640)));
    assert_eq!(
        (&cost["checkpoints"], &cost["checkpoint_bytes"]),
        (&json!(2), &json!(14 * n))
    );
    assert_eq!(cost["disk_bytes"], 3 * 14 * n);
    assert!(cost["seconds"].as_f64().unwrap() > 0.0);
    let shown = stdout(&args);
    assert!(shown.contains("the last 2 kept") && shown.contains("disk "), "{shown}");
    assert!(!out.exists(), "a dry run writes nothing");
}
