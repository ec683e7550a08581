//! Training that continues from a checkpoint changes its weights, whatever they are stored in.

use ounce_data::DataDir;
use ounce_model::Model;
use ounce_train::{Recipe, TrainJob, train};
use std::{path::Path, sync::atomic::AtomicBool};

fn run(text: &str, out: &Path, data: &Path) {
    let job = TrainJob {
        recipe: Recipe::parse("test", text, &[]).unwrap(),
        out: out.to_owned(),
        data: DataDir::from_environment(Some(data.to_owned())),
        resume: false,
        force: false,
        command_line: "test".into(),
    };
    assert!(train(&job, &mut |_| {}, &AtomicBool::new(false)).unwrap());
}

fn weights(folder: &Path) -> Vec<(String, Vec<f32>)> {
    let mut all = Vec::new();
    Model::open(folder, true)
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
        let before = std::fs::read(base.join("final/model.safetensors")).unwrap();
        let init = base.join("final").display().to_string();
        run(&format!("init = {init:?}\n{}", rest(export)), &on, &data);
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
