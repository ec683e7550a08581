//! The tokenizer inside a GGUF file.
//!
//! Owns the meaning of the `tokenizer.*` keys: byte-level BPE (`gpt2`) and sentencepiece's BPE (`llama`), which are all
//! kinds that the supported architectures use. It must not know how the file is laid out.

use ounce_formats::gguf::Metadata;
use serde_json::{Map, Value, json};

use super::error::{Result, TokenizerError};
use super::files::Files;
use super::{Tokenizer, build, parse, words};

const OTHER: &str = "use the model's Hugging Face folder with its tokenizer.json";

/// The key's value in the namespace that GGML's tokenizers have.
fn key(name: &str) -> String {
    format!("tokenizer.ggml.{name}")
}

/// Reads the tokenizer; `None` if the file has none.
pub(super) fn read(meta: &Metadata) -> Result<Option<Tokenizer>> {
    let path = meta.path();
    let Some(model) = meta.text(&key("model"))? else {
        return Ok(None);
    };
    let wrong = |name: &str, rule: &str| TokenizerError::malformed(path, format!("key \"{}\" {rule}", key(name)));
    let tokens = meta.texts(&key("tokens"))?;
    let tokens = tokens.ok_or_else(|| wrong("tokens", "is missing"))?;
    let list = |name: &str| -> Result<Option<Vec<f64>>> {
        let values = meta.numbers(&key(name))?;
        match values {
            Some(values) if values.len() != tokens.len() => Err(wrong(
                name,
                &format!("has {} entries for {} tokens", values.len(), tokens.len()),
            )),
            values => Ok(values),
        }
    };
    let kinds: Vec<u8> = match list("token_type")? {
        Some(kinds) => kinds.into_iter().map(|kind| kind as u8).collect(),
        None => vec![1; tokens.len()],
    };
    let id = |name: &str| -> Result<Option<u32>> {
        match meta.unsigned(&key(name))? {
            None => Ok(None),
            // Some converters write "none" as the largest number.
            Some(id) if id == u64::from(u32::MAX) => Ok(None),
            Some(id) if (id as usize) < tokens.len() => Ok(Some(id as u32)),
            Some(id) => Err(wrong(
                name,
                &format!("is {id}, where there are {} tokens", tokens.len()),
            )),
        }
    };
    let (bos, eos) = (id("bos_token_id")?, id("eos_token_id")?);
    let unknown = id("unknown_token_id")?;
    let mut json = match model {
        "gpt2" => {
            let name = meta.text(&key("pre"))?.unwrap_or_default();
            let words = words::words(name).ok_or_else(|| {
                let rule = format!("key \"{}\": no way of cutting words is known as {name:?}", key("pre"));
                TokenizerError::unsupported(path, rule, OTHER)
            })?;
            let merges = meta.texts(&key("merges"))?.unwrap_or_default();
            let merges: Option<Vec<(&str, &str)>> = merges.iter().map(|merge| pair(merge)).collect();
            let merges = merges.ok_or_else(|| wrong("merges", "has an entry that is no pair"))?;
            let vocab = build::vocabulary(tokens.iter().copied()).map_err(|rule| wrong("tokens", &rule))?;
            let mut json = build::byte_level(vocab, &merges, words.keeps_whole);
            json["pre_tokenizer"] = build::cutting(words.cuts);
            if words.composes {
                json["normalizer"] = json!({"type": "NFC"});
            }
            let first = meta.bool(&key("add_bos_token"))?.unwrap_or(words.bos);
            let last = meta.bool(&key("add_eos_token"))?.unwrap_or(false);
            let end = |add: bool, id: Option<u32>| id.filter(|_| add).map(|id| (tokens[id as usize], id));
            json["post_processor"] = build::ends(end(first, bos), end(last, eos));
            json
        }
        "llama" => {
            let scores = list("scores")?.ok_or_else(|| wrong("scores", "is missing"))?;
            let space = meta.bool(&key("add_space_prefix"))?.unwrap_or(true);
            let unknown = unknown.map(|id| id as usize);
            let mut json =
                build::pieces(&tokens, &scores, &kinds, unknown, space).map_err(|rule| wrong("tokens", &rule))?;
            let first = meta.bool(&key("add_bos_token"))?.unwrap_or(true);
            let last = meta.bool(&key("add_eos_token"))?.unwrap_or(false);
            let end = |add: bool, id: Option<u32>| id.filter(|_| add).map(|id| (tokens[id as usize], id));
            json["post_processor"] = build::ends(end(first, bos), end(last, eos));
            json
        }
        other => {
            let rule = format!(
                "key \"{}\": tokenizers of the kind {other:?} are not read",
                key("model")
            );
            return Err(TokenizerError::unsupported(path, rule, OTHER));
        }
    };
    json["added_tokens"] = build::added(&tokens, &kinds);
    let inner = parse(path, json.to_string().as_bytes())?;

    let mut config = Map::from_iter([
        ("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast")),
        ("clean_up_tokenization_spaces".to_owned(), json!(false)),
    ]);
    let padding = id("padding_token_id")?;
    for (name, id) in [("bos", bos), ("eos", eos), ("unk", unknown), ("pad", padding)] {
        if let Some(token) = id.map(|id| tokens[id as usize]).filter(|token| !token.is_empty()) {
            config.insert(format!("{name}_token"), json!(token));
        }
    }
    if let Some(template) = templates(meta)? {
        config.insert("chat_template".to_owned(), template);
    }
    let mut ends: Vec<u32> = eos.into_iter().collect();
    for name in ["eot_token_id", "eom_token_id"] {
        ends.extend(id(name)?.filter(|id| !ends.contains(id)));
    }
    let files = Files {
        generation: json!({"bos_token_id": bos, "eos_token_id": ends}),
        tokenizer_config: Value::Object(config),
        dir: path.to_owned(),
        ..Files::default()
    };
    Tokenizer::assemble(inner, files, path).map(Some)
}

/// `a b`; a part may begin with a space, as in sentencepiece's runs.
fn pair(merge: &str) -> Option<(&str, &str)> {
    let first = merge.chars().next()?.len_utf8();
    let at = first + merge[first..].find(' ')?;
    Some((&merge[..at], &merge[at + 1..]))
}

/// One template, or several with names, as `tokenizer_config.json` has them.
fn templates(meta: &Metadata) -> Result<Option<Value>> {
    const KEY: &str = "tokenizer.chat_template";
    let default = meta.text(KEY)?;
    let mut all: Vec<Value> = Vec::new();
    for (name, _) in meta.entries() {
        if let Some(short) = name.strip_prefix("tokenizer.chat_template.")
            && let Some(template) = meta.text(name)?
        {
            all.push(json!({"name": short, "template": template}));
        }
    }
    if all.is_empty() {
        return Ok(default.map(|template| json!(template)));
    }
    all.extend(default.map(|template| json!({"name": "default", "template": template})));
    Ok(Some(Value::Array(all)))
}
