//! The families: which keys each one uses.

use super::{Problems, keys::Keys, reference};
use crate::{attention, ffn, plan, residual};
use serde_json::{Map, Value};

/// One family: its `model_type` and the keys it uses beside [`COMMON`].
struct Family {
    model_type: &'static str,
    used: &'static [&'static str],
}

const FAMILIES: &[Family] = &[
    Family {
        model_type: "llama",
        used: &["attention_bias", "mlp_bias"],
    },
    Family {
        model_type: residual::LADDER,
        // `auto_map` names the authors' own code for this wiring, which is implemented here and never executed.
        used: &["attention_bias", "mlp_bias", "ladder_layers", "auto_map"],
    },
    Family {
        model_type: residual::PARALLEL,
        used: &["attention_bias", "mlp_bias"],
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
            "num_experts",
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
            "num_local_experts",
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
    "partial_rotary_factor",
    "original_max_position_embeddings",
    "tie_word_embeddings",
    "eos_token_id",
    "initializer_range",
];

/// Written by `ounce merge`: experts of a family, fewer than the router has outputs, or fewer of both in some layers.
const MERGED: &[&str] = &["base_model_type", "expert_map", "experts_per_layer"];

/// A family as found: one of the lists, or one that a method makes.
pub(super) struct Known {
    pub(super) model_type: &'static str,
    used: &'static [&'static str],
    /// Does the reference, or Llama's code with another wiring, read its configuration?
    pub(super) stock: bool,
}

impl Known {
    fn all() -> impl Iterator<Item = Self> {
        let methods = ffn::FAMILIES.iter().map(|f| (f.model_type, f.used));
        let plans = plan::FAMILIES.iter().map(|f| (f.model_type, f.used));
        let own = methods.chain(plans).map(|(model_type, used)| (model_type, used, false));
        let stock = FAMILIES.iter().map(|f| (f.model_type, f.used, true));
        stock.chain(own).map(|(model_type, used, stock)| Self {
            model_type,
            used,
            stock,
        })
    }

    pub(super) fn find(model_type: &str) -> Option<Self> {
        Self::all().find(|f| f.model_type == model_type)
    }

    pub(super) fn names() -> Vec<&'static str> {
        Self::all().map(|f| f.model_type).collect()
    }

    /// The keys that are used, those included that the file leaves out and the reference has a default for.
    pub(super) fn complete(
        &self,
        keys: &Keys<'_>,
        merged: bool,
        problems: &mut Problems,
        ignored: &mut Vec<String>,
    ) -> Map<String, Value> {
        // Ladder and parallel wiring are Llama's code.
        let class = match self.model_type {
            residual::LADDER | residual::PARALLEL => "llama",
            own => own,
        };
        let defaults = reference::defaults(class).filter(|_| self.stock);
        let mut complete = defaults.cloned().unwrap_or_default();
        for (key, value) in keys.map {
            if !self.uses(key, merged) && !attention::is_method(key) {
                continue;
            }
            let default = complete.insert(key.clone(), value.clone()).filter(|_| value.is_null());
            if let Some(default) = default.filter(|_| !reference::may_be_null(class, key)) {
                let hint = format!("left out it means {default} in this family");
                problems.add(keys.file, key, "is null, which has no meaning here", hint);
            }
        }
        if let Some((key, other)) = reference::other_name(class)
            && let Some(value) = complete.remove(other).filter(|v| !v.is_null())
        {
            if keys.get(key).is_some_and(|stated| *stated != value) {
                ignored.push(format!("{key} ({other} goes before it)"));
            }
            complete.insert(key.into(), value);
        }
        complete
    }

    pub(super) fn uses(&self, key: &str, merged: bool) -> bool {
        COMMON.contains(&key) || self.used.contains(&key) || (merged && MERGED.contains(&key))
    }

    /// Is `key` read by the families of methods alone?
    pub(super) fn belongs_to_a_method(key: &str) -> bool {
        let read = |stock: bool| Self::all().any(|f| f.stock == stock && f.uses(key, !stock));
        MERGED.contains(&key) || (read(false) && !read(true))
    }
}
