//! Pruning baselines: keep the experts with the highest score, drop the rest.
//!
//! Owns the names of the scores and the choice of the kept ids. Merging claims to beat these, and later work says the
//! opposite for generation, so both are offered on the same statistics and budgets. It must not know how scores were
//! measured: it gets one number per expert.
//!
//! Choices: equal scores keep the lower id (and, across layers, the lower layer); kept ids are ascending. A global
//! budget ranks all experts of all layers together, but first keeps the best expert of every layer, because a layer
//! without experts is not a model.

/// What an expert is judged by. All over its routed tokens on the calibration data, E_i(x) its output, `w_i` its gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Score {
    /// How often it was selected (F-prune).
    UsageCounts,
    /// Mean over all tokens of its full-softmax probability (S-prune).
    RouterProbMean,
    /// Sum of `|E_i(x)|`.
    EanSum,
    /// Mean of `|E_i(x)|`.
    EanMean,
    /// Mean of `w_i |E_i(x)|`, `w` the softmax over all experts (REAP for models that do not renormalise).
    ReapSoftmax,
    /// The same with `w` divided by its sum over the selected experts.
    ReapRenorm,
}

/// Why nothing could be kept.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PruneError {
    /// A count of 0, or more experts than there are.
    #[error("{kept} of {experts} experts cannot be kept (hint: choose between {least} and {experts})")]
    Count {
        /// Experts to keep.
        kept: usize,
        /// Experts there are, over all layers for a global budget.
        experts: usize,
        /// Smallest count that leaves every layer an expert.
        least: usize,
    },
    /// A score that cannot be ranked.
    #[error(
        "expert {expert} of layer {layer} (counting mixture-of-experts layers from 0) has the score {score} (hint: scores must be finite; try other calibration text)"
    )]
    NotFinite {
        /// Position among the MoE layers; 0 where only one layer was given.
        layer: usize,
        /// The expert.
        expert: usize,
        /// Its score.
        score: f64,
    },
}

/// The `kept` experts of one layer with the highest score, ascending ids. `scores [n]`.
///
/// # Errors
/// [`PruneError`]: `kept` is not within 1..=n, or a score is not finite.
pub fn keep_best(scores: &[f64], kept: usize) -> Result<Vec<usize>, PruneError> {
    finite(0, scores)?;
    if kept == 0 || kept > scores.len() {
        return Err(PruneError::Count {
            kept,
            experts: scores.len(),
            least: 1,
        });
    }
    let mut ids = ranked(scores);
    ids.truncate(kept);
    ids.sort_unstable();
    Ok(ids)
}

/// The `kept` experts of all layers together with the highest score: per layer the kept ids, ascending.
///
/// `scores[l] [n_l]`. Layers end up with different counts, none with 0.
///
/// # Errors
/// [`PruneError`]: `kept` is below the number of layers or above that of experts, or a score is not finite.
pub fn keep_best_global(scores: &[Vec<f64>], kept: usize) -> Result<Vec<Vec<usize>>, PruneError> {
    let experts = scores.iter().map(Vec::len).sum();
    if kept < scores.len() || kept > experts || kept == 0 || scores.iter().any(Vec::is_empty) {
        return Err(PruneError::Count {
            kept,
            experts,
            least: scores.len().max(1),
        });
    }
    let mut keep = Vec::with_capacity(scores.len());
    let mut rest = Vec::new();
    for (layer, row) in scores.iter().enumerate() {
        finite(layer, row)?;
        let ids = ranked(row);
        keep.push(vec![ids[0]]);
        rest.extend(ids[1..].iter().map(|&expert| (row[expert] + 0.0, layer, expert)));
    }
    // Stable, and `rest` is in order of layer, then rank: ties keep the lower layer and the lower id.
    rest.sort_by(|a, b| b.0.total_cmp(&a.0));
    for &(_, layer, expert) in &rest[..kept - scores.len()] {
        keep[layer].push(expert);
    }
    for ids in &mut keep {
        ids.sort_unstable();
    }
    Ok(keep)
}

/// Ids by descending score; the sort is stable, so equal scores stay in order of id.
fn ranked(scores: &[f64]) -> Vec<usize> {
    let mut ids: Vec<usize> = (0..scores.len()).collect();
    // Adding 0 makes -0 and 0 equal for the total order.
    ids.sort_by(|&a, &b| (scores[b] + 0.0).total_cmp(&(scores[a] + 0.0)));
    ids
}

fn finite(layer: usize, scores: &[f64]) -> Result<(), PruneError> {
    match scores.iter().position(|score| !score.is_finite()) {
        Some(expert) => Err(PruneError::NotFinite {
            layer,
            expert,
            score: scores[expert],
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_keep_the_lower_id() {
        assert_eq!(keep_best(&[1.0, 3.0, 1.0, 3.0, 0.0], 3), Ok(vec![0, 1, 3]));
        assert_eq!(keep_best(&[-0.0, 0.0], 1), Ok(vec![0]));
        assert_eq!(keep_best(&[2.0; 4], 4), Ok(vec![0, 1, 2, 3]));
    }

    #[test]
    fn a_global_budget_ranks_across_layers_but_empties_none() {
        let scores = [vec![9.0, 8.0, 7.0], vec![0.1, 0.3, 0.2]];
        assert_eq!(keep_best_global(&scores, 4), Ok(vec![vec![0, 1, 2], vec![1]]));
        assert_eq!(keep_best_global(&scores, 2), Ok(vec![vec![0], vec![1]]));
        let ties = [vec![1.0, 1.0], vec![1.0, 1.0]];
        assert_eq!(keep_best_global(&ties, 3), Ok(vec![vec![0, 1], vec![0]]));
    }

    #[test]
    fn what_cannot_be_ranked_or_kept_is_refused() {
        assert_eq!(
            keep_best(&[1.0], 0),
            Err(PruneError::Count {
                kept: 0,
                experts: 1,
                least: 1
            })
        );
        assert_eq!(
            keep_best(&[1.0], 2),
            Err(PruneError::Count {
                kept: 2,
                experts: 1,
                least: 1
            })
        );
        assert!(matches!(
            keep_best(&[1.0, f64::NAN], 1),
            Err(PruneError::NotFinite { expert: 1, .. })
        ));
        let scores = [vec![1.0, 2.0], vec![f64::INFINITY, 1.0]];
        assert!(matches!(
            keep_best_global(&scores, 3),
            Err(PruneError::NotFinite {
                layer: 1,
                expert: 0,
                ..
            })
        ));
        assert_eq!(
            keep_best_global(&scores, 1),
            Err(PruneError::Count {
                kept: 1,
                experts: 4,
                least: 2
            })
        );
        assert_eq!(
            keep_best_global(&scores, 5),
            Err(PruneError::Count {
                kept: 5,
                experts: 4,
                least: 2
            })
        );
    }
}
