//! Kept ids from the stored scores.

use ounce_compress::prune::{keep_best, keep_best_global};

use crate::MODELS;
use crate::case::Case;

const SCORES: [&str; 6] = [
    "usage_counts",
    "router_prob_mean",
    "ean_sum",
    "ean_mean",
    "reap_softmax",
    "reap_renorm",
];

fn scores(case: &Case, score: &str) -> Vec<Vec<f64>> {
    if score == "usage_counts" {
        return case
            .usage()
            .iter()
            .map(|row| row.iter().map(|&count| count as f64).collect())
            .collect();
    }
    case.f32_rows(score)
        .iter()
        .map(|row| row.iter().map(|&value| f64::from(value)).collect())
        .collect()
}

#[test]
fn each_layer_keeps_the_experts_of_the_reference() {
    for name in MODELS {
        let case = Case::open(name);
        for score in SCORES {
            let all = scores(&case, score);
            for r in case.counts(&format!("prune.{score}")) {
                for (layer, want) in case.rows(&format!("prune.{score}.r{r}")).iter().enumerate() {
                    assert_eq!(
                        &keep_best(&all[layer], r).unwrap(),
                        want,
                        "{name} {score} r{r} layer {layer}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_global_budget_keeps_the_experts_of_the_reference() {
    for name in MODELS {
        let case = Case::open(name);
        for score in ["usage_counts", "router_prob_mean"] {
            let all = scores(&case, score);
            let kept = keep_best_global(&all, case.number("global_prune_budget")).unwrap();
            for (layer, mask) in case.rows(&format!("prune.global.{score}")).iter().enumerate() {
                let want: Vec<usize> = (0..mask.len()).filter(|&expert| mask[expert] == 1).collect();
                assert_eq!(kept[layer], want, "{name} {score} layer {layer}");
            }
        }
    }
}
