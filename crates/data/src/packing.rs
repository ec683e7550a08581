//! One long stream of token ids, and its cache on disk.
//!
//! Owns the packing of documents (separated by an id the caller names), proportional mixing and the `.tokens` file.
//! Tokenising is the slow part of starting a run, so the result is kept under a hash of everything it depends on: the
//! texts, the tokenizer and the separator. A cache that fails any check is never used. It must not know how ids are
//! made: encoding is a closure.
//!
//! File layout, little endian: magic `OUNCETOK`, version u32, key `[32]`, count u64, ids u32 x count, SHA-256 `[32]` of
//! all bytes before it.

use std::borrow::Borrow;
use std::fmt::Display;
use std::ops::Range;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{DataError, Result, io, write_whole};
use crate::readers::Document;

const MAGIC: &[u8; 8] = b"OUNCETOK";
const VERSION: u32 = 1;
const HEADER: usize = 8 + 4 + 32 + 8;

/// Most times [`TokenStream::mix`] repeats a corpus; beyond that the weights are surely a mistake.
const MOST_REPEATS: f64 = 100.0;

/// A SHA-256.
pub type Hash = [u8; 32];

/// Small vocabularies take half the memory.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Ids {
    Narrow(Vec<u16>),
    Wide(Vec<u32>),
}

/// Packed token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenStream(Ids);

impl From<Vec<u32>> for TokenStream {
    fn from(ids: Vec<u32>) -> Self {
        match ids.iter().map(|&id| u16::try_from(id)).collect() {
            Ok(narrow) => Self(Ids::Narrow(narrow)),
            Err(_) => Self(Ids::Wide(ids)),
        }
    }
}

impl TokenStream {
    /// Encodes `documents` in order, each followed by `eos` where one is given.
    ///
    /// # Errors
    /// The encoder's error, with the document's place; no ids at all.
    pub fn pack<E: Display>(
        documents: &[Document],
        eos: Option<u32>,
        encode: impl Fn(&str) -> std::result::Result<Vec<u32>, E>,
    ) -> Result<Self> {
        Self::pack_all(documents.iter().map(Ok), eos, encode)
    }

    /// As [`TokenStream::pack`], of documents that need not be in memory together.
    ///
    /// # Errors
    /// As `pack`, and those of the documents.
    pub fn pack_all<D: Borrow<Document>, E: Display>(
        documents: impl IntoIterator<Item = Result<D>>,
        eos: Option<u32>,
        encode: impl Fn(&str) -> std::result::Result<Vec<u32>, E>,
    ) -> Result<Self> {
        let (mut ids, mut read) = (Vec::new(), 0);
        for document in documents {
            let document = document?;
            let document = document.borrow();
            read += 1;
            let fresh = encode(&document.text).map_err(|error| DataError::Encode {
                document: document.place(),
                reason: error.to_string(),
            })?;
            if !fresh.is_empty() {
                ids.extend(fresh);
                ids.extend(eos);
            }
        }
        if ids.is_empty() {
            return Err(DataError::Empty {
                what: format!("{read} documents after encoding"),
            });
        }
        Ok(ids.into())
    }

    /// As [`TokenStream::pack`], but first looks into `cache_dir` (created if absent) and leaves the result there.
    /// `tokenizer` is whatever identifies the encoder (the bytes of its file). A damaged cache file is rebuilt.
    ///
    /// # Errors
    /// As `pack`; a folder that cannot be written.
    pub fn pack_cached<E: Display>(
        documents: &[Document],
        tokenizer: &[u8],
        eos: Option<u32>,
        cache_dir: &Path,
        encode: impl Fn(&str) -> std::result::Result<Vec<u32>, E>,
    ) -> Result<Self> {
        let key = cache_key(documents, tokenizer, eos);
        let path = cache_path(cache_dir, &key);
        if let Ok(stream) = Self::load(&path, &key) {
            return Ok(stream);
        }
        let stream = Self::pack(documents, eos, encode)?;
        stream.save(&path, &key)?;
        Ok(stream)
    }

    /// Concatenates `corpora` so that each has its weight's share of the tokens. The corpus longest for its weight
    /// appears once; the others are repeated, the last time in part. Nothing is left out.
    ///
    /// # Errors
    /// Weights that are not positive, an empty corpus, or weights that would repeat one more than a hundred times.
    pub fn mix(corpora: &[(&TokenStream, f64)]) -> Result<Self> {
        let mut unit = 0.0f64;
        for (at, (stream, weight)) in corpora.iter().enumerate() {
            if !(weight.is_finite() && *weight > 0.0) {
                return Err(DataError::Setting {
                    rule: format!("corpus {at}: weight {weight} must be a positive number"),
                    hint: "",
                });
            }
            if stream.is_empty() {
                return Err(DataError::Empty {
                    what: format!("corpus {at} of the mixture"),
                });
            }
            unit = unit.max(stream.len() as f64 / weight);
        }
        let mut ids = Vec::new();
        for (at, (stream, weight)) in corpora.iter().enumerate() {
            let repeats = unit * weight / stream.len() as f64;
            if repeats > MOST_REPEATS {
                return Err(DataError::Setting {
                    rule: format!(
                        "corpus {at}: weight {weight} would repeat its {} tokens {repeats:.0} times",
                        stream.len()
                    ),
                    hint: "lower the weight",
                });
            }
            let mut left = ((unit * weight).round() as usize).max(stream.len());
            while left > 0 {
                let take = left.min(stream.len());
                ids.extend(stream.slice(0..take));
                left -= take;
            }
        }
        if ids.is_empty() {
            return Err(DataError::Empty {
                what: "a mixture of no corpora".into(),
            });
        }
        Ok(ids.into())
    }

    /// Number of ids.
    pub fn len(&self) -> usize {
        match &self.0 {
            Ids::Narrow(ids) => ids.len(),
            Ids::Wide(ids) => ids.len(),
        }
    }

    /// Whether there is no id.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The ids of `range`, which must lie within the stream.
    pub fn slice(&self, range: Range<usize>) -> Vec<u32> {
        match &self.0 {
            Ids::Narrow(ids) => ids[range].iter().map(|&id| u32::from(id)).collect(),
            Ids::Wide(ids) => ids[range].to_vec(),
        }
    }

    /// The largest id, to be checked against a model's vocabulary before training starts.
    pub fn max_id(&self) -> Option<u32> {
        match &self.0 {
            Ids::Narrow(ids) => ids.iter().max().map(|&id| u32::from(id)),
            Ids::Wide(ids) => ids.iter().max().copied(),
        }
    }

    /// SHA-256 of the ids; a checkpoint keeps it to refuse other data on resume.
    pub fn hash(&self) -> Hash {
        let mut hasher = Sha256::new();
        for at in (0..self.len()).step_by(1 << 16) {
            for id in self.slice(at..self.len().min(at + (1 << 16))) {
                hasher.update(id.to_le_bytes());
            }
        }
        hasher.finalize().into()
    }

    /// Writes the stream to `path` (through a neighbour and a rename: readers never see half a file).
    ///
    /// # Errors
    /// When the folder or file cannot be written.
    pub fn save(&self, path: &Path, key: &Hash) -> Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(io(folder))?;
        }
        write_whole(path, &self.to_bytes(key))
    }

    /// Loads what [`TokenStream::save`] wrote under the same `key`.
    ///
    /// # Errors
    /// A missing, damaged, truncated or foreign file.
    pub fn load(path: &Path, key: &Hash) -> Result<Self> {
        let (found, stream) = Self::from_bytes(path, &std::fs::read(path).map_err(io(path))?)?;
        if found != *key {
            return Err(DataError::Cache {
                path: path.to_owned(),
                reason: "belongs to other data".into(),
            });
        }
        Ok(stream)
    }

    /// The content of a `.tokens` file.
    pub fn to_bytes(&self, key: &Hash) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + 4 * self.len() + 32);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(key);
        bytes.extend((self.len() as u64).to_le_bytes());
        match &self.0 {
            Ids::Narrow(ids) => ids.iter().for_each(|&id| bytes.extend(u32::from(id).to_le_bytes())),
            Ids::Wide(ids) => ids.iter().for_each(|&id| bytes.extend(id.to_le_bytes())),
        }
        Self::sealed(bytes)
    }

    /// `content` followed by its SHA-256, as a `.tokens` file ends.
    pub fn sealed(mut content: Vec<u8>) -> Vec<u8> {
        let sum = Sha256::digest(&content);
        content.extend(sum);
        content
    }

    /// Key and stream of a `.tokens` file; `path` is for messages.
    ///
    /// # Errors
    /// Anything but an intact file of this version.
    pub fn from_bytes(path: &Path, bytes: &[u8]) -> Result<(Hash, Self)> {
        let refuse = |reason: String| DataError::Cache {
            path: path.to_owned(),
            reason,
        };
        let Some((head, rest)) = bytes.split_first_chunk::<HEADER>() else {
            return Err(refuse(format!("{} bytes are too short for a token cache", bytes.len())));
        };
        if &head[..8] != MAGIC {
            return Err(refuse("not a token cache (wrong magic)".into()));
        }
        let version = u32::from_le_bytes(std::array::from_fn(|i| head[8 + i]));
        if version != VERSION {
            return Err(refuse(format!("version {version}, this program writes {VERSION}")));
        }
        let key: Hash = std::array::from_fn(|i| head[12 + i]);
        let count = u64::from_le_bytes(std::array::from_fn(|i| head[44 + i]));
        // Compared before anything is allocated: the count is untrusted.
        if count.checked_mul(4).and_then(|n| n.checked_add(32)) != Some(rest.len() as u64) {
            return Err(refuse(format!("{count} ids promised, {} bytes follow", rest.len())));
        }
        let (body, sum) = rest.split_at(rest.len() - 32);
        if Sha256::digest(&bytes[..bytes.len() - 32])[..] != *sum {
            return Err(refuse("checksum mismatch".into()));
        }
        let ids: Vec<u32> = body
            .as_chunks::<4>()
            .0
            .iter()
            .map(|&id| u32::from_le_bytes(id))
            .collect();
        Ok((key, ids.into()))
    }
}

/// What a token cache depends on: every text, the tokenizer and the separator. Paths do not matter.
pub fn cache_key(documents: &[Document], tokenizer: &[u8], eos: Option<u32>) -> Hash {
    let mut hasher = Sha256::new();
    hasher.update(VERSION.to_le_bytes());
    hasher.update(Sha256::digest(tokenizer));
    hasher.update(eos.map_or(u64::MAX, u64::from).to_le_bytes());
    for document in documents {
        // Lengths keep ("ab", "c") apart from ("a", "bc").
        hasher.update((document.text.len() as u64).to_le_bytes());
        hasher.update(&document.text);
    }
    hasher.finalize().into()
}

/// `cache_dir/<key in hex>.tokens`.
pub fn cache_path(cache_dir: &Path, key: &Hash) -> PathBuf {
    cache_dir.join(format!("{}.tokens", hex(key)))
}

/// Lower-case hexadecimal.
pub fn hex(hash: &Hash) -> String {
    use std::fmt::Write as _;
    hash.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("invariant: writing to a String cannot fail");
        text
    })
}
