//! Disks that are full, places that cannot be written, checkpoints that are damaged.
#![cfg(target_os = "linux")]

use crate::support::{golden, listing, ounce, recipe, run, set_header, stdout, text, write_ids};
use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

/// Runs the binary where no file may become larger than `blocks` of 512 bytes, which the system reports as it does a
/// full disk: in the middle of a write.
fn cramped(blocks: u64, args: &[&str]) -> Output {
    let limited = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
    Command::new("sh")
        .args(["-c", &limited, env!("CARGO_BIN_EXE_ounce")])
        .args(args)
        .env_remove("OUNCE_ISA")
        .output()
        .unwrap()
}

fn refused(output: &Output, place: &str) {
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{err}");
    let error = err.lines().find(|l| l.starts_with("error: ")).unwrap_or_default();
    assert!(error.contains(place), "{err}");
    assert!(err.contains("\nhint: "), "{err}");
}

#[test]
fn a_full_disk_leaves_no_part_of_a_toy_corpus() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("toys");
    refused(
        &cramped(10, &["data", "toy", "--out", text(&out), "--bytes", "20000"]),
        "toy-text.txt: ",
    );
    assert!(listing(&out).is_empty(), "{:?}", listing(&out));
}

#[test]
fn a_full_disk_leaves_no_part_of_logits() {
    let dir = tempfile::tempdir().unwrap();
    let (ids, out) = (dir.path().join("ids.safetensors"), dir.path().join("out.safetensors"));
    write_ids(&ids, &[1; 64], &[1, 64]);
    let llama = golden("llama");
    let args = ["logits", text(&llama), "--ids", text(&ids), "--out", text(&out)];
    refused(&cramped(20, &args), "out.safetensors");
    assert_eq!(listing(dir.path()), ["ids.safetensors"]);
}

/// The bytes of the weights and the metrics of a finished run.
fn result(out: &Path) -> (Vec<u8>, String) {
    let weights = fs::read(out.join("final/model.safetensors")).unwrap();
    (weights, fs::read_to_string(out.join("metrics.jsonl")).unwrap())
}

/// Training of twelve steps with checkpoints after 4, 8 and 12.
fn training<'a>(recipe: &'a Path, data: &'a Path, out: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let (recipe, data, out) = (text(recipe), text(data), text(out));
    let args = ["train", recipe, "--data", data, "--out", out, "--set", "run.steps=12"];
    [&args[..], more].concat()
}

#[test]
fn a_full_disk_while_training_is_resumed_to_the_same_bytes() {
    let (dir, recipe) = recipe();
    let (whole, out) = (dir.path().join("whole"), dir.path().join("out"));
    stdout(&training(&recipe, dir.path(), &whole, &[]));
    // Room for metrics and tokenizer, not for the weights; then for the weights, not for the moments.
    let size = |name: &str| fs::metadata(whole.join("step-12").join(name)).unwrap().len();
    let (weights, trainer) = (size("model.safetensors"), size("trainer.safetensors"));
    assert!(weights < trainer && size("tokenizer.json") < weights);
    for (bytes, file) in [
        (weights - 1024, "model.safetensors"),
        (trainer - 1024, "trainer.safetensors"),
    ] {
        refused(&cramped(bytes / 512, &training(&recipe, dir.path(), &out, &[])), file);
        assert_eq!(listing(&out), ["metrics.jsonl"], "only whole checkpoints may be left");
        stdout(&training(
            &recipe,
            dir.path(),
            &out,
            &["--resume", "--set", "run.keep=9"],
        ));
        assert!(result(&out) == result(&whole), "{file}");
        fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn places_that_cannot_be_written() {
    let (dir, recipe) = recipe();
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    let below = file.join("out");
    // Not even root may create anything in /proc.
    for out in ["/proc/out", text(&below), text(&file)] {
        refused(
            &run(&["train", text(&recipe), "--data", text(dir.path()), "--out", out]),
            out,
        );
        refused(&run(&["data", "toy", "--out", out]), out);
    }
    assert_eq!(fs::read(&file).unwrap(), b"x");
}

/// Cuts a file in half.
fn truncate(file: &Path) {
    let bytes = fs::read(file).unwrap();
    fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
}

#[test]
fn a_damaged_checkpoint_gives_way_to_the_one_before() {
    let (dir, recipe) = recipe();
    let whole = dir.path().join("whole");
    stdout(&training(&recipe, dir.path(), &whole, &[]));
    assert_eq!(listing(&whole), ["final", "metrics.jsonl", "step-12", "step-8"]);
    for damaged in ["trainer.safetensors", "state.json", "tokenizer.json"] {
        // Even where one checkpoint is kept only, the damaged one must not push out the good one.
        for keep in ["run.keep=2", "run.keep=1"] {
            let out = dir.path().join(format!("{damaged}-{keep}"));
            copy(&whole, &out);
            fs::remove_dir_all(out.join("final")).unwrap();
            truncate(&out.join("step-12").join(damaged));
            let output = run(&training(
                &recipe,
                dir.path(),
                &out,
                &["--resume", "--no-progress", "--set", keep],
            ));
            let err = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(0), "{err}");
            let warning = err.lines().find(|l| l.starts_with("warning: ")).unwrap_or_default();
            assert!(
                warning.contains(&format!("step-12/{damaged}: ")) && warning.contains("continuing from "),
                "{damaged}: {err}"
            );
            assert!(
                result(&out) == result(&whole),
                "{damaged}: other bytes than an undamaged run"
            );
            assert!(
                out.join("step-12.damaged").is_dir(),
                "the damaged one is kept for a look at it"
            );
        }
    }
    // A file of the right length whose header names another tensor.
    let out = dir.path().join("renamed");
    copy(&whole, &out);
    set_header(&out.join("step-12/trainer.safetensors"), |header| {
        let header = header.as_object_mut().unwrap();
        let tensor = header.remove("first.model.norm.weight").unwrap();
        header.insert("first.model.morn.weight".into(), tensor);
    });
    let output = run(&training(&recipe, dir.path(), &out, &["--resume"]));
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{err}");
    assert!(
        err.contains("warning: ") && err.contains(" has no master and two moments"),
        "{err}"
    );
    assert!(result(&out) == result(&whole));
    // With no good one left, nothing is changed, and the message says where it looked.
    truncate(&whole.join("step-12/trainer.safetensors"));
    truncate(&whole.join("step-8/state.json"));
    let before = listing(&whole);
    let output = run(&training(&recipe, dir.path(), &whole, &["--resume"]));
    refused(&output, "all 2 checkpoints are damaged; the newest: ");
    assert_eq!(listing(&whole), before);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for name in listing(from) {
        let (from, to) = (from.join(&name), to.join(&name));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            fs::copy(from, to).unwrap();
        }
    }
}

/// The output of a run that was never begun is not there; of one that was, nothing but what is whole.
#[test]
fn a_write_that_is_cut_off_is_cleared_by_the_next_run() {
    let (dir, recipe) = recipe();
    let (whole, out) = (dir.path().join("whole"), dir.path().join("out"));
    stdout(&training(&recipe, dir.path(), &whole, &[]));
    copy(&whole, &out);
    // As a power failure leaves it: the last checkpoint half written under its other name, a torn line of metrics.
    fs::rename(out.join("step-12"), out.join(".step-12.partial")).unwrap();
    fs::rename(out.join("final"), out.join(".final.partial")).unwrap();
    truncate(&out.join(".step-12.partial/trainer.safetensors"));
    let metrics = fs::read(out.join("metrics.jsonl")).unwrap();
    fs::write(out.join("metrics.jsonl"), &metrics[..metrics.len() - 7]).unwrap();
    stdout(&training(&recipe, dir.path(), &out, &["--resume"]));
    assert!(result(&out) == result(&whole));
    assert_eq!(listing(&out), listing(&whole));
    assert!(
        ounce(&["inspect", text(&out.join("final"))])
            .output()
            .unwrap()
            .status
            .success()
    );
}
