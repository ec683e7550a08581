//! Text to token ids and back.
//!
//! Owns everything between a string and the ids a model sees: loading a Hugging Face folder's `tokenizer.json`, the
//! begin- and end-of-sequence rules, the bytes behind one id, streaming decode, and training a small byte-level BPE.
//! It exists because the `tokenizers` crate knows one file only, while the truth about special tokens is spread over
//! five, and because that crate panics on some malformed files: every call into it passes through one guard that
//! turns a panic into an error. It knows no model: ids above the vocabulary (a padded embedding) are refused here.

mod special;
mod stream;
mod train;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use thiserror::Error;
use tokenizers::Tokenizer as Inner;

pub use stream::StreamDecoder;
pub use train::{SpecialTokens, train_byte_level_bpe};

/// What can go wrong between text and ids.
#[derive(Debug, Error)]
pub enum TokenizerError {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not what its name promises.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The broken rule.
        reason: String,
    },
    /// An id no token has.
    #[error("token id {id} has no token (ids run to {})", size.saturating_sub(1))]
    OutOfRange {
        /// The id.
        id: u32,
        /// One more than the largest id in use.
        size: usize,
    },
    /// The `tokenizers` crate refused, or panicked on, well-formed input.
    #[error("{action} failed: {reason}")]
    Backend {
        /// What was being done.
        action: &'static str,
        /// What it said.
        reason: String,
    },
    /// Training was asked for something impossible.
    #[error("cannot train a tokenizer: {0}")]
    Training(String),
}

impl TokenizerError {
    /// What the user can do about it, if anything is known.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Io { path, source } if source.kind() == std::io::ErrorKind::NotFound => {
                Some(if path.ends_with("tokenizer.json") {
                    "a model folder needs a tokenizer.json; sentencepiece-only folders must be converted first"
                } else {
                    "check the spelling of the path"
                })
            }
            Self::Io { .. } => None,
            Self::Malformed { .. } => Some("the file is damaged or was edited; download it again"),
            Self::OutOfRange { .. } => Some("does this tokenizer belong to the model?"),
            Self::Backend { .. } => Some("the tokenizer.json may be damaged"),
            Self::Training(_) => Some("see tokenizer.train_vocab and data.train in the recipe"),
        }
    }
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, TokenizerError>;

/// Runs one call into the `tokenizers` crate; its errors and its panics both become [`TokenizerError::Backend`].
fn guard<T, E: fmt::Display>(action: &'static str, call: impl FnOnce() -> std::result::Result<T, E>) -> Result<T> {
    // Unwind safety: the tokenizer is immutable but for its word cache, which is behind a lock and only ever skipped.
    let reason = match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
            .unwrap_or_else(|| "internal panic".into()),
    };
    Err(TokenizerError::Backend { action, reason })
}

/// How the text of one token turns into bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Alphabet {
    /// Each character stands for one byte (GPT-2's table); the decoder is nothing but that.
    ByteLevel,
    /// Pieces of text; `▁` may stand for a space, `<0x0A>` for a byte.
    Pieces { space: bool, bytes: bool },
}

struct Parts {
    inner: Inner,
    alphabet: Alphabet,
    /// GPT-2's table from character to byte, indexed by code point; `None` where a character stands for itself.
    char_bytes: Vec<Option<u8>>,
    bos: Option<u32>,
    eos: Vec<u32>,
    size: usize,
    /// `tokenizer_config.json` and `special_tokens_map.json` as found, written back unchanged by `save`.
    config: Value,
    special_map: Value,
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
    /// Loads `dir/tokenizer.json`. The ids of BOS and EOS come from `generation_config.json`, `config.json`,
    /// `tokenizer_config.json` and `special_tokens_map.json`, each optional.
    ///
    /// # Errors
    /// A missing or unreadable `tokenizer.json`; any of these files malformed.
    pub fn from_folder(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let path = dir.join("tokenizer.json");
        let bytes = std::fs::read(&path).map_err(|source| TokenizerError::Io {
            path: path.clone(),
            source,
        })?;
        let inner = parse(&path, &bytes)?;
        let files = special::Files::read(dir)?;
        Self::assemble(inner, files)
    }

    /// Loads a `tokenizer.json` held in memory; without the files beside it there is no BOS and no EOS.
    ///
    /// # Errors
    /// Malformed content.
    pub fn from_bytes(json: &[u8]) -> Result<Self> {
        Self::assemble(parse(Path::new("tokenizer.json"), json)?, special::Files::default())
    }

    fn assemble(mut inner: Inner, files: special::Files) -> Result<Self> {
        // Truncation and padding saved in tokenizer.json are leftovers of somebody's training run: they would cut
        // or pad every text without a word. Callers here decide lengths themselves.
        guard("resetting truncation", || inner.with_truncation(None).map(|_| ()))?;
        inner.with_padding(None);
        let alphabet = alphabet_of(inner.get_decoder())?;
        let ids = guard("reading the vocabulary", || Ok::<_, String>(inner.get_vocab(true)))?;
        let size = ids.values().max().map_or(0, |&id| id as usize + 1);
        let (bos, eos) = files.ids(|token| inner.token_to_id(token))?;
        let (config, special_map) = (files.tokenizer_config, files.special_map);
        let char_bytes = char_bytes();
        Ok(Self(Arc::new(Parts {
            inner,
            alphabet,
            char_bytes,
            bos,
            eos,
            size,
            config,
            special_map,
        })))
    }

    /// The ids of `text`. With `add_special`, the tokenizer's post-processor adds BOS and EOS where it has them; one
    /// that the text itself already begins (or ends) with is not added again.
    ///
    /// # Errors
    /// When the tokenizer cannot represent the text (no unknown token) or is damaged.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
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

    /// The text of `ids`; bytes that are not UTF-8 become U+FFFD. `skip_special` leaves out special tokens.
    ///
    /// # Errors
    /// [`TokenizerError::OutOfRange`] for an id without a token.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        for &id in ids {
            self.token(id)?;
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
            Alphabet::Pieces { space, bytes } => match byte_piece(&token) {
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

    /// Writes `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json` into an existing `dir`, so that
    /// stock loaders (`PreTrainedTokenizerFast`) read them.
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
        Ok(())
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

/// The byte of a byte-fallback piece: `<0x0A>` is 10.
fn byte_piece(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (hex.len() == 2).then(|| u8::from_str_radix(hex, 16).ok())?
}

/// The decoder's wrapper types do not expose their fields; what they serialise to does.
fn alphabet_of(decoder: Option<&tokenizers::DecoderWrapper>) -> Result<Alphabet> {
    let value = guard("reading the decoder", || serde_json::to_value(decoder))?;
    if value["type"] == "ByteLevel" {
        return Ok(Alphabet::ByteLevel);
    }
    let single = std::slice::from_ref(&value);
    let steps = value["decoders"].as_array().map_or(single, Vec::as_slice);
    let has = |name: &str| steps.iter().any(|step| step["type"] == name);
    let replaces = steps
        .iter()
        .any(|step| step["type"] == "Replace" && step["pattern"]["String"] == "▁");
    Ok(Alphabet::Pieces {
        space: has("Metaspace") || replaces,
        bytes: has("ByteFallback"),
    })
}

/// GPT-2's bijection: printable Latin-1 stands for itself, the other 68 bytes for the code points from 256 on.
fn byte_chars() -> [char; 256] {
    let mut next = 256;
    std::array::from_fn(|byte| {
        let code = if matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) {
            byte as u32
        } else {
            next += 1;
            next - 1
        };
        char::from_u32(code).expect("invariant: the table stays below U+0180")
    })
}

fn char_bytes() -> Vec<Option<u8>> {
    let mut table = vec![None; 512];
    for (byte, c) in byte_chars().into_iter().enumerate() {
        table[c as usize] = Some(byte as u8);
    }
    table
}
