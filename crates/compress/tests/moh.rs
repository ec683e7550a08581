//! `convert --to moh`: the weights stay, the function is the one asked for, the routers are where they should be.

use ounce_compress::{ConvertJob, convert};
use ounce_formats::{Checkpoint, Overwrite};
use ounce_model::{Batch, Model, OpenOptions};
use ounce_tensor::{Compute, no_grad};
use std::{
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

fn llama() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../lab/tests/fixtures/golden/llama")
}

fn converted(out: &Path, options: &[(&str, &str)]) -> Result<Model, String> {
    let job = ConvertJob {
        model: llama(),
        to: "moh".into(),
        options: options.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
        out: out.into(),
        overwrite: Overwrite::Replace,
        resume: false,
        command_line: "test".into(),
    };
    convert(&job, &mut |_, _| {}, &AtomicBool::new(false)).map_err(|e| e.to_string())?;
    Model::open(out, &OpenOptions::widened()).map_err(|e| e.to_string())
}

fn logits(model: &Model) -> Vec<f32> {
    let ids: Vec<u32> = (0..24).map(|i| (i * 37 + 11) % 256).collect();
    let batch = Batch {
        ids: &ids,
        batch: 1,
        compute: Compute::F32,
    };
    no_grad(|| model.forward(batch)).unwrap().to_f32()
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    ounce_tensor::largest_difference(a, b) as f32
}

#[test]
fn all_heads_are_the_same_function_and_fewer_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("moh");
    let before = logits(&Model::open(&llama(), &OpenOptions::widened()).unwrap());
    let all = converted(&out, &[("shared_heads", "1"), ("active_routed_heads", "3")]).unwrap();
    assert_eq!(logits(&all), before, "query_norm with every head is the model itself");
    let (old, new) = (Checkpoint::open(&llama()).unwrap(), Checkpoint::open(&out).unwrap());
    assert_eq!(old.names().count(), new.names().count());
    for name in old.names() {
        assert_eq!(
            old.region(name).unwrap().bytes(),
            new.region(name).unwrap().bytes(),
            "{name}"
        );
    }
    let fewer = converted(&out, &[]).unwrap();
    assert_eq!(fewer.config.attention.as_ref().unwrap().key(), "moh");
    assert!(worst(&logits(&fewer), &before) > 1e-3);
}

#[test]
fn learned_routers_start_near_uniform() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("moh");
    let before = logits(&Model::open(&llama(), &OpenOptions::widened()).unwrap());
    let options = [
        ("router", "two_stage"),
        ("shared_heads", "2"),
        ("active_routed_heads", "2"),
    ];
    let zero = converted(&out, &[&options[..], &[("std", "0")]].concat()).unwrap();
    assert!(worst(&logits(&zero), &before) < 1e-4, "gates of 1");
    let small = converted(&out, &[&options[..], &[("std", "0.0002")]].concat()).unwrap();
    let near = worst(&logits(&small), &before);
    let published = worst(&logits(&converted(&out, &options).unwrap()), &before);
    assert!(0.0 < near && near < 0.1 && near < published / 5.0, "{near} {published}");
    let checkpoint = Checkpoint::open(&out).unwrap();
    for (name, rows) in [("wg", 2), ("wg_1", 2), ("wg_0", 2)] {
        let info = checkpoint
            .info(&format!("model.layers.1.self_attn.{name}.weight"))
            .unwrap();
        assert_eq!(info.shape, [rows, 64]);
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("moh");
    let refused = |options: &[(&str, &str)]| converted(&out, options).err().expect("refused");
    assert!(refused(&[("shared_heads", "5")]).contains("at most num_attention_heads = 4, is 5"));
    assert!(refused(&[("active_routed_heads", "3")]).contains("at most the 2 routed heads"));
    assert!(refused(&[("shared_heads", "many")]).contains("\"many\""));
    assert!(refused(&[("router", "best")]).contains("moh.router"));
    assert!(refused(&[("heads", "1")]).contains("unknown"));
    assert!(refused(&[("std", "-1")]).contains("negative"));
}
