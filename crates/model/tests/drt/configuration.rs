//! What a configuration may say, what it makes (sizes, bytes, bill), and the authors' files.

use crate::{forward, fresh, ids, json_of};
use ounce_model::{Model, ModelConfig, ModelError, OpenOptions};
use ounce_tensor::{Compute, no_grad};
use serde_json::{Value, json};

fn refusal(change: impl FnOnce(&mut Value)) -> (String, String) {
    let mut json = json_of(&[1, 1], 2, true);
    change(&mut json);
    match ModelConfig::parse("config.json", &json) {
        Err(ModelError::Config { key, rule, .. }) => (key, rule),
        other => panic!("{other:?}"),
    }
}

#[test]
fn bad_values_are_refused_by_key_and_rule() {
    let set = |key: &'static str, value: Value| refusal(move |json| json[key] = value);
    let cases = [
        ("enc_chunk_size", json!(0), "at least 1 token"),
        ("chunk_topk", json!(0), "at least 1 chunk"),
        ("chunk_topk", json!("many"), "whole number"),
        ("slide_window", json!(5), "at least enc_chunk_size + 1 = 6, is 5"),
        ("decoder_layers", json!([2]), "at least one group"),
        ("decoder_layers", json!([2, 0]), "each 1 or more"),
        ("encoder_layers", json!(0), "at least 1 layer"),
        ("chunk_id", json!(40), "below vocab_size = 40"),
        ("chunk_memory", json!("int8"), "\"f32\" or \"f16\""),
        ("enable_alibi", json!(false), "only true"),
        ("chunk_window", json!(16), "only -1"),
        ("num_hidden_layers", json!(7), "sum of decoder_layers, 2"),
        ("num_hidden_layers", json!("seven"), "whole number"),
        ("max_position_embeddings", json!("x"), "whole number"),
        ("num_attention_heads", json!(5), "must divide hidden_size"),
        ("num_key_value_heads", json!(3), "must divide num_attention_heads"),
        ("rope_theta", json!(500_000.0), "rotary base is 10000"),
        ("attention_bias", json!(true), "no biases"),
        ("hidden_act", json!("gelu"), "only \"silu\""),
        ("dga", json!({"group_size": 4}), "windowed attention of its own"),
        ("model_type", json!("qwen2"), "says \"drt\""),
        ("sliding_window", json!(128), "unknown to family \"drt\""),
    ];
    for (key, value, rule) in cases {
        let (found, said) = set(key, value.clone());
        assert!(found == key && said.contains(rule), "{key} = {value}: {found}: {said}");
    }
    let (key, rule) = refusal(|json| _ = json.as_object_mut().unwrap().remove("landmark_null_slot"));
    assert!(key == "enc_chunk_size" && rule.contains("modulo 64"), "{rule}");
    // One of the two keys that make the family: never a Llama.
    for key in ["enc_chunk_size", "decoder_layers"] {
        let mut json = json_of(&[1, 1], 2, true);
        json.as_object_mut().unwrap().remove(key);
        let all = ModelConfig::parse("config.json", &json).unwrap_err();
        assert!(all.to_string().contains("unknown to family \"llama\""), "{all}");
    }
}

#[test]
fn chunk_sizes_decide_the_landmarks_row_where_nothing_is_said() {
    for (s, rows) in [(63, 64), (64, 64)] {
        let mut json = json_of(&[1, 1], 2, true);
        json.as_object_mut().unwrap().remove("landmark_null_slot");
        (json["enc_chunk_size"], json["slide_window"]) = (s.into(), 80.into());
        let model = fresh(&json);
        let mut cache = model.cache(0);
        no_grad(|| model.prefill(&ids(s), Compute::F32, &mut *cache)).unwrap();
        // Windows of two layers with two key heads of 8; rows of 32 keys and 32 values; one landmark.
        let (windows, chunks, landmarks) = (2 * 2 * 16 * (s + 1), rows * 2 * 32, 32);
        assert_eq!(cache.bytes(), 4 * (windows + chunks + landmarks));
    }
}

/// State dicts saved from within data-parallel training have another prefix; slopes that differ are another model.
#[test]
fn the_authors_state_dicts_load() {
    use ounce_formats::{SafetensorsFile, write_file};
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../lab/tests/fixtures/golden/drt_no_slot");
    let file = SafetensorsFile::open(&golden.join("model.safetensors")).unwrap();
    let copy = |rename: &dyn Fn(&str) -> String, slope: f32| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(golden.join("config.json"), dir.path().join("config.json")).unwrap();
        let slopes = [slope, 0.0625, 0.015_625, 0.003_906_25];
        let names: Vec<(String, &str)> = file.names().map(|name| (rename(name), name)).collect();
        let tensors: Vec<_> = names
            .iter()
            .map(|(new, old)| {
                let view = file.view(old).unwrap();
                let bytes = if old.ends_with("self_attn.m") {
                    ounce_formats::as_bytes(&slopes)
                } else {
                    view.bytes
                };
                (new.as_str(), view.dtype, view.shape, bytes)
            })
            .collect();
        write_file(
            &dir.path().join("model.safetensors"),
            &tensors,
            &std::collections::BTreeMap::new(),
        )
        .unwrap();
        Model::open(dir.path(), &OpenOptions::widened())
    };
    let plain = copy(&|name| name.to_owned(), 0.25).unwrap();
    let parallel = copy(&|name| format!("module.{name}"), 0.25).unwrap();
    assert_eq!(forward(&plain, &ids(70), 1), forward(&parallel, &ids(70), 1));
    let error = copy(&|name| name.to_owned(), 0.5).err().unwrap().to_string();
    assert!(error.contains("self_attn.m") && error.contains("slopes"), "{error}");
}

/// The authors' configuration, key by key: 146 M parameters, of which a 12-layer decoder alone would have 123.5 M.
#[test]
fn the_published_configuration_has_the_published_size() {
    let json = json!({
        "architectures": ["DRTForCausalLM"], "model_type": "llama", "hidden_size": 768, "num_attention_heads": 12,
        "num_key_value_heads": 12, "intermediate_size": 2048, "vocab_size": 50265, "num_hidden_layers": -1,
        "max_position_embeddings": -1, "hidden_act": "silu", "attention_bias": false, "bos_id": 50256, "pad_id": 50257,
        "mask_id": 50263, "chunk_id": 50264, "encoder_layers": 2, "decoder_layers": [6, 6], "enc_chunk_size": 63,
        "chunk_topk": 8, "chunk_window": -1, "slide_window": 512, "enable_alibi": true, "enable_softmax_one": true,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "initializer_range": 0.02, "rope_scaling": null,
        "rope_theta": 10000.0, "pretraining_tp": 1, "torch_dtype": "float32", "use_cache": true,
    });
    let config = ModelConfig::parse("config.json", &json).unwrap();
    assert_eq!((config.model_type.as_str(), config.layers.len()), ("drt", 12));
    let (d, ffn, vocab) = (768, 3 * 768 * 2048, 50265);
    let layer = 4 * d * d + ffn + 2 * d;
    let decoder = vocab * d + 12 * layer + d;
    let own = 6 * (2 * d * d + d) + 2 * layer + d + d + 2 * d * d + d;
    assert_eq!(ounce_model::parameter_count(&config).unwrap(), decoder + own);
    assert_eq!((decoder / 100_000, (decoder + own) / 1_000_000), (1235, 145));
    let bill = config.plan.as_ref().unwrap().bill(&config, 2);
    // 64 rows of keys and values per 63 tokens in 2 bytes, one landmark in 4.
    let per_token = (64.0 * 2.0 * 768.0 * 2.0 + 4.0 * 768.0) / 63.0;
    assert!((bill.memory_bytes_per_token - per_token).abs() < 1e-9);
    // 16 M tokens: 51.5 GB of chunks in the paper's arithmetic, which leaves out the landmarks and their rows.
    assert!((bill.memory_bytes_per_token * 16.777e6 / 1e9 - 51.5).abs() < 2.0);
    // Every product once: decoder weights without embedding, times 64/63, and the head.
    let weights = (12 * (layer - 2 * d) + 6 * 2 * d * d + 2 * (layer - 2 * d) + 2 * d * d) as f64;
    let flops = 2.0 * (weights * 64.0 / 63.0 + (vocab * d) as f64);
    assert!(
        (bill.flops_per_token - flops).abs() < 1.0,
        "{} {flops}",
        bill.flops_per_token
    );
}

#[test]
fn windows_with_few_chunks_are_doubted() {
    let config = ModelConfig::parse("config.json", &json_of(&[1, 1], 2, true)).unwrap();
    let doubt = |length| config.plan.as_ref().unwrap().doubt(length);
    assert!(doubt(44).unwrap().contains("has 8 chunks of which 2 are retrieved"));
    assert_eq!(doubt(45), None);
}
