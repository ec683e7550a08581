//! The retrieval decoder from the outside: its corpus and recipe, decoding, inspection, resuming, and what is refused.

use crate::support::{copy_of, json, run, set_config, stdout, text};
use ounce_formats::SafetensorsFile;
use serde_json::json;
use std::{fs, path::Path};

/// The shipped recipe, made small, on passkeys of 160 tokens in chunks of 16.
fn train(dir: &Path, out: &Path, more: &[&str]) -> serde_json::Value {
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/recipes/drt.toml");
    let recipe = recipe.display().to_string();
    let mut args = vec!["train", &recipe, "--out", text(out), "--data", text(dir), "--json"];
    for small in [
        "model.hidden_size=32",
        "model.heads=2",
        "model.intermediate_size=48",
        "model.config.enc_chunk_size=16",
        "model.config.slide_window=24",
        "model.config.chunk_topk=2",
        "run.steps=6",
        "run.batch=2",
        "run.length=160",
        "run.eval_tokens=320",
        "run.export=f32",
        "run.checkpoint_every=3",
        "schedule.warmup=1",
    ] {
        args.extend(["--set", small]);
    }
    args.extend(more);
    json(&args)
}

/// Exit code and stderr.
fn refused(args: &[&str]) -> (Option<i32>, String) {
    let output = run(args);
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

fn corpus(dir: &Path) {
    let sizes = ["--length", "160", "--chunk", "16", "--bytes", "8000"];
    let mut args = vec!["data", "passkey", "--out", text(dir)];
    args.extend(sizes);
    stdout(&args);
}

#[test]
fn the_shipped_recipe_trains_and_its_model_decodes() {
    let dir = tempfile::tempdir().unwrap();
    corpus(dir.path());
    let out = dir.path().join("run");
    assert_eq!(train(dir.path(), &out, &[])["step"], 6);
    let model = out.join("final");
    // What was exported are the masters, to the bit.
    let weights = SafetensorsFile::open(&model.join("model.safetensors")).unwrap();
    let trainer = SafetensorsFile::open(&out.join("step-6/trainer.safetensors")).unwrap();
    assert!(
        weights
            .names()
            .any(|name| name == "model.upper_layers.0.1.gca.q_proj.weight")
    );
    for name in weights.names() {
        let master = trainer.view(&format!("master.{name}")).unwrap();
        assert!(weights.view(name).unwrap().bytes == master.bytes, "{name}");
    }
    let model = text(&model);
    let ids: Vec<String> = (0..75).map(|i| (1 + i * 7 % 250).to_string()).collect();
    let made = json(&[
        "generate",
        model,
        "--ids",
        &ids.join(","),
        "--max-new-tokens",
        "40",
        "--json",
    ]);
    assert_eq!(made["ids"].as_array().unwrap().len(), 115);
    let asked = ["--passkey", "400", "--digits", "2", "--items", "3"];
    let eval = [&["eval", model][..], &asked, &["--json"]].concat();
    let found = &json(&eval)["passkey"];
    assert_eq!(
        (&found["keys"]["items"], &found["passkey"]["chunk"]),
        (&json!(3), &json!(16))
    );
    assert!(found["retrieval"]["found"]["accuracy"].is_number());
    assert!(stdout(&[&["eval", model][..], &asked].concat()).contains("chunk with the key retrieved"));
    let (code, said) = refused(&["eval", model, "--passkey", "50"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("too short for chunks of 16"), "{said}");
    let found = json(&["inspect", model, "--json"]);
    assert_eq!(found["family"], "drt");
    assert_eq!(found["attention_flops_per_position"], 0);
    // Keys and values of 32 values each, 4 bytes, one row per token; a landmark of 32 values per 16 tokens.
    assert_eq!(found["kv_bytes_per_token"], 2 * 32 * 4 + 32 * 4 / 16);
    let seen = stdout(&["inspect", model]);
    assert!(
        seen.contains("whatever the length") && seen.contains("scoring landmarks"),
        "{seen}"
    );
}

/// The model in the repository finds keys of five digits at many times the length it was trained on.
#[test]
fn the_shipped_model_finds_keys() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/passkey");
    for hay in ["stories", "sentences"] {
        let args = ["--passkey", "8192", "--items", "20", "--haystack", hay, "--json"];
        let found = &json(&[&["eval", text(&model)][..], &args].concat())["passkey"];
        assert!(found["keys"]["correct"].as_u64().unwrap() >= 19, "{hay}: {found}");
        assert!(
            found["retrieval"]["found"]["accuracy"].as_f64().unwrap() >= 0.95,
            "{hay}: {found}"
        );
    }
}

/// Noise and all: the run that was stopped at step 3 ends in the same bytes.
#[test]
fn a_resumed_run_draws_the_same_noise() {
    let dir = tempfile::tempdir().unwrap();
    corpus(dir.path());
    let (whole, halves) = (dir.path().join("whole"), dir.path().join("halves"));
    train(dir.path(), &whole, &["--threads", "1"]);
    train(dir.path(), &halves, &["--threads", "2"]);
    // What a kill after step 3 leaves.
    fs::remove_dir_all(halves.join("final")).unwrap();
    fs::remove_dir_all(halves.join("step-6")).unwrap();
    train(dir.path(), &halves, &["--resume"]);
    let weights = |out: &Path| fs::read(out.join("final/model.safetensors")).unwrap();
    assert!(weights(&whole) == weights(&halves), "the resumed run ends elsewhere");
}

#[test]
fn bad_values_are_refused_with_key_rule_and_hint() {
    for (key, value, rule, hint) in [
        ("enc_chunk_size", json!(0), "at least 1 token", "usual"),
        (
            "enc_chunk_size",
            json!(64),
            "at least enc_chunk_size + 1 = 65",
            "window",
        ),
        ("chunk_topk", json!(0), "at least 1 chunk", "without retrieval"),
        (
            "decoder_layers",
            json!(null),
            "cannot be run without decoder_layers",
            "",
        ),
        ("chunk_id", json!(112), "below vocab_size", "landmark"),
        ("chunk_memory", json!("disk"), "\"f32\" or \"f16\"", "absent"),
        (
            "chunk_retriever",
            json!("best"),
            "\"learned\" or \"random\"",
            "comparison",
        ),
        (
            "moh",
            json!({"router": "query_norm"}),
            "attention of its own",
            "leave it out",
        ),
    ] {
        let model = copy_of("drt_no_slot");
        set_config(model.path(), key, value);
        let (code, said) = refused(&["generate", text(model.path()), "--ids", "1", "--max-new-tokens", "1"]);
        assert_eq!(code, Some(1), "{key}: {said}");
        assert!(said.contains(rule) && said.contains(hint), "{key}: {said}");
    }
    let dir = tempfile::tempdir().unwrap();
    let (code, said) = refused(&["data", "passkey", "--out", text(dir.path()), "--length", "100"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("too short for chunks of 64"), "{said}");
    let (code, said) = refused(&["data", "passkey", "--out", text(dir.path()), "--haystack", "straw"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("stories or sentences"), "{said}");
}
