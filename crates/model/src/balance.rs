//! The load-balancing loss of mixtures, `coefficient · n · Σ_i f_i P_i`: `f_i` how often choice i of n was made per token
//! (no gradient), `P_i` its mean probability; and its statistics over a step that is several forwards.
//!
//! Source: Fedus et al. 2021 (Switch). The loss is a product of two means over the tokens of a step, so the mean of the
//! losses of its parts is another loss: it asks every part to be balanced by itself. It is linear in P once f is known,
//! and f needs no gradient; so a step of several forwards runs them once to count, and then sums
//! `coefficient · n · Σ_i f_i P_i` over the parts with the f of them all, which is the loss of the whole, and has its
//! gradient.

use crate::error::Result;
use ounce_tensor::{DType, Tensor, ops};
use std::sync::Arc;

/// How often each choice was made.
#[derive(Debug, Clone, PartialEq)]
pub struct Selected {
    /// One count per choice.
    pub counts: Vec<f64>,
    /// Tokens that chose.
    pub tokens: usize,
    /// Forwards that were counted.
    pub forwards: usize,
}

/// What a forward's balance losses stand on, one entry per loss, in the order in which they are made.
#[derive(Debug, Default)]
pub struct Balance {
    /// Of this forward.
    pub selected: Vec<Selected>,
    /// Of all forwards of the step, this one included, if it is not the only one.
    pub step: Option<Arc<[Selected]>>,
}

/// The counts of several forwards of one model together.
pub fn whole_step(forwards: Vec<Vec<Selected>>) -> Arc<[Selected]> {
    let mut forwards = forwards.into_iter();
    let mut all = forwards.next().unwrap_or_default();
    for forward in forwards {
        for (all, own) in all.iter_mut().zip(forward) {
            for (sum, count) in all.counts.iter_mut().zip(own.counts) {
                *sum += count;
            }
            all.tokens += own.tokens;
            all.forwards += own.forwards;
        }
    }
    all.into()
}

impl Balance {
    /// The loss for the probabilities `[N, n]` of tokens that made these choices.
    ///
    /// # Errors
    /// If there is not one count per choice.
    pub(crate) fn loss(&mut self, probabilities: &Tensor, counts: Vec<f64>, coefficient: f64) -> Result<Tensor> {
        let (tokens, n) = (probabilities.rows(), probabilities.last_dim() as f64);
        let own = Selected {
            counts,
            tokens,
            forwards: 1,
        };
        let all = self.step.as_ref().and_then(|step| step.get(self.selected.len()));
        let Selected {
            counts,
            tokens: of,
            forwards,
        } = all.unwrap_or(&own);
        // A step's loss is the mean over its forwards, whatever each one's share of the tokens.
        let share = (tokens * forwards) as f64 / *of as f64;
        let factor = counts.iter().map(|c| c / *of as f64 * n * coefficient * share);
        let factor = match probabilities.dtype() {
            DType::F64 => Tensor::new(factor.collect(), &[counts.len()])?,
            _ => Tensor::new(factor.map(|f| f as f32).collect(), &[counts.len()])?,
        };
        self.selected.push(own);
        Ok(ops::sum(&ops::mul(&ops::column_mean(probabilities)?, &factor)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_with_the_counts_of_all_sum_to_the_loss_of_the_whole() {
        let values: Vec<f64> = (0..6 * 3).map(|i| 0.1 + (i * i % 7) as f64).collect();
        let whole = Tensor::new(values, &[6, 3]).unwrap();
        let part = |rows: [usize; 2]| ops::narrow_rows(&whole, rows[0], rows[1]).unwrap();
        let counts = [vec![3.0, 1.0, 0.0], vec![0.0, 1.0, 1.0]];
        let expected = Balance::default().loss(&whole, vec![3.0, 2.0, 1.0], 0.7).unwrap();
        // Four tokens and two: the parts need not be equal.
        let parts = [part([0, 4]), part([4, 6])];
        let run = |step: Option<Arc<[Selected]>>| {
            let both = parts.iter().zip(&counts).map(|(part, counts)| {
                let mut balance = Balance {
                    step: step.clone(),
                    ..Balance::default()
                };
                let loss = balance.loss(part, counts.clone(), 0.7).unwrap().item().unwrap();
                (loss / 2.0, balance.selected)
            });
            both.unzip::<f64, Vec<_>, Vec<f64>, Vec<_>>()
        };
        let (apart, selected) = run(None);
        let (together, _) = run(Some(whole_step(selected)));
        let sum = |losses: Vec<f64>| losses.iter().sum::<f64>();
        let expected = expected.item().unwrap();
        assert!((sum(together) - expected).abs() < 1e-12);
        assert!(
            (sum(apart) - expected).abs() > 0.1,
            "the parts' own counts would do as well"
        );
    }
}
