//! DGA as a whole model: mixed with exact layers, decoded, batched, rolled back.

use ounce_model::{Batch, Cache, Model, ModelConfig, PIECE, weights::FreshWeights};
use ounce_tensor::{Compute, Gradients, no_grad, ops};
use serde_json::{Value, json};

fn model(dga: Value) -> Model {
    of(dga, 3, 256)
}

/// One layer, for long prompts.
fn long(dga: Value) -> Model {
    of(dga, 1, 1 << 20)
}

fn of(dga: Value, layers: usize, positions: usize) -> Model {
    let mut config = json!({
        "model_type": "llama", "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": positions,
    });
    if !dga.is_null() {
        config["dga"] = dga;
    }
    let config = ModelConfig::parse("test", &config).unwrap();
    Model::new(config, &mut FreshWeights { seed: 3, std: 0.3 }).unwrap()
}

fn ids(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (i * 17 + 3) % 40).collect()
}

fn batch(ids: &[u32], rows: usize) -> Batch<'_> {
    Batch {
        ids,
        batch: rows,
        compute: Compute::F32,
    }
}

fn full(model: &Model, ids: &[u32], rows: usize) -> Vec<f32> {
    no_grad(|| model.forward(batch(ids, rows))).unwrap().to_f32()
}

fn next(model: &Model, ids: &[u32], cache: &mut dyn Cache) -> Vec<f32> {
    no_grad(|| model.prefill(ids, Compute::F32, cache)).unwrap().to_f32()
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    ounce_tensor::largest_difference(a, b) as f32
}

#[test]
fn decoding_equals_the_full_forward_also_beside_exact_layers() {
    let input = ids(60);
    for layers in [json!(null), json!([1]), json!([0, 2])] {
        for bias in ["none", "entropy"] {
            let dga = json!({"group_size": 4, "focal_ratio": 0.2, "selection": "causal_block", "group_bias": bias,
                "layers": layers});
            let model = model(dga);
            let whole = full(&model, &input, 1);
            let mut cache = model.cache(0);
            let mut last = next(&model, &input[..23], &mut *cache);
            for t in 23..60 {
                assert!(
                    worst(&last, &whole[(t - 1) * 40..t * 40]) < 2e-4,
                    "{layers} {bias} at {t}"
                );
                last = next(&model, &input[t..=t], &mut *cache);
            }
            assert_eq!(cache.len(), 60);
        }
    }
}

/// A short prompt is attended exactly, and so is what is decoded after it up to `min_len` tokens; how much of that came as a
/// prompt makes no difference, then or later.
#[test]
fn decoding_is_exact_up_to_the_minimum_whatever_the_prompt() {
    let (input, least) = (ids(60), 24);
    let model = model(json!({"group_size": 4, "focal_ratio": 0.2, "min_len": least}));
    let exact = full(&self::model(json!(null)), &input, 1);
    let decoded = |prompt: usize| {
        let mut cache = model.cache(0);
        let mut rows = vec![next(&model, &input[..prompt], &mut *cache)];
        rows.extend(input[prompt..].iter().map(|id| next(&model, &[*id], &mut *cache)));
        rows
    };
    let single = decoded(1);
    for (t, row) in single.iter().enumerate() {
        let difference = worst(row, &exact[t * 40..(t + 1) * 40]);
        assert!(t >= least || difference < 1e-4, "token {t}: {difference}");
        assert!(t + 1 < 60 || difference > 1e-3, "never grouped");
    }
    for prompt in [2, 11, least - 1, least] {
        for (t, (a, b)) in decoded(prompt).iter().zip(&single[prompt - 1..]).enumerate() {
            assert!(worst(a, b) < 2e-4, "prompt of {prompt}, token {}", prompt + t);
        }
    }
}

#[test]
fn the_function_is_exact_without_groups_and_another_one_with_them() {
    let input = ids(50);
    let exact = full(&model(json!(null)), &input, 1);
    for dga in [
        json!({"focal_ratio": 1}),
        json!({"group_size": 1}),
        json!({"min_len": 50}),
        json!({"layers": []}),
    ] {
        assert!(worst(&full(&model(dga.clone()), &input, 1), &exact) < 1e-4, "{dga}");
    }
    assert!(worst(&full(&model(json!({"group_size": 4})), &input, 1), &exact) > 1e-3);
}

/// Exact attention reads a long prompt piece by piece; DGA, to which that would be another selection, at once.
#[test]
fn a_long_prompt_is_read_as_one() {
    let input: Vec<u32> = (0..2 * PIECE as u32 + 77)
        .map(|i| (i * i * 7 + i * 17 + 3) % 40)
        .collect();
    for dga in [json!(null), json!({"group_size": 16})] {
        let model = long(dga.clone());
        let read = |ids: &[u32]| {
            let mut cache = model.cache(ids.len());
            let logits = no_grad(|| model.prefill(ids, Compute::F32, &mut *cache)).unwrap();
            assert_eq!(cache.len(), ids.len());
            logits.to_f32()
        };
        for ids in [&input[..1], &input[..PIECE], &input[..=PIECE], &input] {
            let once = next(&model, ids, &mut *model.cache(ids.len()));
            let pieces = read(ids);
            assert!(worst(&pieces, &once) < 1e-4, "{dga} {}", ids.len());
            assert!(dga.is_null() || pieces == once, "the same call");
        }
        assert!(no_grad(|| model.prefill(&[], Compute::F32, &mut *model.cache(1))).is_err());
    }
}

#[test]
fn a_batch_is_its_rows() {
    let (a, b): (Vec<u32>, Vec<u32>) = (ids(45), ids(45).into_iter().rev().collect());
    for selection in ["global", "causal_block"] {
        let model = model(json!({"group_size": 4, "selection": selection}));
        let both = full(&model, &[&a[..], &b].concat(), 2);
        let (first, second) = both.split_at(45 * 40);
        assert!(worst(first, &full(&model, &a, 1)) < 1e-5);
        assert!(worst(second, &full(&model, &b, 1)) < 1e-5);
        let swapped = full(&model, &[&b[..], &a].concat(), 2);
        assert!(worst(&swapped[..45 * 40], second) < 1e-5);
    }
}

#[test]
fn the_cache_is_smaller_and_rolls_back_as_a_whole_or_not_at_all() {
    let input = ids(200);
    let dga = json!({"group_size": 8, "focal_ratio": 0.1, "selection": "causal_block", "layers": [0, 1]});
    let model = model(dga);
    let mut cache = model.cache(0);
    next(&model, &input[..191], &mut *cache);
    let exact = {
        let plain = self::model(json!(null));
        let mut cache = plain.cache(0);
        next(&plain, &input[..191], &mut *cache);
        cache.bytes()
    };
    assert!(cache.bytes() < exact * 2 / 3, "{} of {exact}", cache.bytes());
    // Blocks of 9: position 188 is compressed.
    let error = cache.truncate(188).unwrap_err().to_string();
    assert!(error.contains("compressed for good"), "{error}");
    assert_eq!(cache.len(), 191, "nothing was forgotten");
    let mut copy = cache.snapshot();
    let once = next(&model, &input[191..192], &mut *cache);
    cache.truncate(190).unwrap();
    assert_eq!(cache.len(), 190);
    next(&model, &input[190..191], &mut *cache);
    // Token 190 came with its neighbours before, and alone now: the same up to rounding.
    assert!(worst(&next(&model, &input[191..192], &mut *cache), &once) < 1e-4);
    assert_eq!(
        next(&model, &input[191..192], &mut *copy),
        once,
        "a snapshot goes on by itself"
    );
    assert!(cache.truncate(500).is_err());
}

#[test]
fn every_weight_learns() {
    for selection in ["global", "causal_block"] {
        let mut model = model(json!({"group_size": 4, "selection": selection, "group_bias": "entropy"}));
        model.visit(&mut |p| p.tensor = p.tensor.requires_grad());
        let input = ids(40);
        let logits = model.forward(batch(&input, 1)).unwrap();
        let targets: Vec<i64> = input.iter().map(|&i| i64::from(i)).collect();
        let mut gradients = Gradients::new();
        ops::cross_entropy(&logits, &targets)
            .unwrap()
            .backward(&mut gradients)
            .unwrap();
        model.visit(&mut |p| {
            let g = gradients
                .get(&p.tensor)
                .unwrap_or_else(|| panic!("{}: no gradient", p.name));
            assert!(
                g.to_f32().iter().all(|x| x.is_finite()) && g.to_f32().iter().any(|&x| x != 0.0),
                "{}",
                p.name
            );
        });
    }
}
