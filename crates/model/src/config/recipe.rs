//! The model section of a training recipe: few keys, turned into the `config.json` of a stock family.

use super::{ModelConfig, keys::DAMAGED, refuse};
use crate::{
    error::{ModelError, Result},
    residual::Residual,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

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

/// `[model]` of a recipe. Dense models become `llama`, mixtures become `mixtral`, so that every result loads elsewhere; a
/// `family` of its own, with keys of its own below `[model.config]`, is for methods that stock families do not have.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, expecting = "a table, [model]")]
pub struct ModelShape {
    /// `model_type` of the result; absent for `llama` and `mixtral`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<String>,
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
    /// Mixture of heads: the keys of `moh` in a configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moh: Option<Map<String, Value>>,
    /// Dynamic group attention: the keys of `dga` in a configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dga: Option<Map<String, Value>>,
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
    /// Keys of the `config.json` that only this family has; they win over those made of the keys above.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub config: Map<String, Value>,
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
        let Value::Object(map) = &mut config else {
            return config;
        };
        if let Some(family) = &self.family {
            // Only what was asked for: a family refuses keys it does not know.
            map["model_type"] = family.as_str().into();
            map.remove("architectures");
            let experts = self.experts.map(|n| ("num_experts", Value::from(n)));
            let chosen = self.experts_per_token.map(|n| ("num_experts_per_tok", Value::from(n)));
            let balance = (self.balance > 0.0).then(|| ("router_aux_loss_coef", self.balance.into()));
            map.extend(
                [experts, chosen, balance]
                    .into_iter()
                    .flatten()
                    .map(|(k, v)| (k.to_owned(), v)),
            );
        } else if let Some(experts) = self.experts {
            map.insert("num_local_experts".into(), experts.into());
            map.insert("num_experts_per_tok".into(), self.experts_per_token.unwrap_or(2).into());
            map.insert("router_aux_loss_coef".into(), self.balance.into());
        }
        for (key, method) in [("moh", &self.moh), ("dga", &self.dga)] {
            if let Some(method) = method {
                map.insert(key.to_owned(), Value::Object(method.clone()));
            }
        }
        self.residual.write(map, self.layers);
        map.extend(self.config.clone());
        config
    }

    /// The configuration of this shape, checked by the same rules as a file. Errors speak of the keys of the recipe.
    ///
    /// # Errors
    /// If a value is out of range.
    pub fn to_config(&self, vocab_size: usize, bos: Option<u32>, eos: Option<u32>) -> Result<ModelConfig> {
        for (key, value) in [
            ("model.balance", self.balance),
            ("model.rope_theta", self.rope_theta),
            ("model.rms_norm_eps", self.rms_norm_eps),
            ("model.initializer_range", self.initializer_range),
        ] {
            // JSON has no such number: it would become a null, and that the default.
            if !value.is_finite() {
                return refuse("recipe", key, format!("must be a finite number, is {value}"), HINT);
            }
        }
        if self.balance < 0.0 {
            let rule = format!("must not be negative, is {}", self.balance);
            return refuse("recipe", "model.balance", rule, "0 turns the balance loss off");
        }
        if (self.experts.is_some() || self.family.is_some()) && !self.residual.is_sequential() {
            return refuse(
                "recipe",
                "model.residual",
                "wirings other than sequential are defined for dense models only",
                "remove model.experts and model.family, or model.residual",
            );
        }
        let config = ModelConfig::parse("recipe", &self.to_json(vocab_size, bos, eos))
            .map_err(|e| self.in_words_of_the_recipe(e))?;
        match config.ignored.first() {
            None => Ok(config),
            // Nobody writes a key into a recipe for nothing.
            Some(key) => refuse(
                "recipe",
                &format!("model.config.{key}"),
                format!("unknown to family \"{}\"", config.model_type),
                HINT,
            ),
        }
    }

    fn in_words_of_the_recipe(&self, error: ModelError) -> ModelError {
        let ModelError::Config { file, key, rule, hint } = error else {
            return error;
        };
        let named = |word: &str| {
            NAMES
                .iter()
                .find(|(config, _)| *config == word)
                .map(|(_, recipe)| *recipe)
        };
        let key = match named(&key) {
            _ if self.config.contains_key(&key) => format!("model.config.{key}"),
            Some(name) => name.to_owned(),
            None => format!("model.{key}"),
        };
        // Rules name other keys, too ("must divide hidden_size = 32").
        let words = rule.split(' ').map(|word| named(word).unwrap_or(word));
        let rule = words.collect::<Vec<_>>().join(" ");
        // A recipe is written by hand: that a file may be damaged helps nobody.
        let hint = match hint.as_str() {
            "" | DAMAGED => HINT.into(),
            _ => hint,
        };
        ModelError::Config { file, key, rule, hint }
    }

    /// Whether the shape is in range whatever the vocabulary; the key, the broken rule and a hint if not.
    ///
    /// # Errors
    /// The key, the rule and the hint.
    pub fn check(&self) -> std::result::Result<(), (String, String, String)> {
        match self.to_config(1, None, None) {
            Ok(_) => Ok(()),
            Err(ModelError::Config { key, rule, hint, .. }) => Err((key, rule, hint)),
            Err(other) => Err(("model".into(), other.to_string(), HINT.into())),
        }
    }
}

const HINT: &str = "docs/training.md lists all keys and their ranges";

/// Keys of a `config.json` and what a recipe calls them.
const NAMES: [(&str, &str); 14] = [
    ("num_key_value_heads", "model.kv_heads"),
    ("num_attention_heads", "model.heads"),
    ("head_dim", "model.hidden_size / model.heads"),
    ("num_hidden_layers", "model.layers"),
    ("num_experts_per_tok", "model.experts_per_token"),
    ("num_local_experts", "model.experts"),
    ("num_experts", "model.experts"),
    ("ladder_layers", "model.residual.layers"),
    ("router_aux_loss_coef", "model.balance"),
    ("max_position_embeddings", "model.max_positions"),
    ("intermediate_size", "model.intermediate_size"),
    ("hidden_size", "model.hidden_size"),
    ("initializer_range", "model.initializer_range"),
    ("vocab_size", "the vocabulary"),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Key, rule and hint of what is wrong with a small AoE model after `change`.
    fn refused(change: impl FnOnce(&mut Value)) -> (String, String, String) {
        let mut shape = json!({
            "family": "aoe", "hidden_size": 16, "layers": 2, "heads": 2, "intermediate_size": 8, "experts": 4,
            "experts_per_token": 2, "config": { "aoe_d_low": 4, "aoe_d_wide": 8 }
        });
        change(&mut shape);
        serde_json::from_value::<ModelShape>(shape)
            .unwrap()
            .check()
            .unwrap_err()
    }

    #[test]
    fn refusals_name_the_recipes_keys_and_keep_the_methods_hints() {
        let said = |key: &str, rule: &str, hint: &str| (key.to_owned(), rule.to_owned(), hint.to_owned());
        assert_eq!(
            refused(|shape| shape["experts_per_token"] = json!(9)),
            said(
                "model.experts_per_token",
                "must be at most model.experts = 4, is 9",
                "a token cannot choose an expert twice"
            )
        );
        assert_eq!(
            refused(|shape| shape["balance"] = json!(-1.0)),
            said(
                "model.balance",
                "must not be negative, is -1",
                "0 turns the balance loss off"
            )
        );
        // A key below [model.config], and a rule without a hint of its own.
        let (key, _, hint) = refused(|shape| shape["config"]["aoe_d_low"] = json!(0));
        assert_eq!((key.as_str(), hint.as_str()), ("model.config.aoe_d_low", HINT));
        let (key, rule, _) = refused(|shape| {
            *shape = json!({ "hidden_size": 16, "layers": 2, "heads": 2, "intermediate_size": 8,
                "residual": { "wiring": "ladder", "layers": [0, 7] } });
        });
        assert_eq!(key, "model.residual.layers");
        assert!(rule.contains("layer 7 is beyond the model"), "{rule}");
    }
}
