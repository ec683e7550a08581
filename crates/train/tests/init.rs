//! Training that continues from a checkpoint changes its weights, whatever they are stored in.

use ounce_data::DataDir;
use ounce_model::{Model, OpenOptions};
use ounce_train::{Recipe, TrainJob, train};
use std::{path::Path, sync::atomic::AtomicBool};

fn job(text: &str, out: &Path, data: &Path) -> TrainJob {
    TrainJob {
        recipe: Recipe::parse("test", text, &[]).unwrap(),
        out: out.to_owned(),
        data: DataDir::from_environment(Some(data.to_owned())),
        resume: false,
        force: false,
        command_line: "test".into(),
    }
}

fn run(text: &str, out: &Path, data: &Path) {
    let job = job(text, out, data);
    assert!(train(&job, &mut |_| {}, &AtomicBool::new(false)).unwrap());
}

fn weights(folder: &Path) -> Vec<(String, Vec<f32>)> {
    let mut all = Vec::new();
    Model::open(folder, &OpenOptions::widened())
        .unwrap()
        .visit(&mut |p| all.push((p.name.clone(), p.tensor.to_f32())));
    all
}

#[test]
fn continuing_from_a_checkpoint_changes_every_weight() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    ounce_data::toy::write_toys(&data, 0, 20_000).unwrap();
    let shape = "[model]\nhidden_size = 16\nlayers = 1\nheads = 2\nintermediate_size = 16\ntied = true\n\
                 [tokenizer]\ntrain_vocab = 260\n";
    let rest = |export: &str| {
        format!(
            "[data]\ntrain = [\"${{data}}/toy-text.txt\"]\n[optimizer]\nlr = 1e-2\n\
             [run]\nsteps = 2\nbatch = 2\nlength = 16\nexport = \"{export}\"\n"
        )
    };
    for export in ["f32", "bf16"] {
        let (base, on) = (
            dir.path().join(format!("{export}-base")),
            dir.path().join(format!("{export}-on")),
        );
        run(&format!("{shape}{}", rest(export)), &base, &data);
        // The keys of older and of newer programs, neither of them true.
        let config = base.join("final/config.json");
        let mut said: serde_json::Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
        said["dtype"] = "float16".into();
        said["torch_dtype"] = "float16".into();
        std::fs::write(&config, said.to_string()).unwrap();
        let before = std::fs::read(base.join("final/model.safetensors")).unwrap();
        let init = base.join("final").display().to_string();
        run(&format!("init = {init:?}\n{}", rest(export)), &on, &data);
        let made = std::fs::read(on.join("final/config.json")).unwrap();
        let made: serde_json::Value = serde_json::from_slice(&made).unwrap();
        let dtype = if export == "bf16" { "bfloat16" } else { "float32" };
        assert_eq!((&made["dtype"], &made["torch_dtype"]), (&dtype.into(), &dtype.into()));
        for ((name, old), (_, new)) in weights(&base.join("final")).iter().zip(&weights(&on.join("final"))) {
            assert_ne!(old, new, "{export}: {name} did not move");
        }
        assert_eq!(
            std::fs::read(base.join("final/model.safetensors")).unwrap(),
            before,
            "{export}: the base was written"
        );
    }
}

/// `generate` and `eval` refuse a tensor that the configuration has no use for; training on without it would drop it.
#[test]
fn a_tensor_without_a_use_is_refused_and_not_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    ounce_data::toy::write_toys(&data, 0, 20_000).unwrap();
    let rest = "[data]\ntrain = [\"${data}/toy-text.txt\"]\n[optimizer]\nlr = 1e-2\n[run]\nsteps = 1\nbatch = 1\nlength = 16\n";
    let shape = "[model]\nhidden_size = 16\nlayers = 1\nheads = 2\nintermediate_size = 16\n\
                 [tokenizer]\ntrain_vocab = 260\n";
    let base = dir.path().join("base");
    run(&format!("{shape}{rest}"), &base, &data);
    let init = base.join("final");
    let weights = init.join("model.safetensors");
    let file = ounce_formats::SafetensorsFile::open(&weights).unwrap();
    let mut tensors: Vec<_> = file
        .names()
        .map(|name| {
            let view = file.view(name).unwrap();
            (name.to_owned(), view.dtype, view.shape.to_vec(), view.bytes.to_vec())
        })
        .collect();
    let bias = "model.layers.0.self_attn.q_proj.bias".to_owned();
    tensors.push((bias, ounce_formats::Dtype::F32, vec![16], vec![0; 64]));
    drop(file);
    let listed: Vec<_> = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| (name.as_str(), *dtype, &shape[..], &bytes[..]))
        .collect();
    ounce_formats::write_file(&weights, &listed, &std::collections::BTreeMap::new()).unwrap();

    let by_generate = Model::open(&init, &OpenOptions::default()).err().unwrap().to_string();
    let recipe = format!("init = {:?}\n{rest}", init.display().to_string());
    let job = job(&recipe, &dir.path().join("on"), &data);
    let by_train = train(&job, &mut |_| {}, &AtomicBool::new(false))
        .unwrap_err()
        .to_string();
    assert!(
        by_train.contains("q_proj.bias") && by_train.contains("no use"),
        "{by_train}"
    );
    assert_eq!(by_train, by_generate);
}

#[test]
fn what_a_checkpoint_carries_goes_with_what_is_trained_from_it() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    ounce_data::toy::write_toys(&data, 0, 20_000).unwrap();
    let rest = "[data]\ntrain = [\"${data}/toy-text.txt\"]\n[optimizer]\nlr = 1e-2\n\
                [run]\nsteps = 1\nbatch = 2\nlength = 16\n";
    let shape =
        "[model]\nhidden_size = 16\nlayers = 1\nheads = 2\nintermediate_size = 16\n[tokenizer]\ntrain_vocab = 260\n";
    let (base, on) = (dir.path().join("base"), dir.path().join("on"));
    run(&format!("{shape}{rest}"), &base, &data);
    let base = base.join("final");
    let carried = [
        ("chat_template.jinja", "{{ messages }}"),
        (
            "generation_config.json",
            "{\"pad_token_id\": 2, \"eos_token_id\": [0, 1]}",
        ),
        ("LICENSE", "Apache"),
        ("README.md", "# The base"),
    ];
    for (name, text) in carried {
        std::fs::write(base.join(name), text).unwrap();
    }
    run(&format!("init = {:?}\n{rest}", base.display().to_string()), &on, &data);
    for folder in ["final", "step-1"] {
        let read = |name: &str| std::fs::read_to_string(on.join(folder).join(name)).unwrap();
        for (name, text) in &carried[..3] {
            assert_eq!(read(name), *text, "{folder}/{name}");
        }
        assert_eq!(read("README.base.md"), "# The base");
        let card = read("README.md");
        assert!(
            card.contains("Trained on from") && card.contains(&base.display().to_string()),
            "{card}"
        );
    }
}
