//! The one door to a checkpoint: every command that reads a model comes through here, so that a tensor, a key or a layout
//! is understood, or refused, by all of them in the same way.
//!
//! Opening has two steps. [`Opened`] is a checkpoint whose files, names and configuration are checked, before any weight
//! is read: what costs are estimated from, and what tensors are copied from. [`Opened::model`] then builds the model.

use crate::{
    attention,
    config::ModelConfig,
    error::{ModelError, Result},
    gguf, layout,
    model::Model,
    weights::CheckpointWeights,
};
use ounce_formats::{Checkpoint, gguf::is_gguf};
use serde_json::Value;
use std::{path::Path, sync::Arc};

/// How a checkpoint is opened.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Widen 16-bit weights to f32 in memory: the reference arithmetic of `verify` and `logits`.
    pub widen: bool,
    /// The attention method, where it shall not be the configuration's: `NAME`, `NAME:key=value,…` or `full`. See
    /// [`attention::overridden`].
    pub attention: Option<String>,
}

impl OpenOptions {
    /// Weights widened to f32 in memory, all else as stored.
    pub fn widened() -> Self {
        Self {
            widen: true,
            attention: None,
        }
    }
}

/// A checkpoint that was opened and understood; no weight is read yet.
#[derive(Debug, Clone)]
pub struct Opened {
    checkpoint: Arc<Checkpoint>,
    json: Value,
    config: ModelConfig,
    widen: bool,
}

impl Opened {
    /// Opens the checkpoint at `path`: a Hugging Face folder, or a GGUF file (the first, if there are parts).
    ///
    /// # Errors
    /// For anything wrong with the files, the configuration or the options.
    pub fn new(path: &Path, options: &OpenOptions) -> Result<Self> {
        let mut checkpoint = gguf::open(path)?;
        let file = if path.is_dir() {
            checkpoint.path().join("config.json")
        } else {
            checkpoint.path().to_owned()
        };
        let file = file.display().to_string();
        let wanted = |json: &Value| match &options.attention {
            None => Ok(json.clone()),
            Some(spec) => attention::overridden(json, spec),
        };
        let stated = ModelConfig::parse(&file, &wanted(checkpoint.config())?)?;
        // What the files hold may correct what they state.
        layout::settle(&mut checkpoint, &stated)?;
        let json = wanted(checkpoint.config())?;
        let config = ModelConfig::parse(&file, &json)?;
        Ok(Self {
            checkpoint: Arc::new(checkpoint),
            json,
            config,
            widen: options.widen,
        })
    }

    /// [`Opened::new`] of a folder, for what copies or trains weights: those of a GGUF file may be blocks.
    ///
    /// # Errors
    /// As there, and if it is a GGUF file.
    pub fn folder(path: &Path, options: &OpenOptions) -> Result<Self> {
        if path.is_file() && is_gguf(path) {
            return Err(ModelError::Input {
                what: path.display().to_string(),
                rule: "is a GGUF file, which can be run and measured, but not rewritten or trained".into(),
                hint: "take the Hugging Face folder of this model".into(),
            });
        }
        Self::new(path, options)
    }

    /// The files: tensors by name.
    pub fn checkpoint(&self) -> &Arc<Checkpoint> {
        &self.checkpoint
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The configuration as `config.json` would say it, what [`OpenOptions::attention`] changed included.
    pub fn json(&self) -> &Value {
        &self.json
    }

    /// What the user should know of how the checkpoint was understood: what was chosen, taken away or ignored. One line each.
    pub fn notes(&self) -> Vec<String> {
        let files = self.checkpoint.notes().iter().cloned();
        files.chain(self.config.note()).collect()
    }

    /// Builds the model; weights stay file-backed unless they are widened.
    ///
    /// # Errors
    /// If a tensor is missing, has the wrong shape, is no weight, or is one that the model has no use for.
    pub fn model(&self) -> Result<Model> {
        let mut weights = CheckpointWeights::new(self.checkpoint.clone(), self.widen);
        let mut model = Model::new(self.config.clone(), &mut weights)?;
        weights.check_all_used(&self.config)?;
        model.set_notes(self.notes());
        Ok(model)
    }
}
