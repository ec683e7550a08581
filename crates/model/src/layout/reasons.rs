//! Why a tensor is without a use, or missing: the reason that its name gives away.

use super::head::HEAD;
use crate::config::ModelConfig;
use ounce_formats::Checkpoint;

/// What a broken rule is called, and what to do about it.
pub(crate) type Reason = (String, String);

/// Ends of names that only quantised models have.
const QUANTISED: [&str; 16] = [
    "qweight",
    "qzeros",
    "g_idx",
    "scales",
    "biases",
    "weight_scale",
    "weight_scale_inv",
    "weight_zero_point",
    "input_scale",
    "weight_packed",
    "weight_shape",
    "absmax",
    "quant_map",
    "nested_absmax",
    "nested_quant_map",
    "SCB",
];

/// Why the tensor `name`, which is stored, has no use.
pub(crate) fn unused(name: &str, config: &ModelConfig) -> Reason {
    if let Some(reason) = telling(name) {
        return reason;
    }
    let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
    if let Some(layer) = layer.and_then(|(n, _)| n.parse::<usize>().ok())
        && layer >= config.layers.len()
    {
        let rule = format!(
            "is of layer {layer}, the configuration has layers 0 to {}",
            config.layers.len().saturating_sub(1)
        );
        return (rule, "is num_hidden_layers of config.json right?".into());
    }
    (
        "is in the checkpoint, but the configuration has no use for it".into(),
        "ignoring it might change what the model computes; is config.json of another model?".into(),
    )
}

/// Why the tensor `name`, which is asked for, is not in `checkpoint`.
pub(crate) fn missing(name: &str, checkpoint: &Checkpoint) -> Reason {
    let told = |other: &str| Some((telling(other)?, other.to_owned()));
    if let Some(((rule, hint), other)) = checkpoint.names().find_map(told) {
        return (format!("is missing; there is {other:?}, which {rule}"), hint);
    }
    if name == HEAD {
        return (
            "is missing, and tie_word_embeddings is not true".into(),
            "other programs make up a random head here; if the embedding is the head, set \"tie_word_embeddings\": true".into(),
        );
    }
    let last = name.rsplit('.').nth(1).unwrap_or(name);
    let like = checkpoint.names().find(|other| other.rsplit('.').nth(1) == Some(last));
    let hint = match like {
        Some(like) => {
            format!("{like:?} is there; is config.json of another model, or are its names of another program?")
        }
        None => "the configuration asks for it; is config.json of another model?".into(),
    };
    ("is missing".into(), hint)
}

/// What a name says of the whole checkpoint.
fn telling(name: &str) -> Option<Reason> {
    if name.contains(".lora_") || name.contains(".base_layer.") || name.contains("lora_embedding_") {
        return Some((
            "belongs to an adapter that was not merged".into(),
            "merge the adapter into its base model (peft: merge_and_unload), and save that".into(),
        ));
    }
    let last = name.rsplit('.').next().unwrap_or(name);
    if QUANTISED.contains(&last) || name.contains(".quant_state.") {
        return Some((
            "belongs to a quantised model, of a kind that is not read".into(),
            "take the model in BF16, F16 or F32".into(),
        ));
    }
    None
}
