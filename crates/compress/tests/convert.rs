//! Conversions as a whole: the same function, the same bytes after a stop, and tables that belong elsewhere refused.

use ounce_compress::{CompressError, ConvertJob, convert, estimate_conversion};
use ounce_formats::{Overwrite, SafetensorsFile, write_file};
use ounce_model::{Batch, Model, OpenOptions, ffn::mole};
use ounce_tensor::{Compute, no_grad};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../lab/tests/fixtures/golden")
        .join(name)
}

fn job(model: &Path, out: &Path, dtype: &str) -> ConvertJob {
    ConvertJob {
        model: model.into(),
        to: "mole-lut".into(),
        options: [("dtype".to_owned(), dtype.to_owned())].into(),
        out: out.into(),
        overwrite: Overwrite::Refuse,
        resume: false,
        command_line: "ounce convert".into(),
    }
}

fn run(job: &ConvertJob) -> Result<(), CompressError> {
    convert(job, &mut |_, _| {}, &AtomicBool::new(false)).map(|_| ())
}

/// Logits of every token of the vocabulary, and of some again.
fn logits(dir: &Path) -> Vec<f32> {
    let model = Model::open(dir, &OpenOptions::default()).unwrap();
    let ids: Vec<u32> = (0..192).map(|i| (i * 37 + i / 128 * 5) % 128).collect();
    let input = Batch {
        ids: &ids,
        batch: 3,
        compute: Compute::F32,
    };
    no_grad(|| model.forward(input)).unwrap().to_f32()
}

/// Largest KL divergence of two rows of logits over the vocabulary of 128, in nats.
fn kl(p: &[f32], q: &[f32]) -> f64 {
    let log_softmax = |row: &[f32]| -> Vec<f64> {
        let total: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
        row.iter().map(|&x| f64::from(x) - total.ln()).collect()
    };
    let of = |(p, q): (&[f32], &[f32])| {
        let (p, q) = (log_softmax(p), log_softmax(q));
        p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>()
    };
    p.chunks(128).zip(q.chunks(128)).map(of).fold(0.0, f64::max)
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    ounce_tensor::largest_difference(a, b) as f32
}

#[test]
fn the_table_computes_what_the_experts_compute() {
    let dir = tempfile::tempdir().unwrap();
    let expected = logits(&golden("mole"));
    let scale = expected.iter().fold(0f32, |w, v| w.max(v.abs()));
    let mut sums = Vec::new();
    for (dtype, bytes, bound, nats) in [("f32", 4, 1e-5, 1e-6), ("f16", 2, 2e-3, 1e-4)] {
        let out = dir.path().join(dtype);
        let job = job(&golden("mole"), &out, dtype);
        let planned = estimate_conversion(&job).unwrap();
        run(&job).unwrap();
        let found = logits(&out);
        assert!(worst(&found, &expected) < bound * scale, "{dtype}");
        assert!(kl(&expected, &found) < nats, "{dtype}: {}", kl(&expected, &found));
        let file = SafetensorsFile::open(&out.join("model.safetensors")).unwrap();
        let table = file.view(mole::TABLE).unwrap();
        assert_eq!(
            (table.shape, table.bytes.len()),
            (&[128, 2 * 4 * 48][..], 128 * 384 * bytes)
        );
        let total: usize = file.header().tensors().iter().map(|t| t.range.len()).sum();
        assert_eq!(planned.bytes_after, total as u64);
        assert!(file.header().tensors().iter().all(|t| !t.name.contains("expert")));
        let config: serde_json::Value = serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["model_type"], "mole_lut");
        sums.push(config[mole::RECORD].clone());
    }
    assert_eq!(sums[0]["built_from"], sums[1]["built_from"]);
    assert_ne!(sums[0]["rows"], sums[1]["rows"]);
}

#[test]
fn readers_of_one_table_do_not_disturb_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("lut");
    run(&job(&golden("mole"), &out, "f16")).unwrap();
    let alone = logits(&out);
    let shared = Model::open(&out, &OpenOptions::default()).unwrap();
    let ids: Vec<u32> = (0..128).collect();
    let read = |model: &Model, id: u32| {
        let input = Batch {
            ids: &ids[id as usize..],
            batch: 1,
            compute: Compute::F32,
        };
        no_grad(|| model.forward(input)).unwrap().to_f32()
    };
    let expected: Vec<Vec<f32>> = (0..8).map(|i| read(&shared, i * 16)).collect();
    std::thread::scope(|scope| {
        for reader in 0..4 {
            let (shared, expected, alone, out, read) = (&shared, &expected, &alone, &out, &read);
            scope.spawn(move || {
                for i in 0..8 {
                    let i = (i * 3 + reader) % 8;
                    assert!(read(shared, i as u32 * 16) == expected[i]);
                }
                // And through a mapping of its own.
                assert!(logits(out) == *alone);
            });
        }
    });
}

#[test]
fn a_stopped_run_continues_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, cut) = (dir.path().join("whole"), dir.path().join("cut"));
    run(&job(&golden("mole"), &whole, "f32")).unwrap();
    for percent in [10, 30] {
        let stop = AtomicBool::new(false);
        let mut job = job(&golden("mole"), &cut, "f32");
        let mut first = u64::MAX;
        let stopped = convert(
            &ConvertJob {
                overwrite: Overwrite::Replace,
                ..job.clone()
            },
            &mut |done, total| stop.store(done * 100 > total * percent, Ordering::Relaxed),
            &stop,
        );
        assert!(matches!(stopped, Err(CompressError::Stopped(_))), "{stopped:?}");
        // Another job must not continue it.
        let other = ConvertJob {
            options: [("dtype".to_owned(), "f16".to_owned())].into(),
            resume: true,
            overwrite: Overwrite::Replace,
            ..job.clone()
        };
        assert!(
            run(&other)
                .unwrap_err()
                .to_string()
                .contains("was begun with another set of options")
        );
        job.resume = true;
        job.overwrite = Overwrite::Replace;
        let report = convert(&job, &mut |done, _| first = first.min(done), &AtomicBool::new(false)).unwrap();
        assert!(
            first * 100 > report.bytes_after * percent,
            "what was finished is not written again"
        );
        for file in ["model.safetensors", "config.json"] {
            assert!(
                fs::read(whole.join(file)).unwrap() == fs::read(cut.join(file)).unwrap(),
                "{file}"
            );
        }
    }
}

/// Writes `value` over the first f32 of row `row` of a tensor.
fn poke(dir: &Path, tensor: &str, row: usize, value: f32) {
    let path = dir.join("model.safetensors");
    let region = SafetensorsFile::open(&path).unwrap().region(tensor).unwrap();
    let at = region.range.start + row * region.range.len() / region.shape[0];
    let mut bytes = fs::read(&path).unwrap();
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    fs::write(&path, bytes).unwrap();
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(from.join(file), to.join(file)).unwrap();
    }
}

#[test]
fn a_stale_or_foreign_table_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (lut, stale, other, theirs) = (
        dir.path().join("lut"),
        dir.path().join("stale"),
        dir.path().join("other"),
        dir.path().join("theirs"),
    );
    run(&job(&golden("mole"), &lut, "f32")).unwrap();
    assert!(Model::open(&lut, &OpenOptions::default()).is_ok());

    // The embedding was trained on, one value of it.
    copy(&lut, &stale);
    poke(&stale, mole::EMBEDDING, 77, 0.5);
    let error = Model::open(&stale, &OpenOptions::default()).err().unwrap();
    assert!(
        error.to_string().contains("is not the one the table was built from"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("mole-lut"));

    // The table of a model that differs in one expert, under this model's configuration.
    copy(&golden("mole"), &other);
    poke(&other, "model.layers.1.experts.2.down_proj.weight", 0, 0.5);
    run(&job(&other, &theirs, "f32")).unwrap();
    assert!(Model::open(&theirs, &OpenOptions::default()).is_ok());
    fs::copy(lut.join("config.json"), theirs.join("config.json")).unwrap();
    let error = Model::open(&theirs, &OpenOptions::default()).err().unwrap();
    assert!(
        error
            .to_string()
            .contains("is not the table that was built for this model"),
        "{error}"
    );

    // A table for a smaller vocabulary does not even have the shape.
    let text = fs::read_to_string(stale.join("config.json")).unwrap();
    fs::write(
        stale.join("config.json"),
        text.replace("\"num_experts\": 4", "\"num_experts\": 3"),
    )
    .unwrap();
    let error = Model::open(&stale, &OpenOptions::default()).err().unwrap();
    assert!(error.to_string().contains("has shape"), "{error}");
}

#[test]
fn values_beyond_f16_are_refused_by_token() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (dir.path().join("model"), dir.path().join("out"));
    copy(&golden("mole"), &model);
    poke(&model, "model.layers.1.experts.2.down_proj.weight", 0, 1e9);
    let error = run(&job(&model, &out, "f16")).unwrap_err();
    assert!(error.to_string().starts_with("table row of token "), "{error}");
    assert_eq!(error.hint().unwrap(), "build it with --dtype f32");
    assert!(!out.exists());
    run(&ConvertJob {
        overwrite: Overwrite::Replace,
        ..job(&model, &out, "f32")
    })
    .unwrap();
}

#[test]
fn a_model_without_routed_experts_has_no_table() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (dir.path().join("model"), dir.path().join("out"));
    copy(&golden("mole"), &model);
    let path = model.join("model.safetensors");
    let whole = SafetensorsFile::open(&golden("mole").join("model.safetensors")).unwrap();
    let routed = |name: &str| {
        [".experts.", ".router.", ".expert_layernorm."]
            .iter()
            .any(|part| name.contains(part))
    };
    let kept: Vec<_> = whole
        .names()
        .filter(|n| !routed(n))
        .map(|n| whole.region(n).unwrap())
        .collect();
    let listed: Vec<_> = kept
        .iter()
        .map(|r| (r.name.as_str(), r.dtype, r.shape.as_slice(), r.bytes()))
        .collect();
    write_file(&path, &listed, &BTreeMap::new()).unwrap();
    let config = fs::read_to_string(model.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config["num_experts"] = 0.into();
    fs::write(model.join("config.json"), config.to_string()).unwrap();

    assert!(logits(&model).iter().all(|v| v.is_finite()));
    let error = run(&job(&model, &out, "f32")).unwrap_err();
    assert!(error.to_string().contains("has no routed experts"), "{error}");
    assert!(error.hint().is_some() && !out.exists());
}

/// A job stopped after some tensors, to be continued.
fn stopped(job: &ConvertJob) {
    let stop = AtomicBool::new(false);
    let halfway = &mut |done, total| stop.store(done * 2 > total, Ordering::Relaxed);
    let result = convert(job, halfway, &stop);
    assert!(matches!(result, Err(CompressError::Stopped(_))), "{result:?}");
}

fn ladder(model: &Path, out: &Path) -> ConvertJob {
    ConvertJob {
        to: "ladder".into(),
        options: BTreeMap::new(),
        ..job(model, out, "f32")
    }
}

/// Two models of one configuration must never become one.
#[test]
fn a_job_is_continued_with_the_same_files_only() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (dir.path().join("model"), dir.path().join("out"));
    copy(&golden("llama"), &model);
    fs::write(model.join("generation_config.json"), "{}").unwrap();
    let job = ladder(&model, &out);
    stopped(&job);
    let resumed = ConvertJob {
        resume: true,
        ..job.clone()
    };
    let refused = |file: &str| {
        let error = run(&resumed).unwrap_err();
        assert!(
            error.to_string().contains(&format!("was begun with another {file}")),
            "{error}"
        );
        assert!(error.hint().unwrap().contains("--overwrite starts again"));
        assert!(!out.exists());
    };
    let weights = fs::read(model.join("model.safetensors")).unwrap();
    let mut other = weights.clone();
    *other.last_mut().unwrap() ^= 0x80;
    fs::write(model.join("model.safetensors"), other).unwrap();
    refused("model.safetensors");
    fs::write(model.join("model.safetensors"), weights).unwrap();
    fs::write(model.join("generation_config.json"), "{ }").unwrap();
    refused("generation_config.json");
    fs::remove_file(model.join("generation_config.json")).unwrap();
    refused("generation_config.json");
    fs::write(model.join("generation_config.json"), "{}").unwrap();

    // A written tensor that was damaged meanwhile.
    let partial = dir.path().join("out.partial/model.safetensors.partial");
    let written = fs::read(&partial).unwrap();
    let mut damaged = written.clone();
    let data = 8 + u64::from_le_bytes(written[..8].try_into().unwrap()) as usize;
    damaged[data + 5] ^= 1;
    fs::write(&partial, damaged).unwrap();
    let error = run(&resumed).unwrap_err().to_string();
    assert!(error.contains("does not hold the bytes that were written"), "{error}");
    fs::write(&partial, written).unwrap();
    run(&resumed).unwrap();
    let whole = dir.path().join("whole");
    run(&ladder(&model, &whole)).unwrap();
    let bytes = |dir: &Path| fs::read(dir.join("model.safetensors")).unwrap();
    assert!(bytes(&out) == bytes(&whole));
    // Done: to continue it again is no fault, and nothing happens.
    run(&resumed).unwrap();
}

#[test]
fn a_conversion_passes_on_what_the_model_carries_and_says_what_it_was_made_from() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out, again) = (
        dir.path().join("small-model"),
        dir.path().join("out"),
        dir.path().join("again"),
    );
    copy(&golden("llama"), &model);
    let carried = [
        "chat_template.jinja",
        "generation_config.json",
        "added_tokens.json",
        "LICENSE",
    ];
    for name in carried {
        fs::write(model.join(name), name).unwrap();
    }
    fs::write(model.join("README.md"), "---\nlicense: apache-2.0\n---\n# Their card\n").unwrap();
    fs::write(model.join("thesis.tex"), "x").unwrap();
    let mut job = ladder(&model, &out);
    job.to = "moh".into();
    job.options.insert("shared_heads".into(), "1".into());
    let report = convert(&job, &mut |_, _| {}, &AtomicBool::new(false)).unwrap();
    assert_eq!(report.left, ["thesis.tex"]);
    assert!(report.advice.unwrap().starts_with("Train it on before use"));
    for name in carried {
        assert_eq!(fs::read_to_string(out.join(name)).unwrap(), name);
    }
    let card = fs::read_to_string(out.join("README.md")).unwrap();
    for said in [
        "base_model: \"small-model\"",
        "license: apache-2.0",
        "**Train it on before use",
        "- method: moh",
        "- shared_heads: 1",
        "- command: `ounce convert`",
        "model.safetensors",
    ] {
        assert!(card.contains(said), "{said}: {card}");
    }
    assert!(
        fs::read_to_string(out.join("README.source.md"))
            .unwrap()
            .contains("# Their card")
    );
    run(&ladder(&golden("llama"), &again)).unwrap();

    // Nothing that is read is replaced, and no link is followed out of the model.
    for overwrite in [Overwrite::Replace, Overwrite::Any] {
        for place in [&model, &dir.path().to_owned()] {
            let error = run(&ConvertJob {
                overwrite,
                out: place.clone(),
                ..ladder(&model, &out)
            })
            .unwrap_err();
            assert!(error.to_string().contains("what is read: "), "{error}");
        }
    }
    fs::remove_file(model.join("LICENSE")).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", model.join("LICENSE")).unwrap();
    let error = run(&ladder(&model, &dir.path().join("link"))).unwrap_err().to_string();
    assert!(error.contains("LICENSE: is a link out of the checkpoint"), "{error}");
}
