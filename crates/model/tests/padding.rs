//! Padding: a row that is filled up to the length of its batch gives what it gives alone, in every attention and
//! feed-forward method; and what the padding says changes no bit.

use ounce_model::{Batch, Cache, Ctx, Model, ModelConfig, weights::FreshWeights};
use ounce_tensor::{Compute, Gradients, Tensor, no_grad, ops};
use serde_json::{Value, json};
use std::ops::Range;

const VOCABULARY: usize = 40;
const LENGTH: usize = 30;
/// Where the real tokens of the padded row are, and its length: with padding on both sides.
const REAL: Range<usize> = 5..5 + LENGTH;
const PADDED: usize = REAL.end + 4;
/// The real tokens of a row without padding: by itself, and of the padded length.
const ALONE: Range<usize> = 0..LENGTH;
const WHOLE: Range<usize> = 0..PADDED;

/// Every attention method, beside the keys that ask for it.
fn attentions() -> Vec<(&'static str, Value)> {
    let moh = |router: &str, shared: usize| {
        json!({ "moh": {
            "router": router, "shared_heads": shared, "active_routed_heads": 2, "balance": 0.1 } })
    };
    let dga = |selection: &str, bias: &str| json!({ "dga": { "group_size": 3, "focal_ratio": 0.2, "selection": selection, "group_bias": bias } });
    vec![
        ("full", json!({})),
        ("window", json!({ "model_type": "mistral", "sliding_window": 7 })),
        ("moh two_stage", moh("two_stage", 2)),
        ("moh two_stage, nothing shared", moh("two_stage", 0)),
        ("moh query_norm", moh("query_norm", 2)),
        ("dga global", dga("global", "none")),
        ("dga causal_block", dga("causal_block", "entropy")),
        // The row alone is short enough to be attended exactly, with its padding it would not be.
        (
            "dga exact",
            json!({ "dga": { "group_size": 3, "focal_ratio": 0.2, "min_len": LENGTH + 2 } }),
        ),
    ]
}

/// Every feed-forward method, beside its keys.
fn feed_forwards() -> Vec<(&'static str, Value)> {
    let aoe = |score: &str| {
        json!({ "model_type": "aoe", "num_experts": 5, "num_experts_per_tok": 2, "aoe_d_low": 4, "aoe_d_wide": 20,
                "aoe_score": score, "router_aux_loss_coef": 0.1 })
    };
    vec![
        ("dense", json!({})),
        (
            "mixtral",
            json!({ "model_type": "mixtral", "num_local_experts": 5, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.1 }),
        ),
        (
            "qwen2_moe",
            json!({ "model_type": "qwen2_moe", "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 12,
                    "shared_expert_intermediate_size": 12, "norm_topk_prob": true, "router_aux_loss_coef": 0.1 }),
        ),
        ("aoe of the selected", aoe("softmax_selected")),
        ("aoe of all", aoe("softmax_all")),
        ("mole", json!({ "model_type": "mole", "num_experts": 3 })),
        ("mole_lut", json!({ "model_type": "mole_lut", "num_experts": 3 })),
    ]
}

fn model(own: &Value) -> Model {
    let mut json = json!({
        "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 64,
    });
    for (key, value) in own.as_object().unwrap() {
        json[key] = value.clone();
    }
    let config = ModelConfig::parse("test", &json).unwrap();
    Model::new(config, &mut FreshWeights { seed: 3, std: 0.3 }).unwrap()
}

fn ids(n: usize, seed: usize) -> Vec<u32> {
    (0..n)
        .map(|i| ((i * i * 7 + 3 * i + 11 * seed) % VOCABULARY) as u32)
        .collect()
}

/// What a model says of the real tokens of a batch, and what it would learn.
#[derive(Debug, PartialEq)]
struct Said {
    /// Logits of the first row's real tokens: in training, in inference, and in inference through a cache.
    logits: [Vec<f32>; 3],
    /// Cross-entropy over all real tokens, then the balance losses.
    losses: Vec<f64>,
    /// Router logits, ids and weights, inputs of the feed-forward slots, gates of heads: of all rows' real tokens.
    by_products: Vec<f32>,
    /// Of every parameter.
    gradients: Vec<f32>,
}

/// The context of rows of which `real[row]` are no padding.
fn context<'a>(model: &Model, ids: &'a [u32], real: &[Range<usize>], cache: Option<&'a mut dyn Cache>) -> Ctx<'a> {
    let input = Batch {
        ids,
        batch: real.len(),
        compute: Compute::F32,
    };
    let mut ctx = model.context(input, cache).unwrap();
    for (span, real) in ctx.spans.iter_mut().zip(real) {
        (span.kv_begin, span.kv_len) = (real.start, real.end);
    }
    ctx
}

/// Runs rows of which `real[row]` are no padding.
fn run(model: &mut Model, ids: &[u32], real: &[Range<usize>]) -> Said {
    let len = ids.len() / real.len();
    let trains = model.frozen().is_none();
    if trains {
        model.visit(&mut |p| p.tensor = p.tensor.requires_grad());
    }
    let mut ctx = context(model, ids, real, None);
    ctx.sink.want_routing = true;
    ctx.sink.want_ffn_inputs = true;
    ctx.sink.want_head_gates = true;
    let hidden = model.hidden(&mut ctx).unwrap();
    let first = |hidden: &Tensor| {
        let logits = no_grad(|| model.logits(hidden, Compute::F32)).unwrap().to_f32();
        logits[real[0].start * VOCABULARY..real[0].end * VOCABULARY].to_vec()
    };
    let inferred = no_grad(|| model.hidden(&mut context(model, ids, real, None))).unwrap();
    let mut cache = model.cache(real.len(), len);
    let cached = no_grad(|| model.hidden(&mut context(model, ids, real, Some(&mut *cache)))).unwrap();
    let logits = [&hidden, &inferred, &cached].map(first);
    let targets: Vec<i64> = (0..ids.len())
        .map(|i| {
            if real[i / len].contains(&(i % len)) {
                i64::from(ids[i] * 7 % 40)
            } else {
                -1
            }
        })
        .collect();
    let mut loss = ops::linear_cross_entropy(&hidden, model.head(), &targets, Compute::F32).unwrap();
    let mut losses = vec![loss.item().unwrap()];
    for side in &ctx.sink.side_losses {
        losses.push(side.item().unwrap());
        loss = ops::add(&loss, side).unwrap();
    }
    let mut by_products = Vec::new();
    for routing in &ctx.sink.routing {
        by_products.extend(routing.logits.to_f32());
        by_products.extend(routing.experts.iter().map(|&e| e as f32));
        by_products.extend(&routing.weights);
    }
    for (_, x) in ctx.sink.ffn_inputs.iter().chain(&ctx.sink.head_gates) {
        by_products.extend(x.to_f32());
    }
    let mut gradients = Vec::new();
    if trains {
        let mut found = Gradients::new();
        loss.backward(&mut found).unwrap();
        model.visit(&mut |p| gradients.extend(found.get(&p.tensor).map_or(Vec::new(), Tensor::to_f32)));
        model.visit(&mut |p| p.tensor = p.tensor.detach());
    }
    Said {
        logits,
        losses,
        by_products,
        gradients,
    }
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    ounce_tensor::largest_difference(a, b) as f32
}

fn close(what: &str, a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len(), "{what}");
    let (scale, worst) = (a.iter().fold(1.0f32, |m, x| m.max(x.abs())), worst(a, b));
    assert!(worst < 1e-4 * scale, "{what}: {worst} of {scale}");
}

/// Equal but for rounding: matrix products over other numbers of rows sum in another order.
fn agree(what: &str, a: &Said, b: &Said) {
    for (form, (a, b)) in ["training", "inference", "cache"]
        .iter()
        .zip(a.logits.iter().zip(&b.logits))
    {
        close(&format!("{what}: logits, {form}"), a, b);
    }
    close(&format!("{what}: by-products"), &a.by_products, &b.by_products);
    close(&format!("{what}: gradients"), &a.gradients, &b.gradients);
    assert_eq!(a.losses.len(), b.losses.len(), "{what}");
    for (one, other) in a.losses.iter().zip(&b.losses) {
        assert!((one - other).abs() < 1e-5, "{what}: {:?} {:?}", a.losses, b.losses);
    }
}

/// The row between paddings, then another row if there is one.
fn padded(row: &[u32], fill: usize, other: &[u32]) -> Vec<u32> {
    let (before, after) = (ids(REAL.start, fill), ids(PADDED - REAL.end, fill + 1));
    [&before[..], row, &after, other].concat()
}

fn check(name: &str, own: &Value) {
    let mut model = model(own);
    let row = ids(LENGTH, 1);
    let alone = run(&mut model, &row, &[ALONE]);
    let filled = run(&mut model, &padded(&row, 2, &[]), &[REAL]);
    agree(name, &filled, &alone);
    // Beside a row that is real from end to end.
    let other = ids(PADDED, 9);
    let rows = [REAL, WHOLE];
    let both = run(&mut model, &padded(&row, 2, &other), &rows);
    for (a, b) in both.logits.iter().zip(&alone.logits) {
        close(&format!("{name}: logits in a batch"), a, b);
    }
    agree(
        &format!("{name}, other padding"),
        &run(&mut model, &padded(&row, 6, &other), &rows),
        &both,
    );
    // Nor is the test deaf: padding that is taken for text is heard everywhere.
    let heard = run(&mut model, &padded(&row, 2, &[]), &[WHOLE]);
    let said = &heard.logits[0][REAL.start * VOCABULARY..REAL.end * VOCABULARY];
    assert!(worst(said, &alone.logits[0]) > 1e-2, "{name}");
    for (a, b) in heard.losses.iter().zip(&alone.losses) {
        assert!((a - b).abs() > 1e-4, "{name}: {a} {b}");
    }
}

#[test]
fn every_attention_method_is_deaf_to_padding() {
    for key in ounce_model::attention::method_keys() {
        assert!(attentions().iter().any(|(_, own)| own.get(key).is_some()), "{key}");
    }
    for (name, own) in attentions() {
        check(name, &own);
    }
}

#[test]
fn every_feed_forward_method_is_deaf_to_padding() {
    for (name, own) in feed_forwards() {
        check(name, &own);
    }
}
