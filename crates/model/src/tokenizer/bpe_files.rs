//! A folder with `vocab.json` and `merges.txt` and no `tokenizer.json`.
//!
//! Owns the choice of how words are cut, which these files do not say: `tokenizer_class` of `tokenizer_config.json`
//! does, or the family, as in transformers. It must not guess where neither does.

use std::path::Path;

use serde_json::{Map, Value, json};
use tokenizers::Tokenizer as Inner;

use super::error::{Result, TokenizerError};
use super::files::{Files, read_text};
use super::{build, parse, words};

/// Reads the two files; `None` if there is no `vocab.json`.
pub(super) fn read(dir: &Path, files: &mut Files) -> Result<Option<Inner>> {
    let path = dir.join("vocab.json");
    let Some(vocab) = read_text(&path)? else {
        return Ok(None);
    };
    let vocab: Map<String, Value> = serde_json::from_str(&vocab)
        .map_err(|error| TokenizerError::malformed(&path, format!("is no object of ids by token: {error}")))?;
    let merges_path = dir.join("merges.txt");
    let merges = read_text(&merges_path)?.ok_or_else(|| TokenizerError::Io {
        path: merges_path.clone(),
        source: std::io::Error::from(std::io::ErrorKind::NotFound),
    })?;
    let mut pairs = Vec::new();
    for (number, line) in merges.lines().enumerate() {
        let line = line.trim_end();
        if line.is_empty() || (number == 0 && line.starts_with("#version")) {
            continue;
        }
        let pair = line.split_once(' ').filter(|(_, right)| !right.contains(' '));
        pairs.push(pair.ok_or_else(|| {
            TokenizerError::malformed(&merges_path, format!("line {} is no pair of tokens", number + 1))
        })?);
    }
    let config = &files.tokenizer_config;
    let family = files.model["model_type"].as_str().unwrap_or_default();
    let class = config["tokenizer_class"].as_str().unwrap_or_default();
    let kind = match class.trim_end_matches("Fast") {
        // The family's own class, whatever the file says: transformers knows these files to be wrong.
        _ if family == "qwen2" => "Qwen2Tokenizer",
        known @ ("GPT2Tokenizer" | "CodeGenTokenizer" | "Qwen2Tokenizer" | "GPTNeoXTokenizer") => known,
        _ if matches!(family, "qwen2_moe" | "qwen3" | "qwen3_moe") => "Qwen2Tokenizer",
        _ if family == "olmoe" => "GPTNeoXTokenizer",
        _ => {
            return Err(TokenizerError::unsupported(
                path,
                format!(
                    "does not say how words are cut, nor does the tokenizer_class {class:?} of tokenizer_config.json"
                ),
                "set tokenizer_class to GPT2Tokenizer or Qwen2Tokenizer, or add the tokenizer.json",
            ));
        }
    };
    let known = |token: &str| vocab.contains_key(token).then(|| token.to_owned());
    let end = known("<|endoftext|>");
    let (first, last) = (config["add_bos_token"] == true, config["add_eos_token"] == true);
    let names: &[&str] = match kind {
        "Qwen2Tokenizer" => &["eos_token", "unk_token", "pad_token"],
        _ => &["bos_token", "eos_token", "unk_token"],
    };
    let prefix = config["add_prefix_space"] == true;
    let mut json = build::byte_level(vocab, &pairs, false);
    if kind == "Qwen2Tokenizer" {
        json["pre_tokenizer"] = build::cutting(words::QWEN2);
    } else {
        json["pre_tokenizer"] =
            json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": true});
    }
    if kind == "Qwen2Tokenizer" || kind == "GPTNeoXTokenizer" {
        json["normalizer"] = json!({"type": "NFC"});
    }
    if files.tokenizer_config.is_null() {
        files.tokenizer_config = json!({ "tokenizer_class": kind });
    }
    // The class's defaults, where the vocabulary has them.
    for name in names {
        if files.tokenizer_config.get(name).is_none()
            && files.special_map.get(name).is_none()
            && let Some(token) = &end
        {
            files.tokenizer_config[*name] = json!(token);
        }
    }
    let end_of = |name: &str, add: bool| -> Option<(String, u32)> {
        let named = [&files.tokenizer_config[name], &files.special_map[name]];
        let token = named
            .iter()
            .find_map(|v| v.as_str().or(v["content"].as_str()))
            .filter(|_| add)?;
        let id = json["model"]["vocab"][token].as_u64()?;
        Some((token.to_owned(), id as u32))
    };
    let (bos, eos) = (end_of("bos_token", first), end_of("eos_token", last));
    json["post_processor"] = build::ends(
        bos.as_ref().map(|(t, id)| (t.as_str(), *id)),
        eos.as_ref().map(|(t, id)| (t.as_str(), *id)),
    );
    parse(&path, json.to_string().as_bytes()).map(Some)
}
