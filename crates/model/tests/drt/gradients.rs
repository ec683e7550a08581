//! Gradients of a whole DRT in training, noise and all, against finite differences in f64.

use crate::{batch, ids, json_of};
use ounce_model::{
    Model, ModelConfig, Noise,
    weights::{FreshWeights, Weights},
};
use ounce_tensor::{Compute, Gradients, Tensor, ops};

/// Fresh weights in f64, with one tensor moved along a direction.
struct Doubles {
    inner: FreshWeights,
    moved: Option<(String, Vec<f64>)>,
}

impl Weights for Doubles {
    fn tensor(&mut self, name: &str, shape: &[usize]) -> ounce_model::Result<Tensor> {
        let made = self.inner.tensor(name, shape)?.to_f32();
        let mut values: Vec<f64> = made.into_iter().map(f64::from).collect();
        if let Some((moved, by)) = &self.moved
            && moved == name
        {
            values.iter_mut().zip(by).for_each(|(w, d)| *w += d);
        }
        Ok(Tensor::new(values, shape)?)
    }
}

/// The chunks that every group retrieves, and the loss. Two rows of six chunks and an open one.
fn loss(model: &Model) -> (Vec<Vec<Option<usize>>>, Tensor) {
    let (rows, t) = (2, 32);
    let ids = ids(rows * t);
    let target = |i: usize| if i % t + 1 == t { -1 } else { i64::from(ids[i + 1]) };
    let targets: Vec<i64> = (0..ids.len()).map(target).collect();
    let mut ctx = model.context(batch(&ids, rows)).unwrap();
    ctx.noise = Some(Noise {
        seed: 5,
        step: 3,
        part: 0,
    });
    ctx.sink.want_retrieved = true;
    let hidden = model.hidden(&mut ctx).unwrap();
    let chosen = ctx.sink.retrieved.iter().map(|r| r.chunks.clone()).collect();
    let loss = ops::linear_cross_entropy(&hidden, model.head(), &targets, Compute::F32).unwrap();
    (chosen, loss)
}

/// Along the gradient of each tensor in turn: its slope is the gradient's length.
#[test]
fn every_parameter_has_the_gradient_that_differences_show() {
    let config = ModelConfig::parse("test", &json_of(&[1, 1, 1], 2, false)).unwrap();
    let build = |moved| {
        let inner = FreshWeights { seed: 7, std: 0.3 };
        Model::new(config.clone(), &mut Doubles { inner, moved }).unwrap()
    };
    let mut model = build(None);
    model.visit(&mut |p| p.tensor = p.tensor.requires_grad());
    let (chosen, total) = loss(&model);
    let mut gradients = Gradients::new();
    total.backward(&mut gradients).unwrap();
    let mut checked = 0;
    model.visit(&mut |p| {
        let gradient = gradients.get(&p.tensor).unwrap().values::<f64>().unwrap().to_vec();
        let norm = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
        assert!(norm > 1e-6, "{} gets no gradient", p.name);
        let at = |step: f64| {
            let by = gradient.iter().map(|g| step * g / norm).collect();
            let (same, moved) = loss(&build(Some((p.name.clone(), by))));
            assert_eq!(same, chosen, "another choice has another gradient");
            moved.item().unwrap()
        };
        let h = 1e-5;
        let numeric = (at(h) - at(-h)) / (2.0 * h);
        assert!(
            (numeric - norm).abs() < 1e-6 * norm + 1e-9,
            "{}: {numeric} where the tape says {norm}",
            p.name
        );
        checked += 1;
    });
    assert!(checked > 30, "{checked}");
}
