//! Random checkpoints of real shapes: to measure memory and time where the real weights cannot be had.

use ounce_formats::{
    Begun, Dtype, FormatError, Identity, Inputs, Output, OutputFolder, Overwrite, Resume, ShardOptions, ShardedWriter,
    TensorSpec, fsx,
};
use ounce_kernels::Philox;
use ounce_model::{ModelConfig, ModelError, Result as ModelResult, model_tensors};
use serde_json::{Value, json};
use std::path::Path;

/// Shapes that can be written, by `model_type`.
pub const SHAPES: &[&str] = &["llama", "mixtral", "qwen2_moe"];

/// Why no checkpoint was written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Not in [`SHAPES`].
    #[error("family \"{0}\": no shape is known for it")]
    Family(String),
    /// Not in 0..=100 000.
    #[error("--gb must be in 0..=100000, is {0}")]
    Size(f64),
    /// From the files.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// From the configuration.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl CheckpointError {
    /// What the user can do about it, if anything is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Family(_) => Some(format!("known: {}", SHAPES.join(", "))),
            Self::Size(_) => None,
            Self::Format(e) => e.hint().map(str::to_owned),
            Self::Model(e) => e.hint(),
        }
    }
}

/// Configuration of a published shape, with `layers` layers.
fn config(family: &str, layers: usize) -> Option<Value> {
    let mut config = match family {
        // Llama-3.2-1B.
        "llama" => json!({
            "architectures": ["LlamaForCausalLM"], "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192,
            "num_attention_heads": 32, "num_key_value_heads": 8, "rope_theta": 500_000.0, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 8192, "tie_word_embeddings": true,
        }),
        // Mixtral-8x7B.
        "mixtral" => json!({
            "architectures": ["MixtralForCausalLM"], "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 14_336,
            "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2,
            "rope_theta": 1e6, "rms_norm_eps": 1e-5, "max_position_embeddings": 32_768,
        }),
        // Qwen1.5-MoE-A2.7B.
        "qwen2_moe" => json!({
            "architectures": ["Qwen2MoeForCausalLM"], "vocab_size": 151_936, "hidden_size": 2048, "intermediate_size": 5632,
            "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632, "num_attention_heads": 16,
            "num_key_value_heads": 16, "num_experts": 60, "num_experts_per_tok": 4, "norm_topk_prob": false,
            "rope_theta": 1e6, "rms_norm_eps": 1e-6, "max_position_embeddings": 8192,
        }),
        _ => return None,
    };
    if let Value::Object(map) = &mut config {
        map.insert("model_type".into(), family.into());
        map.insert("num_hidden_layers".into(), layers.into());
        map.insert("hidden_act".into(), "silu".into());
        map.insert("dtype".into(), "bfloat16".into());
    }
    Some(config)
}

fn specs(file: &str, config: &Value) -> ModelResult<Vec<(String, Vec<usize>)>> {
    model_tensors(&ModelConfig::parse(file, config)?)
}

fn bytes(specs: &[(String, Vec<usize>)]) -> usize {
    specs.iter().map(|(_, shape)| shape.iter().product::<usize>() * 2).sum()
}

/// Writes a random bf16 checkpoint of about `gigabytes` (10⁹ bytes) in the shape of `family`: real widths, as many
/// layers as come nearest, at least one. Returns its size in bytes.
///
/// # Errors
/// If the family has no shape here, the size is out of range, or `out` cannot be written.
pub fn random_checkpoint(
    family: &str,
    gigabytes: f64,
    out: &Path,
    overwrite: Overwrite,
) -> Result<u64, CheckpointError> {
    if !(0.0..=1e5).contains(&gigabytes) {
        return Err(CheckpointError::Size(gigabytes));
    }
    let shaped = |layers| config(family, layers).ok_or_else(|| CheckpointError::Family(family.into()));
    let one = bytes(&specs("shape", &shaped(1)?)?);
    let per_layer = bytes(&specs("shape", &shaped(2)?)?) - one;
    let layers = 1 + ((gigabytes * 1e9 - one as f64) / per_layer as f64).round().max(0.0) as usize;
    let config = shaped(layers)?;
    let specs = specs("shape", &config)?;

    let Begun::Work(folder) = OutputFolder::create(Output {
        path: out,
        overwrite,
        resume: Resume::No,
        identity: Identity::new("bench checkpoint").with("shape", config.clone()),
        inputs: Inputs::default(),
        sources: Vec::new(),
        command_line: "ounce bench checkpoint",
    })?
    else {
        return Ok(bytes(&specs) as u64);
    };
    let text = serde_json::to_string_pretty(&config).unwrap_or_default();
    fsx::write_atomic(&folder.path().join("config.json"), text.as_bytes())?;
    let declared = specs
        .iter()
        .map(|(name, shape)| TensorSpec::new(name.clone(), Dtype::BF16, shape.clone()))
        .collect();
    let mut writer = ShardedWriter::create(folder.path(), declared, &ShardOptions::default())?;
    for (stream, (name, shape)) in specs.iter().enumerate() {
        let n = shape.iter().product::<usize>();
        // A million elements at a time: memory stays small whatever the tensor.
        for start in (0..n).step_by(1 << 20) {
            let piece = random_bf16(stream as u64, start, (n - start).min(1 << 20), shape.len() == 1);
            writer.write(name, &piece)?;
        }
    }
    writer.finish()?;
    folder.finish()?;
    Ok(bytes(&specs) as u64)
}

/// Uniform weights with standard deviation 0.02 (norms: one), as little-endian bf16.
fn random_bf16(stream: u64, start: usize, n: usize, norm: bool) -> Vec<u8> {
    let value = |bits: u16| {
        let x = if norm {
            1.0
        } else {
            (f32::from(bits) / 65536.0 - 0.5) * 0.02 * 12f32.sqrt()
        };
        half::bf16::from_f32(x).to_le_bytes()
    };
    let mut out = Vec::with_capacity(2 * n);
    for block in start / 8..(start + n).div_ceil(8) {
        let words = Philox::block([block as u32, (block >> 32) as u32, stream as u32, 0], [0x4f75, 0x6e63]);
        out.extend(
            words
                .iter()
                .flat_map(|w| [*w as u16, (*w >> 16) as u16])
                .flat_map(value),
        );
    }
    out.truncate(2 * n);
    out
}
