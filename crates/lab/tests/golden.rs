//! Every golden case that is shipped passes, each check of it.

use ounce_lab::verify::verify_case;
use std::path::Path;

#[test]
fn library_made_checkpoints() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden");
    let mut failed = Vec::new();
    for case in [
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "mixtral",
        "qwen2_moe",
        "qwen3_moe",
        "olmoe",
    ] {
        let checks = verify_case(&root.join(case));
        assert!(checks.len() >= 3, "{case}: only {} checks", checks.len());
        failed.extend(checks.into_iter().filter(|c| !c.passed));
    }
    assert!(failed.is_empty(), "{failed:#?}");
}
