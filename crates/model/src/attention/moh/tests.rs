//! The layer by itself in f64: gradients, the straight-through surrogate, ties.

use super::*;
use crate::{ctx::Sink, rows::Rows, weights::FreshWeights};
use ounce_tensor::{Gradients, Solo, gradcheck};
use serde_json::json;

const T: usize = 5;

fn f64s(n: usize, seed: u64) -> Vec<f64> {
    (0..n)
        .map(|i| ounce_kernels::Philox::normal(seed, 3, 0, i as u64))
        .collect()
}

/// A layer in f64 and a context for 5 tokens in one row.
fn layer(moh: &serde_json::Value) -> Moh {
    let config = json!({
        "model_type": "llama", "vocab_size": 8, "hidden_size": 12, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 4, "moh": moh,
    });
    let config = ModelConfig::parse("test", &config).unwrap();
    let parsed = MohConfig {
        router: if moh["router"] == "two_stage" {
            Router::TwoStage
        } else {
            Router::QueryNorm
        },
        shared_heads: moh["shared_heads"].as_u64().unwrap() as usize,
        active_routed_heads: moh["active_routed_heads"].as_u64().unwrap() as usize,
        scaling: if moh["scaling"] == "paper" {
            Scaling::Paper
        } else {
            Scaling::Implemented
        },
        straight_through_all: moh["straight_through"] == "all",
        balance: 0.5,
    };
    let mut layer = Moh::new(parsed, &config, 0, &mut FreshWeights { seed: 5, std: 0.5 }).unwrap();
    layer.visit(&mut |p| p.tensor = p.tensor.cast(DType::F64).unwrap());
    layer
}

fn ctx() -> Ctx<'static> {
    static SOLO: Solo = Solo;
    let angles: Vec<f64> = (0..T * 2).map(|i| (i / 2) as f64 * 0.3).collect();
    Ctx {
        ids: &[],
        embeddings: None,
        inserted: None,
        noise: None,
        wanted: None,
        rows: Rows::even(
            1,
            0,
            T,
            Tensor::new(angles.iter().map(|a| a.cos()).collect(), &[T, 2]).unwrap(),
            Tensor::new(angles.iter().map(|a| a.sin()).collect(), &[T, 2]).unwrap(),
        ),
        caches: Vec::new(),
        compute: Compute::F32,
        collective: &SOLO,
        sink: Sink::default(),
    }
}

/// A scalar of the layer's output and its side loss.
fn scalar(layer: &Moh, x: &Tensor) -> ounce_tensor::Result<Tensor> {
    let mut ctx = ctx();
    // Side losses are made only where somebody trains: the numeric side must train, too.
    let x = &if x.needs_grad() { x.clone() } else { x.requires_grad() };
    let y = layer.forward(x, &mut ctx).map_err(|e| match e {
        crate::ModelError::Tensor(e) => e,
        other => panic!("{other}"),
    })?;
    let weights = Tensor::new(f64s(y.numel(), 9), y.shape())?;
    let mut loss = ops::sum(&ops::mul(&y, &weights)?)?;
    for side in &ctx.sink.side_losses {
        loss = ops::add(&ops::reshape(&loss, &[1])?, &ops::reshape(side, &[1])?)?;
    }
    Ok(loss)
}

#[test]
fn learned_routers_match_finite_differences() {
    for (shared, k) in [(0, 2), (1, 2), (2, 2), (6, 0)] {
        for scaling in ["implemented", "paper"] {
            let moh = json!({"router": "two_stage", "shared_heads": shared, "active_routed_heads": k,
                "scaling": scaling});
            let mut with_weights = layer(&moh);
            let mut inputs = vec![Tensor::new(f64s(T * 12, 1), &[T, 12]).unwrap()];
            with_weights.visit(&mut |p| inputs.push(p.tensor.clone()));
            let worst = gradcheck(&inputs, |inputs| {
                let mut layer = layer(&moh);
                let mut given = inputs[1..].iter();
                layer.visit(&mut |p| p.tensor = given.next().unwrap().clone());
                scalar(&layer, &inputs[0])
            })
            .unwrap();
            assert!(worst < 1e-6, "{shared}+{k} {scaling}: {worst}");
        }
    }
}

/// The formulas, head by head: `a` weighs the two kinds, `s` the shared and `r` the chosen routed heads.
#[test]
fn learned_gates_are_those_of_both_formulas() {
    for scaling in ["implemented", "paper"] {
        let mut layer = layer(
            &json!({"router": "two_stage", "shared_heads": 2, "active_routed_heads": 2,
            "scaling": scaling}),
        );
        let x = Tensor::new(f64s(T * 12, 1), &[T, 12]).unwrap();
        let gates = layer.two_stage(&x, Compute::F32).unwrap();
        let mut softmax = std::collections::BTreeMap::new();
        layer.visit(&mut |p| {
            if let Some((_, name)) = p.name.rsplit_once("self_attn.wg") {
                let scores = ops::linear(&x, &p.tensor, Compute::F32).unwrap();
                let p = ops::softmax(&scores).unwrap();
                softmax.insert(name.to_owned(), p.values::<f64>().unwrap().to_vec());
            }
        });
        let (r, a, s) = (&softmax[".weight"], &softmax["_0.weight"], &softmax["_1.weight"]);
        for (t, gates) in gates.all.values::<f64>().unwrap().chunks_exact(6).enumerate() {
            let r = &r[t * 4..(t + 1) * 4];
            let mut chosen: Vec<usize> = (0..4).collect();
            chosen.sort_by(|&i, &j| r[j].total_cmp(&r[i]));
            chosen.truncate(2);
            let sum: f64 = chosen.iter().map(|&i| r[i]).sum();
            for (head, &gate) in gates.iter().enumerate() {
                let expected = match (head, scaling) {
                    (0..2, "paper") => a[2 * t] * s[2 * t + head],
                    (0..2, _) => 2.0 * a[2 * t] * 2.0 * s[2 * t + head],
                    (head, _) if !chosen.contains(&(head - 2)) => 0.0,
                    (head, "paper") => a[2 * t + 1] * r[head - 2],
                    (head, _) => 2.0 * a[2 * t + 1] * 2.0 * r[head - 2] / sum,
                };
                assert!(
                    (gate - expected).abs() < 1e-12,
                    "{scaling}, head {head}: {gate} is not {expected}"
                );
            }
        }
    }
}

#[test]
fn norm_scores_match_finite_differences() {
    let q = Tensor::new(f64s(3 * 6 * 4, 2), &[18, 4]).unwrap();
    let weights = Tensor::new(f64s(3 * 4, 8), &[3, 4]).unwrap();
    let worst = gradcheck(&[q], |q| {
        ops::sum(&ops::mul(&norm_scores(&q[0], 6, 2).unwrap(), &weights)?)
    })
    .unwrap();
    assert!(worst < 1e-7, "{worst}");
}

/// dL/dp_i := dL/dgate_i for the selected heads, by hand: the gates are replaced by scores that had them as values.
#[test]
fn the_straight_through_gradient_is_the_surrogate() {
    for all in [false, true] {
        let moh = json!({"router": "query_norm", "shared_heads": 2, "active_routed_heads": 2,
            "straight_through": if all { "all" } else { "selected" }});
        let layer = layer(&moh);
        let q = Tensor::new(f64s(T * 6 * 4, 4), &[T * 6, 4]).unwrap().requires_grad();
        let gates = layer.query_norm(&q).unwrap();
        let upstream = f64s(T * 6, 6);
        let mut ours = Gradients::new();
        gates
            .all
            .backward_from(Tensor::new(upstream.clone(), &[T, 6]).unwrap(), &mut ours)
            .unwrap();
        let p = norm_scores(&q, 6, 2).unwrap();
        let dp: Vec<f64> = (0..T * 4)
            .map(|i| {
                let at = i / 4 * 6 + 2 + i % 4;
                if all || gates.active[at] { upstream[at] } else { 0.0 }
            })
            .collect();
        let mut expected = Gradients::new();
        p.backward_from(Tensor::new(dp, &[T, 4]).unwrap(), &mut expected)
            .unwrap();
        let (a, b) = (ours.get(&q).unwrap(), expected.get(&q).unwrap());
        assert_eq!(a.values::<f64>(), b.values::<f64>());
        assert!(a.to_f32().iter().any(|&x| x != 0.0));
    }
}

#[test]
fn equal_norms_select_the_lower_head_and_pass_no_gradient() {
    let layer = layer(&json!({"router": "query_norm", "shared_heads": 2, "active_routed_heads": 1}));
    let q = Tensor::new(vec![1f64; T * 6 * 4], &[T * 6, 4]).unwrap().requires_grad();
    let gates = layer.query_norm(&q).unwrap();
    assert_eq!(&gates.all.to_f32()[..6], [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
    let mut gradients = Gradients::new();
    ops::sum(&gates.all).unwrap().backward(&mut gradients).unwrap();
    assert!(gradients.get(&q).unwrap().to_f32().iter().all(|&g| g == 0.0));
}

#[test]
fn the_balance_loss_is_the_formulas() {
    let layer = layer(&json!({"router": "two_stage", "shared_heads": 2, "active_routed_heads": 2}));
    let scores = Tensor::new(vec![0.25f64; T * 4], &[T, 4]).unwrap();
    let mut active = vec![true; T * 6];
    for t in 0..T {
        active[t * 6 + 4..t * 6 + 6].fill(false);
    }
    let mut balance = crate::balance::Balance::default();
    let loss = layer.balance_loss(&scores, &active, &mut balance);
    let loss = loss.unwrap().item().unwrap();
    // balance h_r sum_i P_i f_i = 0.5 * 4 * (0.25 * 1 + 0.25 * 1).
    assert!((loss - 1.0).abs() < 1e-12, "{loss}");
}
