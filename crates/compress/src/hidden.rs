//! Hidden states of all calibration tokens, in files, and the keys and values of the one sequence that is run.
//!
//! Before layer l runs, `hidden-l.safetensors` holds the residual stream of every token, sequence after sequence. The
//! layer reads it a piece at a time and writes the file of layer l + 1. So these buffers, the only ones that grow with
//! the calibration set, are file-backed like the weights, and a killed job finds them again.

use crate::error::CompressError;
use ounce_formats::{Dtype, Region, SafetensorsFile, SafetensorsWriter, TensorSpec, fsx};
use ounce_model::{
    Cache, KvCache, Model, Result as ModelResult,
    cache::{CacheType, Kept},
};
use ounce_tensor::{DType, Tensor};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

const NAME: &str = "hidden_states";

fn path(dir: &Path, layer: usize) -> PathBuf {
    dir.join(format!("hidden-{layer}.safetensors"))
}

/// Hidden states `[N, d]` before a layer, mapped.
pub(crate) struct HiddenStates {
    region: Region,
    d: usize,
}

impl HiddenStates {
    /// Those before `layer`, of `tokens` tokens.
    pub(crate) fn open(dir: &Path, layer: usize, tokens: usize, d: usize) -> Result<Self, CompressError> {
        let path = path(dir, layer);
        let region = SafetensorsFile::open(&path)?.region(NAME)?;
        if region.dtype != Dtype::F32 || region.shape != [tokens, d] {
            return Err(CompressError::input(
                path.display().to_string(),
                format!("holds {:?}, the calibration has {:?}", region.shape, [tokens, d]),
                "--overwrite starts again",
            ));
        }
        Ok(Self { region, d })
    }

    /// `[len, d]`: tokens `start..start + len`.
    pub(crate) fn piece(&self, start: usize, len: usize) -> Result<Tensor, CompressError> {
        let row = self.d * size_of::<f32>();
        let bytes = &self.region.bytes()[start * row..(start + len) * row];
        Ok(Tensor::from_le_bytes(bytes, DType::F32, &[len, self.d])?)
    }
}

/// Takes the hidden states before a layer, in order of the tokens.
pub(crate) struct HiddenWriter(SafetensorsWriter);

impl HiddenWriter {
    pub(crate) fn create(dir: &Path, layer: usize, tokens: usize, d: usize) -> Result<Self, CompressError> {
        let spec = TensorSpec::new(NAME, Dtype::F32, [tokens, d]);
        let writer = SafetensorsWriter::create(&path(dir, layer), vec![spec], &BTreeMap::new())?;
        Ok(Self(writer))
    }

    pub(crate) fn write(&mut self, x: &Tensor) -> Result<(), CompressError> {
        self.0.write(NAME, x.bytes())?;
        Ok(())
    }

    /// Returns when all of it is on the disk.
    pub(crate) fn finish(self) -> Result<(), CompressError> {
        Ok(self.0.finish()?)
    }
}

/// Removes the hidden states before `layer`; it is no fault if there are none.
pub(crate) fn remove(dir: &Path, layer: usize) -> Result<(), CompressError> {
    Ok(fsx::remove(&path(dir, layer))?)
}

/// The cache of one sequence while a single layer is run on it, piece by piece. In f32 whatever the weights are: a
/// sequence that is cut must give what the whole one gives.
#[derive(Clone)]
pub(crate) struct OneLayer(KvCache);

impl OneLayer {
    /// For a sequence of `tokens` tokens.
    pub(crate) fn new(model: &Model, tokens: usize) -> Self {
        let c = &model.config;
        Self(KvCache::new(CacheType::F32, vec![None], c.kv_heads, c.head_dim, tokens))
    }
}

impl Cache for OneLayer {
    fn append(&mut self, _layer: usize, keys: &Tensor, values: &Tensor) -> ModelResult<()> {
        self.0.append(0, keys, values)
    }
    fn read(&self, _layer: usize) -> ModelResult<Kept<'_>> {
        self.0.read(0)
    }
    fn len(&self) -> usize {
        self.0.len()
    }
    fn truncate(&mut self, to: usize) -> ModelResult<()> {
        self.0.truncate(to)
    }
    fn snapshot(&self) -> Box<dyn Cache> {
        Box::new(self.clone())
    }
    fn bytes(&self) -> usize {
        self.0.bytes()
    }
}
