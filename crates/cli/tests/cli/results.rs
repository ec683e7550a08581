//! What comes out of commands that succeed, compared with what independent programs say.

use crate::support::{copy_of, floats, golden, json, poke, recipe, run, stdout, text, write_ids};
use ounce_formats::SafetensorsFile;
use serde_json::{Value, json};
use std::fs;

fn ids(file: &SafetensorsFile, name: &str) -> Vec<i64> {
    file.view(name).unwrap().to_i64_vec().unwrap()
}

fn joined(ids: &[i64]) -> String {
    ids.iter().map(i64::to_string).collect::<Vec<_>>().join(",")
}

#[test]
fn generate_makes_the_ids_that_transformers_makes() {
    for case in ["llama", "mixtral"] {
        let dir = golden(case);
        let expected = SafetensorsFile::open(&dir.join("expected.safetensors")).unwrap();
        let (prompt, greedy) = (ids(&expected, "greedy_prompt"), ids(&expected, "greedy_ids"));
        let count = (greedy.len() - prompt.len()).to_string();
        let prompt = joined(&prompt);
        let args = ["generate", text(&dir), "--ids", &prompt, "--max-new-tokens", &count];
        let made = json(&[&args[..], &["--json"]].concat());
        assert_eq!(made["ids"], json!(greedy), "{case}");
        assert_eq!(made["text"], Value::Null, "{case} has no tokenizer");
        assert!(made["tokens_per_second"].as_f64().unwrap() > 0.0);
        assert_eq!(stdout(&args).trim(), joined(&greedy), "{case}: without --json");
    }
}

#[test]
fn sampling_depends_on_the_seed_and_on_nothing_else() {
    let dir = golden("llama");
    let draw = |seed: &str, threads: &str| {
        let args = [
            "--temperature",
            "2",
            "--seed",
            seed,
            "--threads",
            threads,
            "--max-new-tokens",
            "24",
            "--json",
        ];
        json(&[&["generate", text(&dir), "--ids", "1,2,3"], &args[..]].concat())["ids"].clone()
    };
    assert_eq!(draw("7", "1"), draw("7", "2"));
    assert_ne!(draw("7", "1"), draw("8", "1"));
}

#[test]
fn logits_are_those_of_transformers() {
    for case in ["llama", "olmoe"] {
        let (dir, out) = (golden(case), tempfile::tempdir().unwrap());
        let (input, made) = (dir.join("expected.safetensors"), out.path().join("logits.safetensors"));
        let printed = stdout(&["logits", text(&dir), "--ids", text(&input), "--out", text(&made)]);
        assert_eq!(printed, "", "the data are in the file");
        let (shape, ours) = floats(&made, "logits");
        let (expected_shape, theirs) = floats(&input, "logits");
        assert_eq!(shape, expected_shape);
        let worst = ounce_tensor::largest_difference(&ours, &theirs);
        assert!(worst < 1e-4, "{case}: {worst}");
    }
}

/// 5 rows of 300 tokens are more than one group; each row must come out as if it were alone.
#[test]
fn rows_of_a_long_input_do_not_touch_each_other() {
    let (dir, tmp) = (golden("llama"), tempfile::tempdir().unwrap());
    let (input, out) = (tmp.path().join("ids"), tmp.path().join("logits"));
    let all: Vec<i64> = (0..1500).map(|i| (i * i + 7 * i) % 256).collect();
    let logits = |ids: &[i64], shape: &[usize]| {
        write_ids(&input, ids, shape);
        stdout(&["logits", text(&dir), "--ids", text(&input), "--out", text(&out)]);
        floats(&out, "logits")
    };
    let (shape, together) = logits(&all, &[5, 300]);
    assert_eq!(shape, [5, 300, 256]);
    for row in [0, 3, 4] {
        let (_, alone) = logits(&all[row * 300..][..300], &[1, 300]);
        let worst = ounce_tensor::largest_difference(&alone, &together[row * 300 * 256..][..300 * 256]);
        assert!(worst < 1e-5, "row {row}: {worst}");
    }
}

#[test]
fn verify_says_what_passed_and_what_did_not() {
    let names = [
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "mixtral",
        "qwen2_moe",
        "qwen3_moe",
        "olmoe",
    ];
    let dirs = names.map(golden);
    let mut args = vec!["verify", "--json"];
    args.extend(dirs.iter().map(|d| text(d)));
    let checks = json(&args);
    let checks = checks.as_array().unwrap();
    assert!(
        checks.len() >= 24 && checks.iter().all(|c| c["passed"] == true),
        "{checks:?}"
    );

    args.extend(["--only", "qwen3_moe"]);
    assert!(json(&args).as_array().unwrap().iter().all(|c| c["case"] == "qwen3_moe"));
    args.extend(["--only", "nothing"]);
    assert_eq!(run(&args).status.code(), Some(1));

    let wrong = copy_of("llama");
    poke(&wrong.path().join("expected.safetensors"), "logits", 9.0);
    let output = run(&["verify", text(&dirs[0]), text(wrong.path())]);
    assert_eq!(output.status.code(), Some(1));
    let table = String::from_utf8(output.stdout).unwrap();
    let logits: Vec<&str> = table.lines().filter(|l| l.contains("logits")).collect();
    assert!(logits[0].contains("pass") && logits[1].contains("FAIL"), "{table}");

    fs::write(wrong.path().join("case.json"), r#"{"kind": "mystery"}"#).unwrap();
    let output = run(&["verify", text(wrong.path())]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"mystery\" is not supported"));
    assert_eq!(run(&["verify", "no/such/case"]).status.code(), Some(1));
}

/// A case that is broken itself fails; it does not take the program with it.
#[test]
fn a_golden_case_without_room_for_new_tokens_fails() {
    let dir = copy_of("llama");
    let file = dir.path().join("expected.safetensors");
    let expected = SafetensorsFile::open(&file).unwrap();
    let logits = floats(&file, "logits");
    let input = ids(&expected, "input_ids");
    let shape = expected.view("input_ids").unwrap().shape.to_vec();
    let (long, short) = (vec![1_i64; 5], vec![1_i64; 2]);
    {
        use ounce_formats::{Dtype, as_bytes, write_file};
        let changed = dir.path().join("changed");
        let tensors = [
            ("input_ids", Dtype::I64, &shape[..], as_bytes(&input)),
            ("logits", Dtype::F32, &logits.0[..], as_bytes(&logits.1)),
            ("greedy_prompt", Dtype::I64, &[5][..], as_bytes(&long)),
            ("greedy_ids", Dtype::I64, &[2][..], as_bytes(&short)),
        ];
        write_file(&changed, &tensors, &std::collections::BTreeMap::new()).unwrap();
        fs::rename(changed, &file).unwrap();
    }
    let output = run(&["verify", text(dir.path())]);
    assert_eq!(
        output.status.code(),
        Some(1),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn inspect_counts_what_is_in_the_file() {
    let dir = golden("mixtral");
    let found = json(&["inspect", text(&dir), "--scan", "--json"]);
    let file = SafetensorsFile::open(&dir.join("model.safetensors")).unwrap();
    let elements: usize = file.names().map(|n| file.view(n).unwrap().len()).sum();
    assert_eq!(found["parameters"], elements);
    assert_eq!(
        found["bytes_on_disk"],
        fs::metadata(dir.join("model.safetensors")).unwrap().len()
    );
    assert_eq!(found["dtypes"]["F32"]["elements"], elements);
    assert_eq!(found["scan"]["broken"], json!([]));
    assert_eq!(found["methods"][0]["applies"], true);

    // By hand, from config.json: layers, experts, experts per token, width, expert width.
    let config: Value = serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap();
    let n = |key: &str| config[key].as_u64().unwrap();
    let (layers, d) = (n("num_hidden_layers"), n("hidden_size"));
    // This family leaves head_dim out: the width divided by the heads.
    let kv = n("num_key_value_heads") * d / n("num_attention_heads");
    let expert = 3 * d * n("intermediate_size");
    let idle = layers * (n("num_local_experts") - n("num_experts_per_tok")) * expert;
    assert_eq!(found["active_parameters"], elements as u64 - idle);
    assert_eq!(found["kv_bytes_per_token"], 2 * layers * kv * 4);
    let attention = d * d * 2 + 2 * d * kv;
    let router = n("num_local_experts") * d;
    let products = layers * (attention + router + n("num_experts_per_tok") * expert) + n("vocab_size") * d;
    assert_eq!(found["flops_per_token"], 2 * products);

    let broken = copy_of("llama");
    poke(
        &broken.path().join("model.safetensors"),
        "model.norm.weight",
        f32::INFINITY,
    );
    let output = run(&["inspect", text(broken.path()), "--scan", "--json"]);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        found["scan"]["broken"],
        json!([{ "tensor": "model.norm.weight", "nan": 0, "infinite": 1 }])
    );
    assert_eq!(found["methods"][0]["applies"], false);
}

#[test]
fn doctor_is_content_with_this_machine() {
    let findings = json(&["doctor", "--json"]);
    assert!(
        findings.as_array().unwrap().iter().all(|f| f["verdict"] != "bad"),
        "{findings}"
    );
    let output = run(&["doctor", "--data", "no/such/folder"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("no/such/folder"));
}

#[test]
fn merge_halves_the_experts_and_the_result_runs() {
    let (dir, model) = (tempfile::tempdir().unwrap(), golden("mixtral"));
    let (recipe, out) = (dir.path().join("merge.toml"), dir.path().join("merged"));
    fs::write(
        &recipe,
        "budget = { percent = 50 }\nsimilarity = \"weight\"\nmerge = \"average\"\n",
    )
    .unwrap();
    let args = [
        "merge",
        text(&model),
        "--recipe",
        text(&recipe),
        "--out",
        text(&out),
        "--json",
    ];
    let cost = json(&[&args[..], &["--dry-run"]].concat());
    assert!(!out.exists(), "a dry run writes nothing");
    let report = json(&args);
    assert_eq!(cost["bytes_after"], report["bytes_after"]);
    let before = json(&["inspect", text(&model), "--json"]);
    let after = json(&["inspect", text(&out), "--json"]);
    assert_eq!(after["experts"]["routed"], before["experts"]["routed"]);
    let halves: Vec<u64> = before["experts"]["stored"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n.as_u64().unwrap() / 2)
        .collect();
    assert_eq!(after["experts"]["stored"], json!(halves));
    assert!(
        json(&["generate", text(&out), "--ids", "1,2", "--json"])["ids"]
            .as_array()
            .unwrap()
            .len()
            > 2
    );
    assert_eq!(run(&args).status.code(), Some(1), "an existing folder is refused");
    stdout(&[&args[..], &["--overwrite"]].concat());
}

#[test]
fn a_trained_model_is_evaluated_and_speaks() {
    let (dir, recipe) = recipe();
    let out = dir.path().join("run");
    let train = [
        "train",
        text(&recipe),
        "--out",
        text(&out),
        "--data",
        text(dir.path()),
        "--json",
    ];
    let cost = json(&[&train[..], &["--dry-run"]].concat());
    assert!(!out.exists(), "a dry run writes nothing");
    let result = json(&train);
    assert_eq!(result["step"], 60);
    assert!(result["loss"].as_f64().unwrap() < 5.0, "{result}");
    let model = out.join("final");
    let model = text(&model);
    assert_eq!(json(&["inspect", model, "--json"])["parameters"], cost["parameters"]);

    let texts = ["text", "retrieval"].map(|t| dir.path().join(format!("toy-{t}.valid.txt")));
    let one = json(&["eval", model, "--text", text(&texts[0]), "--json"]);
    assert_eq!(one["bytes"], fs::metadata(&texts[0]).unwrap().len());
    let (tokens, bytes) = (one["tokens"].as_f64().unwrap(), one["bytes"].as_f64().unwrap());
    let bits = (tokens - 1.0) * one["perplexity"].as_f64().unwrap().log2() / bytes;
    assert!((bits - one["bits_per_byte"].as_f64().unwrap()).abs() < 1e-9, "{one}");
    assert!(one["seconds"].as_f64().unwrap() > 0.0);
    let two = json(&["eval", model, "--text", text(&texts[0]), text(&texts[1]), "--json"]);
    assert!(two["bytes"].as_u64() > one["bytes"].as_u64());

    let aligned = ["eval", model, "--text", text(&texts[0]), "--misalignment", "16"];
    let found = json(&[&aligned[..], &["--json"]].concat())["misalignment"].clone();
    let number = |key: &str| found[key].as_f64().unwrap_or(f64::NAN);
    assert_eq!((number("l_train"), number("n")), (16.0, 128.0));
    assert!(
        (number("sce") - number("jeffreys") - number("h_long") - number("h_short")).abs() < 1e-6,
        "{found}"
    );
    // The probe is never missing.
    assert_eq!(found["long_range"]["distance"], 12);
    let shown = stdout(&aligned);
    assert!(
        shown.contains("Jeffreys") && shown.contains("long-range probe"),
        "{shown}"
    );

    let prompt = [
        "generate",
        model,
        "--prompt",
        "Anna has",
        "--max-new-tokens",
        "20",
        "--ignore-eos",
    ];
    let made = json(&[&prompt[..], &["--json"]].concat());
    let said = made["text"].as_str().unwrap();
    assert_eq!(
        stdout(&[&prompt[..], &["--echo"]].concat()).trim_end_matches('\n'),
        said.trim_end_matches('\n'),
        "streamed and whole agree"
    );
    let (count, ids) = (made["ids"].as_array().unwrap().len(), joined_json(&made["ids"]));
    assert_eq!(
        json(&["generate", model, "--ids", &ids, "--max-new-tokens", "0", "--json"])["ids"],
        made["ids"]
    );
    assert!(count > 20);
}

fn joined_json(ids: &Value) -> String {
    joined(
        &ids.as_array()
            .unwrap()
            .iter()
            .map(|id| id.as_i64().unwrap())
            .collect::<Vec<_>>(),
    )
}
