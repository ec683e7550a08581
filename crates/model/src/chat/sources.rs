//! Where a model keeps its template.

use super::{ChatTemplate, refused};
use crate::{error::Result, tokenizer::Tokenizer};
use serde_json::Value;
use std::{collections::BTreeMap, fs, path::Path};

/// Bytes that are read of a file at most.
const MOST_BYTES: u64 = 32 << 20;

/// Special tokens as templates name them.
const TOKENS: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

impl ChatTemplate {
    /// The template of a GGUF file or of a Hugging Face folder, there in the reference's order: `chat_template.jinja` and
    /// `additional_chat_templates/`; else `chat_template` in `tokenizer_config.json`, one or a list of named ones. Of several
    /// the one called `default` is taken. `None` if the folder has none.
    ///
    /// # Errors
    /// If a file cannot be read or holds something else, or none of several is the default.
    pub fn open(dir: &Path) -> Result<Option<Self>> {
        if dir.is_file() {
            let place = format!("{}: key \"tokenizer.chat_template\"", dir.display());
            let Some(tokenizer) = Tokenizer::find(dir)? else {
                return Ok(None);
            };
            let of = |source| Self::new(place, source, tokenizer.special_tokens().clone());
            return tokenizer.chat_template().map(of).transpose();
        }
        let config = json(&dir.join("tokenizer_config.json"))?;
        let file = dir.join("chat_template.jinja");
        let config_place = || format!("{}: key \"chat_template\"", dir.join("tokenizer_config.json").display());
        let (place, source) = if let Some(source) = read(&file)? {
            (file.display().to_string(), source)
        } else {
            let others = named_files(&dir.join("additional_chat_templates"));
            if !others.is_empty() {
                return Err(no_default(
                    &dir.join("additional_chat_templates").display().to_string(),
                    &others,
                ));
            }
            match of_config(&config["chat_template"], &config_place)? {
                Some(source) => (config_place(), source),
                None => return Ok(None),
            }
        };
        let map = json(&dir.join("special_tokens_map.json"))?;
        Self::new(place, &source, tokens(&config, &map)).map(Some)
    }
}

/// The special tokens that the files name; the first file that has one decides.
fn tokens(config: &Value, map: &Value) -> BTreeMap<String, String> {
    let spelled = |value: &Value| value.as_str().or(value["content"].as_str()).map(str::to_owned);
    let named = TOKENS
        .iter()
        .filter_map(|&name| Some((name.to_owned(), spelled(&config[name]).or(spelled(&map[name]))?)));
    named.collect()
}

/// The template in `tokenizer_config.json`: a text, or several by name.
fn of_config(value: &Value, place: &dyn Fn() -> String) -> Result<Option<String>> {
    let several: BTreeMap<String, String> = match value {
        Value::Null => return Ok(None),
        Value::String(source) => return Ok(Some(source.clone())),
        Value::Array(list) => {
            let entry = |v: &Value| Some((v["name"].as_str()?.to_owned(), v["template"].as_str()?.to_owned()));
            match list.iter().map(entry).collect() {
                Some(several) => several,
                None => {
                    return Err(refused(
                        &place(),
                        "must list objects with `name` and `template`",
                        DAMAGED,
                    ));
                }
            }
        }
        Value::Object(fields) => {
            let entry = |(name, v): (&String, &Value)| Some((name.clone(), v.as_str()?.to_owned()));
            match fields.iter().map(entry).collect() {
                Some(several) => several,
                None => return Err(refused(&place(), "must hold templates by name", DAMAGED)),
            }
        }
        _ => {
            return Err(refused(
                &place(),
                "must be a template or a list of named templates",
                DAMAGED,
            ));
        }
    };
    match several.get("default") {
        Some(source) => Ok(Some(source.clone())),
        None if several.is_empty() => Ok(None),
        None => Err(no_default(&place(), &several.into_keys().collect::<Vec<_>>())),
    }
}

const DAMAGED: &str = "the file is damaged or was edited; download it again";

fn no_default(place: &str, names: &[String]) -> crate::ModelError {
    refused(
        place,
        format!(
            "has several templates ({}), none of them called default",
            names.join(", ")
        ),
        "copy the one you want to chat_template.jinja",
    )
}

/// Names of the templates of a folder.
fn named_files(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "jinja"))
        .filter_map(|p| Some(p.file_stem()?.to_string_lossy().into_owned()))
        .collect();
    names.sort();
    names
}

/// A file as text; `None` if there is none.
fn read(path: &Path) -> Result<Option<String>> {
    let place = path.display().to_string();
    match fs::metadata(path) {
        Ok(file) if file.len() > MOST_BYTES => {
            let rule = format!("has {} bytes, more than {} MiB", file.len(), MOST_BYTES >> 20);
            return Err(refused(&place, rule, "such a file is no template"));
        }
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(refused(&place, format!("cannot be read: {e}"), "")),
    }
    match fs::read(path).map(String::from_utf8) {
        Ok(Ok(text)) => Ok(Some(text)),
        Ok(Err(_)) => Err(refused(&place, "is not UTF-8", DAMAGED)),
        Err(e) => Err(refused(&place, format!("cannot be read: {e}"), "")),
    }
}

/// A file as JSON; null if there is none.
fn json(path: &Path) -> Result<Value> {
    let Some(text) = read(path)? else {
        return Ok(Value::Null);
    };
    serde_json::from_str(&text).map_err(|e| refused(&path.display().to_string(), format!("not JSON: {e}"), DAMAGED))
}
