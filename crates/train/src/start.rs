//! What a run starts from: a fresh model of the recipe's shape, or a checkpoint.
//!
//! Everything but weights is known before any is read, so that a run can be refused, or its cost told, first.

use crate::{
    error::{Result, TrainError},
    recipe::Recipe,
};
use ounce_data::DataDir;
use ounce_model::{Model, ModelConfig, ModelError, OpenOptions, Opened, weights::FreshWeights};
use serde_json::Value;
use std::path::Path;

/// A model that can be built.
pub(crate) enum Start {
    /// Values drawn by the recipe's seed: the configuration, and the `config.json` it is exported with.
    Fresh(Box<ModelConfig>, Value),
    /// What `init` names.
    Checkpoint(Box<Opened>),
}

impl Start {
    /// What `recipe` asks for; `vocabulary` gives tokens and eos of a fresh model.
    ///
    /// # Errors
    /// If the recipe has neither `[model]` nor `init`, a value is out of range, or the checkpoint is none.
    pub(crate) fn of(
        recipe: &Recipe,
        data: &DataDir,
        vocabulary: impl FnOnce() -> Result<(usize, Option<u32>)>,
    ) -> Result<Self> {
        if let Some(init) = &recipe.init {
            let options = OpenOptions {
                widen: true,
                attention: recipe.attention.clone(),
            };
            return Ok(Self::Checkpoint(Box::new(Opened::folder(
                &data.expand(init)?,
                &options,
            )?)));
        }
        let Some(shape) = &recipe.model else {
            return Err(TrainError::Recipe {
                file: "recipe".into(),
                key: "model".into(),
                rule: "is missing".into(),
                hint: "give [model], or init = \"FOLDER\"".into(),
            });
        };
        let (size, eos) = vocabulary()?;
        let config = shape.to_config(size, eos, eos)?;
        Ok(Self::Fresh(Box::new(config), shape.to_json(size, eos, eos)))
    }

    /// Its configuration.
    pub(crate) fn config(&self) -> &ModelConfig {
        match self {
            Self::Fresh(config, _) => config,
            Self::Checkpoint(opened) => opened.config(),
        }
    }

    /// The `config.json` it is exported with.
    pub(crate) fn json(&self) -> &Value {
        match self {
            Self::Fresh(_, json) => json,
            Self::Checkpoint(opened) => opened.json(),
        }
    }

    /// The model. Values of a fresh one depend on the recipe's seed and the names of the tensors only.
    ///
    /// # Errors
    /// For anything wrong with the checkpoint's tensors: those that are missing, not used, or not finite.
    pub(crate) fn model(self, recipe: &Recipe) -> Result<Model> {
        match self {
            Self::Fresh(config, _) => {
                let weights = &mut FreshWeights {
                    seed: recipe.run.seed,
                    std: config.initializer_range,
                };
                Ok(Model::new(*config, weights)?)
            }
            Self::Checkpoint(opened) => {
                let mut model = opened.model()?;
                check_finite(opened.checkpoint().path(), &mut model)?;
                Ok(model)
            }
        }
    }
}

/// Training from NaN would go on for hours, or end with a message about the learning rate.
fn check_finite(folder: &Path, model: &mut Model) -> Result<()> {
    let mut broken = None;
    model.visit(&mut |p| {
        let finite = p.tensor.values::<f32>().is_none_or(|v| v.iter().all(|x| x.is_finite()));
        if !finite && broken.is_none() {
            broken = Some(p.name.clone());
        }
    });
    let Some(tensor) = broken else { return Ok(()) };
    Err(ModelError::Weight {
        file: folder.display().to_string(),
        tensor,
        rule: "holds values that are not finite".into(),
        hint: "`ounce inspect MODEL --scan` lists all of them; start from an undamaged checkpoint".into(),
    }
    .into())
}
