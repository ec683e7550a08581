use super::*;
use crate::ffn::testing::{InOrder, context, distance, values};
use ounce_tensor::{Gradients, gradcheck};
use proptest::prelude::*;
use serde_json::{Value, json};

const D: usize = 4;
const I: usize = 5;
const V: usize = 6;
const IDS: [u32; 7] = [2, 5, 2, 0, 1, 5, 2];

fn json_config(experts: usize) -> Value {
    json!({
        "model_type": "mole", "vocab_size": V, "hidden_size": D, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": I, "num_experts": experts, "hidden_act": "gelu", "rms_norm_eps": 1e-6
    })
}

/// Weights in the order the layer asks for them: shared up and down, router, norm, up and down of each expert.
fn weights(experts: usize, seed: usize) -> Vec<Tensor> {
    let mut all = vec![
        values(&[I, D], seed + 1),
        values(&[D, I], seed + 2),
        values(&[experts, D], seed + 3),
        values(&[D], seed + 4),
    ];
    for j in 0..experts {
        all.push(values(&[I, D], seed + 5 + 2 * j));
        all.push(values(&[D, I], seed + 6 + 2 * j));
    }
    all
}

fn layer(experts: usize, weights: &[Tensor]) -> MoleFfn {
    let config = ModelConfig::parse("config.json", &json_config(experts)).unwrap();
    let mole = MoleConfig {
        experts,
        width: I,
        lookup: false,
        record: None,
    };
    MoleFfn::new(&mole, &config, 0, &mut InOrder(weights.iter())).unwrap()
}

fn run(layer: &MoleFfn, x: &Tensor, embedding: &Tensor, ids: &[u32]) -> Tensor {
    let mut ctx = context(ids);
    let at: Vec<usize> = ids.iter().map(|&id| id as usize).collect();
    ctx.embeddings = Some(ops::embedding(embedding, &at, &[1, ids.len()]).unwrap());
    layer.forward(x, &mut ctx).unwrap()
}

/// The formulas of the module, expert by expert over all tokens, repeated ids and all.
fn reference(layer: &MoleFfn, x: &Tensor, embedding: &Tensor, ids: &[u32]) -> Tensor {
    let Some(Routed {
        router,
        experts: Experts::Trained { norm, eps, experts },
        ..
    }) = &layer.routed
    else {
        panic!("the training form is meant");
    };
    let at: Vec<usize> = ids.iter().map(|&id| id as usize).collect();
    let e = ops::embedding(embedding, &at, &[ids.len()]).unwrap();
    let e = ops::rms_norm(&e, &norm.tensor, *eps).unwrap();
    let g = ops::softmax(&router.forward(x, Compute::F32).unwrap()).unwrap();
    let mut y = layer.shared.apply(x, Compute::F32).unwrap();
    for (j, expert) in experts.iter().enumerate() {
        let z = expert.apply(&e, Compute::F32).unwrap();
        let g_j = ops::take_last(&g, &vec![j; ids.len()], 1).unwrap();
        y = ops::add(&y, &ops::scale_rows(&z, &g_j).unwrap()).unwrap();
    }
    y
}

fn weigh(y: &Tensor) -> Tensor {
    ops::sum(&ops::mul(y, &values(y.shape(), 11)).unwrap()).unwrap()
}

#[test]
fn experts_run_once_per_id_and_the_result_is_that_of_the_formulas() {
    let leaves: Vec<Tensor> = weights(3, 1).iter().map(Tensor::requires_grad).collect();
    let layer = layer(3, &leaves);
    let x = values(&[IDS.len(), D], 2).requires_grad();
    let embedding = values(&[V, D], 3).requires_grad();
    let y = run(&layer, &x, &embedding, &IDS);
    let slow = reference(&layer, &x, &embedding, &IDS);
    assert!(distance(&y, &slow) < 1e-12);
    let (mut ours, mut theirs) = (Gradients::new(), Gradients::new());
    weigh(&y).backward(&mut ours).unwrap();
    weigh(&slow).backward(&mut theirs).unwrap();
    for leaf in leaves.iter().chain([&x, &embedding]) {
        assert!(distance(ours.get(leaf).unwrap(), theirs.get(leaf).unwrap()) < 1e-12);
    }
}

/// The embedding gets a gradient from the stream (x is made from it here) and from the experts of two layers.
#[test]
fn gradients_match_finite_differences() {
    let (n, count) = (IDS.len(), 2);
    let inputs = [vec![values(&[V, D], 4)], weights(count, 5), weights(count, 40)].concat();
    let per_layer = 4 + 2 * count;
    let worst = gradcheck(&inputs, |t| {
        let at: Vec<usize> = IDS.iter().map(|&id| id as usize).collect();
        let mut x = ops::embedding(&t[0], &at, &[n])?;
        for l in 0..2 {
            let weights = &t[1..][l * per_layer..(l + 1) * per_layer];
            x = ops::add(&x, &run(&layer(count, weights), &x, &t[0], &IDS))?;
        }
        Ok(weigh(&x))
    })
    .unwrap();
    assert!(worst < 1e-7, "{worst:e}");
}

#[test]
fn one_expert_adds_a_vector_that_depends_on_the_id_alone() {
    let w = weights(1, 3);
    let layer = layer(1, &w);
    let embedding = values(&[V, D], 1);
    let added = |x: &Tensor| {
        let shared = layer.shared.apply(x, Compute::F32).unwrap();
        ops::sub(&run(&layer, x, &embedding, &IDS), &shared).unwrap()
    };
    let (a, b) = (added(&values(&[IDS.len(), D], 2)), added(&values(&[IDS.len(), D], 9)));
    assert!(distance(&a, &b) < 1e-12);
    let a = a.values::<f64>().unwrap();
    assert!(
        (0..D).all(|i| (a[i] - a[2 * D + i]).abs() < 1e-12),
        "tokens 0 and 2 have one id"
    );
    assert!(
        (0..D).any(|i| (a[i] - a[D + i]).abs() > 1e-3),
        "tokens 0 and 1 have two"
    );
}

#[test]
fn the_router_may_put_everything_on_one_expert() {
    let mut w = weights(3, 3);
    let mut router = vec![0.0; 3 * D];
    for (j, row) in router.chunks_exact_mut(D).enumerate() {
        row[0] = if j == 1 { 1e4 } else { -1e4 };
    }
    w[2] = Tensor::new(router, &[3, D]).unwrap();
    let leaves: Vec<Tensor> = w.iter().map(Tensor::requires_grad).collect();
    let layer = layer(3, &leaves);
    let mut tokens = values(&[IDS.len(), D], 2).values::<f64>().unwrap().to_vec();
    tokens.iter_mut().step_by(D).for_each(|x| *x = 1.0);
    let (x, embedding) = (Tensor::new(tokens, &[IDS.len(), D]).unwrap(), values(&[V, D], 1));
    let y = run(&layer, &x, &embedding, &IDS);
    let Some(Routed {
        experts: Experts::Trained { norm, eps, experts },
        ..
    }) = &layer.routed
    else {
        panic!("the training form is meant");
    };
    let at: Vec<usize> = IDS.iter().map(|&id| id as usize).collect();
    let e = ops::embedding(&embedding, &at, &[IDS.len()]).unwrap();
    let e = ops::rms_norm(&e, &norm.tensor, *eps).unwrap();
    let said = experts[1].apply(&e, Compute::F32).unwrap();
    let expected = ops::add(&layer.shared.apply(&x, Compute::F32).unwrap(), &said).unwrap();
    assert!(distance(&y, &expected) < 1e-12);
    let mut gradients = Gradients::new();
    weigh(&y).backward(&mut gradients).unwrap();
    for leaf in &leaves {
        let g = gradients.get(leaf).unwrap().to_f32();
        assert!(g.iter().all(|x| x.is_finite()));
    }
}

#[test]
fn equal_experts_make_the_router_irrelevant() {
    let mut w = weights(3, 3);
    for j in 1..3 {
        (w[4 + 2 * j], w[5 + 2 * j]) = (w[4].clone(), w[5].clone());
    }
    let (x, embedding) = (values(&[IDS.len(), D], 2), values(&[V, D], 1));
    let before = run(&layer(3, &w), &x, &embedding, &IDS);
    w[2] = values(&[3, D], 77);
    assert!(distance(&before, &run(&layer(3, &w), &x, &embedding, &IDS)) < 1e-12);
}

#[test]
fn zero_down_projections_leave_the_dense_layer_exactly() {
    let mut w = weights(3, 3);
    for j in 0..3 {
        w[5 + 2 * j] = Tensor::new(vec![0f64; D * I], &[D, I]).unwrap();
    }
    // Without routed experts there is nothing but the shared one.
    let (routed, dense) = (layer(3, &w), layer(0, &w[..2]));
    let (x, embedding) = (values(&[IDS.len(), D], 2), values(&[V, D], 1));
    let y = run(&dense, &x, &embedding, &IDS);
    assert_eq!(distance(&run(&routed, &x, &embedding, &IDS), &y), 0.0);
    assert_eq!(distance(&y, &dense.shared.apply(&x, Compute::F32).unwrap()), 0.0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// A token's result does not depend on which other tokens are there, nor on their order.
    #[test]
    fn tokens_are_independent(seed in 0usize..300, ids in prop::collection::vec(0u32..V as u32, 1..9), by in 0usize..9) {
        let layer = layer(2, &weights(2, seed));
        let (x, embedding) = (values(&[ids.len(), D], seed + 1), values(&[V, D], seed + 2));
        let whole = run(&layer, &x, &embedding, &ids);
        let n = ids.len();
        let order: Vec<usize> = (0..n).map(|t| (t + by) % n).collect();
        let moved: Vec<u32> = order.iter().map(|&t| ids[t]).collect();
        let permuted = run(&layer, &ops::gather_rows(&x, &order).unwrap(), &embedding, &moved);
        prop_assert!(distance(&ops::gather_rows(&whole, &order).unwrap(), &permuted) < 1e-12);
        for t in 0..n {
            let alone = run(&layer, &ops::narrow_rows(&x, t, t + 1).unwrap(), &embedding, &ids[t..=t]);
            prop_assert!(distance(&ops::narrow_rows(&whole, t, t + 1).unwrap(), &alone) < 1e-12);
        }
    }

    #[test]
    fn different_ids_are_numbered_as_they_come(ids in prop::collection::vec(0u32..9, 0..30)) {
        let d = Different::new(&ids);
        for (t, &i) in d.of.iter().enumerate() {
            prop_assert_eq!(ids[d.first[i]], ids[t]);
            prop_assert!(d.first[i] <= t);
        }
        let firsts: std::collections::HashSet<u32> = d.first.iter().map(|&t| ids[t]).collect();
        prop_assert_eq!(firsts.len(), d.first.len());
    }
}

#[test]
fn the_sample_of_rows_is_spread_and_holds_the_last() {
    assert_eq!(sampled(3), [0, 1, 2]);
    let rows = sampled(50_304);
    assert_eq!((rows.len(), rows[63]), (64, 50_303));
    assert!(rows.windows(2).all(|w| w[1] - w[0] == 786));
}

#[test]
fn values_out_of_range_are_refused_with_key_rule_and_hint() {
    for (key, value, rule) in [
        ("num_experts", Value::Null, "is missing"),
        ("num_experts", json!(1.5), "must be a whole number"),
        ("intermediate_size", json!(0), "must be a whole number"),
        ("num_experts_per_tok", json!(2), "unknown to family"),
        ("mole_table", json!({}), "unknown to family"),
    ] {
        let mut config = json_config(2);
        config[key] = value;
        let error = ModelConfig::parse("config.json", &config).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(&format!("key \"{key}\"")) && text.contains(rule),
            "{text}"
        );
        assert!(error.hint().is_some_and(|h| !h.is_empty()), "{text}");
    }
    let mut config = json_config(2);
    config["model_type"] = json!("mole_lut");
    assert!(ModelConfig::parse("config.json", &config).is_ok());
    config["num_experts"] = json!(0);
    let error = ModelConfig::parse("config.json", &config).unwrap_err();
    assert!(error.to_string().contains("at least 1") && error.hint().is_some_and(|h| h.contains("mole")));
    config["num_experts"] = json!(2);
    config[RECORD] = json!({ "rows": "0" });
    let error = ModelConfig::parse("config.json", &config).unwrap_err();
    assert!(error.to_string().contains("is damaged") && error.hint().is_some_and(|h| h.contains("mole-lut")));
}
