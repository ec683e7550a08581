//! Text to token ids and back.
//!
//! Owns everything between a string and the ids a model sees: loading the tokenizer of a Hugging Face folder in any of
//! its forms or that of a GGUF file, the begin- and end-of-sequence rules, the bytes behind one id, streaming decode,
//! and training a small byte-level BPE. It exists because the `tokenizers` crate knows one file only, while the truth
//! about special tokens is spread over six, and because that crate panics on some malformed files: every call into it
//! passes through one guard that turns a panic into an error. It knows no model: an id of a padded embedding, beyond
//! the vocabulary, is the empty text.

mod added;
mod alphabet;
mod bpe_files;
mod build;
mod error;
mod files;
mod gguf;
mod limits;
mod stream;
mod train;
mod words;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ounce_formats::{
    Gguf,
    gguf::{Metadata, is_gguf},
};
use serde_json::Value;
use tokenizers::{ModelWrapper, Tokenizer as Inner};

use alphabet::{Alphabet, byte_piece, char_bytes};
use error::guard;
pub use error::{Result, TokenizerError};
use files::Files;
pub use stream::StreamDecoder;
pub use train::{SpecialTokens, train_byte_level_bpe};

struct Parts {
    inner: Inner,
    alphabet: Alphabet,
    /// GPT-2's table from character to byte, indexed by code point; `None` where a character stands for itself.
    char_bytes: Vec<Option<u8>>,
    bos: Option<u32>,
    eos: Vec<u32>,
    size: usize,
    /// How many bytes the normaliser may make of one.
    growth: usize,
    special: BTreeMap<String, String>,
    chat: BTreeMap<String, String>,
    /// As found, written back unchanged by `save`: `tokenizer_config.json`, `special_tokens_map.json`, templates.
    config: Value,
    special_map: Value,
    template_files: Vec<(String, String)>,
}

/// A loaded tokenizer. Immutable; a clone is a reference count.
#[derive(Clone)]
pub struct Tokenizer(Arc<Parts>);

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let p = &*self.0;
        write!(
            f,
            "Tokenizer {{ size: {}, bos: {:?}, eos: {:?} }}",
            p.size, p.bos, p.eos
        )
    }
}

impl Tokenizer {
    /// Loads the tokenizer in the folder `dir`, or inside a GGUF file. The ids of BOS and EOS come from `generation_config.json`, `config.json`,
    /// `tokenizer_config.json` and `special_tokens_map.json`; these, `added_tokens.json` and `tokenizer_config.json`
    /// may also name tokens that the vocabulary lacks. Each is optional.
    ///
    /// # Errors
    /// No tokenizer, or one that cannot be read; any of these files malformed.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let path = match dir.as_ref() {
            file if file.is_file() => file.to_owned(),
            dir => dir.join("tokenizer.json"),
        };
        Self::find(dir)?.ok_or_else(|| TokenizerError::Io {
            path,
            source: std::io::Error::from(std::io::ErrorKind::NotFound),
        })
    }

    /// [`Tokenizer::open`] for a model that may have none: a model without one works with ids.
    ///
    /// # Errors
    /// A tokenizer that cannot be read; a file beside it malformed.
    pub fn find(dir: impl AsRef<Path>) -> Result<Option<Self>> {
        let dir = dir.as_ref();
        if dir.is_file() && is_gguf(dir) {
            return Self::from_gguf(Gguf::open(dir)?.metadata());
        }
        let path = dir.join("tokenizer.json");
        let mut files = Files::read(dir)?;
        if let Some(bytes) = files::read_bytes(&path)? {
            return Self::assemble(parse(&path, &bytes)?, files, &path).map(Some);
        }
        if let Some(inner) = bpe_files::read(dir, &mut files)? {
            return Self::assemble(inner, files, &dir.join("vocab.json")).map(Some);
        }
        let sentencepiece = dir.join("tokenizer.model");
        if sentencepiece.is_file() {
            return Err(TokenizerError::unsupported(
                sentencepiece,
                "is the only tokenizer here, in sentencepiece's or tiktoken's own form, which is not read",
                "save the tokenizer once with transformers (`save_pretrained`), which writes a tokenizer.json",
            ));
        }
        Ok(None)
    }

    /// The tokenizer inside a GGUF file; `None` if it has none.
    ///
    /// # Errors
    /// A kind of tokenizer that the supported architectures do not use, or keys that contradict each other.
    pub fn from_gguf(metadata: &Metadata) -> Result<Option<Self>> {
        gguf::read(metadata)
    }

    /// The same tokenizer, for which special tokens in a text are ordinary text.
    pub fn literal(&self) -> Self {
        let p = &*self.0;
        let mut inner = p.inner.clone();
        inner.set_encode_special_tokens(true);
        Self(Arc::new(Parts {
            inner,
            char_bytes: p.char_bytes.clone(),
            eos: p.eos.clone(),
            special: p.special.clone(),
            chat: p.chat.clone(),
            config: p.config.clone(),
            special_map: p.special_map.clone(),
            template_files: p.template_files.clone(),
            ..*p
        }))
    }

    /// Loads a `tokenizer.json` held in memory; without the files beside it there is no BOS and no EOS.
    ///
    /// # Errors
    /// Malformed content.
    pub fn from_bytes(json: &[u8]) -> Result<Self> {
        let path = Path::new("tokenizer.json");
        Self::assemble(parse(path, json)?, Files::default(), path)
    }

    /// `path` is the file that `inner` was read from.
    fn assemble(inner: Inner, files: Files, path: &Path) -> Result<Self> {
        let sources = added::Sources::read(&files)?;
        Self::with_sources(inner, files, &sources, path)
    }

    fn with_sources(mut inner: Inner, files: Files, sources: &added::Sources, path: &Path) -> Result<Self> {
        // Truncation and padding saved in tokenizer.json are leftovers of somebody's training run: they would cut
        // or pad every text without a word. Callers here decide lengths themselves. Dropout is for training, too.
        guard("resetting truncation", || inner.with_truncation(None).map(|_| ()))?;
        inner.with_padding(None);
        if matches!(inner.get_model(), ModelWrapper::BPE(bpe) if bpe.dropout.is_some()) {
            let mut model = inner.get_model().clone();
            if let ModelWrapper::BPE(bpe) = &mut model {
                bpe.dropout = None;
            }
            inner.with_model(model);
        }
        let growth = limits::growth(&inner)?.map_err(|rule| {
            TokenizerError::unsupported(
                path,
                rule,
                "no known tokenizer does; is the file from a source you trust?",
            )
        })?;
        sources.add_to(&mut inner, &files)?;
        inner.set_encode_special_tokens(files.tokenizer_config["split_special_tokens"] == true);
        let alphabet = Alphabet::of(inner.get_decoder())?;
        let ids = guard("reading the vocabulary", || Ok::<_, String>(inner.get_vocab(true)))?;
        let size = ids.values().max().map_or(0, |&id| id as usize + 1);
        let (bos, eos) = files.ids(|token| inner.token_to_id(token))?;
        Ok(Self(Arc::new(Parts {
            inner,
            alphabet,
            char_bytes: char_bytes(),
            bos,
            eos,
            size,
            growth,
            special: sources.names(),
            chat: files.chat_templates()?,
            config: files.tokenizer_config,
            special_map: files.special_map,
            template_files: files.templates,
        })))
    }

    /// The ids of `text`; special tokens in the text are read as such. With `add_special`, the tokenizer's
    /// post-processor adds BOS and EOS where it has them; one that the text itself already begins (or ends) with is
    /// not added again. A text made by a chat template wants no `add_special`: the template writes what it needs.
    ///
    /// # Errors
    /// When the tokenizer cannot represent the text (no unknown token) or is damaged.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        if !limits::fits(self.0.growth, text.len()) {
            return Err(TokenizerError::Backend {
                action: "encoding",
                reason: format!("the normaliser may make {} bytes of one", self.0.growth),
            });
        }
        let encoding = guard("encoding", || self.0.inner.encode_fast(text, add_special))?;
        let (ids, added) = (encoding.get_ids(), encoding.get_special_tokens_mask());
        let n = ids.len();
        if n < 2 || added.len() != n {
            return Ok(ids.to_vec());
        }
        // The mask marks what the post-processor added; the same token as text carries no mark.
        let doubled = |outer: usize, inner: usize| added[outer] == 1 && added[inner] == 0 && ids[outer] == ids[inner];
        let front = doubled(0, 1);
        // Where BOS and EOS are one token, a single one in the text stands for the beginning only.
        let back = doubled(n - 1, n - 2) && !(front && n == 3);
        Ok(ids[usize::from(front)..n - usize::from(back)].to_vec())
    }

    /// The text of `ids`; bytes that are not UTF-8 become U+FFFD. `skip_special` leaves out special tokens. An id
    /// without a token (a model whose embedding is padded beyond the vocabulary can produce one) is the empty text.
    ///
    /// # Errors
    /// When the tokenizer is damaged.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        // Some decoders cannot have nothing to decode.
        if !ids
            .iter()
            .any(|&id| self.has(id) && !(skip_special && self.is_special(id)))
        {
            return Ok(String::new());
        }
        guard("decoding", || self.0.inner.decode(ids, skip_special))
    }

    /// One more than the largest id in use, added tokens included: the least height an embedding needs.
    pub fn vocab_size(&self) -> usize {
        self.0.size
    }

    /// The begin-of-sequence id, where the folder names one.
    pub fn bos_id(&self) -> Option<u32> {
        self.0.bos
    }

    /// All end-of-sequence ids, most authoritative first (generation configuration, model configuration, tokenizer).
    pub fn eos_ids(&self) -> &[u32] {
        &self.0.eos
    }

    /// The special tokens by the names they have in a chat template: `bos_token`, `eos_token`, `pad_token` and any
    /// other `…_token` that the tokenizer names.
    pub fn special_tokens(&self) -> &BTreeMap<String, String> {
        &self.0.special
    }

    /// The chat template, where there is one: the only one, or of several the one named "default".
    pub fn chat_template(&self) -> Option<&str> {
        let only = self.0.chat.values().next().filter(|_| self.0.chat.len() == 1);
        self.0.chat.get("default").or(only).map(String::as_str)
    }

    /// All chat templates by name.
    pub fn chat_templates(&self) -> &BTreeMap<String, String> {
        &self.0.chat
    }

    /// The id of a token spelled exactly so.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.0.inner.token_to_id(token)
    }

    /// Whether `id` is a special token (left out by `decode` with `skip_special`).
    pub fn is_special(&self, id: u32) -> bool {
        self.token(id)
            .is_ok_and(|token| self.0.inner.get_added_vocabulary().is_special_token(&token))
    }

    /// The bytes one token stands for, as far as one token alone tells (a decoder that trims the first space of a
    /// whole text is not applied).
    ///
    /// # Errors
    /// [`TokenizerError::OutOfRange`] for an id without a token.
    pub fn token_bytes(&self, id: u32) -> Result<Vec<u8>> {
        let token = self.token(id)?;
        Ok(match self.0.alphabet {
            Alphabet::ByteLevel => {
                let byte = |c: char| self.0.char_bytes.get(c as usize).copied().flatten();
                // The decoder's own rule: a token with one foreign character (an added token) stands for itself.
                token
                    .chars()
                    .map(byte)
                    .collect::<Option<Vec<u8>>>()
                    .unwrap_or_else(|| token.into_bytes())
            }
            Alphabet::Pieces { space, bytes, .. } => match byte_piece(&token) {
                Some(byte) if bytes => vec![byte],
                _ if space && !self.is_special(id) => token.replace('▁', " ").into_bytes(),
                _ => token.into_bytes(),
            },
        })
    }

    /// The content of a `tokenizer.json` that equals this tokenizer; the same tokenizer gives the same bytes, so its
    /// hash identifies the tokenizer.
    ///
    /// # Errors
    /// When the parts cannot be written as JSON.
    pub fn to_json(&self) -> Result<String> {
        guard("serialising", || self.0.inner.to_string(true))
    }

    /// Writes `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and chat templates into an existing
    /// `dir`, so that stock loaders (`PreTrainedTokenizerFast`) read them.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        write(dir.join("tokenizer.json"), &self.to_json()?)?;
        for (name, value) in [
            ("tokenizer_config.json", &self.0.config),
            ("special_tokens_map.json", &self.0.special_map),
        ] {
            // Absent at load stays absent: an invented file would say more than the source did.
            if !value.is_null() {
                write(dir.join(name), &format!("{value:#}\n"))?;
            }
        }
        for (name, template) in &self.0.template_files {
            let path = dir.join(name);
            if let Some(folder) = path.parent().filter(|&folder| folder != dir) {
                std::fs::create_dir_all(folder).map_err(|source| TokenizerError::Io {
                    path: folder.to_owned(),
                    source,
                })?;
            }
            write(path, template)?;
        }
        Ok(())
    }

    fn alphabet(&self) -> Alphabet {
        self.0.alphabet
    }

    /// Whether `id` has a token.
    fn has(&self, id: u32) -> bool {
        self.token(id).is_ok()
    }

    /// The byte that `id` is the fallback piece of, where the decoder knows such pieces.
    fn byte_of(&self, id: u32) -> Option<u8> {
        self.token(id).ok().as_deref().and_then(byte_piece)
    }

    fn token(&self, id: u32) -> Result<String> {
        self.0
            .inner
            .id_to_token(id)
            .ok_or(TokenizerError::OutOfRange { id, size: self.0.size })
    }
}

fn write(path: PathBuf, text: &str) -> Result<()> {
    std::fs::write(&path, text).map_err(|source| TokenizerError::Io { path, source })
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Inner> {
    guard("loading", || Inner::from_bytes(bytes)).map_err(|error| TokenizerError::Malformed {
        path: path.to_owned(),
        reason: match error {
            TokenizerError::Backend { reason, .. } => format!("not a tokenizer: {reason}"),
            other => other.to_string(),
        },
    })
}
