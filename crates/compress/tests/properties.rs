//! Invariants of clustering on random experts, with kodama as an independent oracle.

use kodama::{Method, linkage};
use ounce_compress::budget::{Allocation, Amount, Budget};
use ounce_compress::cluster::{Dendrogram, Linkage, agglomerate};
use ounce_compress::geometry::Geometry;
use ounce_compress::grouping::Grouping;
use proptest::prelude::*;

const LINKAGES: [Linkage; 4] = [
    Linkage::Single,
    Linkage::Complete,
    Linkage::Average,
    Linkage::WardUnsquared,
];

/// n experts with 3 features each; continuous values, so ties do not happen.
fn experts() -> impl Strategy<Value = Vec<f64>> {
    (1usize..16).prop_flat_map(|n| prop::collection::vec(-1.0..1.0, 3 * n))
}

fn tree(points: &[f64], kind: Linkage) -> Dendrogram {
    agglomerate(&Geometry::from_points(points, points.len() / 3).unwrap(), kind)
}

proptest! {
    #[test]
    fn kodama_agrees(points in experts()) {
        let n = points.len() / 3;
        let geometry = Geometry::from_points(&points, n).unwrap();
        for (ours, theirs) in [
            (Linkage::Single, Method::Single),
            (Linkage::Complete, Method::Complete),
            (Linkage::Average, Method::Average),
        ] {
            let tree = agglomerate(&geometry, ours);
            let mut condensed: Vec<f64> =
                (0..n).flat_map(|i| (i + 1..n).map(move |j| (i, j))).map(|(i, j)| geometry.distance(i, j)).collect();
            let oracle = linkage(&mut condensed, n, theirs);
            let mut cluster: Vec<usize> = (0..n).collect();
            prop_assert_eq!(oracle.steps().len(), tree.merges().len());
            for (step, merge) in oracle.steps().iter().zip(tree.merges()) {
                prop_assert!((step.dissimilarity - merge.height).abs() <= 1e-12);
            }
            for (done, step) in oracle.steps().iter().enumerate() {
                for name in &mut cluster {
                    if *name == step.cluster1 || *name == step.cluster2 {
                        *name = n + done;
                    }
                }
                prop_assert_eq!(Grouping::from_names(&cluster), tree.cut(n - 1 - done).unwrap());
            }
        }
    }

    #[test]
    fn heights_grow_and_the_extremes_are_trivial(points in experts()) {
        let n = points.len() / 3;
        for kind in LINKAGES {
            let tree = tree(&points, kind);
            prop_assert_eq!(tree.cut(n).unwrap().labels().to_vec(), (0..n).collect::<Vec<_>>());
            prop_assert_eq!(tree.cut(1).unwrap().labels().to_vec(), vec![0; n]);
            for r in 1..=n {
                prop_assert_eq!(tree.cut(r).unwrap().count(), r);
            }
            if kind != Linkage::WardUnsquared {
                for pair in tree.heights().windows(2) {
                    prop_assert!(pair[0] <= pair[1] * (1.0 + 1e-12));
                }
            }
        }
    }

    #[test]
    fn renumbering_the_experts_only_renames_the_groups(
        (points, order) in experts().prop_flat_map(|points| {
            let ids: Vec<usize> = (0..points.len() / 3).collect();
            (Just(points), Just(ids).prop_shuffle())
        })
    ) {
        let n = order.len();
        let moved: Vec<f64> = order.iter().flat_map(|&from| points[3 * from..3 * from + 3].to_vec()).collect();
        for kind in LINKAGES {
            let (before, after) = (tree(&points, kind), tree(&moved, kind));
            for r in 1..=n {
                let before = before.cut(r).unwrap();
                let names: Vec<usize> = order.iter().map(|&from| before.labels()[from]).collect();
                prop_assert_eq!(Grouping::from_names(&names), after.cut(r).unwrap());
            }
        }
    }

    #[test]
    fn a_global_budget_spends_the_uniform_total(
        layers in prop::collection::vec(experts(), 1..5),
        percent in 1.0..100.0f64,
    ) {
        let trees: Vec<Dendrogram> = layers.iter().map(|points| tree(points, Linkage::Average)).collect();
        let experts: Vec<usize> = trees.iter().map(Dendrogram::experts).collect();
        let budget = Budget { amount: Amount::Percent(percent), allocation: Allocation::Global };
        let kept = budget.for_merging(&trees).unwrap();
        prop_assert_eq!(kept.iter().sum::<usize>(), budget.total(&experts).unwrap());
        let mut dearest_done = f64::NEG_INFINITY;
        let mut cheapest_left = f64::INFINITY;
        for (tree, &kept) in trees.iter().zip(&kept) {
            prop_assert!((1..=tree.experts()).contains(&kept));
            let (done, left) = tree.merges().split_at(tree.experts() - kept);
            dearest_done = done.iter().map(|merge| merge.height).fold(dearest_done, f64::max);
            cheapest_left = left.iter().map(|merge| merge.height).fold(cheapest_left, f64::min);
        }
        prop_assert!(dearest_done <= cheapest_left * (1.0 + 1e-12));
    }
}
