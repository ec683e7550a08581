//! MoH as a whole model: the edge cases of its routers, the skipped heads, decoding, and what is refused.

use ounce_model::{Batch, Model, ModelConfig, weights::FreshWeights, weights::Weights};
use ounce_tensor::{Compute, DType, Gradients, Tensor, no_grad, ops};
use proptest::prelude::*;
use serde_json::{Value, json};

fn llama(heads: usize, kv_heads: usize) -> Value {
    json!({
        "model_type": "llama", "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": 8, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 128,
    })
}

fn moh(heads: usize, kv_heads: usize, router: &str, shared: usize, k: usize) -> Value {
    let mut config = llama(heads, kv_heads);
    config["moh"] = json!({"router": router, "shared_heads": shared, "active_routed_heads": k});
    config
}

fn fresh(config: &Value) -> Model {
    let config = ModelConfig::parse("test", config).unwrap();
    Model::new(config, &mut FreshWeights { seed: 7, std: 0.3 }).unwrap()
}

fn ids(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (i * 13 + 5) % 40).collect()
}

fn batch(ids: &[u32], rows: usize) -> Batch<'_> {
    Batch {
        ids,
        batch: rows,
        compute: Compute::F32,
    }
}

fn forward(model: &Model, ids: &[u32], rows: usize) -> Vec<f32> {
    no_grad(|| model.forward(batch(ids, rows))).unwrap().to_f32()
}

/// The dense form: what training computes.
fn dense(model: &mut Model, ids: &[u32], rows: usize) -> Vec<f32> {
    model.visit(&mut |p| p.tensor = p.tensor.requires_grad());
    let out = model.forward(batch(ids, rows)).unwrap().to_f32();
    model.visit(&mut |p| p.tensor = p.tensor.detach());
    out
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    ounce_tensor::largest_difference(a, b) as f32
}

const SPLITS: [(&str, usize, usize); 8] = [
    ("two_stage", 0, 3),
    ("two_stage", 1, 2),
    ("two_stage", 3, 2),
    ("two_stage", 8, 0),
    ("two_stage", 7, 1),
    ("query_norm", 0, 1),
    ("query_norm", 4, 2),
    ("query_norm", 7, 1),
];

#[test]
fn skipped_heads_change_nothing() {
    let input = ids(2 * 37);
    for (router, shared, k) in SPLITS {
        for kv_heads in [1, 2, 4, 8] {
            let mut model = fresh(&moh(8, kv_heads, router, shared, k));
            let skipping = forward(&model, &input, 2);
            let reference = dense(&mut model, &input, 2);
            assert!(
                worst(&skipping, &reference) <= 1e-4,
                "{router} {shared}+{k}, {kv_heads} kv heads"
            );
        }
    }
}

#[test]
fn all_heads_by_query_norm_is_plain_llama() {
    let input = ids(33);
    for (shared, k) in [(0, 8), (3, 5), (8, 0)] {
        let model = fresh(&moh(8, 4, "query_norm", shared, k));
        assert_eq!(forward(&model, &input, 1), forward(&fresh(&llama(8, 4)), &input, 1));
    }
    let fewer = fresh(&moh(8, 4, "query_norm", 4, 1));
    assert!(worst(&forward(&fewer, &input, 1), &forward(&fresh(&llama(8, 4)), &input, 1)) > 1e-3);
}

/// Routers of zeros score every head alike: every gate is 1.
struct ZeroRouters(FreshWeights);

impl Weights for ZeroRouters {
    fn tensor(&mut self, name: &str, shape: &[usize]) -> ounce_model::Result<Tensor> {
        if name.contains(".wg") {
            return Ok(Tensor::zeros(shape));
        }
        self.0.tensor(name, shape)
    }
}

#[test]
fn zero_routers_with_all_heads_are_plain_llama() {
    let input = ids(20);
    for (shared, k) in [(0, 8), (1, 7), (5, 3), (8, 0)] {
        let config = ModelConfig::parse("test", &moh(8, 2, "two_stage", shared, k)).unwrap();
        let model = Model::new(config, &mut ZeroRouters(FreshWeights { seed: 7, std: 0.3 })).unwrap();
        let difference = worst(&forward(&model, &input, 1), &forward(&fresh(&llama(8, 2)), &input, 1));
        assert!(difference <= 2e-5, "{shared}+{k}: {difference}");
    }
}

fn gates(model: &Model, ids: &[u32]) -> Vec<Vec<f32>> {
    let mut ctx = model.context(batch(ids, 1)).unwrap();
    ctx.sink.want_head_gates = true;
    no_grad(|| model.hidden(&mut ctx)).unwrap();
    ctx.sink.head_gates.iter().map(|(_, g)| g.to_f32()).collect()
}

#[test]
fn learned_gates_have_the_sums_of_the_formula() {
    for (shared, k) in [(0, 3), (1, 2), (3, 2), (8, 0)] {
        let model = fresh(&moh(8, 4, "two_stage", shared, k));
        for layer in gates(&model, &ids(24)) {
            for row in layer.chunks_exact(8) {
                assert!(row.iter().all(|&g| g >= 0.0));
                assert!(row[shared..].iter().filter(|&&g| g > 0.0).count() == k);
                let (s, r): (f32, f32) = (row[..shared].iter().sum(), row[shared..].iter().sum());
                // s / h_s = 2 a1 and r / K = 2 a2, and a1 + a2 = 1.
                match (shared, k) {
                    (0, _) => assert!((r - k as f32).abs() < 1e-4, "{r}"),
                    (8, _) => assert!((s - 8.0).abs() < 1e-4, "{s}"),
                    _ => assert!((s / shared as f32 + r / k as f32 - 2.0).abs() < 1e-4, "{s} {r}"),
                }
            }
        }
    }
}

#[test]
fn decoding_equals_the_full_forward() {
    let input = ids(30);
    for (router, shared, k) in SPLITS {
        let model = fresh(&moh(8, 4, router, shared, k));
        let full = forward(&model, &input, 1);
        let mut cache = model.cache(0);
        let mut last = no_grad(|| model.prefill(&input[..21], Compute::F32, &mut *cache)).unwrap();
        for t in 21..30 {
            assert!(
                worst(&last.to_f32(), &full[(t - 1) * 40..t * 40]) < 1e-4,
                "{router} {shared}+{k} at {t}"
            );
            last = no_grad(|| model.prefill(&input[t..=t], Compute::F32, &mut *cache)).unwrap();
        }
    }
}

/// The heads that are skipped are skipped within a window, too, and where keys and values are kept in half precision.
#[test]
fn decoding_within_a_window_and_with_a_half_precision_cache() {
    let input = ids(30);
    for (router, shared, k) in SPLITS {
        let mut config = moh(8, 4, router, shared, k);
        config["model_type"] = "mistral".into();
        config["sliding_window"] = 6.into();
        let mut model = fresh(&config);
        let full = forward(&model, &input, 1);
        assert!(
            worst(&dense(&mut model, &input, 1), &full) < 1e-4,
            "{router} {shared}+{k}"
        );
        let decoded = |model: &Model| {
            let mut cache = model.cache(0);
            let mut next = |ids: &[u32]| {
                no_grad(|| model.prefill(ids, Compute::F32, &mut *cache))
                    .unwrap()
                    .to_f32()
            };
            let mut all = next(&input[..21]);
            input[21..].iter().for_each(|id| all.extend(next(&[*id])));
            all
        };
        assert!(
            worst(&decoded(&model), &full[20 * 40..]) < 1e-4,
            "{router} {shared}+{k}"
        );
        model.visit(&mut |p| p.tensor = p.tensor.cast(DType::BF16).unwrap());
        let full = forward(&model, &input, 1);
        let scale = full.iter().fold(0f32, |m, x| m.max(x.abs()));
        let difference = worst(&decoded(&model), &full[20 * 40..]) / scale;
        assert!(
            difference > 0.0 && difference < 1e-2,
            "{router} {shared}+{k}: {difference}"
        );
    }
    let mut unlimited = moh(8, 4, "query_norm", 4, 2);
    let mut limited = unlimited.clone();
    (limited["model_type"], limited["sliding_window"]) = ("mistral".into(), 6.into());
    unlimited["model_type"] = "mistral".into();
    let both = [limited, unlimited].map(|config| forward(&fresh(&config), &input, 1));
    assert!(worst(&both[0], &both[1]) > 1e-3, "the window limits nothing");
}

#[test]
fn the_query_hears_its_router() {
    let mut model = fresh(&moh(8, 4, "query_norm", 4, 2));
    model.visit(&mut |p| p.tensor = p.tensor.requires_grad());
    let input = ids(24);
    let mut ctx = model.context(batch(&input, 1)).unwrap();
    model.hidden(&mut ctx).unwrap();
    // The balance losses alone: what reaches the query went through the scores.
    let [first, last] = &ctx.sink.side_losses[..] else {
        panic!("one balance loss per layer");
    };
    let mut gradients = Gradients::new();
    ops::add(first, last).unwrap().backward(&mut gradients).unwrap();
    model.visit(&mut |p| {
        let hears = gradients
            .get(&p.tensor)
            .is_some_and(|g| g.to_f32().iter().any(|&x| x != 0.0));
        if p.name.ends_with("q_proj.weight") {
            assert!(hears, "{}", p.name);
        }
        if p.name.contains("layers.1.self_attn.k_proj") || p.name.contains("layers.1.self_attn.v_proj") {
            assert!(!hears, "{}", p.name);
        }
    });
}

#[test]
fn every_weight_learns() {
    for (router, shared, k) in SPLITS {
        let mut model = fresh(&moh(8, 4, router, shared, k));
        model.visit(&mut |p| p.tensor = p.tensor.requires_grad());
        let input = ids(24);
        let mut ctx = model.context(batch(&input, 1)).unwrap();
        let hidden = model.hidden(&mut ctx).unwrap();
        let targets: Vec<i64> = input.iter().map(|&i| i64::from(i)).collect();
        let mut loss = ops::cross_entropy(&model.logits(&hidden, Compute::F32).unwrap(), &targets).unwrap();
        let routed = shared < 8;
        assert_eq!(
            ctx.sink.side_losses.len(),
            if routed { 2 } else { 0 },
            "{router} {shared}+{k}"
        );
        for side in &ctx.sink.side_losses {
            loss = ops::add(&loss, side).unwrap();
        }
        let mut gradients = Gradients::new();
        loss.backward(&mut gradients).unwrap();
        model.visit(&mut |p| {
            let g = gradients
                .get(&p.tensor)
                .unwrap_or_else(|| panic!("{}: no gradient", p.name));
            // With one routed head there is nothing to choose: its router is constant.
            let constant = p.name.ends_with(".wg.weight") && shared == 7;
            assert!(
                constant || g.to_f32().iter().any(|&x| x != 0.0),
                "{router} {shared}+{k}: {} is zero",
                p.name
            );
        });
    }
}

fn refusal(moh: Value) -> (String, Option<String>) {
    let mut config = llama(8, 4);
    config["moh"] = moh;
    let error = ModelConfig::parse("config.json", &config).unwrap_err();
    (error.to_string(), error.hint())
}

#[test]
fn bad_values_are_refused_with_key_rule_and_hint() {
    for (moh, key, rule) in [
        (
            json!({"router": "query_norm", "shared_heads": 9, "active_routed_heads": 0}),
            "moh.shared_heads",
            "at most num_attention_heads = 8, is 9",
        ),
        (
            json!({"router": "query_norm", "shared_heads": 4, "active_routed_heads": 5}),
            "moh.active_routed_heads",
            "at most the 4 routed heads, is 5",
        ),
        (
            json!({"router": "two_stage", "shared_heads": 4, "active_routed_heads": 0}),
            "moh.active_routed_heads",
            "never be used",
        ),
        (
            json!({"router": "best", "shared_heads": 4, "active_routed_heads": 2}),
            "moh.router",
            "two_stage",
        ),
        (
            json!({"shared_heads": 4, "active_routed_heads": 2}),
            "moh.router",
            "query_norm",
        ),
        (
            json!({"router": "two_stage", "shared_heads": 4}),
            "moh.active_routed_heads",
            "is missing",
        ),
        (
            json!({"router": "two_stage", "shared_heads": 4, "active_routed_heads": 2, "balance": -1}),
            "moh.balance",
            "negative",
        ),
        (
            json!({"router": "two_stage", "shared_heads": 4, "active_routed_heads": 2, "scaling": "x"}),
            "moh.scaling",
            "\"x\"",
        ),
        (
            json!({"router": "two_stage", "shared_heads": 4, "active_routed_heads": 2, "heads": 3}),
            "moh.heads",
            "unknown",
        ),
    ] {
        let (message, hint) = refusal(moh);
        assert!(
            message.contains(&format!("config.json: key \"{key}\"")) && message.contains(rule),
            "{message}"
        );
        assert!(hint.is_some(), "{message}");
    }
    let (message, _) = refusal(json!(3));
    assert!(
        message.contains("key \"moh\"") && message.contains("object"),
        "{message}"
    );
    let mut remote = llama(8, 4);
    remote["auto_map"] = json!({"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"});
    let error = ModelConfig::parse("config.json", &remote).unwrap_err();
    let hint = error.hint().unwrap_or_default();
    assert!(
        error.to_string().contains("auto_map") && hint.contains("moh:"),
        "{error} {hint}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn skipping_equals_dense_for_any_split(heads in 0usize..3, group in 0usize..3, shared in 0usize..9, k in 1usize..9,
        len in 16usize..40, learned: bool) {
        let h = [4, 6, 8][heads];
        let kv = h / [1, 2, h][group];
        let shared = shared.min(h);
        let k = k.min(h - shared);
        let router = if learned { "two_stage" } else { "query_norm" };
        let mut model = fresh(&moh(h, kv, router, shared, k));
        let input = ids(len);
        let skipping = forward(&model, &input, 1);
        prop_assert!(worst(&skipping, &dense(&mut model, &input, 1)) <= 1e-4);
    }
}

#[test]
fn a_batch_is_its_rows() {
    let (a, b): (Vec<u32>, Vec<u32>) = (ids(30), ids(30).into_iter().rev().collect());
    for (router, shared, k) in SPLITS {
        let model = fresh(&moh(8, 4, router, shared, k));
        let both = forward(&model, &[&a[..], &b].concat(), 2);
        assert!(
            worst(&both[..30 * 40], &forward(&model, &a, 1)) < 1e-4,
            "{router} {shared}+{k}"
        );
        assert!(
            worst(&both[30 * 40..], &forward(&model, &b, 1)) < 1e-4,
            "{router} {shared}+{k}"
        );
    }
}

/// The same weights with routed heads in another order: head i of the result is head `order[i]`.
struct Reordered {
    fresh: FreshWeights,
    order: [usize; 8],
    shared: usize,
}

impl Weights for Reordered {
    fn tensor(&mut self, name: &str, shape: &[usize]) -> ounce_model::Result<Tensor> {
        let tensor = self.fresh.tensor(name, shape)?;
        let [rows, cols] = *shape else { return Ok(tensor) };
        let v = tensor.to_f32();
        let row = |r: usize| v[r * cols..(r + 1) * cols].to_vec();
        let order = self.order;
        let values: Vec<f32> = match name.rsplit('.').nth(1) {
            Some("q_proj" | "k_proj" | "v_proj") => (0..rows).flat_map(|r| row(order[r / 8] * 8 + r % 8)).collect(),
            Some("o_proj") => (0..rows * cols)
                .map(|i| v[i / cols * cols + order[i % cols / 8] * 8 + i % 8])
                .collect(),
            Some("wg") => (0..rows)
                .flat_map(|r| row(order[self.shared + r] - self.shared))
                .collect(),
            _ => return Ok(tensor),
        };
        Ok(Tensor::new(values, shape)?)
    }
}

#[test]
fn the_order_of_routed_heads_does_not_matter() {
    let input = ids(30);
    for (router, shared) in [("two_stage", 3), ("query_norm", 3)] {
        let config = moh(8, 8, router, shared, 2);
        let reordered = Reordered {
            fresh: FreshWeights { seed: 7, std: 0.3 },
            order: [0, 1, 2, 6, 3, 7, 5, 4],
            shared,
        };
        let other = {
            let mut weights = reordered;
            Model::new(ModelConfig::parse("test", &config).unwrap(), &mut weights).unwrap()
        };
        let difference = worst(&forward(&fresh(&config), &input, 1), &forward(&other, &input, 1));
        assert!(difference < 1e-4, "{router}: {difference}");
    }
}
