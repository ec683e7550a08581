//! Ctrl-C and kill -9: what a process leaves behind, and what the next one makes of it.
#![cfg(target_os = "linux")]

use crate::support::{golden, ounce, recipe, run, stdout, text};
use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_mins(1);

/// Waits until `ready`; fails when the child ends before, or never gets there.
fn wait_for(child: &mut Child, what: &str, mut ready: impl FnMut(u32) -> bool) {
    let start = Instant::now();
    while !ready(child.id()) {
        assert!(child.try_wait().unwrap().is_none(), "ended before: {what}");
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        sleep(Duration::from_millis(2));
    }
}

/// Whether the process has a handler for SIGINT: before that, Ctrl-C would end it without one.
fn catches_interrupts(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|l| l.strip_prefix("SigCgt:"));
    mask.and_then(|m| u64::from_str_radix(m.trim(), 16).ok())
        .is_some_and(|m| m & 2 != 0)
}

fn interrupt(child: &Child) {
    let status = Command::new("sh")
        .args(["-c", &format!("kill -INT {}", child.id())])
        .status();
    assert!(status.unwrap().success());
}

#[test]
fn ctrl_c_ends_a_long_generation_with_130() {
    let llama = golden("llama");
    let mut child = ounce(&["generate", text(&llama), "--ids", "1", "--max-new-tokens", "100000000"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for(&mut child, "a handler", catches_interrupts);
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn ctrl_c_while_training_leaves_a_checkpoint_to_continue_from() {
    let (dir, recipe) = recipe();
    let out = dir.path().join("run");
    let data = text(dir.path());
    let long = ["--set", "run.steps=1000000", "--set", "run.checkpoint_every=0"];
    let args = [
        &["train", text(&recipe), "--out", text(&out), "--data", data],
        &long[..],
    ]
    .concat();
    let mut child = ounce(&args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let metrics = out.join("metrics.jsonl");
    wait_for(&mut child, "a step", |_| {
        fs::metadata(&metrics).is_ok_and(|m| m.len() > 0)
    });
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let steps: Vec<_> = fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(
        steps.iter().any(|n| n.to_string_lossy().starts_with("step-")),
        "{steps:?}"
    );
    assert!(!out.join("final").exists());
}

/// Trains in one go.
fn uninterrupted(recipe: &Path, data: &Path, out: &Path, threads: &str) -> (Vec<u8>, String) {
    stdout(&[
        "train",
        text(recipe),
        "--out",
        text(out),
        "--data",
        text(data),
        "--threads",
        threads,
    ]);
    result(out)
}

/// The bytes of the weights, and the metrics.
fn result(out: &Path) -> (Vec<u8>, String) {
    let weights = fs::read(out.join("final/model.safetensors")).unwrap();
    (weights, fs::read_to_string(out.join("metrics.jsonl")).unwrap())
}

/// Whether a checkpoint is being written at this moment: something unfinished lies in the folder.
fn saving(out: &Path) -> bool {
    fs::read_dir(out).is_ok_and(|all| {
        all.flatten().any(|e| {
            let name = e.file_name().to_string_lossy().into_owned();
            name.contains("partial") || name.contains("tmp")
        })
    })
}

#[test]
fn a_run_killed_at_any_moment_ends_in_the_same_bytes() {
    let (dir, recipe) = recipe();
    let start = Instant::now();
    let whole = uninterrupted(&recipe, dir.path(), &dir.path().join("whole"), "1");
    let took = start.elapsed();
    let again = uninterrupted(&recipe, dir.path(), &dir.path().join("again"), "2");
    assert!(whole == again, "bytes depend on the number of threads");

    for threads in ["1", "2"] {
        let out = dir.path().join(format!("killed-{threads}"));
        let args = [
            "train",
            text(&recipe),
            "--out",
            text(&out),
            "--data",
            text(dir.path()),
            "--threads",
            threads,
        ];
        let resume = [&args[..], &["--resume"]].concat();
        // Of a run of this length, in thousandths; then three times whenever a checkpoint is half written.
        for moment in [Some(150), Some(431), Some(277), Some(613), None, None, None] {
            let mut child = ounce(&resume)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            match moment {
                Some(thousandths) => sleep(took * thousandths / 1000),
                None => while !saving(&out) && child.try_wait().unwrap().is_none() {},
            }
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let output = run(&resume);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(
            result(&out) == whole,
            "--threads {threads}: other bytes than without the kills"
        );
    }
}

#[test]
fn a_changed_recipe_is_not_resumed_by_accident() {
    let (dir, recipe) = recipe();
    let out = dir.path().join("run");
    let args = ["train", text(&recipe), "--out", text(&out), "--data", text(dir.path())];
    stdout(&[&args[..], &["--set", "run.steps=8"]].concat());
    let other = [
        &args[..],
        &["--set", "run.steps=8", "--resume", "--set", "optimizer.lr=1e-3"],
    ]
    .concat();
    let output = run(&other);
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.contains("the recipe") && err.contains("hint: --force"), "{err}");
    stdout(&[&other[..], &["--force"]].concat());
}
