//! A stock decoder's shape from its keys: sizes, biases, norms of queries and keys, sliding windows.

use super::{LayerConfig, ModelConfig, QkNorm, feed_forward, keys::Keys, refuse, rope};
use crate::{attention, error::Result, ffn, residual};

/// The configuration of family `base`; in a `merged` one the experts are fewer than the router's outputs.
pub(super) fn build(keys: &Keys<'_>, base: &str, merged: bool) -> Result<ModelConfig> {
    let hidden_size = keys.size("hidden_size")?;
    let heads = keys.size("num_attention_heads")?;
    let kv_heads = keys.count("num_key_value_heads", 1..=1 << 20)?.unwrap_or(heads);
    if heads % kv_heads != 0 {
        return keys.bad(
            "num_key_value_heads",
            format!("must divide num_attention_heads = {heads}, is {kv_heads}"),
        );
    }
    let head_dim = match keys.count("head_dim", 1..=1 << 16)? {
        Some(v) => v,
        None if hidden_size % heads == 0 => hidden_size / heads,
        None => {
            return keys.bad(
                "num_attention_heads",
                format!("must divide hidden_size = {hidden_size}, is {heads}"),
            );
        }
    };
    if head_dim % 2 != 0 {
        return keys.bad("head_dim", format!("must be even for rotary positions, is {head_dim}"));
    }
    let method = ffn::FAMILIES.iter().find(|f| f.model_type == base);
    if let Some(act) = keys.text("hidden_act")?
        && method.is_none_or(|f| f.reads_hidden_act)
        && act != "silu"
        && act != "swish"
    {
        return keys.bad(
            "hidden_act",
            format!("only \"silu\" is implemented for this family, is \"{act}\""),
        );
    }
    let layer_count = keys.count("num_hidden_layers", 1..=4096)?;
    let Some(layer_count) = layer_count else {
        return keys.bad("num_hidden_layers", "is missing");
    };
    let max_positions = keys.count("max_position_embeddings", 1..=1 << 40)?.unwrap_or(2048);
    let windows = windows(keys, base, layer_count)?;
    let ffns = feed_forward::read(keys, base, merged, layer_count)?;
    let wirings = match residual::wirings(base, keys.get("ladder_layers"), layer_count) {
        Ok(wirings) => wirings,
        Err(rule) => {
            return refuse(
                keys.file,
                "ladder_layers",
                rule,
                "an integer n is the last n layers, a list names layers from 0",
            );
        }
    };
    let mut ignored = Vec::new();
    let rope = rope::read(keys, max_positions, head_dim, &mut ignored)?;
    let bias = keys.flag("attention_bias", false)?;
    let mut config = ModelConfig {
        model_type: base.into(),
        raw: keys.map.clone(),
        ignored,
        vocab_size: keys.size("vocab_size")?,
        hidden_size,
        layers: windows
            .into_iter()
            .zip(ffns)
            .zip(wirings)
            .map(|((window, ffn), wiring)| LayerConfig { window, ffn, wiring })
            .collect(),
        heads,
        kv_heads,
        head_dim,
        max_positions,
        rms_norm_eps: keys.positive("rms_norm_eps", 1e-6)?,
        rope,
        tied: keys.flag("tie_word_embeddings", false)?,
        qkv_bias: match base {
            "qwen2" => true,
            "qwen2_moe" => keys.flag("qkv_bias", true)?,
            _ => bias,
        },
        o_bias: bias,
        mlp_bias: keys.flag("mlp_bias", false)?,
        qk_norm: match base {
            "qwen3" | "qwen3_moe" => QkNorm::PerHead,
            "olmoe" => QkNorm::AllHeads,
            _ => QkNorm::None,
        },
        clip_qkv: match keys.number("clip_qkv")? {
            Some(bound) if bound <= 0.0 => return keys.bad("clip_qkv", format!("must be above 0, is {bound}")),
            other => other,
        },
        eos_ids: keys.ids("eos_token_id")?,
        initializer_range: keys.positive("initializer_range", 0.02)?,
        attention: None,
        plan: None,
    };
    config.attention = attention::configure(keys, &config)?;
    Ok(config)
}

/// Sliding windows per layer. Hugging Face counts the token itself; 0 and null mean none.
fn windows(keys: &Keys<'_>, base: &str, layers: usize) -> Result<Vec<Option<usize>>> {
    let window = keys.count("sliding_window", 0..=1 << 40)?.filter(|&w| w > 0);
    let switched = match base {
        "mistral" | "mixtral" => true,
        "qwen2" | "qwen3" | "qwen2_moe" | "qwen3_moe" => keys.flag("use_sliding_window", false)?,
        _ => false,
    };
    let Some(window) = window.filter(|_| switched) else {
        let listed = keys.get("layer_types").and_then(serde_json::Value::as_array);
        if listed.is_some_and(|types| types.iter().any(|t| t == "sliding_attention")) {
            // The reference fails on it.
            return keys.bad(
                "layer_types",
                "asks for sliding windows, which use_sliding_window or sliding_window turns off",
            );
        }
        return Ok(vec![None; layers]);
    };
    if let Some(types) = keys
        .get("layer_types")
        .filter(|_| base.starts_with("qwen") && base != "qwen3_moe")
    {
        let Some(types) = types.as_array().filter(|t| t.len() == layers) else {
            return keys.bad("layer_types", format!("must list {layers} layers"));
        };
        return types
            .iter()
            .map(|t| match t.as_str() {
                Some("full_attention" | "attention") => Ok(None),
                Some("sliding_attention") => Ok(Some(window)),
                _ => keys.bad(
                    "layer_types",
                    format!("knows \"full_attention\" and \"sliding_attention\", not {t}"),
                ),
            })
            .collect();
    }
    let from = keys.count("max_window_layers", 0..=1 << 20)?.unwrap_or(28);
    Ok((0..layers)
        .map(|i| {
            let slides = match base {
                "qwen2" | "qwen3" => i >= from,
                // The reference's default for this family: every other layer below the bound.
                "qwen2_moe" => i % 2 == 0 && i < from,
                _ => true,
            };
            slides.then_some(window)
        })
        .collect())
}
