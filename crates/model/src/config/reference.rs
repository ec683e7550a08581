//! What the reference's configuration classes say: the keys of each family, what a key that is left out means, and where
//! `null` may stand. The table is `reference.json`.

use serde_json::{Map, Value};
use std::sync::LazyLock;

static TABLE: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("reference.json")).unwrap_or_default());

/// The keys of a family and what each means where it is left out; none if the reference has no such family.
pub(super) fn defaults(family: &str) -> Option<&'static Map<String, Value>> {
    TABLE["families"][family]["keys"].as_object()
}

/// Has `null` a meaning for this key? It has none where the reference refuses it, or fails on it.
pub(super) fn may_be_null(family: &str, key: &str) -> bool {
    let family = &TABLE["families"][family];
    let listed = |v: &Value| v.as_array().is_some_and(|l| l.iter().any(|k| k == key));
    family["keys"].get(key).is_none_or(Value::is_null) || listed(&family["nullable"])
}

/// A key that has another name, which wins where both stand.
pub(super) fn other_name(family: &str) -> Option<(&'static str, &'static str)> {
    let names = TABLE["families"][family]["other_name"].as_object()?;
    names
        .iter()
        .find_map(|(key, other)| Some((key.as_str(), other.as_str()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ModelConfig, config::families::Known};
    use serde_json::json;

    /// The families of the table.
    fn families() -> Vec<&'static str> {
        TABLE["families"]
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect()
    }

    #[test]
    fn every_key_of_the_reference_is_used_or_harmless() {
        assert_eq!(families().len(), 8);
        let common: Vec<&str> = TABLE["every_family"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_str)
            .collect();
        assert!(common.contains(&"dtype"));
        for name in families() {
            let family = Known::find(name).unwrap();
            for key in common
                .iter()
                .copied()
                .chain(defaults(name).unwrap().keys().map(String::as_str))
            {
                let used = family.uses(key, false);
                assert!(
                    used != crate::config::verdict::is_harmless(key),
                    "{name}: {key} is used: {used}"
                );
            }
        }
    }

    #[test]
    fn a_configuration_without_keys_is_the_references_default() {
        for name in families() {
            let keys = defaults(name).unwrap();
            let config = ModelConfig::parse("config.json", &json!({ "model_type": name })).unwrap();
            let number = |key: &str| keys.get(key).and_then(Value::as_f64);
            let heads = number("num_attention_heads").unwrap();
            let kv_heads = number("num_key_value_heads").unwrap_or(heads);
            let head_dim = number("head_dim").unwrap_or(number("hidden_size").unwrap() / heads);
            for (said, key, want) in [
                (config.vocab_size as f64, "vocab_size", None),
                (config.hidden_size as f64, "hidden_size", None),
                (config.layers.len() as f64, "num_hidden_layers", None),
                (config.heads as f64, "heads", Some(heads)),
                (config.kv_heads as f64, "kv_heads", Some(kv_heads)),
                (config.head_dim as f64, "head_dim", Some(head_dim)),
                (config.max_positions as f64, "max_position_embeddings", None),
                (config.rms_norm_eps, "rms_norm_eps", None),
                (config.rope.theta, "rope_theta", None),
            ] {
                assert_eq!(Some(said), want.or(number(key)), "{name}: {key}");
            }
            let eos: Vec<u32> = number("eos_token_id").map(|id| id as u32).into_iter().collect();
            assert_eq!(config.eos_ids, eos, "{name}");
            let window = (name == "mistral").then_some(4096);
            assert!(config.layers.iter().all(|l| l.window == window), "{name}");
            match config.layers[0].ffn.moe() {
                None => assert_eq!(
                    Some(config.layers[0].ffn.width() as f64),
                    number("intermediate_size"),
                    "{name}"
                ),
                Some(moe) => {
                    assert_eq!(Some(moe.top_k as f64), number("num_experts_per_tok"), "{name}");
                    let width = number("moe_intermediate_size").or(number("intermediate_size"));
                    assert_eq!(Some(moe.width as f64), width, "{name}");
                    let experts = number("num_experts").or(number("num_local_experts"));
                    assert_eq!(Some(moe.experts as f64), experts, "{name}");
                    assert_eq!(moe.norm_topk, name == "mixtral");
                }
            }
        }
        // The table itself, where families differ most.
        let theta = |family: &str| defaults(family).unwrap()["rope_theta"].as_f64();
        assert_eq!((theta("mixtral"), theta("mistral")), (Some(1e6), Some(1e4)));
        assert_eq!(defaults("qwen3").unwrap()["head_dim"], 128);
    }

    #[test]
    fn null_is_what_the_reference_makes_of_it() {
        let parse = |family: &str, key: &str, value: Value| {
            let mut json = json!({ "model_type": family });
            json[key] = value;
            ModelConfig::parse("config.json", &json).map_err(|e| e.to_string())
        };
        assert_eq!(parse("qwen2", "num_key_value_heads", Value::Null).unwrap().kv_heads, 32);
        assert_eq!(
            parse("mistral", "sliding_window", Value::Null).unwrap().layers[0].window,
            None
        );
        assert!(parse("llama", "eos_token_id", Value::Null).unwrap().eos_ids.is_empty());
        for (family, key) in [
            ("mistral", "num_key_value_heads"),
            ("qwen3", "head_dim"),
            ("llama", "rope_theta"),
        ] {
            let error = parse(family, key, Value::Null).unwrap_err();
            assert!(error.contains(key) && error.contains("null"), "{error}");
        }
    }

    #[test]
    fn two_places_that_disagree_are_resolved_as_the_reference_does_or_refused() {
        let parse = |json: Value| ModelConfig::parse("config.json", &json);
        let both = parse(json!({ "model_type": "mixtral", "num_local_experts": 4, "num_experts": 6 })).unwrap();
        assert_eq!(both.layers[0].ffn.moe().unwrap().experts, 6);
        assert!(
            both.ignored.iter().any(|k| k.contains("num_local_experts")),
            "{:?}",
            both.ignored
        );
        let types = |on: bool| {
            let kinds = json!(["full_attention", "sliding_attention"]);
            parse(
                json!({ "model_type": "qwen2", "num_hidden_layers": 2, "use_sliding_window": on, "layer_types": kinds }),
            )
        };
        assert_eq!(types(true).unwrap().layers[1].window, Some(4096));
        let error = types(false).unwrap_err().to_string();
        assert!(
            error.contains("layer_types") && error.contains("use_sliding_window"),
            "{error}"
        );
        // Biases belong to the families that read the key.
        let mistral = parse(json!({ "model_type": "mistral", "attention_bias": true })).unwrap();
        assert!(!mistral.qkv_bias && !mistral.o_bias && mistral.ignored == ["attention_bias"]);
    }
}
