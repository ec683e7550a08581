//! Files beside weights and configuration that belong to any form of a model: its tokenizer, and how it is prompted.

use crate::error::CompressError;
use ounce_formats::fsx;
use std::path::Path;

/// The names that other programs look for.
const NAMES: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "merges.txt",
    "vocab.json",
];

/// Copies those that the folder `model` has into the folder `out`.
///
/// # Errors
/// If a file cannot be read or written.
pub(crate) fn copy(model: &Path, out: &Path) -> Result<(), CompressError> {
    for name in NAMES {
        let from = model.join(name);
        if from.is_file() {
            fsx::write_atomic(&out.join(name), &fsx::read(&from)?)?;
        }
    }
    Ok(())
}
