//! Layers with a sliding window forget what they cannot see: nothing changes, but the memory that a long text takes.

use ounce_model::{Cache, KvCache, Model, ModelConfig, cache::CacheType, weights::FreshWeights};
use ounce_tensor::{Compute, no_grad};
use proptest::prelude::*;
use serde_json::{Value, json};

const V: usize = 40;

/// Of four layers, those from `windowed` on have a window.
fn model(window: usize, windowed: usize) -> Model {
    let config = json!({
        "model_type": "qwen2", "vocab_size": V, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096,
        "use_sliding_window": true, "sliding_window": window, "max_window_layers": windowed,
    });
    of(&config)
}

fn of(config: &Value) -> Model {
    let config = ModelConfig::parse("test", config).unwrap();
    Model::new(config, &mut FreshWeights { seed: 3, std: 0.3 }).unwrap()
}

fn ids(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (i * i * 3 + i * 17 + 3) % V as u32).collect()
}

/// Logits after a piece of a sequence.
fn next(model: &Model, ids: &[u32], cache: &mut dyn Cache) -> Vec<f32> {
    no_grad(|| model.prefill(ids, Compute::F32, cache)).unwrap().to_f32()
}

/// A cache that keeps everything.
fn everything() -> KvCache {
    KvCache::new(CacheType::F32, vec![None; 4], 2, 4, 0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn forgetting_changes_nothing_but_rounding(window in 1usize..90, windowed in 0usize..4, reserve in 0usize..900,
        pieces in prop::collection::vec(prop_oneof![Just(1usize), 1usize..300], 1..30))
    {
        let model = model(window, windowed);
        let (mut rolling, mut all) = (model.cache(reserve), everything());
        let text = ids(pieces.iter().sum());
        let mut from = 0;
        for piece in pieces {
            let part = &text[from..][..piece];
            let (a, b) = (next(&model, part, &mut *rolling), next(&model, part, &mut all));
            let difference = ounce_tensor::largest_difference(&a, &b);
            prop_assert!(difference < 1e-4, "{}", difference);
            from += piece;
            prop_assert_eq!(rolling.len(), from);
        }
    }
}

#[test]
fn memory_does_not_grow_with_the_text() {
    let bytes = |windowed: usize, tokens: usize| {
        let model = model(33, windowed);
        let mut cache = model.cache(2000);
        next(&model, &ids(100), &mut *cache);
        for id in ids(tokens) {
            next(&model, &[id], &mut *cache);
        }
        cache.bytes()
    };
    // Twice 33 - 1 + 64 tokens, two heads of four values, keys and values, of four layers.
    assert_eq!(bytes(0, 10), 2 * 96 * 2 * 4 * 2 * 4 * 4);
    assert_eq!(bytes(0, 10), bytes(0, 700));
    // A layer without a window keeps all.
    assert!(bytes(3, 10) > 2000 * 2 * 4 * 2 * 4 * 3);
}

#[test]
fn a_few_tokens_can_be_taken_back_and_more_cannot() {
    let (model, text) = (model(20, 1), ids(500));
    let mut cache = model.cache(0);
    for id in &text[..400] {
        next(&model, &[*id], &mut *cache);
    }
    let mut copy = cache.snapshot();
    let error = cache.truncate(200).unwrap_err().to_string();
    assert!(
        error.contains("cannot go back to 200 tokens") && error.contains("a window of 20"),
        "{error}"
    );
    assert!(cache.truncate(401).is_err());
    assert_eq!(cache.len(), 400, "a refusal changes nothing");
    let mut whole = everything();
    let once = next(&model, &text[..351], &mut whole);
    cache.truncate(350).unwrap();
    let again = next(&model, &text[350..351], &mut *cache);
    assert!(ounce_tensor::largest_difference(&again, &once) < 1e-4);
    assert_eq!(copy.len(), 400);
    let (a, b) = (
        next(&model, &text[400..401], &mut *copy),
        next(&model, &text[351..401], &mut whole),
    );
    assert!(ounce_tensor::largest_difference(&a, &b) < 1e-4);
}
