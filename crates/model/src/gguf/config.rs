//! Keys of a GGUF file to the configuration that a Hugging Face folder of the same model has.

use super::{bad_key, bad_tensor};
use crate::error::Result;
use ounce_formats::{Gguf, gguf::Value as Key};
use serde_json::{Map, Value, json};

const ARCHITECTURE: &str = "general.architecture";

/// Architecture of the file, and the family it is without experts.
const FAMILIES: [(&str, &str); 6] = [
    ("llama", "llama"),
    ("qwen2", "qwen2"),
    ("qwen3", "qwen3"),
    ("qwen2moe", "qwen2_moe"),
    ("qwen3moe", "qwen3_moe"),
    ("olmoe", "olmoe"),
];

/// Keys of one architecture.
struct Keys<'a> {
    file: &'a Gguf,
    architecture: &'a str,
}

impl Keys<'_> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn size(&self, key: &str) -> Result<Option<u64>> {
        let name = self.name(key);
        // Some files say a size per layer; it must then be the same one.
        if let Some(Key::Array(_)) = self.file.metadata().get(&name) {
            let all = self.file.metadata().numbers(&name)?.unwrap_or_default();
            return match all.first() {
                Some(&first) if first >= 0.0 && all.iter().all(|&n| n == first) => Ok(Some(first as u64)),
                _ => bad_key(
                    self.file,
                    &name,
                    "differs from layer to layer, which is not supported",
                    "",
                ),
            };
        }
        Ok(self.file.metadata().unsigned(&name)?)
    }

    fn needed(&self, key: &str) -> Result<u64> {
        match self.size(key)? {
            Some(size) => Ok(size),
            None => bad_key(
                self.file,
                &self.name(key),
                "is missing",
                "the file was made by a faulty conversion",
            ),
        }
    }

    /// A number that the file holds in single precision, as the shortest decimal that gives it: 1e-5, and not what is
    /// nearest to it.
    fn number(&self, key: &str) -> Result<Option<f64>> {
        let number = self.file.metadata().float(&self.name(key))?;
        Ok(number.map(|x| (x as f32).to_string().parse().unwrap_or(x)))
    }
}

/// The configuration of the file.
pub(super) fn read(file: &Gguf) -> Result<Value> {
    let known = FAMILIES.map(|(name, _)| name).join(", ");
    let Some(architecture) = file.metadata().text(ARCHITECTURE)? else {
        return bad_key(file, ARCHITECTURE, "is missing", "is this file a language model?");
    };
    let Some((_, family)) = FAMILIES.iter().find(|(name, _)| *name == architecture) else {
        let rule = format!("\"{architecture}\" is not supported");
        return bad_key(file, ARCHITECTURE, rule, &format!("known: {known}"));
    };
    let keys = Keys { file, architecture };
    let experts = keys.size("expert_count")?.unwrap_or(0);
    let family = if *family == "llama" && experts > 0 {
        "mixtral"
    } else {
        family
    };
    let Some(table) = file.info("token_embd.weight") else {
        return bad_tensor(
            file,
            "token_embd.weight",
            "is missing",
            "is this file a vocabulary without a model?",
        );
    };
    let heads = keys.needed("attention.head_count")?;
    let hidden = keys.needed("embedding_length")?;
    let head_dim = match keys.size("attention.key_length")? {
        Some(size) => size,
        None => hidden.checked_div(heads).unwrap_or(0),
    };
    for (key, rule) in [
        ("attention.value_length", "differs from the length of keys"),
        (
            "rope.dimension_count",
            "is not the size of a head: rotating a part of it is not supported",
        ),
    ] {
        if keys.size(key)?.is_some_and(|size| size != head_dim) {
            return bad_key(file, &keys.name(key), rule, "");
        }
    }
    let mut config = Map::new();
    let mut set = |key: &str, value: Value| config.insert(key.to_owned(), value);
    set("model_type", json!(family));
    set("vocab_size", json!(table.shape.first().copied().unwrap_or(0)));
    set("hidden_size", json!(hidden));
    set("num_hidden_layers", json!(keys.needed("block_count")?));
    set("num_attention_heads", json!(heads));
    set(
        "num_key_value_heads",
        json!(keys.size("attention.head_count_kv")?.unwrap_or(heads)),
    );
    if family != "qwen2" && family != "qwen2_moe" && family != "olmoe" {
        set("head_dim", json!(head_dim));
    } else if head_dim.checked_mul(heads) != Some(hidden) {
        return bad_key(
            file,
            &keys.name("attention.key_length"),
            "times the heads is not the width",
            "",
        );
    }
    set("hidden_act", json!("silu"));
    set("max_position_embeddings", json!(keys.needed("context_length")?));
    let Some(eps) = keys.number("attention.layer_norm_rms_epsilon")? else {
        return bad_key(file, &keys.name("attention.layer_norm_rms_epsilon"), "is missing", "");
    };
    set("rms_norm_eps", json!(eps));
    set("tie_word_embeddings", json!(!file.contains("output.weight")));
    set("rope_theta", json!(keys.number("rope.freq_base")?.unwrap_or(10_000.0)));
    if let Some(scaling) = scaling(&keys)? {
        set("rope_scaling", scaling);
    }
    if let Some(window) = keys.size("attention.sliding_window")?.filter(|&w| w > 0) {
        return bad_key(
            file,
            &keys.name("attention.sliding_window"),
            format!("is {window}; windows of GGUF files are not supported"),
            "take the Hugging Face folder of this model",
        );
    }
    if family == "llama" {
        set("attention_bias", json!(file.contains("blk.0.attn_q.bias")));
        set("mlp_bias", json!(file.contains("blk.0.ffn_gate.bias")));
    }
    let width = keys.size("feed_forward_length")?;
    let expert_width = keys.size("expert_feed_forward_length")?.or(width);
    match family {
        "mixtral" => {
            set("num_local_experts", json!(experts));
            set("num_experts_per_tok", json!(keys.needed("expert_used_count")?));
            set("intermediate_size", json!(expert_width));
        }
        "qwen2_moe" | "qwen3_moe" | "olmoe" => {
            set("num_experts", json!(experts));
            set("num_experts_per_tok", json!(keys.needed("expert_used_count")?));
            // llama.cpp's own graphs: only Qwen 3 divides the chosen probabilities by their sum.
            set("norm_topk_prob", json!(family == "qwen3_moe"));
            if family == "olmoe" {
                set("intermediate_size", json!(expert_width));
                if let Some(clip) = keys.number("attention.clamp_kqv")? {
                    set("clip_qkv", json!(clip));
                }
            } else {
                set("intermediate_size", json!(width));
                set("moe_intermediate_size", json!(expert_width));
                set("decoder_sparse_step", json!(1));
                set("mlp_only_layers", json!([]));
            }
            if family == "qwen2_moe" {
                let shared = file
                    .info("blk.0.ffn_gate_shexp.weight")
                    .and_then(|t| t.shape.first().copied());
                set("shared_expert_intermediate_size", json!(shared.unwrap_or(0)));
            }
        }
        _ => {
            set("intermediate_size", json!(width));
        }
    }
    for (key, name) in [
        ("bos_token_id", "tokenizer.ggml.bos_token_id"),
        ("eos_token_id", "tokenizer.ggml.eos_token_id"),
    ] {
        if let Some(id) = file.metadata().unsigned(name)? {
            set(key, json!(id));
        }
    }
    Ok(Value::Object(config))
}

/// Frequencies of the rotation, where they are not plain.
fn scaling(keys: &Keys<'_>) -> Result<Option<Value>> {
    let kind = keys.file.metadata().text(&keys.name("rope.scaling.type"))?;
    let factor = keys
        .number("rope.scaling.factor")?
        .or(keys.number("rope.scale_linear")?);
    let original = keys.size("rope.scaling.original_context_length")?;
    if keys.file.contains("rope_freqs.weight") {
        return llama3(keys.file).map(Some);
    }
    match (kind, factor) {
        (None | Some("none"), None) | (Some("none"), _) => Ok(None),
        (None | Some("linear"), Some(factor)) => Ok(Some(json!({"rope_type": "linear", "factor": factor}))),
        (Some("yarn"), Some(factor)) => {
            let mut scaling = json!({"rope_type": "yarn", "factor": factor});
            if let Some(original) = original {
                scaling["original_max_position_embeddings"] = json!(original);
            }
            Ok(Some(scaling))
        }
        (Some(kind), _) => {
            let rule = format!("\"{kind}\" is not supported, or says no factor");
            bad_key(
                keys.file,
                &keys.name("rope.scaling.type"),
                rule,
                "known: none, linear, yarn",
            )
        }
    }
}

/// Llama 3's frequencies stand in the file as a divisor each, and not as the four numbers they come from. Those of the
/// published models are tried; others are refused.
fn llama3(file: &Gguf) -> Result<Value> {
    const NAME: &str = "rope_freqs.weight";
    let divisors = file.view(NAME)?.to_f32_vec()?;
    let architecture = file.metadata().text(ARCHITECTURE)?.unwrap_or_default();
    let theta = file
        .metadata()
        .float(&format!("{architecture}.rope.freq_base"))?
        .unwrap_or(10_000.0);
    let factor = f64::from(divisors.iter().copied().fold(1.0, f32::max));
    for original in [8192.0, 4096.0, 2048.0] {
        let (low, high) = (1.0, 4.0);
        let matches = divisors.iter().enumerate().all(|(i, &divisor)| {
            let wavelength = 2.0 * std::f64::consts::PI * theta.powf(i as f64 / divisors.len() as f64);
            let wanted = if wavelength < original / high {
                1.0
            } else if wavelength > original / low {
                factor
            } else {
                let smooth = (original / wavelength - low) / (high - low);
                1.0 / ((1.0 - smooth) / factor + smooth)
            };
            (f64::from(divisor) / wanted - 1.0).abs() < 1e-4
        });
        if matches {
            return Ok(json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original as u64,
            }));
        }
    }
    let hint = "take the Hugging Face folder of this model";
    bad_tensor(file, NAME, "holds divisors of frequencies that are not Llama 3's", hint)
}
