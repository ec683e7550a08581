//! Gradients of whole models in every wiring, against finite differences in f64.

use crate::{VOCABULARY, fresh, ids, ladder, shape};
use ounce_model::{
    Batch, Model, Residual,
    weights::{FreshWeights, Weights},
};
use ounce_tensor::{Compute, Gradients, Tensor, ops};

/// Fresh weights in f64, with one element of one tensor moved.
struct Doubles {
    inner: FreshWeights,
    moved: Option<(String, usize, f64)>,
}

impl Weights for Doubles {
    fn tensor(&mut self, name: &str, shape: &[usize]) -> ounce_model::Result<Tensor> {
        let mut values: Vec<f64> = self
            .inner
            .tensor(name, shape)?
            .to_f32()
            .into_iter()
            .map(f64::from)
            .collect();
        if let Some((moved, at, delta)) = &self.moved
            && moved == name
        {
            values[*at] += delta;
        }
        Ok(Tensor::new(values, shape)?)
    }
}

#[test]
fn gradients_agree_with_finite_differences_in_f64() {
    let ids = ids(5, 9);
    let targets: Vec<i64> = ids.iter().rev().map(|&id| i64::from(id)).collect();
    for residual in [ladder(&[0, 1, 2, 3]), ladder(&[1, 2]), Residual::Parallel {}] {
        let config = shape(&residual).to_config(VOCABULARY, None, None).unwrap();
        let build = |moved| Model::new(config.clone(), &mut Doubles { inner: fresh(), moved }).unwrap();
        let loss = |model: &Model| {
            let input = Batch {
                ids: &ids,
                batch: 1,
                compute: Compute::F32,
            };
            let mut ctx = model.context(input).unwrap();
            ctx.rows.cos = widen(&ctx.rows.cos);
            ctx.rows.sin = widen(&ctx.rows.sin);
            let hidden = model.hidden(&mut ctx).unwrap();
            ops::linear_cross_entropy(&hidden, model.head(), &targets, Compute::F32).unwrap()
        };
        let mut model = build(None);
        model.visit(&mut |p| p.tensor = p.tensor.requires_grad());
        let mut gradients = Gradients::new();
        loss(&model).backward(&mut gradients).unwrap();
        let mut checked = 0;
        model.visit(&mut |p| {
            let gradient = gradients.get(&p.tensor).unwrap().values::<f64>().unwrap().to_vec();
            // A few elements of every tensor.
            for at in [0, gradient.len() / 2, gradient.len() - 1] {
                let h = 1e-5;
                let up = loss(&build(Some((p.name.clone(), at, h)))).item().unwrap();
                let down = loss(&build(Some((p.name.clone(), at, -h)))).item().unwrap();
                let numeric = (up - down) / (2.0 * h);
                assert!(
                    (gradient[at] - numeric).abs() < 1e-6 * (1.0 + numeric.abs()),
                    "{} [{at}]: {} {numeric}",
                    p.name,
                    gradient[at]
                );
                checked += 1;
            }
        });
        assert!(checked > 100);
    }
}

fn widen(t: &Tensor) -> Tensor {
    t.cast(ounce_tensor::DType::F64).unwrap()
}
