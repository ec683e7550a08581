//! The index of a checkpoint in shards: which file holds which tensor.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Component, Path},
};

use serde::{
    Deserialize,
    de::{Deserializer, MapAccess, Visitor},
};

use crate::error::{FormatError, Result};

/// `model.safetensors.index.json`, parsed and checked by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardIndex {
    /// Tensor name to file name, relative to the folder and within it.
    pub weight_map: BTreeMap<String, String>,
}

impl ShardIndex {
    /// Parses an index from the text of its file; `path` is for messages only.
    ///
    /// # Errors
    /// Not JSON, no `weight_map` of strings, a tensor listed twice, no tensor at all, or a file outside of the folder.
    pub fn parse(path: &Path, json: &[u8]) -> Result<Self> {
        const HINT: &str = "the index is damaged or was edited; download it again";
        let raw: RawIndex = serde_json::from_slice(json)
            .map_err(|e| FormatError::place(path, format!("is not a valid shard index: {e}"), HINT))?;
        let mut weight_map = BTreeMap::new();
        for (tensor, file) in raw.weight_map.0 {
            if !stays_within(&file) {
                let rule = format!("its file {file:?} is not a plain path within the folder");
                let hint = "an index must not reach outside of its folder; do not trust this checkpoint";
                return Err(FormatError::tensor(path, &tensor, rule, hint));
            }
            if let Some(other) = weight_map.get(&tensor) {
                let rule = format!("is listed twice, for {other} and for {file}");
                return Err(FormatError::tensor(path, &tensor, rule, HINT));
            }
            weight_map.insert(tensor, file);
        }
        if weight_map.is_empty() {
            return Err(FormatError::key(path, "weight_map", "lists no tensors", HINT));
        }
        Ok(Self { weight_map })
    }

    /// The files it names, each once, in the order of their names.
    pub fn files(&self) -> Vec<&str> {
        let mut files: Vec<&str> = self.weight_map.values().map(String::as_str).collect();
        files.sort_unstable();
        files.dedup();
        files
    }
}

/// Whether `file` is made of plain names only: no root, no "..", nothing empty. Links are allowed, since the cache of the
/// Hugging Face hub is made of them, and whoever can place a link can place a file.
fn stays_within(file: &str) -> bool {
    let mut components = Path::new(file).components().peekable();
    components.peek().is_some() && components.all(|c| matches!(c, Component::Normal(_)))
}

#[derive(Deserialize)]
struct RawIndex {
    weight_map: Pairs,
}

/// A JSON object of strings, with duplicate keys kept.
struct Pairs(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct PairsVisitor;
        impl<'de> Visitor<'de> for PairsVisitor {
            type Value = Pairs;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of file names")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(PairsVisitor)
    }
}
