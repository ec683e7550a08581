//! Small checkpoints of every family, written under any names.

use ounce_formats::{Dtype, as_bytes, write_file};
use ounce_model::{
    Batch, Model, ModelConfig, OpenOptions, model_tensors,
    weights::{FreshWeights, Weights},
};
use ounce_tensor::Compute;
use serde_json::{Value, json};
use std::{collections::BTreeMap, path::Path};

pub(crate) const FAMILIES: [&str; 8] = [
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "olmoe",
];
pub(crate) const MIXTURES: [&str; 4] = ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe"];

/// D, I and E: all different, so that nothing fits by chance.
pub(crate) const D: usize = 8;
pub(crate) const I: usize = 6;
pub(crate) const E: usize = 3;

pub(crate) fn config(family: &str, tied: bool) -> Value {
    let mut config = json!({
        "model_type": family, "vocab_size": 11, "hidden_size": D, "intermediate_size": I, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": tied, "hidden_act": "silu",
    });
    let more = match family {
        "qwen3" => json!({ "head_dim": 4 }),
        "mixtral" => json!({ "num_local_experts": E, "num_experts_per_tok": 2, "sliding_window": null }),
        "qwen2_moe" => json!({
            "num_experts": E, "num_experts_per_tok": 2, "moe_intermediate_size": I, "shared_expert_intermediate_size": 10,
            "norm_topk_prob": false, "decoder_sparse_step": 1,
        }),
        "qwen3_moe" => json!({
            "num_experts": E, "num_experts_per_tok": 2, "moe_intermediate_size": I, "head_dim": 4, "norm_topk_prob": true,
            "decoder_sparse_step": 1,
        }),
        "olmoe" => json!({ "num_experts": E, "num_experts_per_tok": 2, "norm_topk_prob": false }),
        _ => json!({}),
    };
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

/// A tensor of a file.
#[derive(Clone)]
pub(crate) struct Stored {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl Stored {
    pub(crate) fn f32(name: &str, shape: &[usize], values: &[f32]) -> Self {
        Self {
            name: name.to_owned(),
            dtype: Dtype::F32,
            shape: shape.to_vec(),
            bytes: as_bytes(values).to_vec(),
        }
    }

    pub(crate) fn floats(&self) -> Vec<f32> {
        self.bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect()
    }
}

/// The tensors of a fresh model.
pub(crate) fn tensors(config: &Value) -> Vec<Stored> {
    let parsed = ModelConfig::parse("config.json", config).unwrap();
    let mut fresh = FreshWeights { seed: 7, std: 0.3 };
    model_tensors(&parsed)
        .unwrap()
        .into_iter()
        .map(|(name, shape)| {
            let values = fresh.tensor(&name, &shape).unwrap().to_f32();
            Stored::f32(&name, &shape, &values)
        })
        .collect()
}

pub(crate) fn write(dir: &Path, config: &Value, tensors: &[Stored]) {
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let list: Vec<_> = tensors
        .iter()
        .map(|t| (t.name.as_str(), t.dtype, &t.shape[..], &t.bytes[..]))
        .collect();
    write_file(&dir.join("model.safetensors"), &list, &BTreeMap::new()).unwrap();
}

pub(crate) fn logits(model: &Model) -> Vec<f32> {
    let input = Batch {
        ids: &[1, 5, 3, 10, 2, 7],
        batch: 1,
        compute: Compute::F32,
    };
    model.forward(input).unwrap().to_f32()
}

/// Writes the tensors and opens them: logits and notes.
pub(crate) fn opened(config: &Value, tensors: &[Stored]) -> (Vec<f32>, String) {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), config, tensors);
    let model = Model::open(dir.path(), &OpenOptions::default()).unwrap_or_else(|e| panic!("{e}; {:?}", e.hint()));
    (logits(&model), model.notes().join("\n"))
}

/// Message and hint of the refusal.
pub(crate) fn refused(config: &Value, tensors: &[Stored]) -> (String, String) {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), config, tensors);
    let error = Model::open(dir.path(), &OpenOptions::default())
        .err()
        .expect("to be refused");
    let message = error.to_string();
    (
        message.replace(&dir.path().display().to_string(), "DIR"),
        error.hint().unwrap_or_default(),
    )
}

pub(crate) fn renamed(tensors: &[Stored], rename: impl Fn(&str) -> String) -> Vec<Stored> {
    let named = |t: &Stored| Stored {
        name: rename(&t.name),
        ..t.clone()
    };
    tensors.iter().map(named).collect()
}
