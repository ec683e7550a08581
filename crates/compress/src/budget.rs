//! How many experts every layer keeps.
//!
//! Owns the budget a user writes and its resolution to one count per mixture-of-experts layer. Merging and pruning
//! share it, so that both are compared at the same size. It must not know which experts are kept.
//!
//! Choices: `percent` is the share that is *kept*. A fractional count rounds half up and is never below 1. With
//! `allocate = "global"` the same total is spent where it costs least: over the dendrograms of all layers together, the
//! merge with the smallest next height happens first until the total is reached (equal heights: the lower layer).
//! Heights are compared as they are, so layers whose outputs are larger keep more experts; every layer keeps at least
//! one. The paper leaves non-uniform budgets open.

use crate::cluster::Dendrogram;

/// Why a budget does not fit a model.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum BudgetError {
    /// A count of 0.
    #[error("key `budget.{0}`: a layer cannot keep 0 experts (hint: the smallest count is 1)")]
    Zero(&'static str),
    /// A count above the layer's experts.
    #[error(
        "key `budget.{key}`: layer {layer} (counting mixture-of-experts layers from 0) would keep {kept} of its {experts} experts (hint: choose between 1 and {experts})"
    )]
    Count {
        /// Key of the recipe.
        key: &'static str,
        /// Position among the MoE layers.
        layer: usize,
        /// Count asked for.
        kept: usize,
        /// Experts the layer has.
        experts: usize,
    },
    /// A percentage outside (0, 100].
    #[error("key `budget.percent`: {0} is not above 0 and at most 100 (hint: 50 keeps half of the experts)")]
    Percent(f64),
    /// A list whose length is not the number of MoE layers.
    #[error(
        "key `budget.per_layer`: {given} counts for {layers} mixture-of-experts layers (hint: give one count per such layer, in order)"
    )]
    ListLength {
        /// Entries of the list.
        given: usize,
        /// MoE layers of the model.
        layers: usize,
    },
    /// Counts per layer cannot be reallocated.
    #[error(
        "key `budget.allocate`: \"global\" contradicts `per_layer`, which already fixes every layer (hint: use `experts` or `percent`)"
    )]
    FixedLayers,
    /// Nothing to keep.
    #[error("the model has no mixture-of-experts layer (hint: only such models can be merged or pruned)")]
    NoLayers,
}

/// The size that is asked for.
#[derive(Debug, Clone, PartialEq)]
pub enum Amount {
    /// Experts kept in every layer.
    Experts(usize),
    /// Percent of the experts kept, in (0, 100].
    Percent(f64),
    /// Experts kept, one count per MoE layer.
    PerLayer(Vec<usize>),
}

/// How a total is spread over the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Allocation {
    /// Every layer the same share.
    #[default]
    Uniform,
    /// Cheapest merges (or lowest pruning scores) of all layers first.
    Global,
}

/// A budget as written in a recipe.
#[derive(Debug, Clone, PartialEq)]
pub struct Budget {
    /// The size.
    pub amount: Amount,
    /// Its spread over the layers.
    pub allocation: Allocation,
}

impl Budget {
    /// Refuses what is wrong whatever the model.
    ///
    /// # Errors
    /// A count of 0, a percentage outside (0, 100], or `per_layer` with a global allocation.
    pub fn check(&self) -> Result<(), BudgetError> {
        match &self.amount {
            Amount::Experts(0) => Err(BudgetError::Zero("experts")),
            Amount::Percent(percent) if !(*percent > 0.0 && *percent <= 100.0) => Err(BudgetError::Percent(*percent)),
            Amount::PerLayer(_) if self.allocation == Allocation::Global => Err(BudgetError::FixedLayers),
            Amount::PerLayer(list) if list.contains(&0) => Err(BudgetError::Zero("per_layer")),
            _ => Ok(()),
        }
    }

    /// Counts per layer if the allocation were uniform: `[L]` kept, for the `experts [L]` of each MoE layer.
    ///
    /// # Errors
    /// See [`BudgetError`].
    pub fn uniform(&self, experts: &[usize]) -> Result<Vec<usize>, BudgetError> {
        self.check()?;
        if experts.is_empty() {
            return Err(BudgetError::NoLayers);
        }
        let checked = |key, layer, kept: usize| {
            let n = experts[layer];
            if kept > n {
                return Err(BudgetError::Count {
                    key,
                    layer,
                    kept,
                    experts: n,
                });
            }
            Ok(kept)
        };
        match &self.amount {
            Amount::Experts(kept) => (0..experts.len())
                .map(|layer| checked("experts", layer, *kept))
                .collect(),
            Amount::Percent(percent) => Ok(experts.iter().map(|&n| share(n, *percent)).collect()),
            Amount::PerLayer(list) => {
                if list.len() != experts.len() {
                    return Err(BudgetError::ListLength {
                        given: list.len(),
                        layers: experts.len(),
                    });
                }
                list.iter()
                    .enumerate()
                    .map(|(layer, &kept)| checked("per_layer", layer, kept))
                    .collect()
            }
        }
    }

    /// Total over all layers: what a global allocation spends is what the uniform one would.
    ///
    /// # Errors
    /// See [`BudgetError`].
    pub fn total(&self, experts: &[usize]) -> Result<usize, BudgetError> {
        Ok(self.uniform(experts)?.iter().sum())
    }

    /// Counts per layer for merging: `trees[l]` is the dendrogram of MoE layer l.
    ///
    /// # Errors
    /// See [`BudgetError`].
    pub fn for_merging(&self, trees: &[Dendrogram]) -> Result<Vec<usize>, BudgetError> {
        let experts: Vec<usize> = trees.iter().map(Dendrogram::experts).collect();
        let uniform = self.uniform(&experts)?;
        Ok(match self.allocation {
            Allocation::Uniform => uniform,
            Allocation::Global => cheapest_merges(trees, uniform.iter().sum()),
        })
    }
}

/// `n * percent / 100`, half up, at least 1 and at most n.
fn share(n: usize, percent: f64) -> usize {
    // A half written in decimals (4.1 % of 500) may lie one bit below in binary; it is meant as a half.
    let exact = n as f64 * percent / 100.0;
    ((exact + 0.5 + 1e-9).floor() as usize).clamp(1, n)
}

/// Greedy over all layers: the next merge with the smallest height happens, until `total` experts are left.
fn cheapest_merges(trees: &[Dendrogram], total: usize) -> Vec<usize> {
    let mut done = vec![0; trees.len()];
    let mut left: usize = trees.iter().map(Dendrogram::experts).sum();
    while left > total {
        let mut best: Option<(f64, usize)> = None;
        for (layer, tree) in trees.iter().enumerate() {
            if let Some(merge) = tree.merges().get(done[layer])
                && best.is_none_or(|(height, _)| merge.height < height)
            {
                best = Some((merge.height, layer));
            }
        }
        // Each layer keeps one expert, and a total is never below the number of layers.
        let (_, layer) = best.expect("invariant: a total of at least one expert per layer leaves a merge to do");
        done[layer] += 1;
        left -= 1;
    }
    trees
        .iter()
        .zip(done)
        .map(|(tree, merges)| tree.experts() - merges)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Linkage, agglomerate};
    use crate::geometry::Geometry;

    fn uniform(amount: Amount) -> Budget {
        Budget {
            amount,
            allocation: Allocation::Uniform,
        }
    }

    fn tree(points: &[f64]) -> Dendrogram {
        agglomerate(&Geometry::from_points(points, points.len()).unwrap(), Linkage::Average)
    }

    #[test]
    fn fractions_round_half_up_and_stay_in_range() {
        let cases = [
            (8, 50.0, 4),
            (60, 12.5, 8),
            (45, 70.0, 32),
            (8, 1.0, 1),
            (8, 100.0, 8),
            (500, 4.1, 21),
            (7, 64.0, 4),
        ];
        for (n, percent, kept) in cases {
            assert_eq!(
                uniform(Amount::Percent(percent)).uniform(&[n]),
                Ok(vec![kept]),
                "{percent} % of {n}"
            );
        }
    }

    #[test]
    fn impossible_budgets_are_refused() {
        let refused = |amount| uniform(amount).uniform(&[8, 4]).unwrap_err();
        assert_eq!(refused(Amount::Experts(0)), BudgetError::Zero("experts"));
        assert_eq!(
            refused(Amount::Experts(5)),
            BudgetError::Count {
                key: "experts",
                layer: 1,
                kept: 5,
                experts: 4
            }
        );
        assert_eq!(
            refused(Amount::PerLayer(vec![2])),
            BudgetError::ListLength { given: 1, layers: 2 }
        );
        assert!(matches!(
            refused(Amount::PerLayer(vec![9, 1])),
            BudgetError::Count { layer: 0, kept: 9, .. }
        ));
        assert_eq!(refused(Amount::PerLayer(vec![1, 0])), BudgetError::Zero("per_layer"));
        for percent in [0.0, -1.0, 100.5, f64::NAN, f64::INFINITY] {
            assert!(
                matches!(refused(Amount::Percent(percent)), BudgetError::Percent(_)),
                "{percent}"
            );
        }
        assert_eq!(uniform(Amount::Experts(1)).uniform(&[]), Err(BudgetError::NoLayers));
        let both = Budget {
            amount: Amount::PerLayer(vec![1]),
            allocation: Allocation::Global,
        };
        assert_eq!(both.for_merging(&[tree(&[0.0, 1.0])]), Err(BudgetError::FixedLayers));
    }

    #[test]
    fn a_global_budget_spends_merges_where_they_are_cheap() {
        let (tight, wide) = (tree(&[0.0, 0.1, 0.2, 0.3]), tree(&[0.0, 10.0, 20.0, 30.0]));
        let budget = Budget {
            amount: Amount::Percent(62.5),
            allocation: Allocation::Global,
        };
        // Half up in each layer (2.5 -> 3): six are kept, and both merges happen in the tight layer.
        assert_eq!(budget.for_merging(&[wide.clone(), tight.clone()]), Ok(vec![4, 2]));
        let budget = Budget {
            amount: Amount::Experts(1),
            allocation: Allocation::Global,
        };
        assert_eq!(budget.for_merging(&[wide.clone(), tight.clone()]), Ok(vec![1, 1]));
        let budget = Budget {
            amount: Amount::Experts(4),
            allocation: Allocation::Global,
        };
        assert_eq!(budget.for_merging(&[wide.clone(), tight]), Ok(vec![4, 4]));
        // Equal heights: the lower layer merges first.
        let budget = Budget {
            amount: Amount::PerLayer(vec![3, 4]),
            allocation: Allocation::Uniform,
        };
        assert_eq!(budget.for_merging(&[wide.clone(), wide.clone()]), Ok(vec![3, 4]));
        assert_eq!(cheapest_merges(&[wide.clone(), wide], 7), [3, 4]);
    }
}
