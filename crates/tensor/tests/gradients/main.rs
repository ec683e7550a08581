//! Every operation: its gradient against central finite differences in f64, and the tape's promises.

mod grouped_cross_attention;

use ounce_tensor::{
    Compute, DType, Gradients, Result, Tensor, checkpoint, gradcheck, no_grad,
    ops::{self, AttentionConfig, KeyValue, RowSpan},
    recomputed,
};

/// Central differences in f64 are good to about 1e-9 here.
const BOUND: f64 = 1e-7;

fn values(n: usize, seed: usize) -> Vec<f64> {
    (0..n)
        .map(|i| ((i + 3 * seed) as f64 * 1.7 + seed as f64).sin() * 0.9)
        .collect()
}

fn tensor(dims: &[usize], seed: usize) -> Tensor {
    Tensor::new(values(dims.iter().product(), seed), dims).unwrap()
}

/// A scalar that weighs every element differently, so that no error can cancel.
fn weigh(y: &Tensor) -> Result<Tensor> {
    ops::sum(&ops::mul(y, &tensor(y.shape(), 11))?)
}

fn check(name: &str, inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let worst = gradcheck(inputs, |t| weigh(&f(t)?)).unwrap();
    assert!(worst < BOUND, "{name}: {worst:e}");
}

#[test]
fn elementwise() {
    let ab = [tensor(&[3, 5], 1), tensor(&[3, 5], 2)];
    check("add", &ab, |t| ops::add(&t[0], &t[1]));
    check("sub", &ab, |t| ops::sub(&t[0], &t[1]));
    check("mul", &ab, |t| ops::mul(&t[0], &t[1]));
    check("swiglu", &ab, |t| ops::swiglu(&t[0], &t[1]));
    let a = [tensor(&[3, 5], 3)];
    check("scale", &a, |t| ops::scale(&t[0], -2.5));
    check("silu", &a, |t| ops::silu(&t[0]));
    check("gelu", &a, |t| ops::gelu(&t[0]));
    check("sigmoid", &a, |t| ops::sigmoid(&t[0]));
    check("clamp", &a, |t| ops::clamp(&t[0], -0.4, 0.5));
    check("add_bias", &[tensor(&[3, 5], 4), tensor(&[5], 5)], |t| {
        ops::add_bias(&t[0], &t[1])
    });
    check("the same tensor twice", &a, |t| ops::mul(&t[0], &t[0]));
}

#[test]
fn norms_and_softmax() {
    check("rms_norm", &[tensor(&[4, 6], 1), tensor(&[6], 2)], |t| {
        ops::rms_norm(&t[0], &t[1], 1e-5)
    });
    let a = [tensor(&[4, 6], 3)];
    check("softmax", &a, |t| ops::softmax(&t[0]));
    check("log_softmax", &a, |t| ops::log_softmax(&t[0]));
    check("row_norms", &a, |t| ops::row_norms(&t[0]));
    check("normalize_rows", &a, |t| ops::normalize_rows(&ops::softmax(&t[0])?));
}

#[test]
fn linear_maps() {
    let x = tensor(&[2, 3, 4], 1);
    check("linear", &[x.clone(), tensor(&[5, 4], 2)], |t| {
        ops::linear(&t[0], &t[1], Compute::F32)
    });
    let many = [x, tensor(&[5, 4], 2), tensor(&[3, 4], 3)];
    check("linear_many", &many, |t| {
        let y = ops::linear_many(&t[0], &[&t[1], &t[2]], Compute::F32)?;
        ops::add(&weigh(&y[0])?, &weigh(&y[1])?)
    });
    let grouped = [
        tensor(&[5, 4], 1),
        tensor(&[3, 4], 2),
        tensor(&[3, 4], 3),
        tensor(&[3, 4], 4),
    ];
    check("grouped_linear", &grouped, |t| {
        ops::grouped_linear(&t[0], &[&t[1], &t[2], &t[3]], &[0, 2, 2, 5], Compute::F32)
    });
}

#[test]
fn rows_and_reductions() {
    check("embedding", &[tensor(&[6, 3], 1)], |t| {
        ops::embedding(&t[0], &[1, 5, 1, 0], &[2, 2])
    });
    check("gather_rows", &[tensor(&[4, 3], 2)], |t| {
        ops::gather_rows(&t[0], &[3, 3, 0])
    });
    check("scatter_add_rows", &[tensor(&[4, 3], 3)], |t| {
        ops::scatter_add_rows(&t[0], &[2, 0, 2, 1], 3)
    });
    check("scale_rows", &[tensor(&[4, 3], 4), tensor(&[4], 5)], |t| {
        ops::scale_rows(&t[0], &t[1])
    });
    check("take_last", &[tensor(&[2, 5], 6)], |t| {
        ops::take_last(&t[0], &[4, 1, 0, 3], 2)
    });
    let a = [tensor(&[4, 3], 7)];
    check("sum", &a, |t| ops::sum(&t[0]));
    check("mean", &a, |t| ops::mean(&t[0]));
    check("column_mean", &a, |t| ops::column_mean(&t[0]));
    check("reshape", &a, |t| ops::reshape(&t[0], &[2, 6]));
    check("narrow_rows", &a, |t| ops::narrow_rows(&t[0], 1, 3));
    check("concat_rows", &[tensor(&[2, 3], 8), tensor(&[1, 3], 9)], |t| {
        ops::concat_rows(&[&t[0], &t[1]])
    });
}

#[test]
fn attention_with_groups_window_padding_and_rotation() {
    let (b, t, hq, hk, hd) = (2, 5, 4, 2, 4);
    let inputs = [
        tensor(&[b, t, hq, hd], 1),
        tensor(&[b, t, hk, hd], 2),
        tensor(&[b, t, hk, hd], 3),
    ];
    let spans = [
        RowSpan {
            q_start: 0,
            kv_begin: 0,
            kv_len: 5,
        },
        RowSpan {
            q_start: 0,
            kv_begin: 1,
            kv_len: 5,
        },
    ];
    for window in [None, Some(2)] {
        let config = AttentionConfig {
            causal: true,
            window,
            scale: 0.5,
            compute: Compute::F32,
        };
        check("attention", &inputs, |x| {
            ops::attention(&x[0], KeyValue::Tensor(&x[1]), KeyValue::Tensor(&x[2]), &spans, config)
        });
    }
    let angle = values(b * t * hd / 2, 5);
    let table = |f: fn(f64) -> f64| Tensor::new(angle.iter().map(|&a| f(a)).collect(), &[b * t, hd / 2]).unwrap();
    let (cos, sin) = (table(f64::cos), table(f64::sin));
    check("rope", &inputs[..1], |x| ops::rope(&x[0], &cos, &sin));
}

#[test]
fn attention_with_linear_biases() {
    let (b, t, h, hd) = (2, 5, 4, 3);
    let inputs = [1, 2, 3].map(|seed| tensor(&[b, t, h, hd], seed));
    let spans = [RowSpan {
        q_start: 0,
        kv_begin: 0,
        kv_len: t,
    }; 2];
    let config = AttentionConfig {
        causal: true,
        window: Some(3),
        scale: 0.5,
        compute: Compute::F32,
    };
    check("alibi_attention", &inputs, |x| {
        let (k, v) = (KeyValue::Tensor(&x[1]), KeyValue::Tensor(&x[2]));
        ops::alibi_attention(&x[0], k, v, &spans, config, &[0.25, 0.0625, 0.5, 1.0])
    });
}

#[test]
fn losses() {
    let targets = [2, -1, 0, 6];
    check("cross_entropy", &[tensor(&[4, 7], 1)], |t| {
        ops::cross_entropy(&t[0], &targets)
    });
    check("linear_cross_entropy", &[tensor(&[4, 3], 2), tensor(&[7, 3], 3)], |t| {
        ops::linear_cross_entropy(&t[0], &t[1], &targets, Compute::F32)
    });
    // The fused loss is the plain one.
    let (x, w) = (tensor(&[4, 3], 2), tensor(&[7, 3], 3));
    let plain = ops::cross_entropy(&ops::linear(&x, &w, Compute::F32).unwrap(), &targets).unwrap();
    let fused = ops::linear_cross_entropy(&x, &w, &targets, Compute::F32).unwrap();
    assert!((plain.item().unwrap() - fused.item().unwrap()).abs() < 1e-12);
}

#[test]
fn bf16_arithmetic_stays_within_its_rounding() {
    let wide = |dims: &[usize], seed| tensor(dims, seed).cast(DType::F32).unwrap();
    let (x, w) = (wide(&[33, 130], 1), wide(&[17, 130], 2));
    let exact = ops::linear(&x, &w, Compute::F32).unwrap().to_f32();
    let rounded = ops::linear(&x, &w, Compute::Bf16).unwrap().to_f32();
    // Each factor is off by at most 2^-9 of itself, so a sum of n products by 2 · 2^-9 · Σ|x||w|, here below 130 · 0.81.
    for (a, b) in exact.iter().zip(rounded) {
        assert!((a - b).abs() < 130.0 * 0.81 * 2.0 / 512.0, "{a} {b}");
    }
}

#[test]
fn one_and_two_threads_give_the_same_bits() {
    let run = || {
        let wide = |dims: &[usize], seed| tensor(dims, seed).cast(DType::F32).unwrap().requires_grad();
        let (x, w, n) = (wide(&[257, 96], 1), wide(&[200, 96], 2), wide(&[96], 3));
        let h = ops::rms_norm(&x, &n, 1e-5).unwrap();
        let targets: Vec<i64> = (0..257).map(|i| i % 200).collect();
        let loss = ops::linear_cross_entropy(&h, &w, &targets, Compute::F32).unwrap();
        let mut gradients = Gradients::new();
        loss.backward(&mut gradients).unwrap();
        [&x, &w, &n].map(|p| {
            gradients
                .get(p)
                .unwrap()
                .to_f32()
                .iter()
                .map(|v| v.to_bits())
                .collect::<Vec<_>>()
        })
    };
    let one = ounce_kernels::with_threads(1, run);
    let two = ounce_kernels::with_threads(2, run);
    assert!(one == two);
}

#[test]
fn checkpointing_gives_the_same_gradients_and_no_grad_records_nothing() {
    let w = tensor(&[3, 3], 2).requires_grad();
    let gradients_of = |saved: bool| {
        let x = tensor(&[2, 3], 1).requires_grad();
        let captured = w.clone();
        let block = move |x: &Tensor| ops::silu(&ops::linear(x, &captured, Compute::F32)?);
        let y = if saved { checkpoint(&x, block) } else { block(&x) }.unwrap();
        let mut gradients = Gradients::new();
        weigh(&y).unwrap().backward(&mut gradients).unwrap();
        (
            gradients.get(&x).unwrap().values::<f64>().unwrap().to_vec(),
            gradients.take(&w).unwrap(),
        )
    };
    let ((dx, dw), (dx2, dw2)) = (gradients_of(false), gradients_of(true));
    assert_eq!(dx, dx2);
    assert_eq!(dw.values::<f64>(), dw2.values::<f64>());
    assert!(!no_grad(|| ops::silu(&w).unwrap()).needs_grad());
}

#[test]
fn gradients_of_several_micro_batches_add_up() {
    let w = tensor(&[4], 1).requires_grad();
    let mut gradients = Gradients::new();
    for _ in 0..3 {
        ops::sum(&ops::scale(&w, 2.0).unwrap())
            .unwrap()
            .backward(&mut gradients)
            .unwrap();
    }
    assert_eq!(gradients.get(&w).unwrap().values::<f64>().unwrap(), [6.0; 4]);
}

#[test]
fn broken_rules_are_errors() {
    let (a, b) = (tensor(&[2, 3], 1), tensor(&[3, 2], 1));
    assert!(
        ops::add(&a, &b)
            .unwrap_err()
            .to_string()
            .starts_with("add: both inputs have one shape")
    );
    assert!(ops::linear(&a, &b, Compute::F32).is_err());
    assert!(
        ops::embedding(&a, &[2], &[1])
            .unwrap_err()
            .to_string()
            .contains("index 2 is outside 0..2")
    );
    assert!(ops::cross_entropy(&a, &[3, 0]).is_err());
    assert!(ops::cross_entropy(&a, &[-1, -1]).is_err());
    assert!(Tensor::new(vec![1f32; 3], &[2, 2]).is_err());
}

/// Winners' rows of a wider product: the recorded gradient is that of the product itself, an empty group included.
#[test]
fn known_grouped_product() {
    let inputs = [tensor(&[5, 3], 1), tensor(&[3 * 2, 3], 2)];
    let offsets = [0, 2, 2, 5];
    let product = |x: &Tensor, w: &Tensor| -> Result<Tensor> {
        let slices: Vec<Tensor> = (0..3)
            .map(|e| ops::narrow_rows(w, 2 * e, 2 * e + 2))
            .collect::<Result<_>>()?;
        ops::grouped_linear(x, &slices.iter().collect::<Vec<_>>(), &offsets, Compute::F32)
    };
    check("known_grouped_linear", &inputs, |t| {
        let y = product(&t[0].detach(), &t[1].detach())?;
        ops::known_grouped_linear(&t[0], &t[1], &offsets, &y, Compute::F32)
    });
}

#[test]
fn a_row_of_zeros_has_norm_zero_and_gradient_zero() {
    let x = Tensor::new(vec![0.0, 0.0, 3.0, 4.0], &[2, 2]).unwrap().requires_grad();
    let y = ops::row_norms(&x).unwrap();
    assert_eq!(y.to_f32(), [0.0, 5.0]);
    let mut gradients = Gradients::new();
    ops::sum(&y).unwrap().backward(&mut gradients).unwrap();
    assert_eq!(gradients.get(&x).unwrap().to_f32(), [0.0, 0.0, 0.6, 0.8]);
}

#[test]
fn a_recomputed_value_has_the_gradient_of_its_computation() {
    let inputs = [tensor(&[4, 3], 1), tensor(&[2, 3], 2)];
    check("recomputed", &inputs, |t| {
        let w = t[1].clone();
        let f = move |x: &Tensor| ops::softmax(&ops::linear(x, &w, Compute::F32)?);
        let known = no_grad(|| f(&t[0]))?;
        Ok(recomputed(&t[0], &known, f))
    });
}

#[test]
fn weighted_sums_of_rows() {
    let inputs = [tensor(&[5, 3], 1), tensor(&[4, 2], 2)];
    let ids = [0, 4, 2, 2, 1, 0, 4, 1];
    check("mix_rows", &inputs, |t| ops::mix_rows(&t[0], &ids, &t[1]));
    let rows = ops::gather_rows(&inputs[0], &ids).unwrap();
    let scaled = ops::scale_rows(&rows, &inputs[1]).unwrap();
    let slow = ops::scatter_add_rows(&scaled, &[0, 0, 1, 1, 2, 2, 3, 3], 4).unwrap();
    let fast = ops::mix_rows(&inputs[0], &ids, &inputs[1]).unwrap();
    assert_eq!(fast.to_f32(), slow.to_f32());
    assert!(ops::mix_rows(&inputs[0], &[5; 8], &inputs[1]).is_err());
    assert!(ops::mix_rows(&inputs[0], &[0; 7], &inputs[1]).is_err());
}
