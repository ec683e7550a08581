//! What the tests of feed-forward methods share: weights handed out in order, and a context without attention.

use crate::{
    ctx::{Ctx, Sink},
    error::Result,
    rows::Rows,
    weights::Weights,
};
use ounce_tensor::{Compute, Solo, Tensor};

/// Hands out the given tensors in the order a layer asks for them.
pub(super) struct InOrder<'a>(pub(super) std::slice::Iter<'a, Tensor>);

impl Weights for InOrder<'_> {
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.0.next().unwrap_or_else(|| panic!("no tensor left for {name}"));
        assert_eq!(tensor.shape(), shape, "{name}");
        Ok(tensor.clone())
    }
}

/// Smooth values that repeat nowhere, in f64.
pub(super) fn values(dims: &[usize], seed: usize) -> Tensor {
    let n = dims.iter().product();
    let values = (0..n).map(|i| ((i + 5 * seed) as f64 * 1.7 + seed as f64 * 0.31).sin() * 0.9);
    Tensor::new(values.collect(), dims).unwrap()
}

/// The context of one row of ids.
pub(super) fn context(ids: &[u32]) -> Ctx<'_> {
    static SOLO: Solo = Solo;
    Ctx {
        ids,
        embeddings: None,
        inserted: None,
        noise: None,
        wanted: None,
        rows: Rows::even(1, 0, ids.len(), Tensor::zeros(&[0]), Tensor::zeros(&[0])),
        caches: Vec::new(),
        compute: Compute::F32,
        collective: &SOLO,
        sink: Sink::default(),
    }
}

/// Largest difference of two f64 tensors of one shape.
pub(super) fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.shape(), b.shape());
    let (a, b) = (a.values::<f64>().unwrap(), b.values::<f64>().unwrap());
    ounce_tensor::largest_difference(a, b)
}
