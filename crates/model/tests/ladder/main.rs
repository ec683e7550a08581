//! Residual wirings: against oracles that keep every sub-block's output, across ranks, with a cache, and refused.

mod configuration;
mod gradients;
mod oracle;
mod ranks;

use ounce_model::{Batch, LadderLayers, Model, Residual, config::ModelShape, weights::FreshWeights};
use ounce_tensor::{Compute, no_grad};
use serde_json::json;

const VOCABULARY: usize = 37;
const LAYERS: usize = 4;

fn shape(residual: &Residual) -> ModelShape {
    serde_json::from_value(json!({
        "hidden_size": 24, "layers": LAYERS, "heads": 4, "kv_heads": 2, "intermediate_size": 20,
        "initializer_range": 0.3, "max_positions": 64, "residual": residual,
    }))
    .unwrap()
}

fn ladder(layers: &[usize]) -> Residual {
    Residual::Ladder {
        layers: Some(LadderLayers::List(layers.to_vec())),
    }
}

/// Fresh weights of one seed: all wirings get the same, because names and shapes are the same.
fn model(residual: &Residual) -> Model {
    let config = shape(residual).to_config(VOCABULARY, None, None).unwrap();
    Model::new(config, &mut fresh()).unwrap()
}

fn fresh() -> FreshWeights {
    FreshWeights { seed: 5, std: 0.3 }
}

fn ids(n: usize, seed: usize) -> Vec<u32> {
    (0..n)
        .map(|i| ((i * i * 7 + i * 13 + seed * 5) % VOCABULARY) as u32)
        .collect()
}

fn logits(model: &Model, ids: &[u32], batch: usize) -> Vec<f32> {
    let input = Batch {
        ids,
        batch,
        compute: Compute::F32,
    };
    no_grad(|| model.forward(input)).unwrap().to_f32()
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    ounce_tensor::largest_difference(a, b) as f32
}
