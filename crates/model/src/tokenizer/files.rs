//! The JSON files beside a tokenizer, and which ids begin and end a sequence.
//!
//! Owns their reading. They disagree in the wild (a chat model's generation configuration stops at three ids, its
//! tokenizer names one), so EOS is the union, ordered by authority, and BOS the first one named. It must not know how
//! ids are made: token text becomes an id through a closure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::error::{Result, TokenizerError};

/// The one template of a tokenizer that has one, and the one used unless another is asked for.
const DEFAULT_TEMPLATE: &str = "default";

/// The files beside `tokenizer.json`; `Null` where a file is absent.
#[derive(Default)]
pub(super) struct Files {
    pub(super) generation: Value,
    pub(super) model: Value,
    pub(super) tokenizer_config: Value,
    pub(super) special_map: Value,
    pub(super) added_tokens: Value,
    /// Chat templates in files of their own: name of the file and content.
    pub(super) templates: Vec<(String, String)>,
    /// Where they were found, for error messages.
    pub(super) dir: PathBuf,
}

impl Files {
    pub(super) fn read(dir: &Path) -> Result<Self> {
        Ok(Self {
            generation: read(dir, "generation_config.json")?,
            model: read(dir, "config.json")?,
            tokenizer_config: read(dir, "tokenizer_config.json")?,
            special_map: read(dir, "special_tokens_map.json")?,
            added_tokens: read(dir, "added_tokens.json")?,
            templates: templates(dir)?,
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

    /// The chat templates by name. Files of their own replace those in the configuration, as in the reference.
    pub(super) fn chat_templates(&self) -> Result<BTreeMap<String, String>> {
        if !self.templates.is_empty() {
            let name = |file: &str| match file.strip_prefix("additional_chat_templates/") {
                Some(name) => name.trim_end_matches(".jinja").to_owned(),
                None => DEFAULT_TEMPLATE.to_owned(),
            };
            return Ok(self.templates.iter().map(|(f, t)| (name(f), t.clone())).collect());
        }
        let wrong = |rule: &str| self.malformed("tokenizer_config.json", "chat_template", rule);
        match &self.tokenizer_config["chat_template"] {
            Value::Null => Ok(BTreeMap::new()),
            Value::String(template) => Ok(BTreeMap::from([(DEFAULT_TEMPLATE.to_owned(), template.clone())])),
            Value::Array(list) => list
                .iter()
                .map(|entry| match (&entry["name"], &entry["template"]) {
                    (Value::String(name), Value::String(template)) => Ok((name.clone(), template.clone())),
                    _ => Err(wrong("has an entry without the texts `name` and `template`")),
                })
                .collect(),
            _ => Err(wrong("must be a text or a list of templates with names")),
        }
    }

    pub(super) fn malformed(&self, file: &str, key: &str, reason: &str) -> TokenizerError {
        TokenizerError::malformed(self.dir.join(file), format!("`{key}` {reason}"))
    }
}

pub(super) fn read_bytes(path: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TokenizerError::Io {
            path: path.to_owned(),
            source,
        }),
    }
}

pub(super) fn read_text(path: &Path) -> Result<Option<String>> {
    let Some(bytes) = read_bytes(path)? else {
        return Ok(None);
    };
    let text = String::from_utf8(bytes).map_err(|_| TokenizerError::malformed(path, "is not UTF-8 text"))?;
    Ok(Some(text))
}

fn read(dir: &Path, name: &str) -> Result<Value> {
    let path = dir.join(name);
    let Some(bytes) = read_bytes(&path)? else {
        return Ok(Value::Null);
    };
    match serde_json::from_slice(&bytes) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err(TokenizerError::malformed(path, "must hold a JSON object")),
        Err(error) => Err(TokenizerError::malformed(path, format!("not JSON: {error}"))),
    }
}

fn templates(dir: &Path) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    let mut names = vec!["chat_template.jinja".to_owned()];
    if let Ok(entries) = std::fs::read_dir(dir.join("additional_chat_templates")) {
        let mut more: Vec<String> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| Path::new(name).extension().is_some_and(|e| e == "jinja"))
            .map(|name| format!("additional_chat_templates/{name}"))
            .collect();
        more.sort();
        names.extend(more);
    }
    for name in names {
        if let Some(text) = read_text(&dir.join(&name))? {
            found.push((name, text));
        }
    }
    Ok(found)
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
pub(super) fn text(value: &Value) -> std::result::Result<Option<&str>, String> {
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
