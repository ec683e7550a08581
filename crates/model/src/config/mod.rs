//! What a `config.json` says, normalised: one struct for all families. `families` says which keys each one has and
//! `verdict` what becomes of all others; `decoder`, `feed_forward` and `rope` read them.
//!
//! A key that would silently change the function is never ignored.

mod decoder;
mod families;
mod feed_forward;
pub(crate) mod keys;
mod problems;
mod recipe;
mod reference;
mod rope;
mod verdict;

use crate::{
    attention::Method,
    error::{ModelError, Result},
    ffn::FfnMethod,
    plan::{self, PlanMethod},
    residual::Wiring,
};
use families::Known;
use problems::Problems;
use serde_json::{Map, Value};
use std::sync::Arc;

pub(crate) use keys::Keys;
pub use recipe::ModelShape;

/// A decoder's shape and conventions.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// `model_type` of the layout: `llama`, `mixtral`, … (the base family of merged models).
    pub model_type: String,
    /// The configuration as read, for re-export.
    pub raw: Map<String, Value>,
    /// Keys found that the family's reference never reads: without effect here, too.
    pub ignored: Vec<String>,
    /// V.
    pub vocab_size: usize,
    /// D.
    pub hidden_size: usize,
    /// One entry per layer.
    pub layers: Vec<LayerConfig>,
    /// H.
    pub heads: usize,
    /// Hk.
    pub kv_heads: usize,
    /// hd.
    pub head_dim: usize,
    /// Longest sequence the model was made for.
    pub max_positions: usize,
    /// Epsilon of every RMSNorm.
    pub rms_norm_eps: f64,
    /// Rotary positions.
    pub rope: RopeConfig,
    /// Is the head the embedding?
    pub tied: bool,
    /// Biases on q, k, v.
    pub qkv_bias: bool,
    /// Bias on o.
    pub o_bias: bool,
    /// Biases of dense feed-forward layers.
    pub mlp_bias: bool,
    /// Norms of queries and keys.
    pub qk_norm: QkNorm,
    /// Clamp of q, k, v.
    pub clip_qkv: Option<f64>,
    /// Ids that end a generation.
    pub eos_ids: Vec<u32>,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
    /// The method in the attention slot; none = full attention.
    pub attention: Option<Arc<dyn Method>>,
    /// The plan, where it is not all layers one after the other.
    pub plan: Option<Arc<dyn PlanMethod>>,
}

/// What differs between layers.
#[derive(Debug, Clone)]
pub struct LayerConfig {
    /// Attention sees the last `window` positions only, the token's own included.
    pub window: Option<usize>,
    /// What fills the feed-forward slot.
    pub ffn: FfnConfig,
    /// How both slots are wired around the residual stream.
    pub wiring: Wiring,
}

/// The feed-forward slot.
#[derive(Debug, Clone)]
pub enum FfnConfig {
    /// SwiGLU of this width.
    Dense {
        /// I.
        width: usize,
    },
    /// Mixture of experts.
    Moe(MoeConfig),
    /// A method with a file of its own in `ffn`.
    Method(Arc<dyn FfnMethod>),
}

impl FfnConfig {
    /// The mixture, if it is one.
    pub fn moe(&self) -> Option<&MoeConfig> {
        if let FfnConfig::Moe(moe) = self {
            Some(moe)
        } else {
            None
        }
    }

    /// Hidden values that one token makes in the slot.
    pub fn width(&self) -> usize {
        match self {
            FfnConfig::Dense { width } => *width,
            FfnConfig::Moe(moe) => (moe.top_k.saturating_mul(moe.width)).saturating_add(moe.shared_width.unwrap_or(0)),
            FfnConfig::Method(method) => method.width(),
        }
    }
}

/// A mixture of experts.
#[derive(Debug, Clone)]
pub struct MoeConfig {
    /// Router outputs E.
    pub experts: usize,
    /// Experts stored; below E in a merged model.
    pub stored: usize,
    /// Stored expert of each router output `[E]`.
    pub map: Arc<[usize]>,
    /// K.
    pub top_k: usize,
    /// I of one expert.
    pub width: usize,
    /// Divide the chosen probabilities by their sum.
    pub norm_topk: bool,
    /// I of the gated shared expert.
    pub shared_width: Option<usize>,
    /// Coefficient of the balance loss (training only).
    pub balance: f64,
    /// Naming of the tensors.
    pub names: MoeNames,
}

/// How a family names router and experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MoeNames {
    /// `block_sparse_moe.experts.{e}.w1/w3/w2`.
    Mixtral,
    /// `mlp.experts.{e}.gate_proj/up_proj/down_proj`.
    Qwen,
}

/// RMSNorm of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// None.
    None,
    /// Each head by itself (Qwen3).
    PerHead,
    /// All heads together (OLMoE).
    AllHeads,
}

/// Rotary positions.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base.
    pub theta: f64,
    /// Change of the frequencies.
    pub scaling: RopeScaling,
}

/// How frequencies are stretched for longer contexts.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// All by one factor.
    Linear {
        /// Divisor of every frequency.
        factor: f64,
    },
    /// By the length of the sequence, beyond the trained one (NTK-aware scaling of the base).
    Dynamic {
        /// How strongly.
        factor: f64,
        /// The trained length.
        max_positions: f64,
    },
    /// The first frequencies only; the others do not rotate.
    Proportional {
        /// Divisor of every frequency.
        factor: f64,
        /// How many rotate.
        rotated: usize,
    },
    /// LongRoPE: divisors for each frequency.
    LongRope {
        /// In sequences of at most `original_positions` tokens.
        short: Vec<f64>,
        /// In longer ones.
        long: Vec<f64>,
        /// Context before stretching.
        original_positions: f64,
        /// Factor on cosines and sines.
        attention_factor: f64,
    },
    /// Llama 3.1.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_positions / low_freq_factor` are stretched fully.
        low_freq_factor: f64,
        /// Wavelengths below `original_positions / high_freq_factor` stay.
        high_freq_factor: f64,
        /// Context before stretching.
        original_positions: f64,
    },
    /// YaRN.
    Yarn {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Rotations above which frequencies stay.
        beta_fast: f64,
        /// Rotations below which they are stretched fully.
        beta_slow: f64,
        /// Context before stretching.
        original_positions: f64,
        /// Factor on cosines and sines.
        attention_factor: f64,
        /// Round the range of the ramp to whole dimensions.
        truncate: bool,
    },
}

impl ModelConfig {
    /// Reads a parsed `config.json`; `file` names it in errors.
    ///
    /// # Errors
    /// For an unknown family, a missing key, a value out of range, or a key this program refuses because it changes the
    /// function in a way it does not implement; all such keys at once.
    pub fn parse(file: &str, json: &Value) -> Result<Self> {
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
        // Some files say another family than theirs.
        let planned = plan::FAMILIES.iter().find(|f| !merged && (f.recognises)(&keys));
        let base = planned.map_or(base, |f| f.model_type);
        let Some(family) = Known::find(base) else {
            let key = if merged { "base_model_type" } else { "model_type" };
            return refuse(
                file,
                key,
                format!("\"{base}\" is not a supported family"),
                format!("supported: {}", Known::names().join(", ")),
            );
        };
        let mut problems = Problems::default();
        let mut ignored = verdict::judge(&keys, &family, merged, &mut problems);
        // Whoever reads on never meets a key that the family does not use.
        let used = family.complete(&keys, merged, &mut problems, &mut ignored);
        problems.result()?;
        let keys = Keys { file, map: &used };
        let config = match planned {
            Some(family) => (family.read)(&keys)?,
            None => decoder::build(&keys, base, merged)?,
        };
        ignored.extend(config.ignored);
        Ok(Self {
            ignored,
            raw: map.clone(),
            ..config
        })
    }

    /// One line on [`ModelConfig::ignored`], if there is anything to say; the first keys by name.
    pub fn note(&self) -> Option<String> {
        const NAMED: usize = 12;
        let more = self.ignored.len().saturating_sub(NAMED);
        let named = self.ignored[..self.ignored.len() - more].join(", ");
        let more = if more == 0 {
            String::new()
        } else {
            format!(" and {more} more")
        };
        (!self.ignored.is_empty()).then(|| {
            format!(
                "config.json: \"{}\" does not read these keys, ignored: {named}{more}",
                self.model_type
            )
        })
    }

    /// Is there a mixture of experts in any layer?
    pub fn is_moe(&self) -> bool {
        self.layers.iter().any(|l| l.ffn.moe().is_some())
    }

    /// The mixture configurations, with their layer index.
    pub fn moe_layers(&self) -> impl Iterator<Item = (usize, &MoeConfig)> {
        self.layers
            .iter()
            .enumerate()
            .filter_map(|(i, l)| l.ffn.moe().map(|m| (i, m)))
    }

    /// Tokens of a chunk, for a family that cuts texts into chunks.
    pub fn chunk(&self) -> Option<usize> {
        self.plan.as_ref()?.chunk()
    }

    /// Bytes of keys and values per token, over all layers, with elements of `element` bytes.
    pub fn kv_bytes_per_token(&self, element: usize) -> usize {
        2 * self.layers.len() * self.kv_heads * self.head_dim * element
    }
}

/// A configuration error in one call.
pub(crate) fn refuse<T>(file: &str, key: &str, rule: impl Into<String>, hint: impl Into<String>) -> Result<T> {
    Err(ModelError::Config {
        file: file.into(),
        key: key.into(),
        rule: rule.into(),
        hint: hint.into(),
    })
}
