//! A Llama checkpoint rewired as a ladder: the same tensors, byte for byte, under a configuration that says so.
//!
//! From "Ladder-Residual" (Zhang et al., ICML 2025, arXiv 2501.06589): layers of a trained model are switched to ladder
//! wiring (the paper: the last 16 or 20 of 32) and the model is trained on. Shapes do not change, the function does:
//! before that training the result is worse than the original, most of all at generating. The wiring itself is in
//! `ounce_model::residual`.

use crate::{
    convert::{Conversion, Options},
    error::CompressError,
    pass::{Card, Plan},
};
use ounce_model::{LadderLayers, ModelConfig, Opened, Residual, residual::LADDER};
use serde_json::{Map, Value};

pub(crate) const CONVERSION: Conversion = Conversion {
    name: "ladder",
    about: "Ladder Residual: the same tensors, each sub-block reads what had arrived before the last one; tune it on",
    options: &[(
        "layers",
        "a number n, the last n layers, or a list such as [0,2,4]; all by default",
    )],
    plan,
};

/// What the model card says.
const CARD: &str = "Layers were rewired as a ladder (Ladder Residual, arXiv 2501.06589): `ladder_layers` in `config.json`. \
    The tensors are those of the original, the function is not. Programs that load it as a plain Llama would compute \
    something else, so its `model_type` is its own.";
/// What whoever made it should know.
const ADVICE: &str = "Train it on before use (`ounce train` with `init`): untuned it computes something else, the worse the \
    more layers are rewired.";

/// The configuration of the rewired model. This is the whole conversion: every tensor is copied.
///
/// # Errors
/// If the original is neither a plain Llama nor a ladder, or a layer is beyond the model or named twice.
fn ladder_config(original: &Value, layers: Option<LadderLayers>) -> Result<Map<String, Value>, CompressError> {
    let before = ModelConfig::parse("config.json", original)?;
    if before.model_type != "llama" && before.model_type != LADDER {
        return Err(CompressError::input(
            "model",
            format!(
                "is of family \"{}\"; ladder wiring is defined for llama",
                before.model_type
            ),
            "convert a checkpoint whose model_type is llama",
        ));
    }
    let mut config = before.raw;
    Residual::Ladder { layers }.write(&mut config, before.layers.len());
    // The authors' code is not needed any more, and other programs would run it.
    config.remove("auto_map");
    ModelConfig::parse("config.json", &Value::Object(config.clone()))?;
    Ok(config)
}

fn plan(opened: &Opened, options: &Options) -> Result<Plan<'static>, CompressError> {
    let checkpoint = opened.checkpoint();
    let layers = match options.get("layers") {
        None => None,
        Some(text) => Some(read_layers(text)?),
    };
    let config = ladder_config(checkpoint.config(), layers)?;
    let card = Card {
        method: CONVERSION.name,
        what: CARD.into(),
        parameters: vec![(
            "layers",
            config.get("ladder_layers").map_or_else(String::new, Value::to_string),
        )],
        advice: Some(ADVICE.into()),
    };
    let mut plan = Plan::copying(checkpoint, card, |_| true);
    plan.config = config;
    Ok(plan)
}

/// `n`: the last n layers; `[a, b, …]`: these layers, from 0.
fn read_layers(text: &str) -> Result<LadderLayers, CompressError> {
    serde_json::from_str(text).map_err(|_| {
        CompressError::input(
            "option \"layers\"",
            format!("\"{text}\" is neither a number nor a list of layers"),
            "layers=16 is the last 16 layers, layers=[0,2,4] names layers from 0",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn llama() -> Value {
        json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 16, "hidden_size": 8,
            "intermediate_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2,
        })
    }

    #[test]
    fn only_the_configuration_changes_and_a_ladder_can_be_rewired() {
        let half = ladder_config(&llama(), Some(LadderLayers::Last(2))).unwrap();
        assert_eq!(half["model_type"], "llamaLadder");
        assert_eq!(half["ladder_layers"], json!([2, 3]));
        assert_eq!(half["architectures"], json!(["LlamaLadderForCausalLM"]));
        let all = ladder_config(&Value::Object(half), None).unwrap();
        assert_eq!(all["ladder_layers"], json!([0, 1, 2, 3]));
        assert_eq!(all["vocab_size"], 16);
    }

    #[test]
    fn other_families_and_layers_beyond_the_model_are_refused() {
        let mut mistral = llama();
        mistral["model_type"] = "mistral".into();
        mistral["num_key_value_heads"] = 2.into();
        let error = ladder_config(&mistral, None).unwrap_err().to_string();
        assert_eq!(
            error,
            "model: is of family \"mistral\"; ladder wiring is defined for llama"
        );
        let error = |layers| ladder_config(&llama(), Some(layers)).unwrap_err().to_string();
        assert!(error(LadderLayers::Last(5)).contains("the last 5 layers of a model that has 4"));
        assert!(error(LadderLayers::List(vec![1, 1])).contains("layer 1 is listed twice"));
    }
}
