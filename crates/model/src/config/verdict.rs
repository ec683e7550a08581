//! What becomes of every key found in a file: *used* (listed with its family), *harmless* (it cannot change logits),
//! *refused* with the reason, or *ignored* and named to the user.
//!
//! For the stock families the reference decides: what its implementation of a family reads and this program does not
//! is refused unless the value switches it off; what the reference never reads changes nothing there and is ignored
//! here. A key of another family's method is refused wherever it stands: ignoring it would run another function. The
//! families of methods have no such reference, so that a key unknown to them is refused.

use super::{Problems, families::Known, keys::Keys};
use crate::attention;
use serde_json::Value;

/// Cannot change logits in inference: what the reference's configurations have in common, what its older versions had,
/// and what it takes for the settings of a generation.
const HARMLESS: &[&str] = &[
    "_attn_implementation",
    "_commit_hash",
    "_name_or_path",
    "add_cross_attention",
    "architectures",
    "attention_dropout",
    "attn_implementation",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "chunk_size_feed_forward",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "experts_implementation",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "id2label",
    "is_decoder",
    "is_encoder_decoder",
    "label2id",
    "length_penalty",
    "max_length",
    "min_length",
    "name_or_path",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "ounce_version",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "output_scores",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "pruned_heads",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "router_jitter_noise",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tie_last_hidden_states",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "typical_p",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
];

/// A key that changes the function in a way that is not supported.
struct Refused {
    key: &'static str,
    /// The value that leaves the function alone; `null` always does.
    off: fn(&Value) -> bool,
    why: &'static str,
    hint: &'static str,
}

const NEVER: fn(&Value) -> bool = |_| false;
const EMPTY: fn(&Value) -> bool = |v| v.as_object().is_some_and(serde_json::Map::is_empty);

/// Refused in every family that does not list the key as its own.
const REFUSED: &[Refused] = &[
    Refused {
        key: "quantization_config",
        off: NEVER,
        why: "quantised weights cannot be read",
        hint: "use the unquantised checkpoint",
    },
    Refused {
        key: "compression_config",
        off: EMPTY,
        why: "quantised weights cannot be read",
        hint: "use the unquantised checkpoint",
    },
    Refused {
        key: "quantization",
        off: EMPTY,
        why: "quantised weights cannot be read",
        hint: "use the unquantised checkpoint",
    },
    Refused {
        key: "per_layer_config",
        off: EMPTY,
        why: "layers of different shapes are not supported",
        hint: "",
    },
    Refused {
        key: "is_causal",
        off: |v| v == &Value::Bool(true),
        why: "attention to later tokens is not supported",
        hint: "",
    },
    Refused {
        key: "auto_map",
        off: |v| {
            v.as_object()
                .is_some_and(|map| !map.keys().any(|k| OWN_CODE.contains(&k.as_str())))
        },
        why: "the checkpoint brings its own model code, which is never executed",
        hint: "if it is MoH-LLaMA3-8B, say so: --attention moh:router=query_norm,shared_heads=16,active_routed_heads=8",
    },
    Refused {
        key: "ladder_layers",
        off: NEVER,
        why: "ladder residual wiring changes every layer, and only model_type \"llamaLadder\" has it",
        hint: "",
    },
    Refused {
        key: "enc_chunk_size",
        off: NEVER,
        why: "this is a retrieval decoder (GCA/DRT), not a Llama, and it cannot be run without decoder_layers",
        hint: "",
    },
];

/// The entries of `auto_map` that replace the model; others name tokenizers and heads that are not used here.
const OWN_CODE: &[&str] = &["AutoConfig", "AutoModel", "AutoModelForCausalLM"];

/// Ids that some methods' configurations repeat under names of their own; they change nothing elsewhere.
const IDS: &[&str] = &["bos_id", "pad_id", "mask_id"];

/// Is `key` of no consequence, in every family that does not use it?
#[cfg(test)]
pub(super) fn is_harmless(key: &str) -> bool {
    HARMLESS.contains(&key)
}

/// Judges every key of a configuration of `family`, and returns those that are ignored. `merged`: written by
/// `ounce merge`.
pub(super) fn judge(keys: &Keys<'_>, family: &Known, merged: bool, problems: &mut Problems) -> Vec<String> {
    // What remote code would do instead of full attention is said by the key of a method.
    let explained = |key: &str| key == "auto_map" && keys.get("moh").is_some();
    let mut ignored = Vec::new();
    // After all reasons that are known: "unknown" says less.
    let mut unknown = Vec::new();
    for (key, value) in keys.map {
        let name = key.as_str();
        let used = family.uses(name, merged) || explained(name) || attention::is_method(name);
        if used || value.is_null() || HARMLESS.contains(&name) {
            continue;
        }
        match REFUSED.iter().find(|r| r.key == name) {
            Some(refused) if (refused.off)(value) => {}
            Some(refused) => problems.add(keys.file, name, refused.why, refused.hint),
            None if family.stock && (IDS.contains(&name) || !Known::belongs_to_a_method(name)) => {
                ignored.push(key.clone());
            }
            None => unknown.push(name),
        }
    }
    for key in unknown {
        problems.add(
            keys.file,
            key,
            format!(
                "unknown to family \"{}\"; it might change what the model computes",
                family.model_type
            ),
            "if you know it does not, remove it from the file",
        );
    }
    ignored
}
