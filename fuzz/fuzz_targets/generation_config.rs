//! Any bytes as one of the files beside tokenizer.json (the first byte says which): refused, or the ids in them.
#![no_main]

use std::{fs, path::PathBuf, sync::OnceLock};

use libfuzzer_sys::fuzz_target;
use ounce_model::Tokenizer;

const FILES: [&str; 4] = [
    "generation_config.json",
    "config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
];

/// A folder of this process with a small tokenizer.
fn folder() -> &'static PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let dir = std::env::temp_dir().join(format!("ounce-fuzz-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a temporary folder");
        let model = r#"{"model": {"type": "WordLevel", "vocab": {"<s>": 0, "</s>": 1, "a": 2}, "unk_token": "a"}}"#;
        fs::write(dir.join("tokenizer.json"), model).expect("a tokenizer");
        dir
    })
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&which, content)) = bytes.split_first() else {
        return;
    };
    let path = folder().join(FILES[usize::from(which) % FILES.len()]);
    fs::write(&path, content).expect("a file");
    if let Ok(tokenizer) = Tokenizer::open(folder()) {
        let _ = (tokenizer.bos_id(), tokenizer.eos_ids().len());
    }
    fs::remove_file(&path).expect("the file");
});
