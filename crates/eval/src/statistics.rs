//! Shares of right answers, with how far off they may be.

use serde::Serialize;

/// Quantile of the normal distribution with 97.5 % below it.
const Z: f64 = 1.959_963_984_540_054;

/// A share of right answers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Accuracy {
    /// `correct / items`.
    pub accuracy: f64,
    /// Right answers.
    pub correct: usize,
    /// All answers.
    pub items: usize,
    /// sqrt(p (1 - p) / n).
    pub standard_error: f64,
    /// Wilson's 95 % interval: unlike p ± 1.96 standard errors it stays within 0..1, and is not empty at 0 and 1.
    pub ci95: [f64; 2],
}

impl Accuracy {
    /// `correct` of `items`. `None` for no items, or more right answers than items.
    pub fn new(correct: usize, items: usize) -> Option<Self> {
        if items == 0 || correct > items {
            return None;
        }
        let (n, p) = (items as f64, correct as f64 / items as f64);
        let variance = p * (1.0 - p) / n;
        let scale = 1.0 + Z * Z / n;
        let centre = (p + Z * Z / (2.0 * n)) / scale;
        let half = Z / scale * (variance + Z * Z / (4.0 * n * n)).sqrt();
        Some(Self {
            accuracy: p,
            correct,
            items,
            standard_error: variance.sqrt(),
            // At the ends the formula gives 0 and 1 but for rounding.
            ci95: [(centre - half).max(0.0), (centre + half).min(1.0)],
        })
    }

    /// Of a list of verdicts; `None` if it is empty.
    pub fn of(verdicts: impl IntoIterator<Item = bool>) -> Option<Self> {
        let (mut correct, mut items) = (0, 0);
        for verdict in verdicts {
            correct += usize::from(verdict);
            items += 1;
        }
        Self::new(correct, items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_wilsons() {
        // Newcombe (1998), table I: 81/263, 15/148, 0/20, 1/29; the method without continuity correction.
        for (correct, items, low, high) in [
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718),
        ] {
            let [l, h] = Accuracy::new(correct, items).unwrap().ci95;
            assert!(
                (l - low).abs() < 5e-5 && (h - high).abs() < 5e-5,
                "{correct}/{items}: {l} {h}"
            );
        }
    }

    #[test]
    fn its_ends_solve_the_equation_they_come_from() {
        for (correct, items) in [(3, 10), (50, 67), (999, 1000)] {
            let a = Accuracy::new(correct, items).unwrap();
            for end in a.ci95 {
                let distance = (a.accuracy - end).abs() / (end * (1.0 - end) / items as f64).sqrt();
                assert!((distance - Z).abs() < 1e-9, "{distance}");
            }
        }
    }

    #[test]
    fn shares_are_counted() {
        let a = Accuracy::of([true, false, true, true]).unwrap();
        assert_eq!((a.accuracy, a.correct, a.items), (0.75, 3, 4));
        assert!((a.standard_error - (0.75 * 0.25 / 4.0f64).sqrt()).abs() < 1e-15);
        assert_eq!(Accuracy::of([]), None);
        assert_eq!(Accuracy::new(2, 1), None);
    }
}
