//! Labels, heights, dominant members and one-shot groups.

use ounce_compress::cluster::{Linkage, agglomerate};
use ounce_compress::geometry::Geometry;
use ounce_compress::grouping::{cores, dominant, one_shot};

use crate::MODELS;
use crate::case::Case;

const LINKAGES: [(&str, Linkage); 4] = [
    ("single", Linkage::Single),
    ("complete", Linkage::Complete),
    ("average", Linkage::Average),
    ("ward_unsquared", Linkage::WardUnsquared),
];

#[test]
fn points_cluster_as_in_the_reference_with_all_ties() {
    let case = Case::open("merge_linkage");
    let names = case.names();
    let mut compared = 0;
    for index in 0..case.json["instances"].as_array().unwrap().len() {
        let (shape, points) = case.f64(&format!("points.{index}"));
        let geometry = Geometry::from_points(&points, shape[0]).unwrap();
        for (name, linkage) in LINKAGES {
            let key = format!("labels.{index}.{name}");
            if !names.contains(&key) {
                continue;
            }
            let tree = agglomerate(&geometry, linkage);
            for (row, want) in case.rows(&key).iter().enumerate() {
                assert_eq!(
                    tree.cut(row + 1).unwrap().labels(),
                    want,
                    "{key} with {} groups",
                    row + 1
                );
            }
            let heights = format!("heights.{index}.{name}");
            if names.contains(&heights) {
                for (got, want) in tree.heights().iter().zip(case.f64(&heights).1) {
                    assert!((got - want).abs() <= 1e-9 * want.abs(), "{heights}: {got} for {want}");
                }
            }
            compared += 1;
        }
    }
    assert_eq!(
        compared,
        names.iter().filter(|name| name.starts_with("labels.")).count()
    );
}

/// Geometries of one layer by the metric names of the reference.
fn geometries(case: &Case, layer: usize) -> Vec<(&'static str, Geometry)> {
    let n = case.number("experts");
    let outputs = &case.f32_rows("mean_output")[layer];
    let logits = &case.f32_rows("router_logits")[layer];
    let weights: Vec<f32> = case
        .experts(layer)
        .iter()
        .flat_map(super::case::Weights::flat)
        .collect();
    vec![
        ("output", Geometry::from_points(outputs, n).unwrap()),
        ("router", Geometry::from_columns(logits, n).unwrap()),
        ("weight", Geometry::from_points(&weights, n).unwrap()),
    ]
}

#[test]
fn experts_cluster_as_in_the_reference_under_every_metric() {
    for name in MODELS {
        let case = Case::open(name);
        for layer in 0..case.layers() {
            for (metric, geometry) in geometries(&case, layer) {
                for (linkage_name, linkage) in &LINKAGES[..3] {
                    let tree = agglomerate(&geometry, *linkage);
                    let key = format!("labels.{metric}.{linkage_name}");
                    for r in case.counts(&key) {
                        let want = &case.rows(&format!("{key}.r{r}"))[layer];
                        assert_eq!(tree.cut(r).unwrap().labels(), want, "{name} layer {layer} {key}.r{r}");
                    }
                    let want = &case.f32_rows(&format!("heights.{metric}.{linkage_name}"))[layer];
                    for (got, &want) in tree.heights().iter().zip(want) {
                        let want = f64::from(want);
                        assert!(
                            (got - want).abs() <= 1e-6 + 1e-5 * want,
                            "{name} {key}: {got} for {want}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn dominant_members_are_those_of_the_reference() {
    for name in MODELS {
        let case = Case::open(name);
        for layer in 0..case.layers() {
            let (_, geometry) = geometries(&case, layer).swap_remove(0);
            let tree = agglomerate(&geometry, Linkage::Average);
            for r in case.counts("dominant") {
                let grouping = tree.cut(r).unwrap();
                let got: Vec<usize> = grouping
                    .groups()
                    .iter()
                    .map(|group| dominant(&geometry, group).unwrap())
                    .collect();
                assert_eq!(
                    got,
                    case.rows(&format!("dominant.r{r}"))[layer],
                    "{name} layer {layer} r{r}"
                );
            }
        }
    }
}

#[test]
fn one_shot_groups_are_those_of_the_reference() {
    for name in MODELS {
        let case = Case::open(name);
        for layer in 0..case.layers() {
            let usage = &case.usage()[layer];
            for r in case.counts("oneshot.cores") {
                assert_eq!(
                    cores(usage, r).unwrap(),
                    case.rows(&format!("oneshot.cores.r{r}"))[layer],
                    "{name} r{r}"
                );
                for (metric, geometry) in geometries(&case, layer) {
                    let want = &case.rows(&format!("oneshot.{metric}.r{r}"))[layer];
                    let got = one_shot(&geometry, usage, r).unwrap();
                    assert_eq!(got.labels(), want, "{name} layer {layer} oneshot.{metric}.r{r}");
                }
            }
        }
    }
}
