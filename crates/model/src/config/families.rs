//! The families: which keys each one has, and what becomes of every key found in a file.
//!
//! A key found in a file is *used* (listed with its family), *harmless* (it cannot change logits), or *refused* with the
//! reason. A key in none of the lists is refused too: it might change the function.

use super::{ModelConfig, decoder, keys::Keys, refuse};
use crate::{attention, error::Result, ffn, plan, residual};
use serde_json::Value;

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

/// Keys that change the function in ways that are not supported, with the reason given to the user.
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
    ("partial_rotary_factor", "partial rotary positions are not supported"),
    ("attn_logit_softcapping", "soft-capped attention is not supported"),
    ("final_logit_softcapping", "soft-capped logits are not supported"),
];

/// Checks every key of a parsed `config.json`, then hands the keys to who reads them.
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
        None => decoder::build(&keys, base, merged),
    }
}
