//! What configurations and recipes may say of wirings.

use crate::{LAYERS, VOCABULARY, ladder, shape};
use ounce_model::{LadderLayers, ModelConfig, Residual};
use serde_json::{Value, json};

fn parse(change: impl Fn(&mut Value)) -> Result<ModelConfig, String> {
    let mut json = shape(&ladder(&[1, 2])).to_json(VOCABULARY, None, None);
    change(&mut json);
    ModelConfig::parse("config.json", &json).map_err(|e| format!("{e} | {}", e.hint().unwrap_or_default()))
}

#[test]
fn bad_lists_are_refused_with_key_rule_and_hint() {
    let error = |layers: Value| parse(|json| json["ladder_layers"] = layers.clone()).unwrap_err();
    let hint = "an integer n is the last n layers, a list names layers from 0";
    assert_eq!(
        error(json!([0, 4])),
        format!("config.json: key \"ladder_layers\": layer 4 is beyond the model, whose layers are 0..=3 | {hint}")
    );
    assert!(error(json!([1, 1])).contains("layer 1 is listed twice"));
    assert!(error(json!(9)).contains("the last 9 layers of a model that has 4"));
    assert!(error(json!(-2)).contains("must be a whole number or a list of layers"));
}

#[test]
fn a_ladder_is_never_loaded_as_a_plain_llama() {
    let error = parse(|json| json["model_type"] = "llama".into()).unwrap_err();
    assert!(
        error.contains("key \"ladder_layers\"") && error.contains("llamaLadder"),
        "{error}"
    );
    // Nor by programs that look at the architecture.
    let written = shape(&ladder(&[1])).to_json(VOCABULARY, None, None);
    assert_eq!(written["architectures"], json!(["LlamaLadderForCausalLM"]));
    assert_eq!(written["model_type"], "llamaLadder");
    let parallel = shape(&Residual::Parallel {}).to_json(VOCABULARY, None, None);
    assert_eq!(parallel["model_type"], "ounce_parallel");
    // No list at all is a standard model, and so is an empty one.
    for standard in [json!(null), json!([]), json!(0)] {
        let config = parse(|json| json["ladder_layers"] = standard.clone()).unwrap();
        assert!(
            config
                .layers
                .iter()
                .all(|l| l.wiring == ounce_model::Wiring::Sequential)
        );
    }
}

#[test]
fn recipes_refuse_unknown_keys_mixtures_and_lists_beyond_the_model() {
    let mut mixture = shape(&ladder(&[0]));
    (mixture.experts, mixture.experts_per_token) = (Some(4), Some(2));
    let error = mixture.to_config(VOCABULARY, None, None).unwrap_err().to_string();
    assert!(
        error.contains("key \"model.residual\"") && error.contains("dense"),
        "{error}"
    );
    let beyond = Residual::Ladder {
        layers: Some(LadderLayers::Last(LAYERS + 1)),
    };
    let error = shape(&beyond)
        .to_config(VOCABULARY, None, None)
        .unwrap_err()
        .to_string();
    assert!(error.contains("the last 5 layers of a model that has 4"), "{error}");
    for unknown in [json!({"wiring": "parallel", "layers": 2}), json!({"wiring": "braid"})] {
        assert!(serde_json::from_value::<Residual>(unknown).is_err());
    }
}
