//! The measures, and what the verdict needs.

use super::*;

#[test]
fn balance_is_one_for_equal_loads_and_zero_for_a_single_head() {
    assert!((balance(&[vec![1.0, 0.5, 0.5, 0.5]], 1) - 1.0).abs() < 1e-12);
    assert!(balance(&[vec![1.0, 1.0, 0.0, 0.0]], 1).abs() < 1e-12);
    let half = balance(&[vec![0.5, 0.5], vec![1.0, 0.0]], 0);
    assert!((half - 0.5).abs() < 1e-12, "{half}");
}

#[test]
fn conversions_keep_the_asked_number_of_heads() {
    for (active, expected) in [
        (6, "shared_heads=4,active_routed_heads=2"),
        (4, "shared_heads=2,active_routed_heads=2"),
    ] {
        assert!(query_norm(active).ends_with(expected), "{}", query_norm(active));
    }
}

/// A model that uses no heads must not let the claim hold, however good the mixture looks.
#[test]
fn the_verdict_needs_heads_that_matter() {
    let made = |random: f64, gap: f64| {
        let seeds: Vec<u64> = (1..=4).collect();
        let mut results = Results::new(Budget::Quick, seeds.clone());
        for &seed in &seeds {
            let noise = 1e-4 * seed as f64;
            for variant in Moh.variants(Budget::Quick) {
                let mut values = BTreeMap::from([("loss".to_owned(), 1.0), ("no context".to_owned(), 4.0)]);
                if variant == ALL {
                    for kind in ["pruned", "random", "converted", "tuned"] {
                        for (share, _) in SHARES {
                            values.insert(format!("{kind} {share}"), 1.0 + random + noise);
                        }
                    }
                    values.insert("tuned control".into(), 1.0);
                } else {
                    values.insert("loss".into(), 1.0 + gap + noise);
                    values.insert("share of heads".into(), 0.75);
                    values.insert("balance".into(), 1.0);
                }
                let curves = BTreeMap::from([("validation".to_owned(), vec![(1.0, 1.0)])]);
                results.insert(variant, seed, Measured { values, curves });
            }
        }
        Moh.judge(&results).unwrap()
    };
    assert_eq!(made(0.3, -0.01).verdict, Verdict::Holds);
    let blind = made(0.01, -0.01);
    assert_eq!(blind.verdict, Verdict::Inconclusive);
    assert!(blind.why.contains("does too little"), "{}", blind.why);
    assert_eq!(made(0.3, 0.01).verdict, Verdict::DoesNotHold);
    assert_eq!(made(0.3, -0.000_25).verdict, Verdict::Inconclusive);
}
