//! Attention methods from the outside: recipes that ship, `--attention`, and what each command says of them.

use crate::support::{copy_of, floats, golden, json, run, set_config, stdout, text};
use ounce_formats::SafetensorsFile;
use serde_json::json;
use std::{fs, path::Path};

fn shipped(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../models/recipes")
        .join(name)
        .display()
        .to_string()
}

/// A few steps of each shipped recipe, made small; then the result is loaded, evaluated and speaks.
#[test]
fn shipped_recipes_train() {
    let dir = tempfile::tempdir().unwrap();
    stdout(&["data", "toy", "--out", text(dir.path()), "--bytes", "20000"]);
    for (recipe, key) in [("moh.toml", "moh"), ("dga.toml", "dga")] {
        let out = dir.path().join(key);
        let recipe = shipped(recipe);
        let mut args = vec![
            "train",
            &recipe,
            "--out",
            text(&out),
            "--data",
            text(dir.path()),
            "--json",
        ];
        for small in [
            "model.hidden_size=32",
            "model.layers=2",
            "model.intermediate_size=48",
            "model.max_positions=64",
            "tokenizer.train_vocab=300",
            "run.steps=6",
            "run.batch=2",
            "run.length=48",
            "run.eval_tokens=200",
            "run.export=f32",
            "schedule.warmup=1",
        ] {
            args.extend(["--set", small]);
        }
        let result = json(&args);
        assert_eq!(result["step"], 6, "{result}");
        let model = out.join("final");
        // What was exported are the masters, to the bit.
        let weights = SafetensorsFile::open(&model.join("model.safetensors")).unwrap();
        let trainer = SafetensorsFile::open(&out.join("step-6/trainer.safetensors")).unwrap();
        for name in weights.names() {
            let master = trainer.view(&format!("master.{name}")).unwrap();
            assert_eq!(weights.view(name).unwrap().bytes, master.bytes, "{name}");
        }
        assert_eq!(weights.names().any(|n| n.contains(".wg.")), key == "moh");
        let model = text(&model);
        let found = json(&["inspect", model, "--context", "1000", "--json"]);
        assert_eq!(found["attention"]["method"], key);
        assert_eq!(found["attention"]["context"], 1000);
        assert!(found["attention"]["costs"].as_array().unwrap().len() >= 4);
        let made = json(&[
            "generate",
            model,
            "--ids",
            "1,2,3,4,5",
            "--max-new-tokens",
            "50",
            "--json",
        ]);
        assert_eq!(made["ids"].as_array().unwrap().len(), 55);
        let valid = dir.path().join("toy-text.valid.txt");
        let scored = json(&["eval", model, "--text", text(&valid), "--json"]);
        assert_eq!(scored["attention"]["looks_ahead"], false);
        assert!(scored["bits_per_byte"].as_f64().unwrap() < 8.0);
    }
}

#[test]
fn dga_runs_on_an_ordinary_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let model = golden("llama");
    let ids = golden("llama").join("expected.safetensors");
    let logits = |method: &str| {
        let out = dir.path().join("logits.safetensors");
        let args = [
            "logits",
            text(&model),
            "--ids",
            text(&ids),
            "--out",
            text(&out),
            "--attention",
            method,
        ];
        stdout(&args);
        let found = floats(&out, "logits").1;
        fs::remove_file(out).unwrap();
        found
    };
    let worst = ounce_tensor::largest_difference::<f32>;
    let exact = floats(&ids, "logits").1;
    assert!(worst(&logits("full"), &exact) < 1e-4);
    assert!(worst(&logits("dga:focal_ratio=1"), &exact) < 1e-4, "all tokens focal");
    assert!(
        worst(&logits("dga:focal_ratio=1,m_prime=8,group_size=4"), &exact) < 1e-4,
        "whatever the block"
    );
    assert!(
        worst(&logits("dga:layers=[0,1],focal_ratio=1"), &exact) < 1e-4,
        "a list is one setting"
    );
    assert!(worst(&logits("dga:group_size=2,focal_ratio=0.1,min_len=0"), &exact) > 1e-3);
    let spoken = |method: &str| {
        let args = [
            "generate",
            text(&model),
            "--ids",
            "5,6,7",
            "--max-new-tokens",
            "40",
            "--json",
            "--attention",
            method,
        ];
        json(&args)["ids"].clone()
    };
    assert_eq!(spoken("dga:focal_ratio=1,group_size=4"), spoken("full"));
    assert_ne!(spoken("dga:group_size=4"), spoken("full"));
    let found = json(&[
        "inspect",
        text(&model),
        "--attention",
        "dga",
        "--context",
        "16384",
        "--json",
    ]);
    let keys = &found["attention"]["costs"][1];
    // A tenth is focal, 1639; the others are 921 groups of 16 and 9 that fill none.
    assert!((keys["method"].as_f64().unwrap() - 2569.0).abs() < 1e-6, "{keys}");
}

#[test]
fn wrong_methods_are_refused_with_a_hint() {
    let says = |model: &Path, method: &str, rule: &str, hint: &str| {
        let output = run(&["generate", text(model), "--ids", "1", "--attention", method]);
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{method}: {err}");
        assert!(err.contains(rule) && err.contains(hint), "{method}: {err}");
    };
    let llama = golden("llama");
    says(
        &llama,
        "sparse",
        "\"sparse\" is not an attention method",
        "known: full, moh, dga",
    );
    says(&llama, "dga:layers=[0,1],groups=4", "dga.groups", "known: group_size");
    says(&llama, "dga:focal_ratio=\"much\"", "dga.focal_ratio", "");
    says(
        &llama,
        "moh:router=query_norm,shared_heads=-1,active_routed_heads=1",
        "moh.shared_heads",
        "",
    );
    says(&llama, "dga:focal_ratio=2", "dga.focal_ratio", "0..=1, is 2");
    says(&llama, "dga:group_size=0", "dga.group_size", "from 1, is 0");
    says(&llama, "dga:group_size=2.5", "dga.group_size", "is 2.5");
    says(&llama, "dga:groups=4", "dga.groups", "known: group_size");
    says(&llama, "dga:layers=[7]", "dga.layers", "beyond the last");
    says(&llama, "dga:selection=causal_block,min_len=9", "dga.min_len", "m_prime");
    says(&llama, "dga:window=-1", "dga.window", "from 0, is -1");
    says(&llama, "dga:group_size=8,m_prime=7", "dga.m_prime", "from 8, is 7");
    says(&llama, "dga:selection=random", "dga.selection", "causal_block");
    says(&llama, "dga:group_bias=log", "dga.group_bias", "entropy");
    says(&llama, "dga:focal", "\"focal\" is not a setting", "group_size=8");
    let windowed = copy_of("mistral");
    set_config(windowed.path(), "sliding_window", json!(8));
    says(windowed.path(), "dga", "sliding window", "full attention");
    says(
        &golden("moh_llama"),
        "full",
        "mixture of heads",
        "leave --attention out",
    );
    // Without its key, a mixture with learned routers is no plain Llama: its routers would be ignored.
    let stripped = copy_of("moh_two_stage");
    set_config(stripped.path(), "moh", json!(null));
    let output = run(&["generate", text(stripped.path()), "--ids", "1"]);
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && err.contains(".wg"), "{err}");
    // And the published layout, which has no key, is refused for the code it names.
    let stripped = copy_of("moh_llama");
    set_config(stripped.path(), "moh", json!(null));
    let output = run(&["generate", text(stripped.path()), "--ids", "1"]);
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() == Some(1) && err.contains("auto_map") && err.contains("moh:router"),
        "{err}"
    );
    let moh = "moh:router=query_norm,shared_heads=4,active_routed_heads=2";
    let named = json(&[
        "generate",
        text(stripped.path()),
        "--ids",
        "3,4",
        "--json",
        "--attention",
        moh,
    ]);
    let keyed = json(&["generate", text(&golden("moh_llama")), "--ids", "3,4", "--json"]);
    assert_eq!(named["ids"], keyed["ids"]);
}
