//! Methods of the feed-forward slot from end to end: shipped recipe, training, conversion, and what must not load.

use crate::support::{copy_of, golden, json, poke, run, set_config, stdout, text};
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// Trains the shipped recipe, made tiny, on toy text; returns the folder that holds `final`.
fn trained(recipe: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    stdout(&["data", "toy", "--out", text(&data), "--bytes", "20000"]);
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../models/recipes")
        .join(recipe);
    let out = dir.path().join("run");
    let tiny = [
        "model.hidden_size=32",
        "model.layers=2",
        "model.heads=2",
        "model.intermediate_size=24",
        "tokenizer.train_vocab=300",
        "run.steps=30",
        "run.batch=2",
        "run.length=32",
        "run.eval_every=0",
        "run.eval_tokens=256",
        "run.checkpoint_every=0",
        "run.export=\"f32\"",
    ];
    let set: Vec<&str> = tiny.iter().flat_map(|s| ["--set", s]).collect();
    stdout(
        &[
            &["train", text(&recipe), "--out", text(&out), "--data", text(&data)],
            &set[..],
        ]
        .concat(),
    );
    dir
}

fn losses(dir: &TempDir) -> Vec<f64> {
    let metrics = fs::read_to_string(dir.path().join("run/metrics.jsonl")).unwrap();
    let rows = metrics
        .lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
    rows.filter_map(|r| r["cross_entropy"].as_f64()).collect()
}

fn learns(losses: &[f64]) {
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    assert_eq!(losses.len(), 30);
    assert!(mean(&losses[25..]) < mean(&losses[..5]) - 0.3, "{losses:?}");
}

/// Ids continued greedily.
fn greedy(model: &Path) -> serde_json::Value {
    json(&[
        "generate",
        text(model),
        "--ids",
        "5,6,7",
        "--max-new-tokens",
        "20",
        "--json",
    ])["ids"]
        .clone()
}

#[test]
fn the_aoe_recipe_trains_and_its_result_explains_itself() {
    let dir = trained("aoe.toml");
    learns(&losses(&dir));
    let metrics = fs::read_to_string(dir.path().join("run/metrics.jsonl")).unwrap();
    assert!(metrics.lines().any(|line| line.contains("\"balance\"")), "{metrics}");
    let model = dir.path().join("run/final");
    let found = json(&["inspect", text(&model), "--json"]);
    assert_eq!(found["family"], "aoe");
    // Per layer: scores of 8 experts by 32 factors, and for each expert 160·(32 + 2·32) more.
    let (d, one) = (32, 160 * (32 + 2 * 32));
    let idle = 2 * 6 * one;
    let all = found["parameters"].as_u64().unwrap();
    assert_eq!(found["active_parameters"].as_u64().unwrap(), all - idle);
    let explained = found["feed_forward"].to_string();
    assert!(
        explained.contains(&format!("costs {} FLOPs", 2 * 6 * 32 * d)),
        "{explained}"
    );
}

#[test]
fn the_mole_recipe_trains_and_its_table_computes_the_same() {
    let dir = trained("mole.toml");
    learns(&losses(&dir));
    let model = dir.path().join("run/final");
    let table = dir.path().join("table");
    let args = ["convert", text(&model), "--to", "mole-lut", "--out", text(&table)];
    let planned = json(&[&args[..], &["--dry-run", "--json"]].concat());
    assert!(!table.exists());
    let made = json(&[&args[..], &["--json"]].concat());
    assert_eq!(made["bytes_after"], planned["bytes_after"]);
    assert_eq!(greedy(&model), greedy(&table));
    assert!(table.join("tokenizer.json").is_file());
    assert_eq!(
        run(&args).status.code(),
        Some(1),
        "an output folder is not written over"
    );

    let found = json(&["inspect", text(&table), "--json", "--scan"]);
    assert_eq!(found["scan"]["table_intact"], true);
    let explained = found["feed_forward"].to_string();
    let bytes = 2 * 4 * 32 * 4;
    assert!(
        explained.contains(&format!("{bytes} bytes are fetched per token")),
        "{explained}"
    );

    // A changed row may escape the sample that is checked on opening, but not the scan.
    let weights = table.join("model.safetensors");
    poke(&weights, "model.moe_table.weight", 9.0);
    let scan = run(&["inspect", text(&table), "--scan"]);
    assert_eq!(scan.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&scan.stderr).contains("table"));
    // An embedding that has moved on makes every row wrong.
    poke(&weights, "model.embed_tokens.weight", 9.0);
    let stale = run(&["generate", text(&table), "--ids", "5"]);
    let err = String::from_utf8_lossy(&stale.stderr).into_owned();
    assert_eq!(stale.status.code(), Some(1));
    assert!(
        err.contains("is not the one the table was built from") && err.contains("hint: "),
        "{err}"
    );
}

#[test]
fn a_table_cannot_be_trained() {
    let dir = tempfile::tempdir().unwrap();
    stdout(&["data", "toy", "--out", text(dir.path()), "--bytes", "20000"]);
    let lut = copy_of("mole_lut");
    let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo/tokenizer.json");
    fs::copy(tokenizer, lut.path().join("tokenizer.json")).unwrap();
    let recipe = dir.path().join("recipe.toml");
    let toml = format!(
        "init = {:?}\n[data]\ntrain = [\"${{data}}/toy-text.txt\"]\n[optimizer]\nlr = 1e-3\n[run]\nsteps = 1\nbatch = 1\nlength = 8\n",
        text(lut.path())
    );
    fs::write(&recipe, toml).unwrap();
    let out: PathBuf = dir.path().join("run");
    let output = run(&["train", text(&recipe), "--out", text(&out), "--data", text(dir.path())]);
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(
        err.contains("cannot follow an embedding") && err.contains("hint: "),
        "{err}"
    );
}

#[test]
fn wrong_conversions_name_the_rule_and_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let (mole, lut, llama) = (golden("mole"), golden("mole_lut"), golden("llama"));
    let broken = copy_of("mole");
    set_config(broken.path(), "num_experts", json!(0));
    for (model, args, said) in [
        (&mole, vec!["--to", "lut"], "\"lut\" is no conversion"),
        (
            &mole,
            vec!["--to", "mole-lut", "--dtype", "int8"],
            "\"int8\" is no element type",
        ),
        (
            &mole,
            vec!["--to", "mole-lut", "--set", "rows=3"],
            "option \"rows\": is unknown",
        ),
        (&mole, vec!["--to", "mole-lut", "--set", "rows"], "is not KEY=VALUE"),
        (&lut, vec!["--to", "mole-lut"], "has its table already"),
        (&mole, vec!["--to", "ladder"], "ladder wiring is defined for llama"),
        (
            &llama,
            vec!["--to", "ladder", "--set", "layers=some"],
            "\"some\" is neither a number nor a list",
        ),
        (
            &llama,
            vec!["--to", "ladder", "--set", "layers=99"],
            "the last 99 layers of a model that has",
        ),
        (&llama, vec!["--to", "mole-lut"], "is no MoLE model"),
        (
            &broken.path().to_path_buf(),
            vec!["--to", "mole-lut"],
            "the configuration has no use for it",
        ),
    ] {
        let output = run(&[&["convert", text(model), "--out", text(&out)], &args[..]].concat());
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {err}");
        assert!(err.contains(said) && err.contains("\nhint: "), "{args:?}: {err}");
        assert!(!out.exists());
    }
}
