//! Rotary positions beside the reference's: frequencies within and beyond the trained length, and what disagrees.

use ounce_model::{ModelConfig, RopeTable};
use serde_json::{Value, json};

/// Inverse frequencies and attention factors that transformers 5.24 computes (f32), for configurations of one shape.
const REFERENCE: &str = include_str!("fixtures/rope.json");

fn table(json: &Value) -> RopeTable {
    let config = ModelConfig::parse("config.json", json).unwrap_or_else(|e| panic!("{json}: {e}"));
    RopeTable::new(&config.rope, config.head_dim)
}

#[test]
fn frequencies_are_the_references_at_every_length() {
    let cases: Vec<Value> = serde_json::from_str(REFERENCE).unwrap();
    assert!(cases.len() > 20);
    for case in &cases {
        let table = table(&case["config"]);
        let factor = case["attention_factor"].as_f64().unwrap();
        assert!((table.attention_factor() - factor).abs() < 1e-6, "{case}");
        for at in case["inv_freq"].as_array().unwrap() {
            let length = at[0].as_u64().unwrap() as usize;
            let ours = table.frequencies(length);
            let theirs: Vec<f64> = at[1].as_array().unwrap().iter().map(|f| f.as_f64().unwrap()).collect();
            assert_eq!(ours.len(), theirs.len());
            for (a, b) in ours.iter().zip(&theirs) {
                assert!((a - b).abs() <= 2e-6 * b.abs(), "{case}, length {length}: {ours:?}");
            }
        }
    }
}

#[test]
fn each_sequence_counts_for_itself() {
    let dynamic = json!({ "model_type": "llama", "hidden_size": 32, "num_attention_heads": 4,
        "max_position_embeddings": 64, "rope_scaling": { "type": "dynamic", "factor": 2.0 } });
    let table = table(&dynamic);
    let short = || (0..10).map(|p| (p, 10));
    let long = (0..200).map(|p| (p, 200));
    let (alone, _) = table.tables(short()).unwrap();
    let (both, _) = table.tables(short().chain(long)).unwrap();
    assert_eq!(both.values::<f32>().unwrap()[..40], *alone.values::<f32>().unwrap());
    let (late, _) = table.tables([(9, 200)]).unwrap();
    assert_ne!(late.values::<f32>().unwrap()[1..], alone.values::<f32>().unwrap()[37..]);
}

#[test]
fn what_the_reference_cannot_compute_is_refused_and_what_it_does_not_read_is_named() {
    let parse = |key: &str, value: Value| {
        let mut json = json!({ "model_type": "llama", "hidden_size": 32, "num_attention_heads": 4 });
        json[key] = value;
        ModelConfig::parse("config.json", &json)
    };
    for (value, said) in [
        (
            json!({ "type": "mrope", "mrope_section": [1, 1, 2] }),
            "\"mrope\" is not supported",
        ),
        (json!({ "type": "linear" }), "needs a number above 0"),
        (
            json!({ "rope_type": null, "type": "linear", "factor": 2 }),
            "is not supported",
        ),
        (json!({ "type": "yarn" }), "null derives it"),
        (
            json!({ "type": "longrope", "short_factor": [1], "long_factor": [1, 1, 1, 1] }),
            "must hold 4 numbers",
        ),
        (
            json!({ "type": "linear", "factor": 2, "partial_rotary_factor": 0.5 }),
            "partial rotary",
        ),
        (json!({ "full_attention": { "rope_theta": 5.0 } }), "full_attention"),
        (json!("linear"), "must be an object"),
    ] {
        let error = parse("rope_scaling", value.clone()).unwrap_err().to_string();
        assert!(error.contains(said), "{value}: {error}");
    }
    let ignored = |key: &str, value: Value| parse(key, value).unwrap().ignored;
    assert_eq!(
        ignored("rope_scaling", json!({ "type": "default", "factor": 2 })),
        ["rope_scaling.factor"]
    );
    assert_eq!(ignored("partial_rotary_factor", json!(0.5)), ["partial_rotary_factor"]);
}
