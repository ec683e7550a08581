//! GGUF files of every architecture give the logits that transformers computes from what they mean
//! (`fixtures/gguf/make.py`), and what cannot be kept is refused by name.

use ounce_model::{Batch, Model, OpenOptions};
use ounce_tensor::Compute;
use std::path::{Path, PathBuf};

const IDS: [u32; 10] = [3, 1, 4, 1, 5, 9, 2, 6, 23, 0];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/gguf")
        .join(name)
}

fn last_logits(path: &Path, widen: bool) -> Vec<f32> {
    let options = OpenOptions { widen, attention: None };
    let model = Model::open(path, &options).unwrap_or_else(|e| panic!("{e}"));
    let input = Batch {
        ids: &IDS,
        batch: 1,
        compute: Compute::F32,
    };
    let logits = model.forward(input).unwrap();
    let v = logits.last_dim();
    logits.to_f32()[(IDS.len() - 1) * v..].to_vec()
}

#[test]
fn every_architecture_computes_what_transformers_does() {
    let wanted = std::fs::read(fixture("logits.json")).unwrap();
    let wanted: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&wanted).unwrap();
    assert_eq!(wanted.len(), 7);
    for (name, values) in &wanted {
        let path = fixture(&format!("{name}.gguf"));
        let (blocks, wide) = (last_logits(&path, false), last_logits(&path, true));
        let values = values.as_array().unwrap();
        assert_eq!(values.len(), blocks.len(), "{name}");
        for ((ours, wide), value) in blocks.iter().zip(&wide).zip(values) {
            let value = value.as_f64().unwrap() as f32;
            assert!((ours - value).abs() < 2e-5, "{name}: {ours}, transformers {value}");
            assert!((ours - wide).abs() < 2e-5, "{name}: {ours}, widened {wide}");
        }
    }
}

/// The bytes of a fixture with one text in it replaced by another of the same length.
fn changed(dir: &Path, name: &str, from: &str, to: &str) -> String {
    let mut bytes = std::fs::read(fixture(name)).unwrap();
    let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    let path = dir.join(name);
    std::fs::write(&path, bytes).unwrap();
    match Model::open(&path, &OpenOptions::default()) {
        Ok(_) => panic!("{from} as {to} was taken"),
        Err(e) => e.to_string(),
    }
}

#[test]
fn what_cannot_be_kept_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    for (from, to, wanted) in [
        ("\0\0\0llama", "\0\0\0gemma", "\"gemma\" is not supported"),
        (
            "blk.1.ffn_up.weight",
            "blk.1.ffn_xx.weight",
            "tensor \"blk.1.ffn_xx.weight\": is unknown",
        ),
        ("blk.1.ffn_up.weight", "blk.7.ffn_up.weight", "is missing"),
        ("llama.block_count", "llama.block_xxxxx", "llama.block_count"),
        ("token_embd.weight", "token_xxxx.weight", "token_embd.weight"),
    ] {
        let error = changed(dir.path(), "llama.gguf", from, to);
        assert!(
            error.contains(wanted) && error.contains("llama.gguf"),
            "{error}\nwanted: {wanted}"
        );
    }
}
