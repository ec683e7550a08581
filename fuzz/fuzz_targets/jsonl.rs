//! Any bytes as a JSONL file: documents or an error, and documents are never empty.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(documents) = ounce_data::readers::parse_jsonl(Path::new("fuzz.jsonl"), bytes, "text") {
        assert!(documents.iter().all(|document| !document.text.is_empty()));
    }
});
