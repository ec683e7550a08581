//! O-prune: keep the experts without whose colleagues the layer's output changes least.
//!
//! Paper: "Not All Experts are Equal", Lu et al. 2024, arXiv 2402.14800. For every subset of r experts, the others are
//! masked in the router and the loss is the sum over calibration sequences of the Frobenius norm of the change in the
//! layer's output; the subset with the smallest loss stays. Layers are judged one by one, on the original model.
//!
//! Symbols: n experts, r kept, k per token, S = C(n, r) subsets; for a token, `y_i [d]` output of expert i, `w` router
//! weights (zero where not chosen) and `w'` those of the masked router, `G = (y_i · y_j) [n, n]`.
//!
//! What the paper leaves open, and what we chose: a token's change is `Σ (w_i - w'_i) y_i`, so its squared norm is
//! `δᵀ G δ`: the outputs are multiplied out once per token, not once per subset. The masked router is the softmax over
//! the kept, min(k, r) of them, divided by their sum if the model does so. Equal losses: the lexicographically first
//! subset. Above [`MOST`] subsets the paper draws some at random; here such a recipe is refused, because a drawn subset
//! says little about the best one (C(60, 30) is 10¹⁷).

use ounce_tensor::Tensor;

/// Most subsets that are tried.
pub const MOST: usize = 100_000;

/// C(n, r), or `None` above [`MOST`].
pub fn count(n: usize, r: usize) -> Option<usize> {
    let mut c: usize = 1;
    for i in 0..r.min(n - r.min(n)) {
        // Exact at every step: a product of i + 1 consecutive numbers is a multiple of (i + 1)!.
        c = c.checked_mul(n - i)? / (i + 1);
        if c > MOST {
            return None;
        }
    }
    Some(if r > n { 0 } else { c })
}

/// All subsets of `r` of `n` ids, each ascending, in lexicographic order.
pub fn subsets(n: usize, r: usize) -> Vec<Vec<usize>> {
    let mut all = Vec::new();
    if r > n {
        return all;
    }
    let mut ids: Vec<usize> = (0..r).collect();
    loop {
        all.push(ids.clone());
        let Some(i) = (0..r).rev().find(|&i| ids[i] < n - r + i) else {
            return all;
        };
        ids[i] += 1;
        for j in i + 1..r {
            ids[j] = ids[j - 1] + 1;
        }
    }
}

/// The subset with the smallest loss.
pub fn best(n: usize, r: usize, losses: &[f64]) -> Vec<usize> {
    let mut least = 0;
    for (i, loss) in losses.iter().enumerate() {
        if *loss < losses[least] {
            least = i;
        }
    }
    subsets(n, r).swap_remove(least)
}

/// The losses of all subsets, added up token by token.
#[derive(Debug)]
pub(crate) struct SubsetLosses {
    n: usize,
    /// Per subset, whether it holds each expert.
    kept: Vec<Vec<bool>>,
    r: usize,
    /// Of the current sequence: squared norm of the change, per subset.
    squared: Vec<f64>,
    losses: Vec<f64>,
}

impl SubsetLosses {
    pub(crate) fn new(n: usize, r: usize) -> Self {
        let kept: Vec<Vec<bool>> = subsets(n, r)
            .iter()
            .map(|ids| (0..n).map(|e| ids.contains(&e)).collect())
            .collect();
        Self {
            n,
            r,
            squared: vec![0.0; kept.len()],
            losses: vec![0.0; kept.len()],
            kept,
        }
    }

    /// Adds tokens of the current sequence: `logits [T, n]`, the output `[T, d]` of every expert, `chosen [T·k]`.
    pub(crate) fn add(&mut self, logits: &[f32], outputs: &[Tensor], chosen: &[usize], normalise: bool) {
        let n = self.n;
        let k = chosen.len() * n / logits.len().max(1);
        let outputs: Vec<&[f32]> = outputs.iter().map(|y| y.values::<f32>().unwrap_or(&[])).collect();
        let d = outputs[0].len() * n / logits.len().max(1);
        let mut gram = vec![0.0; n * n];
        let mut change = vec![0.0; n];
        for (token, row) in logits.chunks_exact(n).enumerate() {
            for i in 0..n {
                let a = &outputs[i][token * d..][..d];
                for j in 0..=i {
                    let b = &outputs[j][token * d..][..d];
                    let dot: f64 = a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
                    gram[i * n + j] = dot;
                    gram[j * n + i] = dot;
                }
            }
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let odds: Vec<f64> = row.iter().map(|&l| f64::from(l - largest).exp()).collect();
            let mut ranked: Vec<usize> = (0..n).collect();
            ranked.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
            let weigh = |ids: &[usize], among: f64| {
                let total = if normalise {
                    ids.iter().map(|&i| odds[i]).sum()
                } else {
                    among
                };
                1.0 / total
            };
            let original = &chosen[token * k..(token + 1) * k];
            let scale = weigh(original, odds.iter().sum());
            for (kept, squared) in self.kept.iter().zip(&mut self.squared) {
                let left = || ranked.iter().copied().filter(|&e| kept[e]);
                let ids: Vec<usize> = left().take(k.min(self.r)).collect();
                let masked = weigh(&ids, left().map(|e| odds[e]).sum());
                change.fill(0.0);
                for &e in original {
                    change[e] = odds[e] * scale;
                }
                for &e in &ids {
                    change[e] -= odds[e] * masked;
                }
                let touched: Vec<usize> = (0..n).filter(|&e| change[e] != 0.0).collect();
                for &i in &touched {
                    for &j in &touched {
                        *squared += change[i] * gram[i * n + j] * change[j];
                    }
                }
            }
        }
    }

    pub(crate) fn end_sequence(&mut self) {
        for (loss, squared) in self.losses.iter_mut().zip(&mut self.squared) {
            // Rounding may leave a change of nothing a hair below zero; NaN must stay NaN.
            let left = std::mem::take(squared);
            *loss += if left < 0.0 { 0.0 } else { left.sqrt() };
        }
    }

    /// `[S]`.
    pub(crate) fn finish(self) -> Vec<f64> {
        self.losses
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subsets_are_counted_and_in_order() {
        assert_eq!(
            subsets(4, 2),
            [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]].map(Vec::from)
        );
        for n in 1..9 {
            for r in 1..=n {
                assert_eq!(count(n, r), Some(subsets(n, r).len()), "{n} {r}");
            }
        }
        assert_eq!(count(60, 30), None);
        assert_eq!(count(60, 59), Some(60));
        assert_eq!(best(4, 2, &[3.0, 2.0, 2.0, 5.0, 4.0, 9.0]), [0, 2]);
    }

    /// Two experts, one per token: dropping the one that is never chosen costs nothing, dropping the other the distance.
    #[test]
    fn a_subset_costs_what_its_absence_changes() {
        let outputs = [[3.0f32, 0.0], [0.0, 4.0]].map(|y| Tensor::new(y.to_vec(), &[1, 2]).unwrap());
        for normalise in [true, false] {
            let mut losses = SubsetLosses::new(2, 1);
            losses.add(&[0.0, -50.0], &outputs, &[0], normalise);
            losses.end_sequence();
            losses.add(&[0.0, -50.0], &outputs, &[0], normalise);
            losses.end_sequence();
            let losses = losses.finish();
            assert!(losses[0] < 1e-12 && (losses[1] - 10.0).abs() < 1e-12, "{losses:?}");
        }
    }
}
