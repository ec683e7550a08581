//! Broken input: every message names the place, the rule and a hint, and the exit code is 1, never 2.

use crate::support::{Script, copy_of, golden, ounce, poke, recipe, run, set_config, text, write_ids};
use serde_json::json;
use std::{
    fs::{self, File},
    process::Stdio,
};

#[test]
fn arguments() {
    let mut script = Script::new();
    script.case(&["frobnicate"]);
    script.case(&["generate", "MODEL"]);
    script.case(&["generate", "MODEL", "--ids", "1", "--prompt", "x"]);
    script.case(&["generate", "MODEL", "--ids", "1,x"]);
    script.case(&["verify"]);
    script.case(&["train", "RECIPE", "--out", "OUT", "--force"]);
    script.case(&["inspect", "MODEL", "--threads", "many"]);
    script.case(&["reproduce", "nothing", "--out", "OUT"]);
    script.case(&["eval", "MODEL", "--misalignment", "64"]);
    insta::assert_snapshot!(script.seen);
}

#[test]
fn checkpoints() {
    let mut script = Script::new();
    script.case(&["inspect", "no/such/folder"]);
    let file = golden("llama/config.json");
    script.case(&["inspect", text(&file)]);

    let dir = copy_of("llama");
    let model = dir.path();
    script.name(model, "MODEL");
    set_config(model, "model_type", json!("mamba"));
    script.case(&["inspect", text(model)]);
    set_config(model, "model_type", json!("llama"));
    // Every key that cannot be used, at once.
    let broken = [
        ("quantization_config", json!({ "bits": 4 })),
        ("is_causal", json!(false)),
        ("expert_map", json!([[0]])),
    ];
    for (key, value) in broken.clone() {
        set_config(model, key, value);
    }
    script.case(&["inspect", text(model)]);
    for (key, _) in broken {
        set_config(model, key, json!(null));
    }
    set_config(model, "hidden_size", json!(128));
    script.case(&["generate", text(model), "--ids", "1"]);
    set_config(model, "hidden_size", json!(64));

    // Ladder wiring under another family, and lists beyond the model.
    set_config(model, "ladder_layers", json!([1]));
    script.case(&["inspect", text(model)]);
    set_config(model, "model_type", json!("llamaLadder"));
    set_config(model, "ladder_layers", json!([1, 2]));
    script.case(&["inspect", text(model)]);
    set_config(model, "ladder_layers", json!([1, 1]));
    script.case(&["generate", text(model), "--ids", "1"]);
    set_config(model, "ladder_layers", json!(null));
    set_config(model, "model_type", json!("llama"));

    let weights = model.join("model.safetensors");
    let whole = fs::read(&weights).unwrap();
    fs::write(&weights, &whole[..whole.len() - 100]).unwrap();
    script.case(&["inspect", text(model)]);
    fs::write(&weights, &whole[..5]).unwrap();
    script.case(&["inspect", text(model)]);
    fs::remove_file(&weights).unwrap();
    script.case(&["inspect", text(model)]);
    fs::write(&weights, &whole).unwrap();
    fs::write(model.join("config.json"), "{ not json").unwrap();
    script.case(&["inspect", text(model)]);
    insta::assert_snapshot!(script.seen);
}

#[test]
fn generation() {
    let mut script = Script::new();
    let llama = golden("llama");
    let llama = text(&llama);
    script.case(&["generate", llama, "--ids", "1,99999"]);
    script.case(&["generate", llama, "--prompt", "no tokenizer here"]);
    script.case(&["generate", llama, "--ids", "1", "--temperature", "-1"]);
    script.case(&["generate", llama, "--ids", "1", "--temperature", "nan"]);
    script.case(&["generate", llama, "--ids", "1", "--top-p", "-0.5"]);
    script.case(&["generate", llama, "--ids", "1", "--repetition-penalty", "0"]);
    let dir = copy_of("llama");
    script.name(dir.path(), "MODEL");
    poke(&dir.path().join("model.safetensors"), "model.norm.weight", f32::NAN);
    script.case(&["generate", text(dir.path()), "--ids", "1,2"]);
    insta::assert_snapshot!(script.seen);
}

#[test]
fn logits() {
    let mut script = Script::new();
    let dir = tempfile::tempdir().unwrap();
    script.name(dir.path(), "DIR");
    let (ids, out) = (dir.path().join("ids.safetensors"), dir.path().join("out.safetensors"));
    let llama = golden("llama");
    let mut args = ["logits", text(&llama), "--ids", text(&ids), "--out", text(&out)];
    script.case(&args);
    write_ids(&ids, &[1, 2, 3, 256], &[2, 2]);
    script.case(&args);
    write_ids(&ids, &[1, 2, -3, 4], &[2, 2]);
    script.case(&args);
    write_ids(&ids, &[1, 2], &[2]);
    script.case(&args);
    write_ids(&ids, &[], &[0, 4]);
    script.case(&args);
    let expected = golden("llama/model.safetensors");
    args[3] = text(&expected);
    script.case(&args);
    args[3] = text(&ids);
    write_ids(&ids, &[1, 2], &[1, 2]);
    args[5] = "/dev/null/out.safetensors";
    script.case(&args);
    assert!(!out.exists(), "a failed command left an output");
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "only the ids may be here: {left:?}");
    insta::assert_snapshot!(script.seen);
}

#[test]
fn merging_and_training() {
    let mut script = Script::new();
    let (dir, recipe) = recipe();
    script.name(dir.path(), "DIR");
    let (merge, out) = (dir.path().join("merge.toml"), dir.path().join("out"));
    let (llama, mixtral) = (golden("llama"), golden("mixtral"));
    fs::write(
        &merge,
        "budget = { percent = 50 }\nsimilarity = \"weight\"\nmerge = \"average\"\n",
    )
    .unwrap();
    let arguments = |model| ["merge", model, "--recipe", text(&merge), "--out", text(&out)];
    script.case(&arguments(text(&llama)));
    fs::write(&merge, "budgit = 1\n").unwrap();
    script.case(&arguments(text(&mixtral)));
    fs::write(&merge, "budget = { percent = 500 }\n").unwrap();
    script.case(&arguments(text(&mixtral)));
    fs::write(&merge, "budget = { percent = 50 }\n").unwrap();
    script.case(&arguments(text(&mixtral)));
    assert!(!out.exists());

    let data = text(dir.path());
    let train = ["train", text(&recipe), "--out", text(&out), "--data", data];
    let with = |more: &[&'static str]| [&train[..], more].concat();
    script.case(&train[..4]);
    script.case(&["train", "no-recipe.toml", "--out", text(&out)]);
    script.case(&with(&["--set", "run.steps=0"]));
    script.case(&with(&["--set", "run.stepz=1"]));
    script.case(&with(&["--set", "nonsense"]));
    script.case(&with(&["--set", "data.train=[\"absent.txt\"]"]));
    script.case(&with(&["--set", "model.heads=3"]));
    let long_short = "objective={ kind = \"long_short\", extra_max = 99 }";
    script.case(&with(&["--set", long_short]));
    script.case(&with(&["--set", "objective={ kind = \"long_short\", alpha = -1 }"]));
    script.case(&with(&["--set", "model.residual={ wiring = \"ladder\", layers = 99 }"]));
    let occupied = [&train[..2], &["--out", data]].concat();
    script.case(&occupied);
    insta::assert_snapshot!(script.seen);
}

/// Numbers at the edge of their type must not reach arithmetic that overflows.
#[test]
fn absurd_numbers_are_no_fault_of_ours() {
    let llama = golden("llama");
    for (flag, value) in [
        ("--max-new-tokens", "18446744073709551615"),
        ("--top-k", "18446744073709551615"),
        ("--threads", "18446744073709551615"),
        ("--seed", "18446744073709551615"),
    ] {
        // An end token in the way would hide an overflow, so generation is cut by the prompt being refused at last.
        let output = run(&["generate", text(&llama), "--ids", "1,99999", flag, value]);
        assert_eq!(
            output.status.code(),
            Some(1),
            "{flag}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    for model in ["llama", "moh_llama"] {
        let output = run(&["inspect", text(&golden(model)), "--context", "18446744073709551615"]);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{model}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn an_instruction_set_that_does_not_exist() {
    let llama = golden("llama");
    let output = ounce(&["inspect", text(&llama)])
        .env("OUNCE_ISA", "mmx")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(
        err.starts_with("error: OUNCE_ISA=mmx: ") && err.contains("\nhint: "),
        "{err}"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_place_that_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let ids = dir.path().join("ids.safetensors");
    write_ids(&ids, &[1, 2], &[1, 2]);
    // Not even root may create files there.
    for out in ["/proc/out.safetensors", "/sys/out.safetensors"] {
        let output = run(&["logits", text(&golden("llama")), "--ids", text(&ids), "--out", out]);
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{err}");
        assert!(err.starts_with(&format!("error: {out}: ")), "{err}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_on_stdout_is_an_error_and_a_closed_pipe_is_not() {
    let llama = golden("llama");
    let long = ["generate", text(&llama), "--ids", "1", "--max-new-tokens", "4"];
    for args in [
        &["inspect", text(&llama)][..],
        &["inspect", text(&llama), "--json"],
        &long,
        &["doctor"],
    ] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = ounce(args).stdout(full).stderr(Stdio::piped()).output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {err}");
        assert!(
            err.starts_with("error: ") && err.contains("No space left"),
            "{args:?}: {err}"
        );

        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = ounce(args).stdout(writer).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
