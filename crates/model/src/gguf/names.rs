//! Names of tensors: llama.cpp's to those of Hugging Face folders.

use super::bad_tensor;
use crate::error::Result;
use ounce_formats::{Gguf, gguf::Placed};
use serde_json::Value;

/// Outside the layers.
const WHOLE: [(&str, &str); 3] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];

/// Within a layer.
const LAYER: [(&str, &str); 15] = [
    ("attn_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("ffn_gate_shexp", "mlp.shared_expert.gate_proj"),
    ("ffn_up_shexp", "mlp.shared_expert.up_proj"),
    ("ffn_down_shexp", "mlp.shared_expert.down_proj"),
    ("ffn_gate_inp_shexp", "mlp.shared_expert_gate"),
];

/// Where every tensor of the checkpoint is.
pub(super) fn place(file: &Gguf, config: &Value) -> Result<Vec<Placed>> {
    let number = |key: &str| config[key].as_u64().unwrap_or(0) as usize;
    let family = config["model_type"].as_str().unwrap_or_default();
    let mixtral = family == "mixtral";
    // Only the conversion of Llama models reorders rows.
    let heads = |part: &str| match part {
        "attn_q" if mixtral || family == "llama" => Some(number("num_attention_heads")),
        "attn_k" if mixtral || family == "llama" => Some(number("num_key_value_heads")),
        _ => None,
    };
    let block = if mixtral { "block_sparse_moe" } else { "mlp" };
    let expert = |part: &str| match (part, mixtral) {
        ("ffn_gate", false) => Some("gate_proj"),
        ("ffn_up", false) => Some("up_proj"),
        ("ffn_down", false) => Some("down_proj"),
        ("ffn_gate", true) => Some("w1"),
        ("ffn_up", true) => Some("w3"),
        ("ffn_down", true) => Some("w2"),
        _ => None,
    };
    let mut all = Vec::new();
    for info in file.tensors() {
        let source = info.name.as_str();
        let placed = |name: String| Placed {
            name,
            source: source.to_owned(),
            entry: None,
            paired_heads: None,
            one_row: false,
        };
        if let Some((_, name)) = WHOLE.iter().find(|(s, _)| *s == source) {
            all.push(placed((*name).to_owned()));
            continue;
        }
        // The configuration says what it means.
        if source == "rope_freqs.weight" {
            continue;
        }
        let unknown = || {
            bad_tensor(
                file,
                source,
                "is unknown",
                "the file holds more than this architecture has",
            )
        };
        let Some((layer, rest)) = source.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
            return unknown();
        };
        let Some((part, kind)) = rest.rsplit_once('.') else {
            return unknown();
        };
        if !layer.bytes().all(|b| b.is_ascii_digit()) || !matches!(kind, "weight" | "bias") {
            return unknown();
        }
        let layer = format!("model.layers.{layer}");
        if part == "ffn_gate_inp" {
            all.push(placed(format!("{layer}.{block}.gate.{kind}")));
        } else if let Some(matrix) = part.strip_suffix("_exps").and_then(expert) {
            let experts = info
                .shape
                .first()
                .copied()
                .filter(|_| info.shape.len() == 3)
                .unwrap_or(0);
            for e in 0..experts {
                all.push(Placed {
                    entry: Some(e),
                    ..placed(format!("{layer}.{block}.experts.{e}.{matrix}.{kind}"))
                });
            }
        } else if let Some((matrix, e)) = part.split_once('.') {
            // Older files hold every expert by itself.
            match (expert(matrix), e.parse::<usize>()) {
                (Some(matrix), Ok(e)) => all.push(placed(format!("{layer}.{block}.experts.{e}.{matrix}.{kind}"))),
                _ => return unknown(),
            }
        } else if let Some((_, name)) = LAYER.iter().find(|(s, _)| *s == part) {
            all.push(Placed {
                paired_heads: heads(part),
                one_row: part == "ffn_gate_inp_shexp",
                ..placed(format!("{layer}.{name}.{kind}"))
            });
        } else {
            return unknown();
        }
    }
    Ok(all)
}
