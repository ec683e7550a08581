//! `ounce merge` under the limits of the system: memory, size of files.

use crate::support::{golden, json, random_mixture, run, stdout, text, tree, write_ids};
use serde_json::json;
use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
};

/// Runs the binary under a limit of the shell's `ulimit`: `-d` bounds memory that is not file-backed, `-f` files.
fn limited(limit: &str, args: &[&str]) -> Output {
    // A file that grows too large must be an error, as a full disk is, and no signal.
    let script = format!("trap '' XFSZ; ulimit {limit} || exit 99; exec \"$0\" \"$@\"");
    Command::new("sh")
        .args(["-c", &script, env!("CARGO_BIN_EXE_ounce")])
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Merges under the bound that `--dry-run` promises, having checked that it is the documented one.
fn merge_within_the_bound(model: &Path, recipe: &Path, out: &Path, tokens: usize, d: usize, expert: usize) {
    let args = [
        "merge",
        text(model),
        "--recipe",
        text(recipe),
        "--out",
        text(out),
        "--threads",
        "2",
    ];
    let cost = json(&[&args[..], &["--dry-run", "--json"]].concat());
    let bound = 2 * tokens * d * 4 + 3 * expert * 4 + (200 << 20);
    assert_eq!(cost["memory_bytes"], bound);
    let output = limited(&format!("-d {}", bound >> 10), &args);
    assert_eq!(output.status.code(), Some(0), "{}", words(&output));
}

/// Activations of this sequence take more than twice the bound at once: for each token four experts, each with gate, up
/// and their product.
#[test]
fn a_long_sequence_is_measured_within_the_bound() {
    let dir = tempfile::tempdir().unwrap();
    let (d, width, tokens, chosen) = (128, 1024, 12_000, 4);
    random_mixture(
        dir.path(),
        &json!({
            "hidden_size": d, "intermediate_size": width, "num_hidden_layers": 2, "num_local_experts": 6,
            "num_experts_per_tok": chosen,
        }),
    );
    let ids: Vec<i64> = (0..tokens as i64).map(|i| (i * i + 3 * i) % 64).collect();
    write_ids(&dir.path().join("ids"), &ids, &[1, tokens]);
    let recipe = dir.path().join("merge.toml");
    let toml = format!(
        "budget = {{ experts = 3 }}\ncalibration = {{ ids = {:?} }}\n",
        text(&dir.path().join("ids"))
    );
    fs::write(&recipe, toml).unwrap();
    let at_once = chosen * 3 * width * tokens * 4;
    assert!(
        at_once > 2 * (200 << 20),
        "the test must fail without pieces: {at_once}"
    );
    merge_within_the_bound(dir.path(), &recipe, &dir.path().join("out"), tokens, d, 3 * d * width);
}

/// The experts of this layer, widened to f32, take more than the bound.
#[test]
fn a_wide_layer_is_merged_within_the_bound() {
    let dir = tempfile::tempdir().unwrap();
    let (d, width, experts) = (1024, 1536, 24);
    random_mixture(
        dir.path(),
        &json!({
            "hidden_size": d, "intermediate_size": width, "num_hidden_layers": 1, "num_local_experts": experts,
            "num_experts_per_tok": 2,
        }),
    );
    let ids: Vec<i64> = (0..32).map(|i| i * 7 % 64).collect();
    write_ids(&dir.path().join("ids"), &ids, &[2, 16]);
    let recipe = dir.path().join("merge.toml");
    let toml = format!(
        "budget = {{ experts = 8 }}\ncalibration = {{ ids = {:?} }}\n",
        text(&dir.path().join("ids"))
    );
    fs::write(&recipe, toml).unwrap();
    let expert = 3 * d * width;
    assert!(experts * expert * 4 > (200 << 20) + 4 * expert * 4);
    merge_within_the_bound(dir.path(), &recipe, &dir.path().join("out"), 32, d, expert);
}

/// A limit on the size of files stands for a full disk: the write fails in the middle.
#[test]
fn a_disk_that_fills_up_leaves_what_can_be_continued() {
    let dir = tempfile::tempdir().unwrap();
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("../compress/tests/fixtures/merge_mixtral");
    let (model, ids) = (case.join("model"), case.join("calib.safetensors"));
    let recipe = dir.path().join("merge.toml");
    fs::write(
        &recipe,
        format!(
            "budget = {{ experts = 5 }}\ncalibration = {{ ids = {:?} }}\n",
            text(&ids)
        ),
    )
    .unwrap();
    let whole = dir.path().join("whole");
    stdout(&["merge", text(&model), "--recipe", text(&recipe), "--out", text(&whole)]);
    let weights = tree(&whole).remove(Path::new("model.safetensors")).unwrap();
    // In blocks of 512 bytes (1024 in some shells): within the hidden states, and within the weights.
    for blocks in [8, 40, 100] {
        let out = dir.path().join(format!("out-{blocks}"));
        let args = ["merge", text(&model), "--recipe", text(&recipe), "--out", text(&out)];
        let output = limited(&format!("-f {blocks}"), &args);
        let err = words(&output);
        assert_eq!(output.status.code(), Some(1), "{blocks}: {err}");
        assert!(err.starts_with("error: ") && err.contains(text(&out)), "{err}");
        assert!(!out.exists(), "half a result under the final name");
        let output = run(&[&args[..], &["--resume"]].concat());
        assert_eq!(output.status.code(), Some(0), "{}", words(&output));
        let found = tree(&out).remove(Path::new("model.safetensors")).unwrap();
        assert!(found == weights, "{blocks}: other bytes");
    }
}

#[test]
fn a_place_that_refuses_gets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = dir.path().join("merge.toml");
    fs::write(
        &recipe,
        "budget = { percent = 50 }\nsimilarity = \"weight\"\nmerge = \"average\"\n",
    )
    .unwrap();
    let model = golden("mixtral");
    // Not even root may create folders there.
    for out in ["/proc/merged", "/sys/merged"] {
        let output = run(&["merge", text(&model), "--recipe", text(&recipe), "--out", out]);
        let err = words(&output);
        assert_eq!(output.status.code(), Some(1), "{err}");
        assert!(err.starts_with(&format!("error: {out}.partial: cannot ")), "{err}");
        assert!(!Path::new(out).exists());
    }
}
