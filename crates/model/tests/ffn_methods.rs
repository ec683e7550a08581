//! Methods of the feed-forward slot inside a whole model: decode, batches, files.

use ounce_formats::{Dtype, TensorSpec, fsx, write_file};
use ounce_model::{Batch, Model, ModelConfig, OpenOptions, config::ModelShape, weights::FreshWeights};
use ounce_tensor::{Compute, no_grad};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const VOCABULARY: usize = 40;

/// A small random model of a family, and its `config.json`.
fn model(family: &str, own: &Value) -> (Model, Value) {
    let shape: ModelShape = serde_json::from_value(json!({
        "family": family, "hidden_size": 16, "layers": 2, "heads": 2, "intermediate_size": 24, "experts": 5,
        "config": own, "initializer_range": 0.3, "max_positions": 64
    }))
    .unwrap();
    let json = shape.to_json(VOCABULARY, None, None);
    let config = ModelConfig::parse("config.json", &json).unwrap();
    let weights = &mut FreshWeights {
        seed: 3,
        std: config.initializer_range,
    };
    (Model::new(config, weights).unwrap(), json)
}

fn families() -> Vec<(&'static str, Value)> {
    let aoe = |score: &str| {
        json!({ "num_experts_per_tok": 2, "aoe_d_low": 4, "aoe_d_wide": 20, "aoe_score": score,
                "router_aux_loss_coef": 0.01 })
    };
    vec![
        ("aoe", aoe("softmax_selected")),
        ("aoe", aoe("softmax_all")),
        ("mole", json!({ "hidden_act": "gelu" })),
        ("mole_lut", json!({ "hidden_act": "gelu" })),
    ]
}

fn input(ids: &[u32], batch: usize) -> Batch<'_> {
    Batch {
        ids,
        batch,
        compute: Compute::F32,
    }
}

fn ids(n: usize, seed: usize) -> Vec<u32> {
    (0..n)
        .map(|i| ((i * i * 7 + 3 * i + 11 * seed) % VOCABULARY) as u32)
        .collect()
}

fn close(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-4)
}

#[test]
fn decode_with_a_cache_equals_the_full_forward() {
    for (family, own) in families() {
        let (model, _) = model(family, &own);
        let ids = ids(14, 1);
        let full = no_grad(|| model.forward(input(&ids, 1))).unwrap().to_f32();
        let mut cache = model.cache(ids.len());
        for (from, to) in std::iter::once((0, 5)).chain((5..ids.len()).map(|t| (t, t + 1))) {
            let logits = no_grad(|| model.prefill(&ids[from..to], Compute::F32, &mut *cache)).unwrap();
            let expected = &full[(to - 1) * VOCABULARY..to * VOCABULARY];
            assert!(close(&logits.to_f32(), expected), "{family}: after {to} tokens");
        }
    }
}

#[test]
fn rows_of_a_batch_are_as_if_alone() {
    for (family, own) in families() {
        let (model, _) = model(family, &own);
        let rows = [ids(9, 1), ids(9, 2), ids(9, 1)];
        let together = no_grad(|| model.forward(input(&rows.concat(), 3))).unwrap().to_f32();
        for (row, expected) in rows.iter().zip(together.chunks_exact(9 * VOCABULARY)) {
            let alone = no_grad(|| model.forward(input(row, 1))).unwrap().to_f32();
            assert!(close(&alone, expected), "{family}");
        }
    }
}

#[test]
fn a_model_goes_through_files_bit_for_bit() {
    for (family, own) in families() {
        let (mut model, config) = model(family, &own);
        let dir = tempfile::tempdir().unwrap();
        fsx::write_atomic(&dir.path().join("config.json"), config.to_string().as_bytes()).unwrap();
        let mut tensors = Vec::new();
        model.visit(&mut |p| tensors.push((p.name.clone(), p.tensor.clone())));
        let listed: Vec<_> = tensors
            .iter()
            .map(|(name, t)| (name.as_str(), Dtype::F32, t.shape(), t.bytes()))
            .collect();
        write_file(&dir.path().join("model.safetensors"), &listed, &BTreeMap::new()).unwrap();
        let mut read = Model::open(dir.path(), &OpenOptions::default()).unwrap();
        let mut again = Vec::new();
        read.visit(&mut |p| again.push((p.name.clone(), p.tensor.clone())));
        assert_eq!(tensors.len(), again.len());
        for ((name, a), (other, b)) in tensors.iter().zip(&again) {
            assert_eq!(name, other);
            assert_eq!(a.bytes(), b.bytes(), "{family}: {name}");
        }
        let ids = ids(7, 3);
        let logits = |m: &Model| no_grad(|| m.forward(input(&ids, 1))).unwrap().to_f32();
        assert_eq!(logits(&model), logits(&read), "{family}");
        let listed: Vec<TensorSpec> = ounce_model::model_tensors(&model.config)
            .unwrap()
            .into_iter()
            .map(|(name, shape)| TensorSpec::new(name, Dtype::F32, shape))
            .collect();
        assert_eq!(
            listed.len(),
            tensors.len(),
            "{family}: the list of tensors is that of the model"
        );
    }
}

/// A family refuses the keys of another, also below `[model.config]` of a recipe.
#[test]
fn keys_of_a_recipe_are_checked_like_those_of_a_file() {
    let shape: ModelShape = serde_json::from_value(json!({
        "family": "mole", "hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 24, "experts": 2,
        "experts_per_token": 2
    }))
    .unwrap();
    let error = shape.to_config(VOCABULARY, None, None).unwrap_err().to_string();
    assert!(
        error.contains("model.experts_per_token") && error.contains("unknown to family"),
        "{error}"
    );
}
