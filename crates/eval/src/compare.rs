//! How far two sets of values that should be equal are apart.

use crate::error::{EvalError, Result};
use serde::Serialize;

/// The worst disagreement of two lists of values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Difference {
    /// Largest |a - b|; infinite where one of the two is not a number or only one of them is infinite, so that no
    /// tolerance accepts it.
    pub max_abs: f64,
    /// Its index; 0 for empty lists.
    pub at: usize,
    /// The value there in the first list.
    pub a: f32,
    /// The value there in the second list.
    pub b: f32,
}

/// The largest absolute difference of two lists, and where it is (the first one, of equals).
///
/// # Errors
/// If their lengths differ.
pub fn max_abs_difference(a: &[f32], b: &[f32]) -> Result<Difference> {
    if a.len() != b.len() {
        return Err(EvalError::Input {
            what: "comparison".into(),
            rule: format!("{} values cannot be compared with {}", a.len(), b.len()),
            hint: "were both computed from the same input?",
        });
    }
    let mut worst = Difference {
        max_abs: 0.0,
        at: 0,
        a: a.first().copied().unwrap_or(0.0),
        b: b.first().copied().unwrap_or(0.0),
    };
    for (at, (&a, &b)) in a.iter().zip(b).enumerate() {
        let max_abs = match (f64::from(a) - f64::from(b)).abs() {
            // Equal infinities differ by NaN.
            _ if a == b => 0.0,
            d if d.is_nan() => f64::INFINITY,
            d => d,
        };
        if max_abs > worst.max_abs {
            worst = Difference { max_abs, at, a, b };
        }
    }
    Ok(worst)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_place_is_named() {
        let d = max_abs_difference(&[1.0, 2.0, -3.0, 4.0], &[1.0, 2.5, -1.0, 6.0]).unwrap();
        assert_eq!(
            d,
            Difference {
                max_abs: 2.0,
                at: 2,
                a: -3.0,
                b: -1.0
            }
        );
        assert_eq!(max_abs_difference(&[], &[]).unwrap().max_abs, 0.0);
        assert!(
            max_abs_difference(&[1.0], &[])
                .unwrap_err()
                .to_string()
                .contains("1 values")
        );
    }

    #[test]
    fn what_is_not_a_number_passes_no_tolerance() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        for (a, b) in [(nan, 0.0), (0.0, nan), (nan, nan), (inf, 0.0), (inf, -inf)] {
            assert_eq!(
                max_abs_difference(&[0.0, a], &[9.0, b]).unwrap().max_abs,
                f64::INFINITY,
                "{a} {b}"
            );
        }
        assert_eq!(max_abs_difference(&[inf, -inf], &[inf, -inf]).unwrap().max_abs, 0.0);
    }
}
