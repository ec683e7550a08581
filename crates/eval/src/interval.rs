//! A mean and how far off it may be: Student's t over independent runs.
//!
//! Few seeds are the rule here, so the normal quantile would be too narrow: with three of them the 95 % interval is more
//! than twice as wide. Differences are taken seed by seed before they come here (paired), which removes what a seed does
//! to every variant alike.

use serde::{Deserialize, Serialize};

/// 97.5 % quantiles of Student's t for 1 to 30 degrees of freedom (tables, e.g. NIST/SEMATECH 1.3.6.7.2).
const T975: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];

/// A mean with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The mean.
    pub mean: f64,
    /// Both ends; `None` for a single value, which says nothing of its spread.
    pub ci95: Option<[f64; 2]>,
    /// How many values.
    pub n: usize,
}

impl Interval {
    /// Of independent values; `None` for none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let n = values.len();
        if n == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        let ci95 = (n > 1).then(|| {
            let variance = values.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / (n - 1) as f64;
            // Beyond the table the first term of the expansion in 1/df is good to 1e-3.
            let df = (n - 1) as f64;
            let t = T975.get(n - 2).copied().unwrap_or(1.96 + 2.372 / df);
            let half = t * (variance / n as f64).sqrt();
            [mean - half, mean + half]
        });
        Some(Self { mean, ci95, n })
    }

    /// Half the width: an effect smaller than this could not have been told from zero.
    pub fn half_width(&self) -> Option<f64> {
        self.ci95.map(|[low, high]| (high - low) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_students() {
        // Mean 2, standard deviation 1, n = 3: 2 ± 4.303 / sqrt(3).
        let i = Interval::of(&[1.0, 2.0, 3.0]).unwrap();
        let [low, high] = i.ci95.unwrap();
        assert!((i.mean - 2.0).abs() < 1e-12 && (high - 4.4843).abs() < 1e-3 && (low + 0.4843).abs() < 1e-3);
        assert!((i.half_width().unwrap() - 2.4843).abs() < 1e-3);
        assert_eq!(Interval::of(&[5.0]).unwrap().ci95, None);
        assert_eq!(Interval::of(&[]), None);
        let equal = Interval::of(&[0.5; 4]).unwrap();
        assert_eq!(equal.ci95, Some([0.5, 0.5]));
    }

    #[test]
    fn the_expansion_continues_the_table() {
        // t(40) = 2.021, t(100) = 1.984: widths of n values of variance 1.
        for (n, t) in [(41usize, 2.021), (101, 1.984)] {
            let values: Vec<f64> = (0..n).map(|i| if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
            let i = Interval::of(&values).unwrap();
            let variance = values.iter().map(|x| (x - i.mean).powi(2)).sum::<f64>() / (n - 1) as f64;
            assert!((i.half_width().unwrap() / (variance / n as f64).sqrt() - t).abs() < 2e-3);
        }
    }
}
