//! Any bytes as the case.json (up to a NUL) and the expected.safetensors (after it) of a golden case: checks, passed or
//! failed, never a panic.
#![no_main]

use std::{fs, path::PathBuf, sync::OnceLock};

use libfuzzer_sys::fuzz_target;

fn folder() -> &'static PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let dir = std::env::temp_dir().join(format!("ounce-fuzz-case-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a temporary folder");
        dir
    })
}

fuzz_target!(|bytes: &[u8]| {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    fs::write(folder().join("case.json"), &bytes[..end]).expect("a file");
    fs::write(
        folder().join("expected.safetensors"),
        bytes.get(end + 1..).unwrap_or_default(),
    )
    .expect("a file");
    assert!(!ounce_lab::verify::verify_case(folder()).is_empty());
});
