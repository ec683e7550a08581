//! The families: which keys each one uses, and how they fill [`ModelConfig`].
//!
//! A key found in a file is *used* (listed with its family), *harmless* (it cannot change logits), or *refused* with the
//! reason. A key in none of the lists is refused too: it might change the function.

use super::{
    FfnConfig, LayerConfig, ModelConfig, MoeConfig, MoeNames, QkNorm, RopeConfig, RopeScaling, keys::Keys, refuse,
};
use crate::{attention, error::Result, ffn, plan, residual};
use serde_json::Value;
use std::sync::Arc;

/// One family: its `model_type` and the keys it uses beside [`COMMON`].
struct Family {
    model_type: &'static str,
    used: &'static [&'static str],
}

const FAMILIES: &[Family] = &[
    Family {
        model_type: "llama",
        used: &["attention_bias", "mlp_bias", "pretraining_tp", "rotary_percent"],
    },
    Family {
        model_type: residual::LADDER,
        // `auto_map` names the authors' own code for this wiring, which is implemented here and never executed.
        used: &[
            "attention_bias",
            "mlp_bias",
            "pretraining_tp",
            "ladder_layers",
            "auto_map",
        ],
    },
    Family {
        model_type: residual::PARALLEL,
        used: &["attention_bias", "mlp_bias", "pretraining_tp"],
    },
    Family {
        model_type: "mistral",
        used: &["sliding_window"],
    },
    Family {
        model_type: "qwen2",
        used: &[
            "sliding_window",
            "use_sliding_window",
            "max_window_layers",
            "layer_types",
        ],
    },
    Family {
        model_type: "qwen3",
        used: &[
            "attention_bias",
            "sliding_window",
            "use_sliding_window",
            "max_window_layers",
            "layer_types",
        ],
    },
    Family {
        model_type: "mixtral",
        used: &[
            "sliding_window",
            "num_local_experts",
            "num_experts_per_tok",
            "router_aux_loss_coef",
        ],
    },
    Family {
        model_type: "qwen2_moe",
        used: &[
            "sliding_window",
            "use_sliding_window",
            "max_window_layers",
            "layer_types",
            "qkv_bias",
            "num_experts",
            "num_local_experts",
            "num_experts_per_tok",
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "norm_topk_prob",
            "decoder_sparse_step",
            "mlp_only_layers",
            "router_aux_loss_coef",
        ],
    },
    Family {
        model_type: "qwen3_moe",
        used: &[
            "attention_bias",
            "sliding_window",
            "use_sliding_window",
            "num_experts",
            "num_local_experts",
            "num_experts_per_tok",
            "moe_intermediate_size",
            "norm_topk_prob",
            "decoder_sparse_step",
            "mlp_only_layers",
            "router_aux_loss_coef",
        ],
    },
    Family {
        model_type: "olmoe",
        used: &[
            "attention_bias",
            "clip_qkv",
            "num_experts",
            "num_experts_per_tok",
            "norm_topk_prob",
            "router_aux_loss_coef",
        ],
    },
];

/// Used by every family.
const COMMON: &[&str] = &[
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "tie_word_embeddings",
    "eos_token_id",
    "initializer_range",
];

/// Written by `ounce merge`: experts of a family, fewer than the router has outputs, or fewer of both in some layers.
const MERGED: &[&str] = &["base_model_type", "expert_map", "experts_per_layer"];

/// Cannot change logits in inference.
const HARMLESS: &[&str] = &[
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "bos_token_id",
    "pad_token_id",
    "use_cache",
    "attention_dropout",
    "output_router_logits",
    "router_jitter_noise",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "_name_or_path",
    "name_or_path",
    "id2label",
    "label2id",
    "is_decoder",
    "is_encoder_decoder",
    "chunk_size_feed_forward",
    "problem_type",
    "unsloth_version",
    "unsloth_fixed",
    "ounce_version",
    // Present, and without effect, in files of families that do not read them.
    "max_window_layers",
    "use_sliding_window",
];

/// Keys that change the function in ways that are not implemented, with the reason given to the user.
const REFUSED: &[(&str, &str)] = &[
    (
        "quantization_config",
        "quantised weights cannot be read; use the unquantised checkpoint",
    ),
    (
        "auto_map",
        "the checkpoint brings its own model code, which is never executed; if it is MoH-LLaMA3-8B, say so: \
         --attention moh:router=query_norm,shared_heads=16,active_routed_heads=8",
    ),
    (
        "ladder_layers",
        "ladder residual wiring changes every layer, and only model_type \"llamaLadder\" has it",
    ),
    (
        "enc_chunk_size",
        "this is a retrieval decoder (GCA/DRT), not a Llama, and it cannot be run without decoder_layers",
    ),
    ("partial_rotary_factor", "partial rotary positions are not implemented"),
    ("attn_logit_softcapping", "soft-capped attention is not implemented"),
    ("final_logit_softcapping", "soft-capped logits are not implemented"),
];

pub(super) fn parse(file: &str, json: &Value) -> Result<ModelConfig> {
    let Value::Object(map) = json else {
        return refuse(
            file,
            "",
            "the file is not a JSON object",
            "it should be the config.json of a checkpoint",
        );
    };
    let keys = Keys { file, map };
    let Some(stated) = keys.text("model_type")? else {
        return keys.bad("model_type", "is missing");
    };
    let merged = stated == "ounce_merged";
    let base = if merged {
        keys.text("base_model_type")?.unwrap_or("")
    } else {
        stated
    };
    let families = || {
        let methods = ffn::FAMILIES.iter().map(|f| (f.model_type, f.used));
        let plans = plan::FAMILIES.iter().map(|f| (f.model_type, f.used));
        FAMILIES
            .iter()
            .map(|f| (f.model_type, f.used))
            .chain(methods)
            .chain(plans)
    };
    // Some files say another family than theirs.
    let planned = plan::FAMILIES.iter().find(|f| !merged && (f.recognises)(&keys));
    let base = planned.map_or(base, |f| f.model_type);
    let Some((_, family_used)) = families().find(|(model_type, _)| *model_type == base) else {
        let known: Vec<&str> = families().map(|(model_type, _)| model_type).collect();
        let key = if merged { "base_model_type" } else { "model_type" };
        return refuse(
            file,
            key,
            format!("\"{base}\" is not a supported family"),
            format!("supported: {}", known.join(", ")),
        );
    };
    for key in map.keys() {
        let key = key.as_str();
        // What remote code would do instead of full attention is said by the key of a method.
        let explained = key == "auto_map" && keys.get("moh").is_some();
        if let Some((_, why)) = REFUSED.iter().find(|(k, _)| *k == key)
            && !map[key].is_null()
            && !explained
            && !family_used.contains(&key)
        {
            return refuse(file, key, *why, "");
        }
    }
    // After all reasons that are known: "unknown" says less.
    for key in map.keys() {
        let key = key.as_str();
        let explained = key == "auto_map" && keys.get("moh").is_some();
        let used = COMMON.contains(&key) || family_used.contains(&key) || (merged && MERGED.contains(&key));
        let used = used || explained || attention::is_method(key);
        if !used && !HARMLESS.contains(&key) && !map[key].is_null() {
            return refuse(
                file,
                key,
                format!("unknown to family \"{base}\"; it might change what the model computes"),
                "if you know it does not, remove it from the file",
            );
        }
    }
    match planned {
        Some(family) => (family.read)(&keys),
        None => build(&keys, base, merged),
    }
}

fn build(keys: &Keys<'_>, base: &str, merged: bool) -> Result<ModelConfig> {
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
    if keys.count("pretraining_tp", 0..=1 << 20)?.unwrap_or(1) > 1 {
        return keys.bad("pretraining_tp", "only 1 is implemented");
    }
    let layer_count = keys.count("num_hidden_layers", 1..=4096)?;
    if let Some(percent) = keys.number("rotary_percent")?
        && percent != 1.0
    {
        return keys.bad(
            "rotary_percent",
            format!("partial rotary positions are not implemented, is {percent}"),
        );
    }
    let Some(layer_count) = layer_count else {
        return keys.bad("num_hidden_layers", "is missing");
    };
    let max_positions = keys.count("max_position_embeddings", 1..=1 << 40)?.unwrap_or(2048);
    let windows = windows(keys, base, layer_count)?;
    let ffns = ffns(keys, base, merged, layer_count)?;
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
    let bias = keys.flag("attention_bias", false)?;
    let mut config = ModelConfig {
        model_type: base.into(),
        raw: keys.map.clone(),
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
        rope: rope(keys, max_positions)?,
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
        // A list that asks for windows without giving one is a contradiction the reference would fail on.
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
                Some("full_attention") => Ok(None),
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

fn ffns(keys: &Keys<'_>, base: &str, merged: bool, layers: usize) -> Result<Vec<FfnConfig>> {
    if let Some(method) = ffn::FAMILIES.iter().find(|f| f.model_type == base) {
        if merged {
            return keys.bad(
                "base_model_type",
                format!("\"{base}\" has no experts that can be merged"),
            );
        }
        return Ok(vec![FfnConfig::Method((method.read)(keys)?); layers]);
    }
    let dense = FfnConfig::Dense {
        width: keys.size("intermediate_size")?,
    };
    let (names, width, norm_topk) = match base {
        "mixtral" => (MoeNames::Mixtral, keys.size("intermediate_size")?, true),
        "olmoe" => (
            MoeNames::Qwen,
            keys.size("intermediate_size")?,
            keys.flag("norm_topk_prob", false)?,
        ),
        "qwen2_moe" | "qwen3_moe" => (
            MoeNames::Qwen,
            keys.size("moe_intermediate_size")?,
            keys.flag("norm_topk_prob", false)?,
        ),
        _ => {
            if merged {
                return keys.bad("base_model_type", format!("\"{base}\" has no experts to merge"));
            }
            return Ok(vec![dense; layers]);
        }
    };
    let expert_key = if keys.get("num_experts").is_some() {
        "num_experts"
    } else {
        "num_local_experts"
    };
    let experts = match keys.count(expert_key, 0..=1 << 16)? {
        Some(0) => return keys.bad(expert_key, "a mixture of experts needs at least 1 expert, has 0"),
        Some(v) => v,
        None => return keys.bad(expert_key, "is missing"),
    };
    let top_k = keys.size("num_experts_per_tok")?;
    if top_k > experts {
        return keys.bad(
            "num_experts_per_tok",
            format!("must be at most {expert_key} = {experts}, is {top_k}"),
        );
    }
    let shared_width = match base {
        "qwen2_moe" => Some(keys.size("shared_expert_intermediate_size")?),
        _ => None,
    };
    let balance = keys.number("router_aux_loss_coef")?.unwrap_or(0.0);
    if balance < 0.0 {
        return keys.bad("router_aux_loss_coef", format!("must not be negative, is {balance}"));
    }
    let step = keys.count("decoder_sparse_step", 1..=1 << 20)?.unwrap_or(1);
    let dense_layers = keys.counts("mlp_only_layers")?.unwrap_or_default();
    let is_moe = |i: usize| !dense_layers.contains(&i) && (i + 1).is_multiple_of(step);
    let maps = if merged {
        expert_maps(keys, experts, (0..layers).filter(|&i| is_moe(i)).count())?
    } else {
        Vec::new()
    };
    let identity: Arc<[usize]> = (0..experts).collect();
    let mut maps = maps.into_iter();
    Ok((0..layers)
        .map(|i| {
            if !is_moe(i) {
                return dense.clone();
            }
            let map = maps.next().unwrap_or_else(|| identity.clone());
            let stored = map.iter().max().map_or(0, |m| m + 1);
            let experts = map.len();
            FfnConfig::Moe(MoeConfig {
                experts,
                stored,
                map,
                top_k: top_k.min(experts),
                width,
                norm_topk,
                shared_width,
                balance,
                names,
            })
        })
        .collect())
}

/// For each mixture layer, the stored expert of each router output: `expert_map`; or the identity, where pruning left
/// `experts_per_layer` outputs and experts.
fn expert_maps(keys: &Keys<'_>, experts: usize, moe_layers: usize) -> Result<Vec<Arc<[usize]>>> {
    if let Some(counts) = keys.counts("experts_per_layer")? {
        if keys.get("expert_map").is_some() {
            return keys.bad("experts_per_layer", "excludes expert_map");
        }
        if counts.len() != moe_layers || counts.iter().any(|&c| c == 0 || c > experts) {
            return keys.bad(
                "experts_per_layer",
                format!("must hold {moe_layers} counts from 1 to {experts}"),
            );
        }
        return Ok(counts.into_iter().map(|c| (0..c).collect()).collect());
    }
    let rule = format!("must hold {moe_layers} lists of {experts} stored-expert ids, without gaps from 0");
    let Some(lists) = keys
        .get("expert_map")
        .and_then(Value::as_array)
        .filter(|l| l.len() == moe_layers)
    else {
        return keys.bad("expert_map", rule);
    };
    lists
        .iter()
        .map(|list| {
            let ids: Option<Vec<usize>> = list
                .as_array()
                .and_then(|l| l.iter().map(|v| v.as_u64().map(|v| v as usize)).collect());
            let valid = |ids: &Vec<usize>| {
                let stored = ids.iter().max().map_or(0, |m| m.saturating_add(1));
                ids.len() == experts && stored <= experts && (0..stored).all(|e| ids.contains(&e))
            };
            match ids.filter(valid) {
                Some(ids) => Ok(ids.into()),
                None => keys.bad("expert_map", rule.clone()),
            }
        })
        .collect()
}

/// Both spellings: `rope_parameters` (new) and flat `rope_theta` + `rope_scaling` (old).
fn rope(keys: &Keys<'_>, max_positions: usize) -> Result<RopeConfig> {
    let flat_theta = keys.positive("rope_theta", 10000.0)?;
    let nested_key = if keys.get("rope_parameters").is_some() {
        "rope_parameters"
    } else {
        "rope_scaling"
    };
    let Some(nested) = keys.get(nested_key) else {
        return Ok(RopeConfig {
            theta: flat_theta,
            scaling: RopeScaling::Default,
        });
    };
    let Value::Object(map) = nested else {
        return keys.bad(nested_key, "must be an object");
    };
    let inner = Keys { file: keys.file, map };
    let theta = inner.positive("rope_theta", flat_theta)?;
    let kind = match inner.text("rope_type")? {
        Some(kind) => kind,
        None => inner.text("type")?.unwrap_or("default"),
    };
    let known: &[&str] = match kind {
        "default" => &[],
        "linear" => &["factor"],
        "llama3" => &[
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        ],
        "yarn" => &[
            "factor",
            "beta_fast",
            "beta_slow",
            "original_max_position_embeddings",
            "attention_factor",
            "mscale",
            "mscale_all_dim",
            "truncate",
        ],
        other => {
            return refuse(
                keys.file,
                nested_key,
                format!("rope type \"{other}\" is not implemented"),
                "implemented: default, linear, llama3, yarn",
            );
        }
    };
    for key in map.keys() {
        if !known.contains(&key.as_str()) && !["rope_theta", "rope_type", "type"].contains(&key.as_str()) {
            return keys.bad(nested_key, format!("\"{key}\" is unknown to rope type \"{kind}\""));
        }
    }
    let need = |key: &str| match inner.number(key)? {
        Some(x) if x > 0.0 => Ok(x),
        _ => inner.bad(key, format!("rope type \"{kind}\" needs a number above 0")),
    };
    let scaling = match kind {
        "linear" => RopeScaling::Linear {
            factor: need("factor")?,
        },
        "llama3" => RopeScaling::Llama3 {
            factor: need("factor")?,
            low_freq_factor: need("low_freq_factor")?,
            high_freq_factor: need("high_freq_factor")?,
            original_positions: need("original_max_position_embeddings")?,
        },
        "yarn" => {
            let original = inner.positive("original_max_position_embeddings", max_positions as f64)?;
            let factor = inner.positive("factor", max_positions as f64 / original)?;
            let gain = |mscale: f64| {
                if factor <= 1.0 {
                    1.0
                } else {
                    0.1 * mscale * factor.ln() + 1.0
                }
            };
            let attention_factor = match (
                inner.number("attention_factor")?,
                inner.number("mscale")?,
                inner.number("mscale_all_dim")?,
            ) {
                (Some(stated), _, _) => stated,
                (None, Some(m), Some(all)) if m != 0.0 && all != 0.0 => gain(m) / gain(all),
                _ => gain(1.0),
            };
            RopeScaling::Yarn {
                factor,
                beta_fast: inner.positive("beta_fast", 32.0)?,
                beta_slow: inner.positive("beta_slow", 1.0)?,
                original_positions: original,
                attention_factor,
                truncate: inner.flag("truncate", true)?,
            }
        }
        _ => RopeScaling::Default,
    };
    Ok(RopeConfig { theta, scaling })
}
