//! The frame of every experiment: runs are reused, continued after a stop, paired; the result has its fixed form.

use ounce_data::DataDir;
use ounce_lab::{
    LabError,
    reproduce::{
        Budget, Finding, Measured, REPRODUCTIONS, ReproduceOptions, Reproduction, Results, Row, Verdict, Workbench,
        reproduce, run_experiment,
    },
};
use ounce_train::Recipe;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    path::Path,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

/// Two variants of a tiny model; sets `stop` when it begins its run number `stop_at`.
#[derive(Default)]
struct Tiny {
    begun: AtomicUsize,
    stop_at: Option<usize>,
    stop: AtomicBool,
    /// Part of the recipe, to make another experiment of it.
    lr: &'static str,
}

impl Tiny {
    fn recipe(&self, variant: &str, seed: u64) -> Recipe {
        let text = format!(
            r#"
[model]
hidden_size = 16
layers = 1
heads = 2
intermediate_size = 16
tied = true
residual = {{ wiring = "{variant}" }}
[tokenizer]
train_vocab = 260
[data]
train = ["${{data}}/toy-arithmetic.txt"]
validation = ["${{data}}/toy-arithmetic.valid.txt"]
[optimizer]
lr = {}
[run]
steps = 4
batch = 2
length = 16
seed = {seed}
eval_every = 2
eval_tokens = 200
"#,
            if self.lr.is_empty() { "1e-2" } else { self.lr }
        );
        Recipe::parse("tiny", &text, &[]).unwrap()
    }
}

impl Reproduction for Tiny {
    fn name(&self) -> &'static str {
        "tiny"
    }
    fn title(&self) -> &'static str {
        "A tiny experiment"
    }
    fn claim(&self) -> &'static str {
        "None."
    }
    fn variants(&self, _budget: Budget) -> Vec<&'static str> {
        vec!["sequential", "ladder"]
    }
    fn seeds(&self, _budget: Budget) -> u64 {
        2
    }
    fn settings(&self, variant: &str, seed: u64, _budget: Budget) -> Result<String, LabError> {
        Ok(self.recipe(variant, seed).to_toml())
    }
    fn run(&self, variant: &str, seed: u64, bench: &mut Workbench<'_>) -> Result<Measured, LabError> {
        if self.stop_at == Some(self.begun.fetch_add(1, Ordering::Relaxed)) {
            self.stop.store(true, Ordering::Relaxed);
        }
        let trained = bench.train("train", &self.recipe(variant, seed))?;
        assert_eq!(trained.training.len(), 4);
        Ok(Measured {
            values: BTreeMap::from([("loss".into(), trained.validation_loss()?)]),
            curves: BTreeMap::from([("validation".into(), trained.validation)]),
        })
    }
    fn judge(&self, results: &Results) -> Result<Finding, LabError> {
        let gap = results.difference("ladder", "sequential", "loss")?;
        Ok(Finding {
            rows: vec![Row::new("gap", gap, Some(0.5))],
            verdict: Verdict::at_most(&gap, f64::INFINITY),
            why: "Because.".into(),
            plots: Vec::new(),
        })
    }
}

fn options(out: &Path, resume: bool) -> ReproduceOptions {
    ReproduceOptions {
        method: "tiny".into(),
        budget: Budget::Quick,
        seeds: Vec::new(),
        out: out.to_owned(),
        resume,
        command_line: "ounce reproduce tiny".into(),
    }
}

fn run(tiny: &Tiny, options: &ReproduceOptions) -> Result<Value, LabError> {
    let made = run_experiment(tiny, options, &mut |_| {}, &tiny.stop)?;
    let text = std::fs::read_to_string(options.out.join("result.json")).unwrap();
    assert!(options.out.join("report.html").is_file());
    let mut value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value, serde_json::to_value(&made.result).unwrap());
    assert!(value["seconds"].as_f64().unwrap() > 0.0);
    // The clock may differ between runs, the rest may not.
    value["seconds"] = Value::Null;
    Ok(value)
}

#[test]
fn an_interrupted_experiment_is_continued_to_the_same_result_and_finished_runs_are_reused() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, cut) = (dir.path().join("whole"), dir.path().join("cut"));
    let expected = run(&Tiny::default(), &options(&whole, false)).unwrap();

    let stopping = Tiny {
        stop_at: Some(1),
        ..Tiny::default()
    };
    let error = run(&stopping, &options(&cut, false)).unwrap_err();
    assert!(matches!(error, LabError::Interrupted(_)), "{error}");
    assert!(error.hint().unwrap().contains("--resume"));
    // The second run stopped in the middle, with a checkpoint.
    assert!(cut.join("runs/sequential-seed-1/measured.json").is_file());
    assert!(!cut.join("runs/ladder-seed-1/measured.json").exists());
    assert!(cut.join("runs/ladder-seed-1/train/step-1").is_dir());

    // A folder that is not empty is left alone unless resumed.
    let error = run(&Tiny::default(), &options(&cut, false)).unwrap_err();
    assert!(error.to_string().contains("the folder is not empty"));
    let rest = Tiny::default();
    assert_eq!(run(&rest, &options(&cut, true)).unwrap(), expected);
    assert_eq!(rest.begun.load(Ordering::Relaxed), 3);
    let again = Tiny::default();
    assert_eq!(run(&again, &options(&cut, true)).unwrap(), expected);
    assert_eq!(again.begun.load(Ordering::Relaxed), 0);

    // Other settings are other runs, whatever is in the folder.
    let other = Tiny {
        lr: "2e-2",
        ..Tiny::default()
    };
    assert_ne!(run(&other, &options(&cut, true)).unwrap()["rows"], expected["rows"]);
    assert_eq!(other.begun.load(Ordering::Relaxed), 4);
}

#[test]
fn the_result_has_its_fixed_keys() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(&dir.path().join("out"), false);
    options.seeds = vec![5];
    let value = run(&Tiny::default(), &options).unwrap();
    let keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        [
            "method", "budget", "seeds", "rows", "verdict", "why", "seconds", "machine"
        ]
    );
    assert_eq!(
        (&value["budget"], &value["seeds"]),
        (&"quick".into(), &serde_json::json!([5]))
    );
    let row: Vec<&str> = value["rows"][0]
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(row, ["name", "ours", "ci95", "paper", "n"]);
    // One seed cannot decide anything.
    assert_eq!(
        (&value["verdict"], &value["rows"][0]["ci95"]),
        (&"inconclusive".into(), &Value::Null)
    );
}

#[test]
fn unknown_methods_are_refused_and_every_experiment_is_sound() {
    let dir = tempfile::tempdir().unwrap();
    let error = reproduce(
        &options(&dir.path().join("out"), false),
        &mut |_| {},
        &AtomicBool::new(false),
    )
    .err()
    .unwrap();
    assert_eq!(error.to_string(), "method \"tiny\": has no experiment");
    assert!(error.hint().unwrap().contains("ladder, long-short"));
    for method in REPRODUCTIONS {
        for (_, budget) in Budget::ALL {
            let variants = method.variants(budget);
            assert!(variants.len() > 1 && method.seeds(budget) > 1, "{}", method.name());
            let all: std::collections::BTreeSet<String> = variants
                .iter()
                .map(|v| method.settings(v, 1, budget).unwrap())
                .collect();
            assert_eq!(
                all.len(),
                variants.len(),
                "{}: two variants are the same",
                method.name()
            );
            for settings in &all {
                let recipe = Recipe::parse(method.name(), settings, &[]).unwrap();
                let estimate = ounce_train::estimate(&recipe, &DataDir::from_environment(None)).unwrap();
                assert!(estimate.parameters > 0, "{}", method.name());
            }
            for v in &variants {
                assert!(v.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c)), "{v}");
            }
        }
    }
}

#[test]
fn a_seed_cannot_be_counted_twice() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(&dir.path().join("out"), false);
    options.seeds = vec![3, 4, 3];
    options.method = "ladder".into();
    let error = reproduce(&options, &mut |_| {}, &AtomicBool::new(false)).err().unwrap();
    assert_eq!(error.to_string(), "seed 3: is named twice");
    assert!(!options.out.exists(), "nothing is written");
}
