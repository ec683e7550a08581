//! Sequences of unequal length in one call.

use crate::{fresh, ids, json_of, worst};
use ounce_model::{Model, Noise};
use ounce_tensor::{Compute, Gradients, no_grad, ops};

/// Logits of each sequence, and the gradients of the loss over all of them.
fn run(model: &mut Model, texts: &[&[u32]], first: usize) -> (Vec<Vec<f32>>, Vec<f32>) {
    let all = texts.concat();
    let lengths: Vec<usize> = texts.iter().map(|text| text.len()).collect();
    model.visit(&mut |p| p.tensor = p.tensor.requires_grad());
    let mut ctx = model.ragged_context(&all, &lengths, Vec::new(), Compute::F32).unwrap();
    ctx.rows.first = first;
    ctx.noise = Some(Noise {
        seed: 5,
        step: 3,
        part: 0,
    });
    let hidden = model.hidden(&mut ctx).unwrap();
    let targets: Vec<i64> = all.iter().map(|id| i64::from(id * 7 % 38)).collect();
    let loss = ops::linear_cross_entropy(&hidden, model.head(), &targets, Compute::F32).unwrap();
    let mut found = Gradients::new();
    loss.backward(&mut found).unwrap();
    let mut gradients = Vec::new();
    model.visit(&mut |p| gradients.extend(found.get(&p.tensor).unwrap().to_f32()));
    model.visit(&mut |p| p.tensor = p.tensor.detach());
    let logits = no_grad(|| model.logits(&hidden, Compute::F32)).unwrap().to_f32();
    let mut rest = &logits[..];
    let row = |len: &usize| {
        let (row, after) = rest.split_at(len * 40);
        rest = after;
        row.to_vec()
    };
    (lengths.iter().map(row).collect(), gradients)
}

/// Chunks begin at a sequence's first token, wherever its neighbours' do: its noise, its logits and its share of the
/// gradient are those of the sequence alone.
#[test]
fn neighbours_of_other_lengths_are_not_heard() {
    let mut model = fresh(&json_of(&[1, 1, 1], 2, false));
    let texts = [ids(33), ids(20), ids(20), ids(47)];
    let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    let (together, gradients) = run(&mut model, &texts, 0);
    let tokens: usize = texts.iter().map(|t| t.len()).sum();
    let mut mean = vec![0.0; gradients.len()];
    for (i, text) in texts.iter().enumerate() {
        let (alone, own) = run(&mut model, &[text], i);
        assert!(worst(&together[i], &alone[0]) < 1e-4, "sequence {i}");
        let share = text.len() as f32 / tokens as f32;
        mean.iter_mut().zip(own).for_each(|(m, g)| *m += share * g);
    }
    assert!(worst(&gradients, &mean) < 1e-4);
    // Drawn for another sequence, the noise is another.
    assert!(worst(&run(&mut model, &[texts[3]], 0).0[0], &together[3]) > 1e-3);
}
