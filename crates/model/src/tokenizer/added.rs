//! Tokens beside the vocabulary.
//!
//! Owns their merging from all the files that may name one: `tokenizer.json`, `added_tokens_decoder` and the special
//! tokens of `tokenizer_config.json`, and, where there is no `added_tokens_decoder`, `special_tokens_map.json` and
//! `added_tokens.json`, as transformers does. A token that stands in one of them alone is not split. It must not know
//! how the vocabulary was read.

use std::collections::{BTreeMap, HashSet};

use serde_json::Value;
use tokenizers::{AddedToken, Tokenizer as Inner};

use super::error::{Result, TokenizerError, guard};
use super::files::{Files, text};

/// The special tokens that every tokenizer may have, in the reference's order.
const NAMED: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// What the files name: special tokens by the name they have in templates, others without a name, and ids.
#[derive(Debug, Default)]
pub(super) struct Sources {
    named: Vec<(String, AddedToken)>,
    extra: Vec<AddedToken>,
    /// By id, with the file that says so.
    by_id: BTreeMap<u32, (AddedToken, &'static str)>,
}

impl Sources {
    pub(super) fn read(files: &Files) -> Result<Self> {
        let mut sources = Self::default();
        sources.special(files, "tokenizer_config.json", &files.tokenizer_config)?;
        if let Some(decoder) = files.tokenizer_config.get("added_tokens_decoder") {
            sources.decoder(files, decoder)?;
        } else {
            sources.special(files, "special_tokens_map.json", &files.special_map)?;
            sources.encoder(files)?;
        }
        Ok(sources)
    }

    /// Text of each named special token.
    pub(super) fn names(&self) -> BTreeMap<String, String> {
        let pair = |(name, token): &(String, AddedToken)| (name.clone(), token.content.clone());
        self.named.iter().map(pair).collect()
    }

    fn name(&mut self, name: &str, token: AddedToken) {
        match self.named.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = token,
            None => self.named.push((name.to_owned(), token)),
        }
    }

    /// The names of special tokens in one file; a later file replaces names and adds to the list without names.
    fn special(&mut self, files: &Files, file: &'static str, value: &Value) -> Result<()> {
        let wrong = |key: &str, reason: &str| files.malformed(file, key, reason);
        let Some(fields) = value.as_object() else {
            return Ok(());
        };
        for (key, value) in fields {
            match (key.as_str(), value) {
                ("additional_special_tokens" | "extra_special_tokens", Value::Array(list)) => {
                    for item in list {
                        self.extra
                            .extend(special_token(item).map_err(|reason| wrong(key, &reason))?);
                    }
                }
                ("extra_special_tokens", Value::Object(named)) => {
                    for (name, item) in named {
                        if let Some(token) = special_token(item).map_err(|reason| wrong(key, &reason))? {
                            self.name(name, token);
                        }
                    }
                }
                (name, Value::String(_) | Value::Object(_)) if name.ends_with("_token") => {
                    if let Some(token) = special_token(value).map_err(|reason| wrong(key, &reason))? {
                        self.name(name, token);
                    }
                }
                (name, value) if NAMED.contains(&name) => {
                    // `false` and the like; `null` passes.
                    text(value).map_err(|reason| wrong(key, &reason))?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// `added_tokens_decoder`: id to token.
    fn decoder(&mut self, files: &Files, value: &Value) -> Result<()> {
        const FILE: &str = "tokenizer_config.json";
        let wrong = |reason: &str| files.malformed(FILE, "added_tokens_decoder", reason);
        let fields = match value {
            Value::Null => return Ok(()),
            Value::Object(fields) => fields,
            _ => return Err(wrong("must be an object of tokens by id")),
        };
        for (id, token) in fields {
            let number = id
                .parse()
                .map_err(|_| wrong(&format!("has the key {id:?}, no token id")))?;
            let token = token
                .as_object()
                .and_then(|_| flagged(token, None))
                .ok_or_else(|| wrong(&format!("gives {id} no token with a `content`")))?;
            self.by_id.insert(number, (token, FILE));
        }
        Ok(())
    }

    /// `added_tokens.json`: token to id.
    fn encoder(&mut self, files: &Files) -> Result<()> {
        const FILE: &str = "added_tokens.json";
        let Some(fields) = files.added_tokens.as_object() else {
            return Ok(());
        };
        let specials: HashSet<&String> = self
            .named
            .iter()
            .map(|(_, token)| token)
            .chain(&self.extra)
            .map(|token| &token.content)
            .collect();
        for (token, id) in fields {
            let number = id.as_u64().and_then(|id| u32::try_from(id).ok());
            let number = number.ok_or_else(|| files.malformed(FILE, token, &format!("has the id {id}")))?;
            let added = AddedToken::from(token.as_str(), specials.contains(token));
            if let Some((other, _)) = self.by_id.insert(number, (added, FILE)) {
                let reason = format!("has the id {number}, which \"{}\" has too", other.content);
                return Err(files.malformed(FILE, token, &reason));
            }
        }
        Ok(())
    }

    /// Adds all of them to `inner`.
    pub(super) fn add_to(&self, inner: &mut Inner, files: &Files) -> Result<()> {
        let before = |token: &str| inner.token_to_id(token);
        let new: Vec<(u32, &AddedToken, &'static str)> = self
            .by_id
            .iter()
            .filter(|(_, (token, _))| before(&token.content).is_none())
            .map(|(&id, (token, file))| (id, token, *file))
            .collect();
        let mut known: HashSet<String> = inner.get_added_vocabulary().get_vocab().keys().cloned().collect();
        let mut add: Vec<AddedToken> = Vec::new();
        let named: HashSet<&String> = self.named.iter().map(|(_, token)| &token.content).collect();
        for (token, _) in self.by_id.values() {
            let mut token = token.clone();
            token.special |= named.contains(&token.content);
            known.insert(token.content.clone());
            add.push(token);
        }
        let mut order: Vec<&(String, AddedToken)> = self.named.iter().collect();
        // The reference's own names first, in its order; the others as they stand in the file.
        order.sort_by_key(|(name, _)| NAMED.iter().position(|known| known == name).unwrap_or(NAMED.len()));
        for token in order.iter().map(|(_, token)| token).chain(&self.extra) {
            if known.insert(token.content.clone()) {
                add.push(token.clone());
            }
        }
        if add.is_empty() {
            return Ok(());
        }
        guard("adding tokens", || Ok::<_, String>(inner.add_tokens(&add)))?;
        // New tokens get the next free ids. Where a file promises others, one of the two is wrong.
        for (id, token, file) in new {
            let got = inner.token_to_id(&token.content);
            if let Some(got) = got.filter(|&got| got != id) {
                return Err(TokenizerError::unsupported(
                    files.dir.join(file),
                    format!(
                        "`{}` is to have the id {id}, the next free one behind the vocabulary is {got}",
                        token.content
                    ),
                    "give the ids without a gap, or list the tokens in between",
                ));
            }
        }
        Ok(())
    }
}

/// A token named as special, as text or as an object.
fn special_token(value: &Value) -> std::result::Result<Option<AddedToken>, String> {
    Ok(match (text(value)?, value) {
        (Some(_), Value::Object(_)) => flagged(value, Some(true)),
        (Some(token), _) => Some(AddedToken::from(token, true)),
        (None, _) => None,
    }
    .filter(|token| !token.content.is_empty()))
}

/// A token with its flags; what is not said is as in the reference: off, and `normalized` where it is not special.
fn flagged(value: &Value, special: Option<bool>) -> Option<AddedToken> {
    let flag = |name: &str| value[name].as_bool();
    let special = special.or(flag("special")).unwrap_or(false);
    let token = AddedToken::from(value["content"].as_str()?, special)
        .single_word(flag("single_word").unwrap_or(false))
        .lstrip(flag("lstrip").unwrap_or(false))
        .rstrip(flag("rstrip").unwrap_or(false));
    let normalized = flag("normalized").unwrap_or(!special);
    Some(token.normalized(normalized))
}
