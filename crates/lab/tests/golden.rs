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
