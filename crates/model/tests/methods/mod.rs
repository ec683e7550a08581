//! A small model of every attention and feed-forward method.

use ounce_model::{Model, ModelConfig, weights::FreshWeights};
use serde_json::{Value, json};

pub(crate) const VOCABULARY: usize = 40;

/// Every attention method, beside the keys that ask for it.
pub(crate) fn attentions() -> Vec<(&'static str, Value)> {
    let moh = |router: &str, shared: usize| json!({ "moh": { "router": router, "shared_heads": shared, "active_routed_heads": 2 } });
    let dga = |selection: &str, bias: &str| json!({ "dga": { "group_size": 3, "focal_ratio": 0.2, "selection": selection, "group_bias": bias } });
    vec![
        ("full", json!({})),
        ("window", json!({ "model_type": "mistral", "sliding_window": 7 })),
        ("moh two_stage", moh("two_stage", 2)),
        ("moh two_stage, nothing shared", moh("two_stage", 0)),
        ("moh query_norm", moh("query_norm", 2)),
        ("dga global", dga("global", "none")),
        ("dga causal_block", dga("causal_block", "entropy")),
        // Some of the sequences are short enough to be attended exactly.
        (
            "dga exact",
            json!({ "dga": { "group_size": 3, "focal_ratio": 0.2, "min_len": 32 } }),
        ),
    ]
}

/// Every feed-forward method, beside its keys.
pub(crate) fn feed_forwards() -> Vec<(&'static str, Value)> {
    let aoe = |score: &str| {
        json!({ "model_type": "aoe", "num_experts": 5, "num_experts_per_tok": 2, "aoe_d_low": 4, "aoe_d_wide": 20,
                "aoe_score": score })
    };
    vec![
        ("dense", json!({})),
        (
            "mixtral",
            json!({ "model_type": "mixtral", "num_local_experts": 5, "num_experts_per_tok": 2 }),
        ),
        (
            "qwen2_moe",
            json!({ "model_type": "qwen2_moe", "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 12,
                    "shared_expert_intermediate_size": 12, "norm_topk_prob": true }),
        ),
        ("aoe of the selected", aoe("softmax_selected")),
        ("aoe of all", aoe("softmax_all")),
        ("mole", json!({ "model_type": "mole", "num_experts": 3 })),
        ("mole_lut", json!({ "model_type": "mole_lut", "num_experts": 3 })),
    ]
}

/// A Llama with the method's own keys and random weights.
pub(crate) fn model(own: &Value) -> Model {
    let mut json = json!({
        "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 128,
        "router_aux_loss_coef": 0.0,
    });
    if !["mixtral", "qwen2_moe", "aoe"].contains(&own["model_type"].as_str().unwrap_or_default()) {
        json.as_object_mut().unwrap().remove("router_aux_loss_coef");
    }
    for (key, value) in own.as_object().unwrap() {
        json[key] = value.clone();
    }
    let config = ModelConfig::parse("test", &json).unwrap();
    Model::new(config, &mut FreshWeights { seed: 3, std: 0.3 }).unwrap()
}

pub(crate) fn ids(n: usize, seed: usize) -> Vec<u32> {
    (0..n)
        .map(|i| ((i * i * 7 + 3 * i + 11 * seed) % VOCABULARY) as u32)
        .collect()
}
