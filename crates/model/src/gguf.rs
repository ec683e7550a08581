//! GGUF files as checkpoints: their keys become a configuration of a stock family, their tensors its tensors.
//!
//! The names are those that llama.cpp's conversion writes. It also reorders the rows of queries and keys of Llama
//! models, so that the two halves of a head, which rotation pairs, lie in turns; here they are put back. What a key or a
//! tensor means is decided here, and what cannot be kept is refused by name.

mod config;
mod names;

use crate::error::{ModelError, Result};
use ounce_formats::{Checkpoint, Gguf, gguf::is_gguf};
use std::path::Path;

/// Opens a Hugging Face folder or a GGUF file.
///
/// # Errors
/// For anything wrong with the files or with what the GGUF file's keys and tensors say.
pub(crate) fn open(path: &Path) -> Result<Checkpoint> {
    if !path.is_file() || !is_gguf(path) {
        return Ok(Checkpoint::open(path)?);
    }
    let file = Gguf::open(path)?;
    let config = config::read(&file)?;
    let placed = names::place(&file, &config)?;
    Ok(file.checkpoint(config, &placed)?)
}

fn bad_key<T>(file: &Gguf, key: &str, rule: impl Into<String>, hint: &str) -> Result<T> {
    Err(ModelError::Config {
        file: file.path().display().to_string(),
        key: key.into(),
        rule: rule.into(),
        hint: hint.into(),
    })
}

fn bad_tensor<T>(file: &Gguf, tensor: &str, rule: impl Into<String>, hint: &str) -> Result<T> {
    Err(ModelError::Weight {
        file: file.path().display().to_string(),
        tensor: tensor.into(),
        rule: rule.into(),
        hint: hint.into(),
    })
}
