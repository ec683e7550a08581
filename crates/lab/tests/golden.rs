//! Every golden case that is shipped passes, each check of it.

use ounce_lab::verify::verify_case;
use std::path::Path;

fn all_pass(root: &str, cases: &[&str], at_least: usize) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(root);
    let mut failed = Vec::new();
    for case in cases {
        let checks = verify_case(&root.join(case));
        assert!(checks.len() >= at_least, "{case}: only {} checks", checks.len());
        failed.extend(checks.into_iter().filter(|c| !c.passed));
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn library_made_checkpoints() {
    let cases = [
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "mixtral",
        "qwen2_moe",
        "qwen3_moe",
        "olmoe",
    ];
    all_pass("tests/fixtures/golden", &cases, 3);
}

#[test]
fn methods_of_the_feed_forward_slot() {
    all_pass("tests/fixtures/golden", &["aoe"], 5);
    all_pass("tests/fixtures/golden", &["mole", "mole_lut"], 3);
}

#[test]
fn attention_methods() {
    all_pass(
        "tests/fixtures/golden",
        &["moh_llama", "moh_llama_bin", "moh_two_stage"],
        3,
    );
    let functions = ["dga_attention", "dga_attention_gqa", "dga_attention_gqa_entropy"];
    all_pass("tests/fixtures/golden", &functions, 7);
    all_pass("tests/fixtures/golden", &["dga_attention_exact"], 3);
}

#[test]
fn retrieval_decoder() {
    all_pass("tests/fixtures/golden", &["drt_no_slot", "drt_null_slot"], 5);
    all_pass(
        "tests/fixtures/golden",
        &["gca_attention", "gca_attention_null_slot"],
        10,
    );
}

#[test]
fn ladder_checkpoints() {
    all_pass("tests/fixtures/golden", &["llama_ladder", "llama_ladder_list"], 3);
}

#[test]
fn long_short_divergences() {
    let cases = ["long_short", "long_short_batch", "long_short_masked"];
    all_pass("tests/fixtures/golden", &cases, 10);
}

#[test]
fn merged_checkpoints() {
    all_pass(
        "../compress/tests/fixtures",
        &["merge_mixtral", "merge_qwen2_moe", "merge_qwen2_moe_norm"],
        60,
    );
    all_pass(
        "../compress/tests/fixtures",
        &["merge_duplicates", "merge_permuted", "merge_permuted_noisy"],
        10,
    );
}

#[test]
fn clustering_with_exact_ties() {
    all_pass("../compress/tests/fixtures", &["merge_linkage"], 30);
}

#[test]
fn what_is_not_supported_fails() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("case.json"), "{\"kind\": \"diffusion\"}").unwrap();
    let checks = verify_case(dir.path());
    assert!(
        !checks[0].passed && checks[0].note.contains("not supported"),
        "{checks:?}"
    );
}

/// A fuzzer's kind of case: what it holds has the wrong shape.
#[test]
fn a_case_of_the_wrong_shape_fails_and_does_not_panic() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("case.json"), "{\"kind\": \"merge\"}").unwrap();
    for shape in [&[][..], &[0], &[0, 2], &[1, 1, 1]] {
        let n = shape.iter().product::<usize>();
        let points = vec![0_u8; 8 * n];
        let labels = vec![0_u8; 8];
        ounce_formats::write_file(
            &dir.path().join("expected.safetensors"),
            &[
                ("points.0", ounce_formats::Dtype::F64, shape, &points),
                ("labels.0.average", ounce_formats::Dtype::I64, &[1], &labels),
            ],
            &std::collections::BTreeMap::new(),
        )
        .unwrap();
        let checks = verify_case(dir.path());
        assert_eq!(checks.len(), 1, "{shape:?}: {checks:?}");
        // One point is one cluster, whatever its shape: that is what the labels say.
        assert_eq!(checks[0].passed, shape == [1, 1, 1], "{shape:?}: {checks:?}");
    }
}

/// NaN is no number near any other.
#[test]
fn heights_that_are_nan_or_too_few_fail() {
    for (heights, passes) in [(&[1.0][..], true), (&[f64::NAN], false), (&[1.0, 1.0], false)] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("case.json"), "{\"kind\": \"merge\"}").unwrap();
        let bytes = |values: &[f64]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let (points, heights_bytes) = (bytes(&[0.0, 1.0]), bytes(heights));
        let labels: Vec<u8> = [0_i64, 1].iter().flat_map(|v| v.to_le_bytes()).collect();
        ounce_formats::write_file(
            &dir.path().join("expected.safetensors"),
            &[
                ("points.0", ounce_formats::Dtype::F64, &[2, 1], &points),
                ("labels.0.average", ounce_formats::Dtype::I64, &[2], &labels),
                (
                    "heights.0.average",
                    ounce_formats::Dtype::F64,
                    &[heights.len()],
                    &heights_bytes,
                ),
            ],
            &std::collections::BTreeMap::new(),
        )
        .unwrap();
        let checks = verify_case(dir.path());
        let heights = checks.iter().find(|c| c.check.starts_with("heights")).unwrap();
        assert_eq!(heights.passed, passes, "{checks:?}");
    }
}
