//! AdamW with decoupled weight decay and clipping by global norm.
//!
//! Source: "Decoupled Weight Decay Regularization" (Loshchilov and Hutter 2019), PyTorch's semantics. Decay acts on
//! matrices; norms, biases and the embedding are left alone.

use crate::error::Result;
use ounce_kernels::{AdamW, adamw, sum_squares};
use ounce_model::{Model, Param};
use ounce_tensor::{Gradients, Tensor};
use serde::{Deserialize, Serialize};

/// `[optimizer]` of a recipe.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table, [optimizer]")]
pub struct OptimizerConfig {
    /// Peak learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    #[serde(default = "beta1")]
    pub beta1: f64,
    /// Decay of the second moment.
    #[serde(default = "beta2")]
    pub beta2: f64,
    /// Added to the root of the second moment.
    #[serde(default = "eps")]
    pub eps: f64,
    /// Weight decay.
    #[serde(default = "decay")]
    pub weight_decay: f64,
    /// Largest global norm of the gradient; 0 turns clipping off.
    #[serde(default = "one")]
    pub clip: f64,
}

fn beta1() -> f64 {
    0.9
}
fn beta2() -> f64 {
    0.95
}
fn eps() -> f64 {
    1e-8
}
fn decay() -> f64 {
    0.1
}
fn one() -> f64 {
    1.0
}

/// First and second moments of every parameter, in visiting order.
pub struct Optimizer {
    /// Settings.
    pub config: OptimizerConfig,
    /// `(name, first, second)`, f32, as many values as the parameter.
    pub moments: Vec<(String, Vec<f32>, Vec<f32>)>,
}

impl Optimizer {
    /// Zero moments for every parameter of `model`.
    pub fn new(config: OptimizerConfig, model: &mut Model) -> Self {
        let mut moments = Vec::new();
        model.visit(&mut |p| {
            let n = p.tensor.numel();
            moments.push((p.name.clone(), vec![0.0; n], vec![0.0; n]));
        });
        Self { config, moments }
    }

    /// One update with `gradients`, divided by `divisor` (the number of micro-batches). Parameters are fresh leaves
    /// afterwards. `step` counts from 1; `lr` is this step's rate. Returns the gradient's norm before clipping.
    ///
    /// # Errors
    /// Never in practice; gradients have their parameter's shape.
    pub fn step(
        &mut self,
        model: &mut Model,
        mut gradients: Gradients,
        divisor: f64,
        step: u64,
        lr: f64,
    ) -> Result<f64> {
        let mut taken: Vec<Option<Tensor>> = Vec::with_capacity(self.moments.len());
        model.visit(&mut |p| taken.push(gradients.take(&p.tensor)));
        drop(gradients);
        // Summed in visiting order: the same bits whatever the number of threads.
        let squares: f64 = taken
            .iter()
            .flatten()
            .filter_map(|g| g.values::<f32>())
            .map(sum_squares)
            .sum();
        let norm = squares.sqrt() / divisor;
        let c = self.config;
        let clip = if c.clip > 0.0 && norm > c.clip {
            c.clip / norm
        } else {
            1.0
        };
        let mut index = 0;
        model.visit(&mut |p| {
            let (_, first, second) = &mut self.moments[index];
            let gradient = taken[index].take();
            index += 1;
            // A parameter nothing depended on (an expert no token chose) still decays and its moments still fade.
            let zeros;
            let values = if let Some(values) = gradient.as_ref().and_then(Tensor::values::<f32>) {
                values
            } else {
                zeros = vec![0.0; first.len()];
                &zeros
            };
            let weight_decay = if decays(p) { c.weight_decay } else { 0.0 };
            let settings = AdamW {
                lr,
                beta1: c.beta1,
                beta2: c.beta2,
                eps: c.eps,
                weight_decay,
                step,
                grad_scale: clip / divisor,
            };
            let mut owned = p.tensor.detach();
            // The leaf must go first: values can be written only while nobody shares them.
            p.tensor = Tensor::zeros(&[0]);
            if owned.values_mut::<f32>().is_none() {
                // Values of a mapped checkpoint (f32 weights of `init`) are nobody's to write: a copy is.
                owned = own(&owned);
            }
            let values_mut = owned
                .values_mut::<f32>()
                .expect("invariant: the copy is f32 and not shared");
            adamw(values_mut, values, first, second, &settings);
            p.tensor = owned.requires_grad();
        });
        Ok(norm)
    }
}

fn own(t: &Tensor) -> Tensor {
    Tensor::new(t.to_f32(), t.shape()).expect("invariant: as many values as before")
}

fn decays(p: &Param) -> bool {
    p.tensor.shape().len() == 2 && !p.name.contains("embed_tokens")
}
