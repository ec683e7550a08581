//! Gradients against central finite differences, in f64.

use crate::{
    autograd::Gradients,
    error::{Result, shape},
    tensor::Tensor,
};

/// Largest absolute difference; infinite if lengths differ or a difference is NaN, so that nothing broken passes for near.
pub fn largest_difference<T: Copy + Into<f64>>(a: &[T], b: &[T]) -> f64 {
    if a.len() != b.len() {
        return f64::INFINITY;
    }
    let differences = a.iter().zip(b).map(|(&a, &b)| (a.into() - b.into()).abs());
    differences.fold(0.0, larger)
}

/// The larger one; NaN counts as infinite.
fn larger(a: f64, b: f64) -> f64 {
    if b.is_nan() { f64::INFINITY } else { a.max(b) }
}

/// Compares the tape's gradient of the scalar `f(inputs)` with central differences for every element of every f64 input.
/// Returns the largest difference `|tape - numeric| / (1 + |numeric|)`, infinite if any is NaN.
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
            worst = larger(worst, (gradient[j] - numeric).abs() / (1.0 + numeric.abs()));
        }
    }
    Ok(worst)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops;

    #[test]
    fn nan_is_infinitely_far_from_everything() {
        assert_eq!(largest_difference(&[1.0f32, 2.0], &[1.5, 2.0]), 0.5);
        assert_eq!(largest_difference(&[f32::NAN, 2.0], &[1.5, 2.0]), f64::INFINITY);
        assert_eq!(largest_difference(&[1.0], &[1.0, 2.0]), f64::INFINITY);
        let broken = Tensor::new(vec![f64::NAN, 1.0], &[2]).unwrap();
        let worst = gradcheck(&[broken], |x| ops::sum(&ops::mul(&x[0], &x[0])?)).unwrap();
        assert_eq!(worst, f64::INFINITY);
    }
}
