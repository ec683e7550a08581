//! Long-Short Alignment: the objective against plain training, the reference, finite differences, and what it must do.

use ounce_data::Batch;
use ounce_eval::Divergences;
use ounce_model::{Batch as ModelBatch, Model, ModelConfig, config::ModelShape, weights::FreshWeights};
use ounce_tensor::{Compute, DType, Gradients, Tensor, gradcheck, no_grad, ops};
use ounce_train::{
    Recipe,
    objective::{
        At, How, NextToken, Objective, ObjectiveConfig,
        long_short::{
            CeViews, Divergence, LongShort, LongShortConfig, StopGrad, divergence_reference, divergence_sum,
            linear_divergence, pairs,
        },
    },
};
use proptest::prelude::*;
use serde_json::{Value, json};

const VOCABULARY: usize = 31;
const LENGTH: usize = 12;

fn shape() -> ModelShape {
    serde_json::from_value(json!({
        "hidden_size": 16, "layers": 2, "heads": 2, "intermediate_size": 24, "initializer_range": 0.4,
        "max_positions": 64,
    }))
    .unwrap()
}

fn config() -> Value {
    shape().to_json(VOCABULARY, None, None)
}

fn model(config: &Value) -> Model {
    let config = ModelConfig::parse("test", config).unwrap();
    let mut model = Model::new(config, &mut FreshWeights { seed: 3, std: 0.4 }).unwrap();
    model.visit(&mut |p| p.tensor = p.tensor.requires_grad());
    model
}

fn ids(n: usize, seed: usize) -> Vec<u32> {
    (0..n)
        .map(|i| ((i * i * 5 + i * 11 + seed * 7) % VOCABULARY) as u32)
        .collect()
}

/// Rows of l + l/2 tokens and the tokens after them.
fn batch(rows: usize) -> Batch {
    let length = LENGTH + LENGTH / 2;
    let windows: Vec<Vec<u32>> = (0..rows).map(|r| ids(length + 1, r)).collect();
    Batch {
        rows,
        length,
        inputs: windows.iter().flat_map(|w| w[..length].to_vec()).collect(),
        targets: windows.iter().flat_map(|w| w[1..].to_vec()).collect(),
    }
}

fn objective(change: impl Fn(&mut LongShortConfig)) -> LongShort {
    let mut config = LongShortConfig::default();
    change(&mut config);
    LongShort::new(config, LENGTH)
}

const AT: At = At {
    seed: 4,
    step: 9,
    part: 0,
};

/// Loss, and gradients of all parameters in order (zeros where there is none).
fn run(objective: &dyn Objective, batch: &Batch, at: At) -> (f64, Vec<Vec<f32>>) {
    let mut model = model(&config());
    let how = How {
        at,
        compute: Compute::F32,
        choices: None,
    };
    let made = objective.loss(&model, batch, &how).unwrap();
    let mut gradients = Gradients::new();
    made.total.backward(&mut gradients).unwrap();
    let mut list = Vec::new();
    model.visit(&mut |p| list.push(gradients.get(&p.tensor).unwrap().to_f32()));
    (made.total.item().unwrap(), list)
}

#[test]
fn without_weight_it_is_plain_training_on_both_views_bit_for_bit() {
    let plain = objective(|c| c.alpha = 0.0);
    let batch = batch(3);
    let views = plain.views(&batch, plain.extra(AT));
    assert_eq!((views.rows, views.length), (6, LENGTH));
    assert_eq!(run(&plain, &batch, AT), run(&NextToken, &views, AT));
    // And on the long view alone.
    let first = objective(|c| (c.alpha, c.ce) = (0.0, CeViews::First));
    let long = Batch {
        rows: 3,
        length: LENGTH,
        inputs: views.inputs[..3 * LENGTH].to_vec(),
        targets: views.targets[..3 * LENGTH].to_vec(),
    };
    let (ours, theirs) = (run(&first, &batch, AT), run(&NextToken, &long, AT));
    assert_eq!(ours.0, theirs.0);
    for (a, b) in ours.1.iter().zip(&theirs.1) {
        for (a, b) in a.iter().zip(b) {
            assert!((a - b).abs() < 1e-6, "{a} {b}");
        }
    }
    let weighted = run(&objective(|c| c.alpha = 0.1), &batch, AT);
    assert!(weighted.0 > run(&plain, &batch, AT).0);
}

#[test]
fn the_same_step_of_the_same_seed_draws_the_same_and_others_differ() {
    let o = objective(|_| ());
    let drawn: Vec<usize> = (1..200).map(|step| o.extra(At { seed: 4, step, part: 0 })).collect();
    let again: Vec<usize> = (1..200).map(|step| o.extra(At { seed: 4, step, part: 0 })).collect();
    assert_eq!(drawn, again);
    // Every length in 1..=6, and nothing else.
    for e in 1..=LENGTH / 2 {
        assert!(drawn.contains(&e), "{e}");
    }
    assert!(drawn.iter().all(|e| (1..=LENGTH / 2).contains(e)));
    assert_ne!(
        drawn,
        (1..200)
            .map(|step| o.extra(At { seed: 5, step, part: 0 }))
            .collect::<Vec<_>>()
    );
}

fn tensor(rows: usize, columns: usize, seed: usize) -> Tensor {
    let values: Vec<f64> = (0..rows * columns)
        .map(|i| ((i + 3 * seed) as f64 * 1.7 + seed as f64).sin() * 1.5)
        .collect();
    Tensor::new(values, &[rows, columns]).unwrap()
}

#[test]
fn closed_gradients_agree_with_finite_differences_and_with_primitive_operations() {
    for divergence in [Divergence::Sce, Divergence::Jeffreys] {
        let both = [tensor(4, 7, 1), tensor(4, 7, 2)];
        let closed = |t: &[Tensor]| Ok(divergence_sum(&t[0], &t[1], divergence, 4).unwrap().0);
        let reference = |t: &[Tensor]| Ok(divergence_reference(&t[0], &t[1], divergence).unwrap());
        assert!(gradcheck(&both, closed).unwrap() < 1e-8);
        assert!(gradcheck(&both, reference).unwrap() < 1e-8);
        let difference = closed(&both).unwrap().item().unwrap() - reference(&both).unwrap().item().unwrap();
        assert!(difference.abs() < 1e-12);
        // The fused form: hidden states and head, blocks and all.
        let inputs = [tensor(8, 5, 3), tensor(7, 5, 4)];
        let list = [(0, 4), (1, 7), (3, 5)];
        let fused = |t: &[Tensor]| {
            Ok(
                linear_divergence(&t[0], &t[1], &list, divergence, StopGrad::None, Compute::F32)
                    .unwrap()
                    .0,
            )
        };
        assert!(gradcheck(&inputs, fused).unwrap() < 1e-8);
    }
}

#[test]
fn blocks_equal_all_logits_at_once() {
    // More pairs than one block holds.
    let (n, d, v) = (400, 6, 9);
    let x = tensor(2 * n, d, 5).cast(DType::F32).unwrap().requires_grad();
    let w = tensor(v, d, 6).cast(DType::F32).unwrap().requires_grad();
    let list: Vec<(usize, usize)> = (0..n).map(|i| (i, n + (i * 7) % n)).collect();
    for divergence in [Divergence::Sce, Divergence::Jeffreys] {
        let side = |f: fn(&(usize, usize)) -> usize| {
            let rows: Vec<usize> = list.iter().map(f).collect();
            ops::linear(&ops::gather_rows(&x, &rows).unwrap(), &w, Compute::F32).unwrap()
        };
        let naive = divergence_reference(&side(|p| p.0), &side(|p| p.1), divergence).unwrap();
        let fused = linear_divergence(&x, &w, &list, divergence, StopGrad::None, Compute::F32)
            .unwrap()
            .0;
        let (mut a, mut b) = (Gradients::new(), Gradients::new());
        assert!((naive.item().unwrap() - fused.item().unwrap()).abs() < 1e-5);
        naive.backward(&mut a).unwrap();
        fused.backward(&mut b).unwrap();
        for leaf in [&x, &w] {
            let (a, b) = (a.get(leaf).unwrap().to_f32(), b.get(leaf).unwrap().to_f32());
            let worst = ounce_tensor::largest_difference(&a, &b);
            assert!(worst < 1e-6, "{worst}");
        }
    }
}

#[test]
fn a_view_that_is_held_fixed_gets_no_gradient() {
    let (x, w) = (tensor(4, 5, 1).requires_grad(), tensor(6, 5, 2));
    for (stop, still, moving) in [(StopGrad::Long, 0..2, 2..4), (StopGrad::Short, 2..4, 0..2)] {
        let (loss, _) = linear_divergence(&x, &w, &[(0, 2), (1, 3)], Divergence::Jeffreys, stop, Compute::F32).unwrap();
        let mut gradients = Gradients::new();
        loss.backward(&mut gradients).unwrap();
        let gradient = gradients.get(&x).unwrap().values::<f64>().unwrap().to_vec();
        assert!(
            still
                .clone()
                .all(|row: usize| gradient[row * 5..][..5].iter().all(|g| *g == 0.0))
        );
        assert!(
            moving
                .clone()
                .all(|row: usize| gradient[row * 5..][..5].iter().any(|g| *g != 0.0))
        );
    }
}

#[test]
fn views_in_one_batch_equal_views_run_apart() {
    let model = model(&config());
    let o = objective(|_| ());
    let views = o.views(&batch(2), 5);
    let run = |ids: &[u32], batch: usize| {
        let input = ModelBatch {
            ids,
            batch,
            compute: Compute::F32,
        };
        no_grad(|| model.forward(input)).unwrap().to_f32()
    };
    let together = run(&views.inputs, 4);
    let size = LENGTH * VOCABULARY;
    for row in 0..4 {
        let alone = run(&views.inputs[row * LENGTH..(row + 1) * LENGTH], 1);
        let worst = ounce_tensor::largest_difference(&alone, &together[row * size..(row + 1) * size]);
        assert!(worst < 1e-5, "{worst}");
    }
}

/// J of each pair of one row, in order of t.
fn jeffreys_by_position(model: &Model, extra: usize) -> Vec<f64> {
    let views = objective(|_| ()).views(&batch(1), extra);
    let input = ModelBatch {
        ids: &views.inputs,
        batch: 2,
        compute: Compute::F32,
    };
    let logits = no_grad(|| model.forward(input)).unwrap();
    let p = ops::softmax(&logits).unwrap().to_f32();
    let log = ops::log_softmax(&logits).unwrap().to_f32();
    pairs(LENGTH, &[extra], 0, &|_, _, _| true)
        .into_iter()
        .map(|(a, b)| {
            let row = |values: &'static str, r: usize| {
                let from = if values == "p" { &p } else { &log };
                from[r * VOCABULARY..(r + 1) * VOCABULARY].to_vec()
            };
            Divergences::of(&row("p", a), &row("log", a), &row("p", b), &row("log", b)).jeffreys
        })
        .collect()
}

#[test]
fn views_that_share_everything_have_no_divergence() {
    let model = model(&config());
    assert!(jeffreys_by_position(&model, 0).iter().all(|j| j.abs() < 1e-12));
    let views = objective(|_| ()).views(&batch(2), 0);
    let input = ModelBatch {
        ids: &views.inputs,
        batch: 4,
        compute: Compute::F32,
    };
    let hidden = no_grad(|| {
        let mut ctx = model.context(input).unwrap();
        model.hidden(&mut ctx).unwrap()
    });
    let list = pairs(LENGTH, &[0, 0], 0, &|_, _, _| true);
    let (_, of) = linear_divergence(
        &hidden,
        model.head(),
        &list,
        Divergence::Sce,
        StopGrad::None,
        Compute::F32,
    )
    .unwrap();
    assert!(of.jeffreys.abs() < 1e-12, "{of:?}");
    assert!(of.h_long > 0.1 && (of.sce - 2.0 * of.h_long).abs() < 1e-6, "{of:?}");
    assert_eq!(of.h_long, of.h_short);
}

#[test]
fn a_model_with_a_window_is_aligned_from_its_receptive_field_on() {
    let mut json = config();
    json["model_type"] = "mistral".into();
    json["sliding_window"] = 3.into();
    // Two layers of a window of 3 see 5 tokens.
    let (field, extra) = (5, 4);
    let j = jeffreys_by_position(&model(&json), extra);
    assert_eq!(j.len(), LENGTH - extra);
    for (local, j) in j.iter().enumerate() {
        if local + 1 >= field {
            assert!(j.abs() < 1e-5, "{local}: {j}");
        } else {
            assert!(*j > 1e-5, "{local}: {j}");
        }
    }
    // A model without a window is not.
    let last = jeffreys_by_position(&model(&config()), extra).pop().unwrap();
    assert!(last > 1e-5, "{last}");
}

proptest! {
    /// Pairs predict the same token, there are l - e of each row, and what a mask leaves out does not count.
    #[test]
    fn pairs_have_equal_targets(extras in prop::collection::vec(1usize..=LENGTH / 2, 1..4), least in 0usize..3) {
        let rows = extras.len();
        let batch = batch(rows);
        let all = LENGTH + LENGTH / 2;
        let target = |row: usize, at: usize| batch.targets[row * all + at];
        let list = pairs(LENGTH, &extras, least, &|_, _, _| true);
        prop_assert_eq!(list.len(), extras.iter().map(|e| LENGTH - e - least).sum::<usize>());
        for (a, b) in &list {
            let (row, t) = (a / LENGTH, a % LENGTH);
            let (other, s) = (b / LENGTH - rows, b % LENGTH);
            prop_assert_eq!(row, other);
            prop_assert_eq!(t, s + extras[row]);
            prop_assert!(s >= least);
            prop_assert_eq!(target(row, t), target(row, s + extras[row]));
        }
        let odd = pairs(LENGTH, &extras, least, &|_, t, _| t % 2 == 1);
        prop_assert!(odd.iter().all(|(a, _)| a % LENGTH % 2 == 1) && odd.len() < list.len());
    }

    /// Identical logits have J = 0 and SCE = 2 H; SCE is symmetric and at least the sum of the entropies.
    #[test]
    fn divergences_keep_their_promises(a in prop::collection::vec(-6f64..6.0, 12), b in prop::collection::vec(-6f64..6.0, 12)) {
        let t = |v: &[f64]| Tensor::new(v.to_vec(), &[2, 6]).unwrap();
        let of = |x: &[f64], y: &[f64]| divergence_sum(&t(x), &t(y), Divergence::Sce, 2).unwrap().1;
        let same = of(&a, &a);
        prop_assert!(same.jeffreys.abs() < 1e-12 && (same.sce - 2.0 * same.h_long).abs() < 1e-12);
        let (ab, ba) = (of(&a, &b), of(&b, &a));
        prop_assert!((ab.sce - ba.sce).abs() < 1e-12 && (ab.jeffreys - ba.jeffreys).abs() < 1e-12);
        prop_assert!(ab.jeffreys >= -1e-12);
    }
}

#[test]
fn the_order_of_rows_does_not_matter_but_for_rounding() {
    let o = objective(|c| c.alpha = 0.3);
    let (one, mut other) = (batch(2), batch(2));
    other.inputs.rotate_left(one.length);
    other.targets.rotate_left(one.length);
    assert!((run(&o, &one, AT).0 - run(&o, &other, AT).0).abs() < 1e-5);
}

const RECIPE: &str = r#"
[model]
hidden_size = 16
layers = 1
heads = 2
intermediate_size = 32
[tokenizer]
train_vocab = 300
[data]
train = ["a.txt"]
[objective]
kind = "long_short"
[optimizer]
lr = 1e-3
[run]
steps = 10
batch = 4
length = 9
"#;

#[test]
fn recipes_say_what_is_out_of_range_and_why() {
    let parse = |overrides: &[&str]| {
        let list: Vec<String> = overrides.iter().map(ToString::to_string).collect();
        Recipe::parse("r.toml", RECIPE, &list)
    };
    let error = |overrides: &[&str]| {
        let e = parse(overrides).unwrap_err();
        format!("{e} | {}", e.hint().unwrap_or_default())
    };
    let good = parse(&[
        "objective.alpha=0.3",
        "objective.divergence=jeffreys",
        "objective.stop_grad=long",
    ])
    .unwrap();
    assert_eq!(Recipe::parse("again", &good.to_toml(), &[]).unwrap(), good);
    let ObjectiveConfig::LongShort(config) = good.objective else {
        panic!("{good:?}")
    };
    assert_eq!((config.alpha, config.divergence), (0.3, Divergence::Jeffreys));
    assert_eq!(
        error(&["objective.alpha=-0.1"]),
        "r.toml: key \"objective.alpha\": must not be negative, is -0.1 | the paper recommends 0.1, and finds harm from 0.5 on"
    );
    assert!(error(&["objective.extra_max=5"]).contains("must be in 1..=4, half of run.length = 9, is 5"));
    assert!(error(&["objective.extra_max=0"]).contains("is 0"));
    assert!(error(&["objective.extra_min=0"]).contains("views that share everything have no divergence"));
    assert!(error(&["objective.extra_min=5"]).contains("must be in 1..=4, is 5"));
    assert!(error(&["objective.min_short_ctx=5"]).contains("must be below 5"));
    assert!(error(&["run.length=1"]).contains("must be at least 2 for two views"));
    assert!(error(&["objective.divergence=hellinger"]).contains("hellinger"));
    assert!(error(&["objective.alhpa=1"]).contains("alhpa"));
    // Keys of another objective are refused, too.
    assert!(error(&["objective.kind=next_token", "objective.alpha=1"]).contains("alpha"));
}
