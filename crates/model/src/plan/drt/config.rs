//! Configuration of a DRT: reading, checking, and the bill.

use super::{DrtPlan, layers::Shape};
use crate::{
    attention,
    cache::CacheType,
    config::{FfnConfig, Keys, LayerConfig, ModelConfig, QkNorm, RopeConfig, RopeScaling, refuse},
    error::Result,
    plan::{Plan, PlanBill, PlanFamily, PlanMethod},
    residual::Wiring,
    weights::Weights,
};
use serde_json::Value;
use std::sync::Arc;

/// `model_type` of checkpoints that Ounce writes; the authors' say `llama`.
pub const MODEL_TYPE: &str = "drt";

/// Stands for "no longest sequence" where a number is needed.
const UNBOUNDED: usize = 1 << 30;

/// The encoder's rotary base: the authors' code never passes the configuration's on.
const ENCODER_THETA: f64 = 10000.0;

/// Chunks per retrieved chunk that a training window must exceed.
const ENOUGH: usize = 4;

pub(crate) const FAMILY: PlanFamily = PlanFamily {
    model_type: MODEL_TYPE,
    recognises: |keys| {
        let drt = keys.get("enc_chunk_size").is_some() && keys.get("decoder_layers").is_some();
        drt || keys.get("model_type").and_then(Value::as_str) == Some(MODEL_TYPE)
    },
    used: &[
        "enc_chunk_size",
        "decoder_layers",
        "encoder_layers",
        "chunk_topk",
        "slide_window",
        "chunk_id",
        "landmark_null_slot",
        "chunk_memory",
        "chunk_retriever",
        "enable_alibi",
        "enable_softmax_one",
        "chunk_window",
        "attention_bias",
        "mlp_bias",
        "pretraining_tp",
        "bos_id",
        "pad_id",
        "mask_id",
    ],
    read,
};

/// What the keys of a DRT say.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct DrtConfig {
    /// S, real tokens per chunk.
    pub(super) chunk: usize,
    /// k.
    pub(super) top_k: usize,
    /// W, positions that attention sees before a token.
    pub(super) window: usize,
    pub(super) encoder_layers: usize,
    pub(super) lower_layers: usize,
    /// Layers of each group.
    pub(super) groups: Vec<usize>,
    /// The landmark's token id.
    pub(super) landmark: u32,
    /// The landmark's row of a chunk's keys and values stays as zeros; else it is removed.
    pub(super) null_slot: bool,
    /// Element type of the chunk memory; that of the window's keys and values if absent.
    pub(super) memory: Option<CacheType>,
    /// Chunks are drawn by lot, whatever their scores: the paper's ablation.
    pub(super) random: bool,
}

impl DrtConfig {
    /// C, positions per chunk.
    pub(super) fn positions(&self) -> usize {
        self.chunk + 1
    }

    /// Rows of keys and values that a chunk leaves in memory.
    pub(super) fn rows(&self) -> usize {
        self.chunk + usize::from(self.null_slot)
    }
}

/// A whole number, where -1 in the file stands for "does not apply".
fn none_or(keys: &Keys<'_>, key: &str) -> Result<Option<usize>> {
    match keys.get(key).and_then(serde_json::Value::as_i64) {
        Some(-1) => Ok(None),
        _ => keys.count(key, 1..=1 << 40),
    }
}

fn read(keys: &Keys<'_>) -> Result<ModelConfig> {
    match keys.text("model_type")? {
        Some("llama" | MODEL_TYPE) => {}
        other => {
            return refuse(
                keys.file,
                "model_type",
                format!("a retrieval decoder says \"{MODEL_TYPE}\" or, as the authors', \"llama\", here {other:?}"),
                "",
            );
        }
    }
    if let Some(key) = attention::method_keys().into_iter().find(|key| keys.get(key).is_some()) {
        return refuse(
            keys.file,
            key,
            "a retrieval decoder has windowed attention of its own, no other method fits its layers",
            "leave it out",
        );
    }
    let drt = drt(keys)?;
    let hidden_size = keys.size("hidden_size")?;
    let heads = keys.size("num_attention_heads")?;
    let kv_heads = keys.count("num_key_value_heads", 1..=1 << 20)?.unwrap_or(heads);
    if hidden_size % heads != 0 || hidden_size / heads % 2 != 0 {
        return keys.bad(
            "num_attention_heads",
            format!("must divide hidden_size = {hidden_size} into heads of an even size, is {heads}"),
        );
    }
    let head_dim = hidden_size / heads;
    if keys
        .count("head_dim", 1..=1 << 16)?
        .is_some_and(|stated| stated != head_dim)
    {
        return keys.bad(
            "head_dim",
            format!("must be hidden_size / num_attention_heads = {head_dim}"),
        );
    }
    if heads % kv_heads != 0 {
        return keys.bad(
            "num_key_value_heads",
            format!("must divide num_attention_heads = {heads}, is {kv_heads}"),
        );
    }
    let vocab_size = keys.size("vocab_size")?;
    // A recipe is checked before its vocabulary is known; then it is 1.
    if drt.landmark as usize >= vocab_size && vocab_size > 1 {
        return refuse(
            keys.file,
            "chunk_id",
            format!("must be below vocab_size = {vocab_size}, is {}", drt.landmark),
            "it is the id of the landmark token, which needs an embedding",
        );
    }
    let count = drt.lower_layers + drt.groups.iter().sum::<usize>();
    if let Some(stated) = none_or(keys, "num_hidden_layers")?
        && stated != count
    {
        return keys.bad(
            "num_hidden_layers",
            format!("must be -1 or the sum of decoder_layers, {count}, is {stated}"),
        );
    }
    let layer = LayerConfig {
        window: Some(drt.window + 1),
        ffn: FfnConfig::Dense {
            width: keys.size("intermediate_size")?,
        },
        wiring: Wiring::Sequential,
    };
    Ok(ModelConfig {
        model_type: MODEL_TYPE.into(),
        raw: keys.map.clone(),
        ignored: Vec::new(),
        vocab_size,
        hidden_size,
        layers: vec![layer; count],
        heads,
        kv_heads,
        head_dim,
        max_positions: match none_or(keys, "max_position_embeddings")? {
            None => UNBOUNDED,
            Some(_) => keys.count("max_position_embeddings", 1..=1 << 40)?.unwrap_or(UNBOUNDED),
        },
        rms_norm_eps: keys.positive("rms_norm_eps", 1e-6)?,
        rope: RopeConfig {
            theta: ENCODER_THETA,
            scaling: RopeScaling::Default,
        },
        tied: keys.flag("tie_word_embeddings", false)?,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        qk_norm: QkNorm::None,
        clip_qkv: None,
        eos_ids: keys.ids("eos_token_id")?,
        initializer_range: keys.positive("initializer_range", 0.02)?,
        attention: None,
        plan: Some(Arc::new(drt)),
    })
}

/// The keys that only a DRT has, and those of a Llama that would change it.
fn drt(keys: &Keys<'_>) -> Result<DrtConfig> {
    // Bounds beyond any use: larger values only ask for memory.
    let need = |key: &str, most: usize| match keys.count(key, 0..=most)? {
        Some(v) => Ok(v),
        None => refuse(
            keys.file,
            key,
            "is missing",
            "a retrieval decoder (DRT) cannot be run without it",
        ),
    };
    let chunk = need("enc_chunk_size", 1 << 16)?;
    if chunk == 0 {
        return refuse(
            keys.file,
            "enc_chunk_size",
            "a chunk holds at least 1 token, is 0",
            "63 and 64 are usual",
        );
    }
    let top_k = need("chunk_topk", 1 << 12)?;
    if top_k == 0 {
        return refuse(
            keys.file,
            "chunk_topk",
            "at least 1 chunk is retrieved, is 0",
            "without retrieval the model is a window model: use another family",
        );
    }
    let window = need("slide_window", 1 << 24)?;
    if chunk + 1 > window {
        return refuse(
            keys.file,
            "slide_window",
            format!("must be at least enc_chunk_size + 1 = {}, is {window}", chunk + 1),
            "what has left the window before its chunk is finished could not be seen by any means",
        );
    }
    let Some(layers) = keys
        .counts("decoder_layers")?
        .filter(|l| l.len() >= 2 && !l.contains(&0) && l.iter().fold(0usize, |n, &m| n.saturating_add(m)) <= 4096)
    else {
        return refuse(
            keys.file,
            "decoder_layers",
            "must list the lower layers and at least one group of upper layers, each 1 or more, 4096 in all",
            "for example [6, 6], or [6, 3, 3] for two retrieval groups",
        );
    };
    let encoder_layers = need("encoder_layers", 4096)?;
    if encoder_layers == 0 {
        return refuse(
            keys.file,
            "encoder_layers",
            "the chunk encoder has at least 1 layer, is 0",
            "",
        );
    }
    let null_slot = match (keys.get("landmark_null_slot"), (chunk + 1) % 64) {
        (Some(_), _) => keys.flag("landmark_null_slot", false)?,
        (None, 0) => true,
        (None, 1) => false,
        (None, rest) => {
            return refuse(
                keys.file,
                "enc_chunk_size",
                format!(
                    "{chunk} tokens and a landmark leave {rest} modulo 64; only 0 and 1 say what becomes of its row"
                ),
                "say it: landmark_null_slot = true (a row of zeros) or false (removed)",
            );
        }
    };
    let memory = match keys.text("chunk_memory")? {
        None => None,
        Some("f32") => Some(CacheType::F32),
        Some("f16") => Some(CacheType::F16),
        Some(other) => {
            return refuse(
                keys.file,
                "chunk_memory",
                format!("is \"f32\" or \"f16\", here \"{other}\""),
                "absent: as the other caches",
            );
        }
    };
    let random = match keys.text("chunk_retriever")? {
        None | Some("learned") => false,
        Some("random") => true,
        Some(other) => {
            return refuse(
                keys.file,
                "chunk_retriever",
                format!("is \"learned\" or \"random\", here \"{other}\""),
                "absent: learned; random is for comparison only",
            );
        }
    };
    if !keys.flag("enable_alibi", true)? {
        return refuse(
            keys.file,
            "enable_alibi",
            "only true is implemented: attention without positions",
            "",
        );
    }
    // A flag without effect in the authors' kernel: the denominator's one is the row of zeros, see landmark_null_slot.
    keys.flag("enable_softmax_one", false)?;
    if keys.get("chunk_window").is_some_and(|v| v.as_i64() != Some(-1)) {
        return refuse(
            keys.file,
            "chunk_window",
            "only -1, retrieval from all chunks, is implemented",
            "",
        );
    }
    for key in ["attention_bias", "mlp_bias"] {
        if keys.flag(key, false)? {
            return keys.bad(key, "a retrieval decoder has no biases");
        }
    }
    if keys.count("pretraining_tp", 0..=1 << 20)?.unwrap_or(1) > 1 {
        return keys.bad("pretraining_tp", "only 1 is implemented");
    }
    if let Some(act) = keys.text("hidden_act")?.filter(|act| !["silu", "swish"].contains(act)) {
        return keys.bad(
            "hidden_act",
            format!("only \"silu\" is implemented for this family, is \"{act}\""),
        );
    }
    let theta = keys.number("rope_theta")?.unwrap_or(ENCODER_THETA);
    let nested = ["rope_scaling", "rope_parameters"]
        .into_iter()
        .find(|key| keys.get(key).is_some());
    if theta != ENCODER_THETA || nested.is_some() {
        return refuse(
            keys.file,
            nested.unwrap_or("rope_theta"),
            format!("the chunk encoder's rotary base is {ENCODER_THETA}, without scaling"),
            "the authors' code never passes another on",
        );
    }
    let Some(landmark) = keys.count("chunk_id", 0..=u32::MAX as usize)? else {
        return refuse(
            keys.file,
            "chunk_id",
            "is missing",
            "it is the id of the landmark token",
        );
    };
    Ok(DrtConfig {
        chunk,
        top_k,
        window,
        encoder_layers,
        lower_layers: layers[0],
        groups: layers[1..].to_vec(),
        landmark: landmark as u32,
        null_slot,
        memory,
        random,
    })
}

impl PlanMethod for DrtConfig {
    fn build(&self, config: &ModelConfig, weights: &mut dyn Weights) -> Result<Box<dyn Plan>> {
        Ok(Box::new(DrtPlan::new(self, config, weights)?))
    }

    fn doubt(&self, length: usize) -> Option<String> {
        let chunks = length / self.chunk;
        (chunks <= ENOUGH * self.top_k).then(|| {
            format!(
                "a window of {length} tokens has {chunks} chunks of which {} are retrieved: with {ENOUGH} times as many or fewer, \
                 choosing is hardly ever needed and not learnt; lengthen run.length or lower chunk_topk",
                self.top_k
            )
        })
    }

    fn chunk(&self) -> Option<usize> {
        Some(self.chunk)
    }

    fn bill(&self, config: &ModelConfig, element: usize) -> PlanBill {
        super::bill::bill(self, config, element)
    }
}

impl From<(&DrtConfig, &ModelConfig)> for Shape {
    fn from((drt, config): (&DrtConfig, &ModelConfig)) -> Self {
        Self {
            hidden: config.hidden_size,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            width: config.layers.first().map_or(0, |l| l.ffn.width()),
            window: drt.window,
            eps: config.rms_norm_eps,
        }
    }
}
