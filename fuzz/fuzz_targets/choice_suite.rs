//! Any bytes as the file of a multiple-choice suite: refused, or items whose answer is one of their choices.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ounce_eval::Suite;

fuzz_target!(|bytes: &[u8]| {
    let path = std::env::temp_dir().join(format!("ounce-fuzz-suite-{}.jsonl", std::process::id()));
    std::fs::write(&path, bytes).expect("a file");
    for suite in Suite::ALL {
        if let Ok(items) = suite.read(&path) {
            assert!(!items.is_empty() && items.iter().all(|item| item.answer < item.choices.len()));
        }
    }
});
