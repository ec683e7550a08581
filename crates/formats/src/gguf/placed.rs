//! The tensors of a GGUF file under the names, and in the order, that others know them by.

use std::{path::Path, sync::Arc};

use ounce_kernels::mapped::MappedFile;
use serde_json::Value;

use super::{DAMAGED, Gguf};
use crate::{
    checkpoint::Checkpoint,
    error::{FormatError, Result},
    safetensors::{Header, SafetensorsFile, TensorInfo},
};

/// Where a tensor of a checkpoint is found in a GGUF file.
#[derive(Debug, Clone)]
pub struct Placed {
    /// Its name in the checkpoint.
    pub name: String,
    /// The name of the tensor in the file that holds it.
    pub source: String,
    /// Which entry of the first dimension it is, where the file stacks several.
    pub entry: Option<usize>,
    /// Where the rows of heads lie in pairs (first half, second half, first half, …): the number of heads. They are
    /// copied, halves one after the other.
    pub paired_heads: Option<usize>,
    /// A vector that is a matrix of one row elsewhere.
    pub one_row: bool,
}

impl Gguf {
    /// The tensors as a checkpoint with the configuration `config`. What is in order stays in the file.
    ///
    /// # Errors
    /// A tensor is not in the file, has no such entry or is not made of such heads, or a name is given twice.
    pub fn checkpoint(&self, config: Value, placed: &[Placed]) -> Result<Checkpoint> {
        let mut shards = Vec::new();
        for part in self.parts() {
            let mut tensors = Vec::new();
            for placed in placed {
                let Some(info) = part.header().info(&placed.source) else {
                    continue;
                };
                let info = entry(part.path(), info, placed)?;
                match placed.paired_heads {
                    Some(heads) => {
                        let bytes = &part.region(&placed.source)?.file[info.range.clone()];
                        shards.push(unpaired(part.path(), &info, bytes, heads)?);
                    }
                    None => tensors.push(info),
                }
            }
            let file = match part.names().next() {
                Some(name) => part.region(name)?.file,
                None => continue,
            };
            shards.push(SafetensorsFile::listed(file, Header::listed(part.path(), tensors)?));
        }
        if let Some(missing) = placed.iter().find(|p| !self.contains(&p.source)) {
            return Err(FormatError::tensor(self.path(), &missing.source, "is missing", DAMAGED));
        }
        Checkpoint::of(self.path(), config, shards)
    }
}

fn entry(path: &Path, info: &TensorInfo, placed: &Placed) -> Result<TensorInfo> {
    let mut info = TensorInfo {
        name: placed.name.clone(),
        ..info.clone()
    };
    if let Some(entry) = placed.entry {
        let entries = info.shape.first().copied().unwrap_or(0);
        if entry >= entries {
            let rule = format!("stacks {entries} matrices, number {entry} is needed");
            return Err(FormatError::tensor(path, &placed.source, rule, DAMAGED));
        }
        info.shape.remove(0);
        let len = info.range.len() / entries;
        let start = info.range.start + entry * len;
        info.range = start..start + len;
    }
    if placed.one_row && info.shape.len() == 1 {
        info.shape.insert(0, 1);
    }
    Ok(info)
}

/// A file in memory that holds the tensor with the rows of its heads in order.
fn unpaired(path: &Path, info: &TensorInfo, bytes: &[u8], heads: usize) -> Result<SafetensorsFile> {
    let rows = info.shape.first().copied().unwrap_or(0);
    if heads == 0 || rows == 0 || !rows.is_multiple_of(2 * heads) {
        let rule = format!("has {rows} rows, which are not {heads} heads of an even size");
        return Err(FormatError::tensor(path, &info.name, rule, DAMAGED));
    }
    let (size, len) = (rows / heads, bytes.len() / rows);
    let mut ordered = Vec::with_capacity(bytes.len());
    for head in 0..heads {
        for row in 0..size {
            let from = head * size + 2 * (row % (size / 2)) + row / (size / 2);
            ordered.extend_from_slice(&bytes[from * len..][..len]);
        }
    }
    let info = TensorInfo {
        range: 0..ordered.len(),
        ..info.clone()
    };
    let file = MappedFile::in_memory(ordered.len(), |memory| memory.copy_from_slice(&ordered))
        .map_err(FormatError::io(path, "take memory for its heads"))?;
    Ok(SafetensorsFile::listed(
        Arc::new(file),
        Header::listed(path, vec![info])?,
    ))
}
