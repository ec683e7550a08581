//! Rows of unequal length in one batch.

use crate::{batch, fresh, ids, json_of, worst};
use ounce_model::{Model, Noise};
use ounce_tensor::{Compute, Gradients, no_grad, ops};
use std::ops::Range;

/// Rows of which `real` are no padding: logits of the real tokens, and the gradients of a loss over them.
fn padded(model: &mut Model, ids: &[u32], real: &[Range<usize>]) -> (Vec<Vec<f32>>, Vec<f32>) {
    let (rows, t) = (real.len(), ids.len() / real.len());
    model.visit(&mut |p| p.tensor = p.tensor.requires_grad());
    let mut ctx = model.context(batch(ids, rows), None).unwrap();
    for (span, real) in ctx.spans.iter_mut().zip(real) {
        (span.kv_begin, span.kv_len) = (real.start, real.end);
    }
    ctx.noise = Some(Noise {
        seed: 5,
        step: 3,
        part: 0,
    });
    let hidden = model.hidden(&mut ctx).unwrap();
    let is_real = |i: usize| real[i / t].contains(&(i % t));
    let target = |i: usize| if is_real(i) { i64::from(ids[i] * 7 % 38) } else { -1 };
    let targets: Vec<i64> = (0..ids.len()).map(target).collect();
    let loss = ops::linear_cross_entropy(&hidden, model.head(), &targets, Compute::F32).unwrap();
    let mut found = Gradients::new();
    loss.backward(&mut found).unwrap();
    let mut gradients = Vec::new();
    model.visit(&mut |p| gradients.extend(found.get(&p.tensor).unwrap().to_f32()));
    model.visit(&mut |p| p.tensor = p.tensor.detach());
    let logits = no_grad(|| model.logits(&hidden, Compute::F32)).unwrap().to_f32();
    let row = |(r, real): (usize, &Range<usize>)| logits[(r * t + real.start) * 40..(r * t + real.end) * 40].to_vec();
    (real.iter().enumerate().map(row).collect(), gradients)
}

/// Chunks begin at a row's first real token, wherever that is: what a row gives does not depend on its padding.
#[test]
fn padding_is_not_heard() {
    let mut model = fresh(&json_of(&[1, 1, 1], 2, false));
    let row = ids(33);
    let whole = |t: usize| [Range { start: 0, end: t }];
    let alone = padded(&mut model, &row, &whole(33));
    for (before, after) in [(0, 6), (7, 0), (3, 9), (12, 1)] {
        let filled = |fill: u32| {
            let pad = |n: usize| (0..n as u32).map(|i| (i * 5 + fill) % 38).collect::<Vec<u32>>();
            [pad(before), row.clone(), pad(after)].concat()
        };
        let real = [Range {
            start: before,
            end: before + 33,
        }];
        let (logits, gradients) = padded(&mut model, &filled(3), &real);
        assert!(worst(&logits[0], &alone.0[0]) < 1e-4, "{before} before, {after} after");
        assert!(worst(&gradients, &alone.1) < 1e-4, "{before} before, {after} after");
        assert_eq!(padded(&mut model, &filled(8), &real).0[0], logits[0]);
        // Beside a row without padding.
        let t = before + 33 + after;
        let both = [filled(3), ids(t)].concat();
        let (logits, _) = padded(&mut model, &both, &[real[0].clone(), 0..t]);
        assert!(worst(&logits[0], &alone.0[0]) < 1e-4);
        // Taken for text, it is heard.
        let heard = padded(&mut model, &filled(3), &whole(t));
        let said = &heard.0[0][before * 40..(before + 33) * 40];
        assert_eq!(worst(said, &alone.0[0]) > 1e-2, before > 0);
    }
}

#[test]
fn padding_is_refused_where_rows_would_drift_apart() {
    let model = fresh(&json_of(&[1, 1], 2, true));
    let input = ids(2 * 20);
    for (kv_begin, kv_len) in [(3, 20), (0, 19)] {
        let mut cache = model.cache(2, 20);
        let mut ctx = model.context(batch(&input, 2), Some(&mut *cache)).unwrap();
        (ctx.spans[1].kv_begin, ctx.spans[1].kv_len) = (kv_begin, kv_len);
        let error = no_grad(|| model.hidden(&mut ctx)).unwrap_err().to_string();
        assert!(error.contains("padding"), "{error}");
    }
}
