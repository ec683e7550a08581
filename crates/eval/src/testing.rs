//! Models small enough for tests.

use ounce_model::{Model, config::ModelShape, weights::FreshWeights};
use ounce_tensor::Tensor;

/// A fresh two-layer model with an untied head.
pub(crate) fn tiny(vocab: usize, max_positions: usize) -> Model {
    let shape = ModelShape {
        hidden_size: 16,
        layers: 2,
        heads: 2,
        kv_heads: None,
        intermediate_size: 24,
        experts: None,
        experts_per_token: None,
        balance: 0.0,
        tied: false,
        max_positions,
        rope_theta: 10000.0,
        rms_norm_eps: 1e-5,
        initializer_range: 0.3,
        residual: ounce_model::Residual::default(),
    };
    let config = shape.to_config(vocab, None, None).unwrap();
    Model::new(config, &mut FreshWeights { seed: 7, std: 0.3 }).unwrap()
}

/// The same model with a head of zeros: every token is equally likely, whatever came before.
pub(crate) fn uniform(vocab: usize, max_positions: usize) -> Model {
    let mut model = tiny(vocab, max_positions);
    model.visit(&mut |param| {
        if param.name == "lm_head.weight" {
            param.tensor = Tensor::zeros(param.tensor.shape());
        }
    });
    model
}

/// `n` ids that look like nothing in particular, the same at every call.
pub(crate) fn ids(n: usize, vocab: u32) -> Vec<u32> {
    let mut state = 12345u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) % vocab
    };
    (0..n).map(next).collect()
}
