use super::*;
use crate::{
    error::ModelError,
    ffn::{
        DenseFfn,
        testing::{InOrder, context, distance, values},
    },
};
use ounce_tensor::{DType, Gradients, gradcheck};
use proptest::prelude::*;
use serde_json::{Value, json};

mod properties;

const D: usize = 5;
const N: usize = 6;

fn config(experts: usize, top_k: usize, score: Score, balance: f64) -> AoeConfig {
    AoeConfig {
        experts,
        top_k,
        d_low: 3,
        d_wide: 4,
        score,
        balance,
    }
}

/// Weights in the order the layer asks for them.
fn weights(c: &AoeConfig, seed: usize) -> Vec<Tensor> {
    let mut all = vec![values(&[c.experts * c.d_low, D], seed)];
    for e in 0..c.experts {
        let s = seed + 7 * e;
        all.push(values(&[c.d_wide, c.d_low], s + 1));
        all.push(values(&[c.d_wide, D], s + 2));
        all.push(values(&[D, c.d_wide], s + 3));
    }
    all
}

fn layer(c: &AoeConfig, weights: &[Tensor]) -> AoeFfn {
    AoeFfn::new(c, "mlp", 0, D, &mut InOrder(weights.iter())).unwrap()
}

/// Output, balance loss if there is one, all norms, and what was chosen.
struct Run {
    y: Tensor,
    balance: Option<Tensor>,
    norms: Tensor,
    chosen: Vec<usize>,
    g: Vec<f32>,
}

fn run(layer: &AoeFfn, x: &Tensor) -> Run {
    run_in(Compute::F32, layer, x)
}

fn run_in(compute: Compute, layer: &AoeFfn, x: &Tensor) -> Run {
    let ids = vec![0; x.rows()];
    let mut ctx = context(&ids);
    ctx.compute = compute;
    ctx.sink.want_routing = true;
    let y = layer.forward(x, &mut ctx).unwrap();
    let routing = ctx.sink.routing.pop().unwrap();
    Run {
        y,
        balance: ctx.sink.side_losses.pop(),
        norms: routing.logits,
        chosen: routing.experts,
        g: routing.weights,
    }
}

/// The formulas of the module, token by token and from primitive operations.
fn reference(layer: &AoeFfn, x: &Tensor) -> (Tensor, Tensor) {
    let AoeConfig {
        experts: e,
        top_k: k,
        d_low: r,
        score,
        ..
    } = layer.config;
    let n = x.rows();
    let linear = |x: &Tensor, w: &Tensor| ops::linear(x, w, Compute::F32).unwrap();
    let factors = |x_t: &Tensor, i: usize| {
        let rows = ops::narrow_rows(&layer.down.weight.tensor, i * r, (i + 1) * r).unwrap();
        linear(x_t, &rows)
    };
    let c = ops::reshape(&linear(x, &layer.down.weight.tensor), &[n * e, r]).unwrap();
    let p = ops::reshape(&ops::row_norms(&c).unwrap(), &[n, e]).unwrap();
    let chosen: Vec<usize> = p.to_f32().chunks_exact(e).flat_map(|row| top_k(row, k)).collect();
    let s = ops::softmax(&p).unwrap();
    let g = match score {
        Score::Selected => ops::softmax(&ops::take_last(&p, &chosen, k).unwrap()).unwrap(),
        Score::All => ops::take_last(&s, &chosen, k).unwrap(),
    };
    let g = ops::reshape(&g, &[n * k]).unwrap();
    let rows: Vec<Tensor> = (0..n)
        .map(|t| {
            let x_t = ops::narrow_rows(x, t, t + 1).unwrap();
            let mut y_t: Option<Tensor> = None;
            for slot in t * k..(t + 1) * k {
                let expert = &layer.experts[chosen[slot]];
                let gate = linear(&factors(&x_t, chosen[slot]), &expert.up.weight.tensor);
                let product = linear(&x_t, &expert.product.weight.tensor);
                let h = ops::mul(&ops::silu(&gate).unwrap(), &product).unwrap();
                let out = linear(&h, &expert.out.weight.tensor);
                let out = ops::scale_rows(&out, &ops::narrow_rows(&g, slot, slot + 1).unwrap()).unwrap();
                y_t = Some(y_t.map_or_else(|| out.clone(), |sum| ops::add(&sum, &out).unwrap()));
            }
            y_t.unwrap()
        })
        .collect();
    let balance = balance_loss(&s, &chosen, layer.balance, &mut crate::balance::Balance::default()).unwrap();
    (ops::concat_rows(&rows.iter().collect::<Vec<_>>()).unwrap(), balance)
}

/// A scalar that weighs every element differently.
fn weigh(y: &Tensor) -> Tensor {
    ops::sum(&ops::mul(y, &values(y.shape(), 11)).unwrap()).unwrap()
}

/// Output plus balance loss as one scalar.
fn total(y: &Tensor, balance: Option<&Tensor>) -> Tensor {
    let y = weigh(y);
    balance.map_or_else(|| y.clone(), |b| ops::add(&y, b).unwrap())
}

/// All tokens in one large group, beside empty ones.
#[test]
fn one_expert_may_get_every_token() {
    let c = config(4, 1, Score::Selected, 0.0);
    let mut w = weights(&c, 5);
    let mut down = w[0].values::<f64>().unwrap().to_vec();
    for v in &mut down[2 * c.d_low * D..3 * c.d_low * D] {
        *v *= 1e3;
    }
    w[0] = Tensor::new(down, &[4 * c.d_low, D]).unwrap();
    let leaves: Vec<Tensor> = w.iter().map(Tensor::requires_grad).collect();
    let layer = layer(&c, &leaves);
    let x = values(&[N, D], 2).requires_grad();
    let made = run(&layer, &x);
    assert_eq!(made.chosen, [2; N]);
    let (slow, _) = reference(&layer, &x);
    assert!(distance(&made.y, &slow) < 1e-9);
    let (mut ours, mut theirs) = (Gradients::new(), Gradients::new());
    weigh(&made.y).backward(&mut ours).unwrap();
    weigh(&slow).backward(&mut theirs).unwrap();
    for (i, leaf) in leaves.iter().chain([&x]).enumerate() {
        let zeros = Tensor::zeros(leaf.shape()).cast(ounce_tensor::DType::F64).unwrap();
        let (ours, theirs) = (ours.get(leaf), theirs.get(leaf));
        let scale = if i == 0 || i == leaves.len() { 1e-6 } else { 1e-9 };
        assert!(
            distance(ours.unwrap_or(&zeros), theirs.unwrap_or(&zeros)) < scale,
            "{i}"
        );
    }
}

#[test]
fn one_product_and_sorted_pairs_equal_the_formulas_token_by_token() {
    for (score, balance) in [
        (Score::Selected, 0.0),
        (Score::Selected, 0.1),
        (Score::All, 0.0),
        (Score::All, 0.1),
    ] {
        let c = config(4, 2, score, balance);
        let leaves: Vec<Tensor> = weights(&c, 3).iter().map(Tensor::requires_grad).collect();
        let x = values(&[N, D], 1).requires_grad();
        let layer = layer(&c, &leaves);
        let fast = run(&layer, &x);
        let (y, loss) = reference(&layer, &x);
        assert!(distance(&fast.y, &y) < 1e-12, "{score:?}");
        let (mut ours, mut theirs) = (Gradients::new(), Gradients::new());
        total(&fast.y, fast.balance.as_ref()).backward(&mut ours).unwrap();
        let loss = (balance > 0.0).then_some(&loss);
        total(&y, loss).backward(&mut theirs).unwrap();
        assert_eq!(fast.balance.is_some(), balance > 0.0);
        for (i, leaf) in leaves.iter().chain([&x]).enumerate() {
            let ours = ours.get(leaf).unwrap();
            match theirs.get(leaf) {
                Some(theirs) => assert!(distance(ours, theirs) < 1e-12, "{score:?} {balance} {i}"),
                None => assert!(ours.to_f32().iter().all(|&v| v == 0.0), "{score:?} {balance} {i}"),
            }
        }
    }
}

#[test]
fn gradients_match_finite_differences() {
    for (experts, top_k, score, balance) in [
        (3, 2, Score::Selected, 0.0),
        (3, 2, Score::Selected, 0.3),
        (4, 2, Score::All, 0.3),
        (2, 2, Score::Selected, 0.1),
        (1, 1, Score::Selected, 0.0),
    ] {
        let c = config(experts, top_k, score, balance);
        let inputs = [vec![values(&[1, N, D], 2)], weights(&c, 5)].concat();
        let worst = gradcheck(&inputs, |t| {
            // The balance loss exists only while training: the points beside must have it, too.
            let x = if t[0].needs_grad() {
                t[0].clone()
            } else {
                t[0].requires_grad()
            };
            let made = run(&layer(&c, &t[1..]), &x);
            Ok(total(&made.y, made.balance.as_ref()))
        })
        .unwrap();
        assert!(worst < 1e-7, "{c:?}: {worst:e}");
    }
}

#[test]
fn one_expert_is_a_dense_layer_with_a_factorised_gate() {
    let c = config(1, 1, Score::Selected, 0.0);
    let w = weights(&c, 2);
    // gate = w_up w_down: a product with w_downᵀ as the weight.
    let down = w[0].values::<f64>().unwrap();
    let transposed = (0..D)
        .flat_map(|j| (0..c.d_low).map(move |i| down[i * D + j]))
        .collect();
    let gate = ops::linear(&w[1], &Tensor::new(transposed, &[D, c.d_low]).unwrap(), Compute::F32).unwrap();
    let given = [gate, w[2].clone(), w[3].clone()];
    let dense = DenseFfn::new("mlp", D, c.d_wide, false, &mut InOrder(given.iter())).unwrap();
    let x = values(&[N, D], 4);
    let y = run(&layer(&c, &w), &x).y;
    assert!(distance(&y, &dense.apply(&x, Compute::F32).unwrap()) < 1e-12);
}

#[test]
fn with_all_experts_chosen_the_balance_is_the_coefficient_times_their_number() {
    let c = config(3, 3, Score::Selected, 0.01);
    let leaves: Vec<Tensor> = weights(&c, 1).iter().map(Tensor::requires_grad).collect();
    let loss = run(&layer(&c, &leaves), &values(&[N, D], 2)).balance.unwrap();
    assert!((loss.item().unwrap() - 0.03).abs() < 1e-12);
}

/// Weights under which expert `e` has the norm `norms[e]` for the token `[1, 0, …]`.
fn with_norms(norms: &[f64], top_k: usize) -> (AoeConfig, Vec<Tensor>) {
    let c = config(norms.len(), top_k, Score::Selected, 0.0);
    let mut w = weights(&c, 4);
    let mut down = vec![0.0; norms.len() * c.d_low * D];
    for (e, norm) in norms.iter().enumerate() {
        down[e * c.d_low * D] = *norm;
    }
    w[0] = Tensor::new(down, &[norms.len() * c.d_low, D]).unwrap();
    (c, w)
}

fn first_axis() -> Tensor {
    let mut x = vec![0.0; D];
    x[0] = 1.0;
    Tensor::new(x, &[1, D]).unwrap()
}

#[test]
fn equal_norms_go_to_the_lower_index() {
    let (c, w) = with_norms(&[1.0, 2.0, 2.0, 2.0], 2);
    let made = run(&layer(&c, &w), &first_axis());
    assert_eq!(made.chosen, [1, 2]);
    assert_eq!(made.g, [0.5, 0.5]);
}

#[test]
fn an_expert_that_no_token_chose_gets_exactly_zero_gradient() {
    let (c, w) = with_norms(&[3.0, 0.5, 2.0], 2);
    let leaves: Vec<Tensor> = w.iter().map(Tensor::requires_grad).collect();
    let made = run(&layer(&c, &leaves), &first_axis());
    assert_eq!(made.chosen, [0, 2]);
    let mut gradients = Gradients::new();
    weigh(&made.y).backward(&mut gradients).unwrap();
    let of = |i: usize| gradients.get(&leaves[i]).unwrap().to_f32();
    let (rows, loser) = (of(0), 1);
    let size = c.d_low * D;
    assert!(rows[loser * size..(loser + 1) * size].iter().all(|&v| v == 0.0));
    assert!(rows[..size].iter().any(|&v| v != 0.0));
    for i in 0..3 {
        assert!(of(1 + 3 * loser + i).iter().all(|&v| v == 0.0));
        assert!(of(1 + i).iter().any(|&v| v != 0.0));
    }
}

#[test]
fn a_token_of_zeros_is_harmless() {
    let c = config(3, 2, Score::All, 0.1);
    let leaves: Vec<Tensor> = weights(&c, 1).iter().map(Tensor::requires_grad).collect();
    let x = Tensor::new(vec![0.0; D], &[1, D]).unwrap().requires_grad();
    let made = run(&layer(&c, &leaves), &x);
    assert_eq!(made.chosen, [0, 1]);
    let mut gradients = Gradients::new();
    total(&made.y, made.balance.as_ref()).backward(&mut gradients).unwrap();
    for leaf in leaves.iter().chain([&x]) {
        assert!(gradients.get(leaf).unwrap().to_f32().iter().all(|v| v.is_finite()));
    }
}

#[test]
fn half_precision_weights_run_and_stay_close() {
    let c = config(4, 2, Score::Selected, 0.0);
    let wide: Vec<Tensor> = weights(&c, 3).iter().map(|t| t.cast(DType::F32).unwrap()).collect();
    let half: Vec<Tensor> = wide.iter().map(|t| t.cast(DType::F16).unwrap()).collect();
    let x = values(&[N, D], 1).cast(DType::F32).unwrap();
    let (a, b) = (run(&layer(&c, &wide), &x), run(&layer(&c, &half), &x));
    assert_eq!(a.chosen, b.chosen);
    for (p, q) in a.y.to_f32().iter().zip(b.y.to_f32()) {
        assert!((p - q).abs() < 2e-2, "{p} {q}");
    }
}

fn parse(key: &str, value: Value) -> ModelError {
    let mut json = json!({
        "model_type": "aoe", "vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_experts": 4, "num_experts_per_tok": 2, "aoe_d_low": 2, "aoe_d_wide": 6
    });
    assert!(ModelConfig::parse("config.json", &json).is_ok());
    json[key] = value;
    ModelConfig::parse("config.json", &json).unwrap_err()
}

#[test]
fn values_out_of_range_are_refused_with_key_rule_and_hint() {
    for (key, value, rule) in [
        ("num_experts", json!(0), "at least 1"),
        ("num_experts", Value::Null, "is missing"),
        ("num_experts_per_tok", json!(5), "at most num_experts = 4"),
        ("num_experts_per_tok", json!(0), "must be a whole number"),
        ("aoe_d_low", json!(0), "must be a whole number"),
        ("aoe_d_wide", json!(-1), "must be a whole number"),
        ("aoe_score", json!("best"), "\"best\" is no score"),
        ("router_aux_loss_coef", json!(-0.1), "must not be negative"),
        ("hidden_act", json!("gelu"), "only \"silu\""),
        ("num_local_experts", json!(4), "unknown to family"),
    ] {
        let error = parse(key, value);
        let text = error.to_string();
        assert!(
            text.contains(&format!("key \"{key}\"")) && text.contains(rule),
            "{text}"
        );
        assert!(error.hint().is_some_and(|h| !h.is_empty()), "{text}");
    }
}
