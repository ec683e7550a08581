//! Gradients against central finite differences, in f64.

use crate::{
    autograd::Gradients,
    error::{Result, shape},
    tensor::Tensor,
};

/// Compares the tape's gradient of the scalar `f(inputs)` with central differences for every element of every f64 input.
/// Returns the largest difference `|tape - numeric| / (1 + |numeric|)`.
///
/// # Errors
/// If `f` fails or does not return a scalar.
pub fn gradcheck(inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) -> Result<f64> {
    let leaves: Vec<Tensor> = inputs.iter().map(Tensor::requires_grad).collect();
    let mut gradients = Gradients::new();
    f(&leaves)?.backward(&mut gradients)?;
    let mut worst = 0f64;
    for (i, input) in inputs.iter().enumerate() {
        let values = input.get::<f64>("gradcheck")?.to_vec();
        let Some(gradient) = gradients.get(&leaves[i]) else {
            return shape("gradcheck", "every input gets a gradient", i);
        };
        let gradient = gradient.get::<f64>("gradcheck")?;
        for j in 0..values.len() {
            let h = 1e-5 * values[j].abs().max(1.0);
            let at = |delta: f64| -> Result<f64> {
                let mut moved = values.clone();
                moved[j] += delta;
                let mut all = inputs.to_vec();
                all[i] = Tensor::new(moved, input.shape())?;
                f(&all)?.item()
            };
            let numeric = (at(h)? - at(-h)?) / (2.0 * h);
            worst = worst.max((gradient[j] - numeric).abs() / (1.0 + numeric.abs()));
        }
    }
    Ok(worst)
}
