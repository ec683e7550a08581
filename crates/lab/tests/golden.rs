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
