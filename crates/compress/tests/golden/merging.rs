//! Merged weights, with and without alignment of neurons.

use ounce_compress::align::{Alignment, Expert};
use ounce_compress::cluster::{Linkage, agglomerate};
use ounce_compress::geometry::Geometry;
use ounce_compress::grouping::Grouping;
use ounce_compress::merge_rule::{MergeRule, TensorMean, Weighting};
use ounce_tensor::Tensor;

use crate::MODELS;
use crate::case::{Case, Weights};

const RULES: [(&str, Weighting); 2] = [("freq", Weighting::Frequency), ("average", Weighting::Average)];

fn usage(case: &Case, layer: usize) -> Vec<f64> {
    case.usage()[layer].iter().map(|&count| count as f64).collect()
}

/// Gate, up and down of an expert of this width.
fn tensors(weights: &Weights, width: usize) -> [Tensor; 3] {
    let d = weights.gate.len() / width;
    let tensor = |values: &[f32], shape| Tensor::new(values.to_vec(), shape).unwrap();
    [
        tensor(&weights.gate, &[width, d]),
        tensor(&weights.up, &[width, d]),
        tensor(&weights.down, &[d, width]),
    ]
}

fn expert([gate, up, down]: &[Tensor; 3]) -> Expert<'_> {
    Expert { gate, up, down }
}

/// One group merged, as a pass over a checkpoint would: member after member.
fn merge(experts: &[Weights], members: &[usize], usage: &[f64], rule: MergeRule, width: usize) -> Weights {
    let size = experts[0].gate.len();
    let [mut gate, mut up, mut down] = [0; 3].map(|_| TensorMean::new(size));
    let weights = rule.weights(members, usage).unwrap();
    for (&member, weight) in members.iter().zip(weights) {
        let from = &experts[member];
        if rule.align && member != members[0] {
            let (first, this) = (tensors(&experts[members[0]], width), tensors(from, width));
            let alignment = Alignment::find(expert(&first), expert(&this)).unwrap();
            gate.add(member, &alignment.rows(&from.gate), weight).unwrap();
            up.add(member, &alignment.rows(&from.up), weight).unwrap();
            down.add(member, &alignment.columns(&from.down), weight).unwrap();
        } else {
            gate.add(member, &from.gate, weight).unwrap();
            up.add(member, &from.up, weight).unwrap();
            down.add(member, &from.down, weight).unwrap();
        }
    }
    Weights {
        gate: gate.finish().unwrap(),
        up: up.finish().unwrap(),
        down: down.finish().unwrap(),
    }
}

fn worst(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    ounce_tensor::largest_difference(got, want) as f32
}

#[test]
fn merged_weights_are_those_of_the_reference() {
    let mut unused_groups = 0;
    for name in MODELS {
        let case = Case::open(name);
        for layer in 0..case.layers() {
            let experts = case.experts(layer);
            let usage = usage(&case, layer);
            for r in case.json["merge_targets"]
                .as_array()
                .unwrap()
                .iter()
                .map(|r| r.as_u64().unwrap())
            {
                let grouping = Grouping::from_names(&case.rows(&format!("labels.output.average.r{r}"))[layer]);
                for (rule_name, weighting) in RULES {
                    let rule = MergeRule {
                        weighting,
                        align: false,
                    };
                    let want = ["gate", "up", "down"].map(|matrix| {
                        let name = format!("merged.{rule_name}.r{r}.{matrix}_proj");
                        case.f32_rows(&name).swap_remove(layer)
                    });
                    for (group, members) in grouping.groups().iter().enumerate() {
                        let merged = merge(&experts, members, &usage, rule, 1);
                        for (got, want) in [&merged.gate, &merged.up, &merged.down].into_iter().zip(&want) {
                            let want = &want[group * got.len()..(group + 1) * got.len()];
                            assert!(
                                worst(got, want) < 1e-6,
                                "{name} {rule_name} r{r} layer {layer} group {group}"
                            );
                        }
                        if let [only] = members[..] {
                            assert_eq!(
                                merged.flat(),
                                experts[only].flat(),
                                "a single member is kept bit for bit"
                            );
                        }
                        unused_groups += usize::from(members.iter().all(|&member| usage[member] == 0.0));
                    }
                }
            }
        }
    }
    assert!(
        unused_groups > 0,
        "the fallback for unused groups must have been exercised"
    );
}

#[test]
fn permuted_neurons_are_found_again() {
    for name in ["merge_permuted", "merge_permuted_noisy", "merge_duplicates"] {
        let case = Case::open(name);
        for layer in 0..case.layers() {
            let experts = case.experts(layer);
            let places = &case.rows("neuron_perm")[layer];
            let width = places.len() / experts.len();
            let grouping = Grouping::from_names(&case.rows("labels")[layer]);
            for members in grouping.groups() {
                for &member in members {
                    let [first, this] = [members[0], member].map(|e| tensors(&experts[e], width));
                    let found = Alignment::find(expert(&first), expert(&this)).unwrap();
                    let want = &places[member * width..(member + 1) * width];
                    assert_eq!(found.places(), want, "{name} layer {layer} expert {member}");
                }
            }
        }
    }
}

#[test]
fn aligned_merging_of_permuted_copies_loses_nothing_and_plain_merging_much() {
    let case = Case::open("merge_permuted");
    for layer in 0..case.layers() {
        let experts = case.experts(layer);
        let usage = usage(&case, layer);
        let width = case.rows("neuron_perm")[layer].len() / experts.len();
        for members in Grouping::from_names(&case.rows("labels")[layer]).groups() {
            let original = experts[members[0]].flat();
            for (_, weighting) in RULES {
                let merged = |align| merge(&experts, members, &usage, MergeRule { weighting, align }, width).flat();
                // A weight of 0 for either member is as good as alignment, so both must be in use.
                assert!(weighting == Weighting::Average || members.iter().all(|&member| usage[member] > 0.0));
                assert_eq!(merged(true), original);
                assert!(worst(&merged(false), &original) > 0.01);
            }
        }
    }
}

#[test]
fn outputs_group_the_permuted_pairs_and_weights_do_not() {
    for name in ["merge_permuted", "merge_permuted_noisy"] {
        let case = Case::open(name);
        let (n, r) = (case.number("experts"), case.number("r"));
        let (pairs, by_weight) = (case.rows("labels"), case.rows("labels.weight.average"));
        assert_ne!(pairs, by_weight, "{name}: the case must tell the two apart");
        for layer in 0..case.layers() {
            let cut = |points: &[f32]| {
                let geometry = Geometry::from_points(points, n).unwrap();
                agglomerate(&geometry, Linkage::Average)
                    .cut(r)
                    .unwrap()
                    .labels()
                    .to_vec()
            };
            assert_eq!(
                cut(&case.f32_rows("mean_output")[layer]),
                pairs[layer],
                "{name} layer {layer}"
            );
            let weights: Vec<f32> = case.experts(layer).iter().flat_map(Weights::flat).collect();
            assert_eq!(cut(&weights), by_weight[layer], "{name} layer {layer}");
        }
    }
}

#[test]
fn exact_copies_merge_into_themselves_under_every_rule() {
    let case = Case::open("merge_duplicates");
    for layer in 0..case.layers() {
        let experts = case.experts(layer);
        let usage = usage(&case, layer);
        let width = case.rows("neuron_perm")[layer].len() / experts.len();
        for members in Grouping::from_names(&case.rows("labels")[layer]).groups() {
            for (_, weighting) in RULES {
                for align in [false, true] {
                    let merged = merge(&experts, members, &usage, MergeRule { weighting, align }, width);
                    assert_eq!(merged.flat(), experts[members[0]].flat());
                }
            }
        }
    }
}
