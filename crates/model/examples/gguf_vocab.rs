//! llama.cpp's own tests of tokenizers: `ggml-vocab-*.gguf` with texts (`.inp`) and expected ids (`.out`).
//!
//! `cargo run --release -p ounce-model --example gguf_vocab -- DIR`, where DIR is `models/` of llama.cpp's source. Exit
//! status 1 if any tokenizer of a kind read here gives other ids.
#![allow(clippy::print_stdout)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ounce_formats::gguf::Gguf;
use ounce_model::Tokenizer;
use ounce_model::tokenizer::TokenizerError;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<ExitCode, Failure> {
    let dir = std::env::args().nth(1).ok_or("usage: gguf_vocab DIR")?;
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)?.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "gguf"));
    files.sort();
    let mut failed = files.is_empty();
    for path in &files {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let verdict = match check(path) {
            Ok((0, 0)) => "loads; no texts come with it".to_owned(),
            Ok((right, all)) => {
                failed |= right != all;
                format!("{} {right} of {all} texts", if right == all { "pass" } else { "FAIL" })
            }
            Err(error) => {
                if let Some(TokenizerError::Unsupported { rule, .. }) = error.downcast_ref::<TokenizerError>() {
                    format!("not used by these architectures: {rule}")
                } else {
                    failed = true;
                    format!("FAIL {error}")
                }
            }
        };
        println!("{name:<28} {verdict}");
    }
    Ok(ExitCode::from(u8::from(failed)))
}

/// How many texts have the expected ids, and how many there are.
fn check(path: &Path) -> Result<(usize, usize), Failure> {
    let file = Gguf::open(path)?;
    let tokenizer = Tokenizer::from_gguf(file.metadata())?.ok_or("no tokenizer")?.literal();
    let beside = |suffix: &str| std::fs::read_to_string(format!("{}{suffix}", path.display()));
    let (Ok(texts), Ok(ids)) = (beside(".inp"), beside(".out")) else {
        return Ok((0, 0));
    };
    let texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
    let mut right = 0;
    let mut all = 0;
    for (text, line) in texts.iter().zip(ids.lines()) {
        let expected: Vec<u32> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        right += usize::from(tokenizer.encode(text, false)? == expected);
        all += 1;
    }
    Ok((right, all))
}
