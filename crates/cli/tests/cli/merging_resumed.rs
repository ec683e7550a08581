//! `ounce merge`: what a killed process leaves behind, and what may continue it.

use crate::support::{ounce, random_mixture, tree, write_ids};
use serde_json::json;
use std::{
    fs,
    path::Path,
    process::Stdio,
    thread::sleep,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// A model whose layers take a moment each, its ids, and a recipe, in one folder.
fn slow() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    fs::create_dir(&model).unwrap();
    random_mixture(
        &model,
        &json!({
            "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6, "num_local_experts": 8,
            "num_experts_per_tok": 2,
        }),
    );
    for (name, step) in [("ids", 7), ("other", 11)] {
        let ids: Vec<i64> = (0..6 * 1024).map(|i| i * step % 61).collect();
        write_ids(&dir.path().join(name), &ids, &[6, 1024]);
    }
    let recipe = "budget = { experts = 3 }\ncalibration = { ids = \"ids\" }\n";
    fs::write(dir.path().join("merge.toml"), recipe).unwrap();
    dir
}

const MERGE: [&str; 6] = ["merge", "model", "--recipe", "merge.toml", "--out", "out"];

/// Lines of the journal that begin with a key, behind their check sum.
fn journaled(dir: &Path, key: &str) -> usize {
    let journal = fs::read_to_string(dir.join("out.partial/journal.jsonl")).unwrap_or_default();
    journal
        .lines()
        .filter(|l| {
            l.split_once(' ')
                .is_some_and(|(_, json)| json.starts_with(&format!("{{\"{key}\"")))
        })
        .count()
}

/// Starts a merge, kills it when `ready`, and says whether it was still running.
fn killed(dir: &Path, args: &[&str], ready: impl Fn() -> bool) -> bool {
    let mut child = ounce(args)
        .current_dir(dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while !ready() && child.try_wait().unwrap().is_none() {
        sleep(Duration::from_millis(1));
    }
    let alive = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    alive
}

#[test]
fn a_merge_killed_at_any_moment_ends_in_the_same_bytes() {
    let dir = slow();
    let run = |args: &[&str]| {
        let output = ounce(args).current_dir(dir.path()).output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(0),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    let start = Instant::now();
    run(&MERGE);
    let took = start.elapsed();
    let out = dir.path().join("out");
    let whole = tree(&out);
    assert!(
        whole.keys().all(|name| !name.starts_with("calibration")),
        "scratch was left"
    );
    fs::remove_dir_all(&out).unwrap();

    let resume = [&MERGE[..], &["--resume"]].concat();
    // Right after layers were measured, then while tensors are written; each time it gets further.
    let mut alive = 0;
    for layers in [1, 2, 4] {
        alive += usize::from(killed(dir.path(), &resume, || {
            journaled(dir.path(), "measured") >= layers
        }));
        assert!(journaled(dir.path(), "measured") >= layers);
    }
    assert!(alive > 0, "no process was killed while measuring");
    for tensors in [1, 9] {
        killed(dir.path(), &resume, || {
            journaled(dir.path(), "finished_tensors") >= tensors
        });
    }
    // No layer is measured twice.
    if !out.exists() {
        assert_eq!(journaled(dir.path(), "measured"), 6);
        assert_eq!(journaled(dir.path(), "decided"), 1);
        run(&resume);
    }
    assert!(tree(&out) == whole, "other bytes after kills at chosen moments");
    fs::remove_dir_all(&out).unwrap();

    // At any time: in thousandths of what it takes.
    for thousandths in [90, 210, 330, 470] {
        let start = Instant::now();
        killed(dir.path(), &resume, || start.elapsed() > took * thousandths / 1000);
        if out.exists() {
            break;
        }
    }
    if !out.exists() {
        run(&resume);
    }
    assert!(tree(&out) == whole, "other bytes after kills at any time");
}

#[test]
fn another_job_is_not_resumed_by_accident() {
    let dir = slow();
    let at = |args: &[&str]| ounce(args).current_dir(dir.path()).output().unwrap();
    assert!(killed(dir.path(), &MERGE, || journaled(dir.path(), "measured") >= 1));
    let resume = [&MERGE[..], &["--resume"]].concat();
    let refused = |args: &[&str], said: &str| {
        let output = at(args);
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{err}");
        assert!(
            err.contains("out.partial: was begun with") && err.contains(said) && err.contains("hint: --overwrite"),
            "{said}: {err}"
        );
    };
    // The same name, other ids.
    let file = |name: &str| dir.path().join(name);
    fs::rename(file("ids"), file("first")).unwrap();
    fs::copy(file("other"), file("ids")).unwrap();
    refused(&resume, "another calibration");
    fs::rename(file("first"), file("ids")).unwrap();

    let recipe = fs::read_to_string(file("merge.toml")).unwrap();
    fs::write(file("merge.toml"), recipe.replace("experts = 3", "experts = 4")).unwrap();
    refused(&resume, "another recipe");
    fs::write(file("merge.toml"), recipe).unwrap();

    refused(&[&resume[..], &["--expanded"]].concat(), "--expanded");

    let weights = file("model/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let kept = bytes.clone();
    // The last byte of the last tensor: every one counts.
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    refused(&resume, "another model.safetensors");
    fs::write(file("model/generation_config.json"), "{}").unwrap();
    refused(&resume, "another generation_config.json");
    fs::remove_file(file("model/generation_config.json")).unwrap();
    fs::write(&weights, kept).unwrap();

    let output = at(&resume);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
