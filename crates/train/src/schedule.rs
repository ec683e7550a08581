//! The learning rate: linear warm-up, then a cosine down to a floor.

use serde::{Deserialize, Serialize};

/// `[schedule]` of a recipe.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table, [schedule]")]
pub struct Schedule {
    /// Steps of linear warm-up.
    #[serde(default)]
    pub warmup: u64,
    /// The floor, as a share of the peak.
    #[serde(default = "tenth")]
    pub floor: f64,
}

fn tenth() -> f64 {
    0.1
}

impl Default for Schedule {
    fn default() -> Self {
        Self { warmup: 0, floor: 0.1 }
    }
}

impl Schedule {
    /// Factor on the peak learning rate at `step` (counted from 1) of `steps`.
    pub fn factor(&self, step: u64, steps: u64) -> f64 {
        if step <= self.warmup {
            return step as f64 / self.warmup as f64;
        }
        let done = (step - self.warmup) as f64 / (steps.saturating_sub(self.warmup)).max(1) as f64;
        self.floor + (1.0 - self.floor) * 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos())
    }
}

#[cfg(test)]
mod tests {
    use super::Schedule;

    #[test]
    fn rises_to_the_peak_and_falls_to_the_floor() {
        let s = Schedule { warmup: 10, floor: 0.2 };
        assert_eq!(s.factor(5, 110), 0.5);
        assert_eq!(s.factor(10, 110), 1.0);
        assert!((s.factor(60, 110) - 0.6).abs() < 1e-12);
        assert!((s.factor(110, 110) - 0.2).abs() < 1e-12);
        assert_eq!(Schedule { warmup: 0, floor: 1.0 }.factor(1, 1), 1.0);
    }
}
