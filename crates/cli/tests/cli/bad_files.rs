//! Checkpoints, corpora and recipes as bad downloads, other programs and tired people leave them.

use crate::support::{Script, copy_of, listing, poke, recipe, run, set_config, set_header, text};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
};

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo")
}

/// Gives a copy of a golden case the tokenizer that ships with the demo, whose vocabulary is larger.
fn lend_tokenizer(model: &Path) {
    for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"] {
        fs::copy(demo().join(name), model.join(name)).unwrap();
    }
}

#[test]
fn safetensors() {
    let mut script = Script::new();
    let dir = copy_of("llama");
    let model = dir.path();
    script.name(model, "MODEL");
    let weights = model.join("model.safetensors");
    let whole = fs::read(&weights).unwrap();
    let mut broken = |change: &mut dyn FnMut(&mut Value)| {
        fs::write(&weights, &whole).unwrap();
        set_header(&weights, change);
        script.case(&["inspect", text(model)]);
    };
    let norm = "model.norm.weight";
    broken(&mut |h| h[norm]["data_offsets"] = h["model.layers.0.input_layernorm.weight"]["data_offsets"].clone());
    broken(&mut |h| h[norm]["shape"] = json!([32]));
    broken(&mut |h| h[norm]["dtype"] = json!("F99"));
    // As many bytes as before, but no weights.
    broken(&mut |h| (h[norm]["dtype"], h[norm]["shape"]) = (json!("I64"), json!([32])));
    broken(&mut |h| (h[norm]["dtype"], h[norm]["shape"]) = (json!("F8_E4M3"), json!([256])));
    broken(&mut |h| h[norm]["shape"] = json!([1, 64]));
    broken(&mut |h| h[norm]["shape"] = json!([4294967296_u64, 4294967296_u64, 4294967296_u64]));
    broken(&mut |h| {
        let norm = h.as_object_mut().unwrap().remove(norm).unwrap();
        h["model.norms.weight"] = norm;
    });
    for length in [1_u64 << 63, u64::MAX, 100_000_001] {
        let mut bytes = whole.clone();
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        fs::write(&weights, bytes).unwrap();
        script.case(&["inspect", text(model)]);
    }
    fs::write(&weights, "").unwrap();
    script.case(&["inspect", text(model)]);
    fs::write(&weights, "version https://git-lfs.github.com/spec/v1\noid sha256:0\n").unwrap();
    script.case(&["inspect", text(model)]);
    insta::assert_snapshot!(script.seen);
}

#[test]
fn shards() {
    let mut script = Script::new();
    let dir = copy_of("llama");
    let model = dir.path();
    script.name(model, "MODEL");
    let names: Vec<String> = ounce_formats::SafetensorsFile::open(&model.join("model.safetensors"))
        .unwrap()
        .names()
        .map(str::to_owned)
        .collect();
    let shard = "model-00001-of-00002.safetensors";
    fs::rename(model.join("model.safetensors"), model.join(shard)).unwrap();
    let mut index = |change: &mut dyn FnMut(&mut Value)| {
        let map: serde_json::Map<String, Value> = names.iter().map(|n| (n.clone(), json!(shard))).collect();
        let mut index = json!({ "weight_map": map });
        change(&mut index);
        fs::write(model.join("model.safetensors.index.json"), index.to_string()).unwrap();
        script.case(&["generate", text(model), "--ids", "1"]);
    };
    index(&mut |i| i["weight_map"]["model.norm.weight"] = json!("model-00002-of-00002.safetensors"));
    index(&mut |i| i["weight_map"]["model.extra.weight"] = json!(shard));
    index(&mut |i| i["weight_map"]["model.norm.weight"] = json!("../elsewhere.safetensors"));
    index(&mut |i| i["weight_map"] = json!({}));
    index(&mut |i| i["weight_map"] = json!(["a"]));
    insta::assert_snapshot!(script.seen);
}

#[test]
fn configurations() {
    let mut script = Script::new();
    let dir = copy_of("mixtral");
    let model = dir.path();
    script.name(model, "MODEL");
    let whole = fs::read(model.join("config.json")).unwrap();
    for (key, value) in [
        ("num_local_experts", json!(0)),
        ("num_local_experts", json!(-1)),
        ("num_local_experts", json!(8)),
        ("num_experts_per_tok", json!(5)),
        ("num_experts_per_tok", json!(0)),
        ("num_attention_heads", json!(0)),
        ("num_attention_heads", json!(5)),
        ("num_hidden_layers", json!(3)),
        ("num_hidden_layers", json!(1)),
        ("num_hidden_layers", json!(1e9)),
        ("hidden_size", json!(u64::MAX)),
        ("hidden_size", json!("64")),
        ("vocab_size", json!(null)),
        ("rms_norm_eps", json!(0)),
        ("hidden_act", json!("gelu")),
        ("quantization_config", json!({ "bits": 4 })),
        ("auto_map", json!({ "AutoModel": "m.M" })),
        ("is_causal", json!(false)),
        ("model_type", json!("ounce_merged")),
        ("model_type", json!(7)),
    ] {
        fs::write(model.join("config.json"), &whole).unwrap();
        set_config(model, key, value);
        script.case(&["inspect", text(model)]);
    }
    insta::assert_snapshot!(script.seen);
}

#[test]
fn tokenizers() {
    let mut script = Script::new();
    let dir = copy_of("llama");
    let model = dir.path();
    script.name(model, "MODEL");
    lend_tokenizer(model);
    let prompt = ["generate", text(model), "--prompt", "Hello"];
    script.case(&prompt);
    let whole = fs::read(model.join("tokenizer.json")).unwrap();
    for content in [&b""[..], b"{}", b"[1", &whole[..whole.len() / 2]] {
        fs::write(model.join("tokenizer.json"), content).unwrap();
        script.case(&prompt);
    }
    fs::write(model.join("tokenizer.json"), &whole).unwrap();
    for content in ["[]", "{\"eos_token_id\": \"x\"}", "{\"eos_token_id\": 1e30}", "{"] {
        fs::write(model.join("generation_config.json"), content).unwrap();
        script.case(&prompt);
    }
    insta::assert_snapshot!(script.seen);
}

/// What every command makes of weights that are no numbers.
#[test]
fn nan_weights() {
    let mut script = Script::new();
    let (dir, recipe) = recipe();
    script.name(dir.path(), "DIR");
    let model = dir.path().join("model");
    fs::create_dir(&model).unwrap();
    for name in listing(&demo()) {
        fs::copy(demo().join(&name), model.join(&name)).unwrap();
    }
    // The demo's weights are bf16: two bytes of NaN at the place of the first element.
    let weights = model.join("model.safetensors");
    let tensor = "model.layers.1.block_sparse_moe.gate.weight";
    let region = ounce_formats::SafetensorsFile::open(&weights)
        .unwrap()
        .region(tensor)
        .unwrap();
    assert_eq!(region.dtype, ounce_formats::Dtype::BF16);
    let mut bytes = fs::read(&weights).unwrap();
    bytes[region.range.start..region.range.start + 2].copy_from_slice(&[0xc0, 0x7f]);
    drop(region);
    fs::write(&weights, bytes).unwrap();

    let scan = run(&["inspect", text(&model), "--scan"]);
    assert_eq!(scan.status.code(), Some(1));
    let (out, err) = (
        String::from_utf8(scan.stdout).unwrap(),
        String::from_utf8(scan.stderr).unwrap(),
    );
    assert!(out.contains(&format!("{tensor}: 1 NaN, 0 infinite")), "{out}");
    assert!(err.starts_with("error: ") && err.contains("not finite"), "{err}");

    script.case(&["generate", text(&model), "--ids", "1,2", "--json"]);
    let text_file = dir.path().join("toy-text.valid.txt");
    script.case(&["eval", text(&model), "--text", text(&text_file)]);
    let toml = fs::read_to_string(&recipe).unwrap();
    let start = toml.find("[tokenizer]").unwrap();
    let data = toml.find("[data]").unwrap();
    assert!(start < data);
    fs::write(&recipe, format!("init = {:?}\n{}", text(&model), &toml[data..])).unwrap();
    let out = dir.path().join("out");
    script.case(&["train", text(&recipe), "--out", text(&out), "--data", text(dir.path())]);
    assert!(!out.exists(), "a refused run left a folder");
    insta::assert_snapshot!(script.seen);
}

#[test]
fn corpora() {
    let mut script = Script::new();
    let (dir, recipe) = recipe();
    script.name(dir.path(), "DIR");
    let (out, data) = (dir.path().join("out"), text(dir.path()));
    for (name, content) in [
        ("empty.txt", &b""[..]),
        ("short.txt", b"x"),
        ("latin.txt", b"caf\xe9"),
        ("list.jsonl", b"{\"text\": \"fine\"}\n[1]\n"),
        ("other.jsonl", b"{\"body\": \"fine\"}\n"),
        ("cut.jsonl", b"{\"text\": \"fi"),
        ("blank.jsonl", b"\n\n"),
    ] {
        fs::write(dir.path().join(name), content).unwrap();
        let file = format!("data.train=[\"${{data}}/{name}\"]");
        script.case(&[
            "train",
            text(&recipe),
            "--out",
            text(&out),
            "--data",
            data,
            "--set",
            &file,
        ]);
        assert!(!out.exists(), "{name}: a refused run left a folder");
    }
    fs::create_dir(dir.path().join("folder")).unwrap();
    for names in ["\"${data}/folder\"", "\"${data}/absent\"", "\"${home}/x\"", "3", ""] {
        let files = format!("data.train=[{names}]");
        script.case(&[
            "train",
            text(&recipe),
            "--out",
            text(&out),
            "--data",
            data,
            "--set",
            &files,
        ]);
    }
    for name in ["empty.txt", "latin.txt", "absent.txt", "folder"] {
        let file = dir.path().join(name);
        script.case(&["eval", text(&demo()), "--text", text(&file)]);
    }
    script.case(&[
        "eval",
        text(&demo()),
        "--suite",
        "piqa",
        "--file",
        text(&dir.path().join("blank.jsonl")),
    ]);
    script.case(&[
        "eval",
        text(&demo()),
        "--suite",
        "blimp",
        "--file",
        text(&dir.path().join("list.jsonl")),
    ]);
    insta::assert_snapshot!(script.seen.replace(text(&demo()), "DEMO"));
}

#[test]
fn recipes_out_of_range() {
    let mut script = Script::new();
    let (dir, recipe) = recipe();
    script.name(dir.path(), "DIR");
    let out = dir.path().join("out");
    let base = ["train", text(&recipe), "--out", text(&out), "--data", text(dir.path())];
    for pair in [
        "model.experts=0",
        "model.experts_per_token=0",
        "model.experts_per_token=5",
        "model.hidden_size=0",
        "model.hidden_size=-1",
        "model.hidden_size=1048576",
        "model.hidden_size=1073741824",
        "model.kv_heads=3",
        "model.layers=100000",
        "model.balance=nan",
        "model.rms_norm_eps=nan",
        "model.max_positions=0",
        "model.vocab_size=5",
        "model=3",
        "tokenizer.train_vocab=3",
        "tokenizer=\"x\"",
        "optimizer.lr=nan",
        "optimizer.lr=inf",
        "optimizer.eps=inf",
        "optimizer.beta1=1",
        "optimizer.weight_decay=inf",
        "schedule.warmup=61",
        "schedule.floor=2",
        "run.batch=4611686018427387904",
        "run.batch=34359738368",
        "run.steps=9223372036854775807",
        "run.micro_batch=0",
        "run.length=65",
        "run.seed=-1",
        "run.compute=f64",
        "objective=x",
        "objective.kind=two_tokens",
        "run=",
    ] {
        let args = [&base[..], &["--set", pair]].concat();
        let before = script.seen.len();
        script.case(&args);
        assert!(!out.exists(), "{pair}: a refused run left a folder");
        // The memory of this machine is no part of the message.
        if let Some(at) = script.seen[before..].find(", this machine has ") {
            let end = before + at + script.seen[before + at..].find('\n').unwrap();
            script.seen.replace_range(before + at..end, ", this machine has […]");
        }
    }
    fs::write(&recipe, "[run]\nsteps = 1\nsteps = 2\n").unwrap();
    script.case(&base);
    fs::write(&recipe, [0xff, 0xfe]).unwrap();
    script.case(&base);
    insta::assert_snapshot!(script.seen);
}

/// A tokenizer of another model makes ids that the model has no embedding for.
#[test]
fn a_tokenizer_beyond_the_vocabulary() {
    let mut script = Script::new();
    let (dir, recipe) = recipe();
    script.name(dir.path(), "DIR");
    let model = copy_of("llama");
    script.name(model.path(), "MODEL");
    lend_tokenizer(model.path());
    let toml = fs::read_to_string(&recipe).unwrap();
    let data = toml.find("[data]").unwrap();
    fs::write(&recipe, format!("init = {:?}\n{}", text(model.path()), &toml[data..])).unwrap();
    let out = dir.path().join("out");
    let args = ["train", text(&recipe), "--out", text(&out), "--data", text(dir.path())];
    script.case(&args);
    assert!(!out.exists(), "a refused run left a folder");
    poke(
        &model.path().join("model.safetensors"),
        "model.norm.weight",
        f32::INFINITY,
    );
    script.case(&args);
    let valid = dir.path().join("toy-text.valid.txt");
    script.case(&["eval", text(model.path()), "--text", text(&valid)]);
    insta::assert_snapshot!(script.seen);
}

#[test]
fn sizes_of_random_checkpoints() {
    let mut script = Script::new();
    let dir = tempfile::tempdir().unwrap();
    script.name(dir.path(), "DIR");
    let out = dir.path().join("out");
    for (family, gb) in [("mixtral", "1e30"), ("llama", "nan"), ("gpt9", "1")] {
        script.case(&[
            "bench",
            "checkpoint",
            "--family",
            family,
            "--gb",
            gb,
            "--out",
            text(&out),
        ]);
    }
    assert!(listing(dir.path()).is_empty());
    insta::assert_snapshot!(script.seen);
}

#[test]
fn sizes_of_benchmarks() {
    let mut script = Script::new();
    script.case(&["bench", "attention", "--method", "dga", "--context", "0"]);
    script.case(&["bench", "kernels", "--runs", "0"]);
    insta::assert_snapshot!(script.seen);
}
