//! Which ids begin and end a sequence.
//!
//! Owns the reading of the four files that name them. They disagree in the wild (a chat model's generation
//! configuration stops at three ids, its tokenizer names one), so EOS is the union, ordered by authority, and BOS the
//! first one named. It must not know how ids are made: token text becomes an id through a closure.

use std::path::Path;

use serde_json::Value;

use super::{Result, TokenizerError};

/// The JSON files beside `tokenizer.json`; `Null` where a file is absent.
#[derive(Default)]
pub(super) struct Files {
    pub(super) generation: Value,
    pub(super) model: Value,
    pub(super) tokenizer_config: Value,
    pub(super) special_map: Value,
    /// Where they were found, for error messages.
    pub(super) dir: std::path::PathBuf,
}

impl Files {
    pub(super) fn read(dir: &Path) -> Result<Self> {
        Ok(Self {
            generation: read(dir, "generation_config.json")?,
            model: read(dir, "config.json")?,
            tokenizer_config: read(dir, "tokenizer_config.json")?,
            special_map: read(dir, "special_tokens_map.json")?,
            dir: dir.to_owned(),
        })
    }

    /// `(bos, eos ids)`.
    pub(super) fn ids(&self, id_of: impl Fn(&str) -> Option<u32>) -> Result<(Option<u32>, Vec<u32>)> {
        let mut found = [Vec::new(), Vec::new()];
        for (ids, end) in found.iter_mut().zip(["bos", "eos"]) {
            for (file, value) in [
                ("generation_config.json", &self.generation),
                ("config.json", &self.model),
            ] {
                let key = format!("{end}_token_id");
                ids.extend(numbers(&value[&key]).map_err(|reason| self.malformed(file, &key, &reason))?);
            }
            for (file, value) in [
                ("tokenizer_config.json", &self.tokenizer_config),
                ("special_tokens_map.json", &self.special_map),
            ] {
                let key = format!("{end}_token");
                let token = text(&value[&key]).map_err(|reason| self.malformed(file, &key, &reason))?;
                // A token the vocabulary lacks has no embedding row either, so the model can never produce it.
                ids.extend(token.and_then(&id_of));
            }
            let mut seen = Vec::new();
            for id in std::mem::take(ids) {
                if !seen.contains(&id) {
                    seen.push(id);
                }
            }
            *ids = seen;
        }
        let [bos, eos] = found;
        Ok((bos.first().copied(), eos))
    }

    fn malformed(&self, file: &str, key: &str, reason: &str) -> TokenizerError {
        TokenizerError::Malformed {
            path: self.dir.join(file),
            reason: format!("`{key}` {reason}"),
        }
    }
}

fn read(dir: &Path, name: &str) -> Result<Value> {
    let path = dir.join(name);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Value::Null),
        Err(source) => return Err(TokenizerError::Io { path, source }),
    };
    match serde_json::from_slice(&bytes) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err(TokenizerError::Malformed {
            path,
            reason: "must hold a JSON object".into(),
        }),
        Err(error) => Err(TokenizerError::Malformed {
            path,
            reason: format!("not JSON: {error}"),
        }),
    }
}

/// An id, a list of ids, or nothing. Some configurations write -1 for "none".
fn numbers(value: &Value) -> std::result::Result<Vec<u32>, String> {
    let one = |v: &Value| match (v.as_u64().and_then(|id| u32::try_from(id).ok()), v.as_i64()) {
        (Some(id), _) => Ok(Some(id)),
        (None, Some(-1)) => Ok(None),
        _ => Err(format!("must be a token id, a list of token ids or null, not {v}")),
    };
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Array(list) => list.iter().filter_map(|v| one(v).transpose()).collect(),
        other => Ok(one(other)?.into_iter().collect()),
    }
}

/// A token as plain text or as `{"content": …}`.
fn text(value: &Value) -> std::result::Result<Option<&str>, String> {
    match value {
        Value::Null => Ok(None),
        Value::String(token) => Ok(Some(token)),
        Value::Object(fields) => match fields.get("content") {
            Some(Value::String(token)) => Ok(Some(token)),
            _ => Err("is an object without a `content` string".into()),
        },
        other => Err(format!(
            "must be a string, an object with `content` or null, not {other}"
        )),
    }
}
