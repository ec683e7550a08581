//! Grouped cross-attention: fused and plain form agree, a case by hand, gradients into the scores, what is refused.

use crate::{check, tensor};
use ounce_tensor::{
    Compute, Gradients, Tensor,
    ops::{self, KeyValue},
};

/// Three runs over five chunks; an empty run, an empty slot, a query in no run, a chunk used twice.
fn neighbours() -> ops::Neighbours {
    ops::Neighbours {
        runs: vec![1..4, 4..4, 4..6],
        chunks: vec![Some(4), Some(1), Some(0), Some(2), Some(1), None],
    }
}

#[test]
fn grouped_cross_attention() {
    let (n, h, d, m, rows) = (7, 2, 3, 5, 4);
    let inputs = [
        tensor(&[n, h, d], 1),
        tensor(&[m, rows, h, d], 2),
        tensor(&[m, rows, h, d], 3),
        tensor(&[3, 2], 4),
    ];
    let with = neighbours();
    let fused = |x: &[Tensor]| {
        let (k, v) = (KeyValue::Tensor(&x[1]), KeyValue::Tensor(&x[2]));
        ops::gca(&x[0], k, v, rows, &with, &x[3], (0.6, Compute::F32))
    };
    let reference = |x: &[Tensor]| ops::gca_reference(&x[0], (&x[1], &x[2]), &with, &x[3], 0.6);
    check("gca", &inputs, fused);
    check("gca_reference", &inputs, reference);
    // The same numbers, forward and backward.
    let gradients = |f: &dyn Fn(&[Tensor]) -> ounce_tensor::Result<Tensor>| {
        let leaves: Vec<Tensor> = inputs.iter().map(Tensor::requires_grad).collect();
        let out = f(&leaves).unwrap();
        let mut gradients = Gradients::new();
        out.backward_from(tensor(&[n, h, d], 5), &mut gradients).unwrap();
        let mut all = out.values::<f64>().unwrap().to_vec();
        for leaf in &leaves {
            all.extend(gradients.get(leaf).unwrap().values::<f64>().unwrap());
        }
        all
    };
    let (a, b) = (gradients(&fused), gradients(&reference));
    assert_eq!(a.len(), b.len());
    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-12));
    // Queries 0 and 6 are in no run.
    assert!(a[..h * d].iter().chain(&a[6 * h * d..7 * h * d]).all(|&x| x == 0.0));
}

/// One head, one token, two chunks of two rows, by hand. Chunk 0: logits ln 3 and 0, so weights 3/4 and 1/4 of the values 4
/// and 8: 5. Chunk 1: logits 0 and 0, so the mean of 2 and 6: 4. Mixed with 0.9 and 0.1: 4.9.
#[test]
fn grouped_cross_attention_by_hand() {
    let column = |values: [f64; 4]| Tensor::new(values.to_vec(), &[2, 2, 1, 1]).unwrap();
    let (keys, values) = (column([3f64.ln(), 0.0, 0.0, 0.0]), column([4.0, 8.0, 2.0, 6.0]));
    let q = Tensor::new(vec![1f64], &[1, 1, 1]).unwrap();
    let weights = Tensor::new(vec![0.9, 0.1], &[1, 2]).unwrap();
    let with = ops::Neighbours {
        runs: std::iter::once(0..1).collect(),
        chunks: vec![Some(0), Some(1)],
    };
    let (k, v) = (KeyValue::Tensor(&keys), KeyValue::Tensor(&values));
    let out = ops::gca(&q, k, v, 2, &with, &weights, (1.0, Compute::F32)).unwrap();
    assert!((out.item().unwrap() - 4.9).abs() < 1e-12);
}

/// From scores to outputs: the weights are the softmax of the scores that a frozen top-2 chose.
#[test]
fn gradients_reach_the_scores_of_chosen_chunks() {
    let (n, h, d, m, rows) = (6, 1, 3, 4, 2);
    let inputs = [
        tensor(&[n, h, d], 1),
        tensor(&[m, rows, h, d], 2),
        tensor(&[m, rows, h, d], 3),
        tensor(&[2, m], 4),
    ];
    let (runs, chosen) = (vec![0..3, 3..6], vec![3, 1, 0, 2]);
    let with = ops::Neighbours {
        runs,
        chunks: chosen.iter().map(|&c| Some(c)).collect(),
    };
    check("gca of scores", &inputs, |x| {
        let weights = ops::softmax(&ops::take_last(&x[3], &chosen, 2)?)?;
        let (k, v) = (KeyValue::Tensor(&x[1]), KeyValue::Tensor(&x[2]));
        ops::gca(&x[0], k, v, rows, &with, &weights, (0.6, Compute::F32))
    });
}

#[test]
fn grouped_cross_attention_refuses_what_does_not_fit() {
    let (q, memory, w) = (tensor(&[6, 2, 3], 1), tensor(&[5, 4, 2, 3], 2), tensor(&[3, 2], 4));
    let run = |with: &ops::Neighbours, rows| {
        let (k, v) = (KeyValue::Tensor(&memory), KeyValue::Tensor(&memory));
        ops::gca(&q, k, v, rows, with, &w, (0.6, Compute::F32)).map(|t| t.numel())
    };
    assert!(run(&neighbours(), 4).is_ok());
    assert!(run(&neighbours(), 3).is_err());
    for broken in [
        ops::Neighbours {
            runs: vec![1..4, 3..5, 5..6],
            ..neighbours()
        },
        ops::Neighbours {
            runs: vec![1..4, 4..5, 5..7],
            ..neighbours()
        },
        ops::Neighbours {
            chunks: vec![Some(5); 6],
            ..neighbours()
        },
        ops::Neighbours {
            chunks: vec![Some(0); 5],
            ..neighbours()
        },
    ] {
        assert!(run(&broken, 4).is_err(), "{broken:?}");
    }
}
