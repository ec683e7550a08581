//! Converting to a ladder keeps every tensor and changes the function; the recipe that ships trains.

use ounce_compress::{ConvertJob, convert};
use ounce_data::DataDir;
use ounce_formats::{Checkpoint, Overwrite};
use ounce_model::{Batch, Model, OpenOptions, Wiring};
use ounce_tensor::{Compute, no_grad};
use ounce_train::{Recipe, TrainJob, train};
use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

fn golden(case: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/golden")
        .join(case)
}

fn logits(dir: &Path) -> Vec<f32> {
    let model = Model::open(dir, &OpenOptions::widened()).unwrap();
    let ids: Vec<u32> = (0..20).map(|i| i * 5 % 100).collect();
    let input = Batch {
        ids: &ids,
        batch: 1,
        compute: Compute::F32,
    };
    no_grad(|| model.forward(input)).unwrap().to_f32()
}

#[test]
fn a_converted_checkpoint_has_the_same_tensors_and_the_wiring_of_the_list() {
    let dir = tempfile::tempdir().unwrap();
    let source = golden("llama");
    let to_ladder = |out: &Path, layers: &str| {
        let job = ConvertJob {
            model: source.clone(),
            to: "ladder".into(),
            options: [("layers".to_owned(), layers.to_owned())].into(),
            out: out.to_owned(),
            overwrite: Overwrite::Refuse,
            resume: false,
            command_line: "ounce convert".into(),
        };
        convert(&job, &mut |_, _| {}, &AtomicBool::new(false))
    };
    let (half, none) = (dir.path().join("half"), dir.path().join("none"));
    to_ladder(&half, "1").unwrap();
    to_ladder(&none, "0").unwrap();
    let (before, after) = (Checkpoint::open(&source).unwrap(), Checkpoint::open(&half).unwrap());
    for tensor in before.tensors() {
        let (a, b) = (
            before.region(&tensor.name).unwrap(),
            after.region(&tensor.name).unwrap(),
        );
        assert_eq!(a.bytes(), b.bytes(), "{}", tensor.name);
    }
    assert_eq!(after.tensors().count(), before.tensors().count());
    let wirings: Vec<Wiring> = Model::open(&half, &OpenOptions::widened())
        .unwrap()
        .config
        .layers
        .iter()
        .map(|l| l.wiring)
        .collect();
    assert_eq!(wirings.last(), Some(&Wiring::Ladder));
    assert!(wirings[..wirings.len() - 1].iter().all(|w| *w == Wiring::Sequential));
    // No ladder layer: the same function to the bit. One: another.
    assert_eq!(logits(&none), logits(&source));
    assert_ne!(logits(&half), logits(&source));
    // An existing folder is left alone.
    assert!(to_ladder(&half, "2").is_err());
}

/// The shipped recipe, for a few steps on a toy corpus that lies in `out`.
fn small(name: &str, out: &Path, overrides: &[&str]) -> TrainJob {
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../models/recipes")
        .join(name);
    let data = out.join("data");
    ounce_data::toy::write_toys(&data, 0, 30_000).unwrap();
    let small = [
        "model.hidden_size=32",
        "model.layers=2",
        "model.heads=2",
        "model.intermediate_size=48",
        "tokenizer.train_vocab=300",
        "run.steps=6",
        "run.batch=4",
        "run.length=24",
        "run.eval_tokens=256",
        "schedule.warmup=2",
    ];
    let set: Vec<String> = small.iter().chain(overrides).map(ToString::to_string).collect();
    TrainJob {
        recipe: Recipe::read(&recipe, &set).unwrap(),
        out: out.join("run"),
        data: DataDir::from_environment(Some(data)),
        resume: false,
        force: false,
        command_line: "ounce train".into(),
    }
}

/// Trains it; returns the folder of the model.
fn smoke(name: &str, out: &Path, overrides: &[&str]) -> std::path::PathBuf {
    let job = small(name, out, overrides);
    let mut losses = Vec::new();
    let finished = train(
        &job,
        &mut |event| {
            if let ounce_train::Event::Step(step) = event {
                losses.push(step.clone());
            }
        },
        &AtomicBool::new(false),
    );
    assert!(finished.unwrap());
    assert_eq!(losses.len(), 6);
    assert!(losses[5].loss < losses[0].loss, "{losses:?}");
    out.join("run/final")
}

#[test]
fn the_ladder_recipe_trains_and_its_checkpoint_round_trips() {
    let dir = tempfile::tempdir().unwrap();
    let folder = smoke("ladder.toml", dir.path(), &["run.export=f32"]);
    let model = Model::open(&folder, &OpenOptions::widened()).unwrap();
    assert!(model.config.layers.iter().all(|l| l.wiring == Wiring::Ladder));
    let json = Checkpoint::open(&folder).unwrap().config().clone();
    assert_eq!(json["model_type"], "llamaLadder");
    // What is exported is what was trained: the masters of the last checkpoint, bit for bit.
    let again = dir.path().join("run/step-6");
    assert_eq!(logits(&folder), logits(&again));
}

#[test]
fn the_long_short_recipe_trains_and_logs_its_parts() {
    let dir = tempfile::tempdir().unwrap();
    let folder = smoke("long_short.toml", dir.path(), &[]);
    let metrics = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let line = metrics.lines().find(|line| line.contains("\"loss\"")).unwrap();
    let first: serde_json::Value = serde_json::from_str(line).unwrap();
    for part in ["cross_entropy", "sce", "jeffreys", "h_long", "h_short"] {
        assert!(first[part].as_f64().is_some_and(f64::is_finite), "{part}: {first}");
    }
    let number = |key: &str| first[key].as_f64().unwrap();
    let whole = number("cross_entropy") + 0.1 * number("sce");
    assert!((number("loss") - whole).abs() < 1e-4);
    assert!((number("sce") - number("jeffreys") - number("h_long") - number("h_short")).abs() < 1e-4);
}

/// Both views are drawn from seed and step alone, so nothing of a run is lost with its process.
#[test]
fn long_short_continues_to_the_bytes_of_a_run_in_one_go() {
    let dir = tempfile::tempdir().unwrap();
    let weights = |out: &Path| std::fs::read(out.join("run/final/model.safetensors")).unwrap();
    let (whole, cut) = (dir.path().join("whole"), dir.path().join("cut"));
    smoke("long_short.toml", &whole, &[]);
    for stop_after in [1, 4] {
        let mut job = small("long_short.toml", &cut, &[]);
        let stop = AtomicBool::new(false);
        let finished = train(
            &job,
            &mut |event| {
                if let ounce_train::Event::Step(step) = event {
                    stop.store(step.step >= stop_after, Ordering::Relaxed);
                }
            },
            &stop,
        );
        assert!(!finished.unwrap());
        assert!(!cut.join("run/final").exists());
        job.resume = true;
        assert!(train(&job, &mut |_| {}, &AtomicBool::new(false)).unwrap());
        assert!(weights(&whole) == weights(&cut), "stopped after {stop_after}");
        std::fs::remove_dir_all(&cut).unwrap();
    }
    let other = dir.path().join("other");
    smoke("long_short.toml", &other, &["run.seed=9"]);
    assert!(weights(&whole) != weights(&other));
}
