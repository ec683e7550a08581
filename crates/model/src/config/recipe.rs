//! The model section of a training recipe: few keys, turned into the `config.json` of a stock family.

use super::{ModelConfig, refuse};
use crate::{error::Result, residual::Residual};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

fn default_theta() -> f64 {
    10000.0
}
fn default_eps() -> f64 {
    1e-5
}
fn default_positions() -> usize {
    512
}
fn default_std() -> f64 {
    0.02
}

/// `[model]` of a recipe. Dense models become `llama`, mixtures become `mixtral`, so that every result loads elsewhere.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct ModelShape {
    /// Model width D.
    pub hidden_size: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; as many as query heads if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_heads: Option<usize>,
    /// Width of the feed-forward layer, or of one expert.
    pub intermediate_size: usize,
    /// Experts per layer; absent for a dense model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<usize>,
    /// Experts per token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts_per_token: Option<usize>,
    /// Coefficient of the balance loss.
    #[serde(default)]
    pub balance: f64,
    /// Share embedding and head.
    #[serde(default)]
    pub tied: bool,
    /// Longest sequence.
    #[serde(default = "default_positions")]
    pub max_positions: usize,
    /// Rotary base.
    #[serde(default = "default_theta")]
    pub rope_theta: f64,
    /// Epsilon of the norms.
    #[serde(default = "default_eps")]
    pub rms_norm_eps: f64,
    /// Standard deviation of fresh weights.
    #[serde(default = "default_std")]
    pub initializer_range: f64,
    /// Residual wiring; one sub-block after the other if absent.
    #[serde(default, skip_serializing_if = "Residual::is_sequential")]
    pub residual: Residual,
}

impl ModelShape {
    /// The `config.json` of this shape.
    pub fn to_json(&self, vocab_size: usize, bos: Option<u32>, eos: Option<u32>) -> Value {
        let mut config = json!({
            "architectures": [if self.experts.is_some() { "MixtralForCausalLM" } else { "LlamaForCausalLM" }],
            "model_type": if self.experts.is_some() { "mixtral" } else { "llama" },
            "vocab_size": vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads.unwrap_or(self.heads),
            "hidden_act": "silu",
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tied,
            "initializer_range": self.initializer_range,
            "bos_token_id": bos,
            "eos_token_id": eos,
        });
        if let (Some(experts), Value::Object(map)) = (self.experts, &mut config) {
            map.insert("num_local_experts".into(), experts.into());
            map.insert("num_experts_per_tok".into(), self.experts_per_token.unwrap_or(2).into());
            map.insert("router_aux_loss_coef".into(), self.balance.into());
        }
        if let Value::Object(map) = &mut config {
            self.residual.write(map, self.layers);
        }
        config
    }

    /// The configuration of this shape, checked by the same rules as a file.
    ///
    /// # Errors
    /// If a value is out of range.
    pub fn to_config(&self, vocab_size: usize, bos: Option<u32>, eos: Option<u32>) -> Result<ModelConfig> {
        const FILE: &str = "[model] of the recipe";
        if self.experts.is_some() && !self.residual.is_sequential() {
            return refuse(
                FILE,
                "residual",
                "wirings other than sequential are defined for dense models only",
                "remove `experts`, or `residual`",
            );
        }
        ModelConfig::parse(FILE, &self.to_json(vocab_size, bos, eos))
    }
}
