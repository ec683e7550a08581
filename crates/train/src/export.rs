//! A language model as a Hugging Face folder: weights, configuration, tokenizer, and what came with the model it was made
//! from.

use crate::{
    checkpoint::write_json,
    error::Result,
    recipe::{Export, Recipe},
};
use ounce_formats::{Dtype, SafetensorsWriter, TensorSpec, fsx};
use ounce_model::{DTYPE_KEYS, Model, ModelError, Tokenizer};
use ounce_tensor::{DType, Tensor};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

/// Everything but weights that an export carries.
pub(crate) struct Exporter {
    /// The `config.json`.
    pub(crate) config: Value,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) recipe: Recipe,
    /// For the model card.
    pub(crate) command_line: String,
    /// The folder that `init` names.
    pub(crate) base: Option<PathBuf>,
}

/// What a model carries besides weights, configuration and tokenizer: how it is prompted, and whose it is.
const CARRIED: [&str; 5] = [
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "added_tokens.json",
    "tokenizer.model",
];

/// Beginnings of the names of legal texts, which go with a work.
const LEGAL: [&str; 4] = ["LICENSE", "LICENCE", "NOTICE", "USE_POLICY"];

/// The name under which the base model's own card is kept.
const BASE_CARD: &str = "README.base.md";

impl Exporter {
    /// Writes the model into the existing folder `dir`.
    pub(crate) fn write(&self, model: &mut Model, dir: &Path) -> Result<()> {
        let dtype = match self.recipe.run.export {
            Export::Bf16 => (DType::BF16, Dtype::BF16, "bfloat16"),
            Export::F32 => (DType::F32, Dtype::F32, "float32"),
        };
        let mut config = self.config.clone();
        config["dtype"] = dtype.2.into();
        for key in DTYPE_KEYS {
            // What the model continued from said may be of another type.
            if let Some(said) = config.get_mut(key) {
                *said = dtype.2.into();
            }
        }
        write_json(&dir.join("config.json"), &config)?;
        self.carry(dir)?;
        if !dir.join("generation_config.json").exists() {
            write_json(
                &dir.join("generation_config.json"),
                &json!({ "bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"] }),
            )?;
        }
        self.tokenizer.save(dir).map_err(ModelError::from)?;
        write_weights(model, dir, dtype.0, dtype.1)?;
        fsx::write_atomic(&dir.join("recipe.toml"), self.recipe.to_toml().as_bytes())?;
        Ok(fsx::write_atomic(&dir.join("README.md"), self.card(model).as_bytes())?)
    }

    /// Copies what the base model carries.
    fn carry(&self, dir: &Path) -> Result<()> {
        let Some(base) = &self.base else { return Ok(()) };
        let copy = |name: &str, to: &str| -> Result<()> {
            Ok(fsx::write_atomic(&dir.join(to), &fsx::read(&base.join(name))?)?)
        };
        for name in CARRIED {
            if base.join(name).is_file() {
                copy(name, name)?;
            }
        }
        if base.join("README.md").is_file() {
            copy("README.md", BASE_CARD)?;
        }
        for entry in fs::read_dir(base).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let legal = LEGAL.iter().any(|l| name.to_ascii_uppercase().starts_with(l));
            if legal && entry.path().is_file() {
                copy(&name, &name)?;
            }
        }
        Ok(())
    }

    /// What the model is and what it was made from.
    fn card(&self, model: &mut Model) -> String {
        let mut card = format!(
            "# {} parameters, trained with Ounce {}\n\n",
            model.parameters(),
            env!("CARGO_PKG_VERSION")
        );
        if let (Some(base), Some(init)) = (&self.base, &self.recipe.init) {
            let _ = write!(card, "Trained on from `{init}`");
            if let Some(spec) = &self.recipe.attention {
                let _ = write!(card, ", with its attention replaced by `{spec}`");
            }
            card += ".";
            if base.join("README.md").is_file() {
                let _ = write!(
                    card,
                    " Its own card is in `{BASE_CARD}`; its licence holds for this model, too."
                );
            }
            card += "\n\n";
        }
        if let Some(method) = &model.config.attention {
            let _ = write!(card, "Attention: {} ({}).\n\n", method.key(), method.describe());
        }
        let _ = write!(
            card,
            "```\n{}\n```\n\nThe recipe is in `recipe.toml`, every step in `metrics.jsonl`.\n",
            self.command_line
        );
        card
    }
}

fn write_weights(model: &mut Model, dir: &Path, dtype: DType, stored: Dtype) -> Result<()> {
    let mut specs = Vec::new();
    let mut tensors: Vec<Tensor> = Vec::new();
    model.visit(&mut |p| {
        specs.push(TensorSpec::new(p.name.clone(), stored, p.tensor.shape()));
        tensors.push(p.tensor.detach());
    });
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut writer = SafetensorsWriter::create(&dir.join("model.safetensors"), specs.clone(), &metadata)?;
    for (spec, tensor) in specs.iter().zip(tensors) {
        writer.write(&spec.name, tensor.cast(dtype)?.bytes())?;
    }
    writer.finish()?;
    Ok(())
}
