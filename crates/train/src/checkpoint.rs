//! Training checkpoints: `OUT/step-N/`, whole or not there at all.
//!
//! A checkpoint is a Hugging Face export plus `trainer.safetensors` (f32 masters and moments) and `state.json`. It is
//! written as `OUT/.step-N.partial/`, synced, and renamed; so a kill at any moment leaves either the old set of
//! checkpoints or the new one.

use crate::{
    error::{Result, TrainError},
    optimizer::Optimizer,
    recipe::{Export, Recipe},
};
use ounce_formats::{Dtype, SafetensorsFile, SafetensorsWriter, TensorSpec, as_bytes, fsx};
use ounce_model::{Model, ModelError, Tokenizer};
use ounce_tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// `state.json`: what a resumed run must agree with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// Layout of the folder.
    pub(crate) format: u32,
    /// Steps done.
    pub(crate) step: u64,
    /// Hash of the recipe.
    pub(crate) recipe: String,
    /// Hash of the packed training tokens.
    pub(crate) data: String,
    /// Instruction set that made the bits.
    pub(crate) instruction_set: String,
    /// Bytes of `metrics.jsonl` that belong to the steps done.
    pub(crate) metrics_bytes: u64,
}

/// Version of the folder's layout.
pub(crate) const FORMAT: u32 = 1;

fn folder_error<T>(place: &Path, rule: impl Into<String>, hint: &str) -> Result<T> {
    Err(TrainError::Folder {
        place: place.display().to_string(),
        rule: rule.into(),
        hint: hint.into(),
    })
}

/// The checkpoints in `out`, newest first.
pub(crate) fn list(out: &Path) -> Vec<(u64, PathBuf)> {
    let Ok(entries) = fs::read_dir(out) else {
        return Vec::new();
    };
    let mut found: Vec<(u64, PathBuf)> = entries
        .filter_map(|e| {
            let e = e.ok()?;
            let step = e.file_name().to_str()?.strip_prefix("step-")?.parse().ok()?;
            Some((step, e.path()))
        })
        .collect();
    found.sort_by(|a, b| b.cmp(a));
    found
}

/// Writes the model in Hugging Face form into the existing folder `dir`.
pub(crate) fn export(
    dir: &Path,
    model: &mut Model,
    config: &Value,
    tokenizer: &Tokenizer,
    export: Export,
) -> Result<()> {
    let dtype = match export {
        Export::Bf16 => (DType::BF16, Dtype::BF16, "bfloat16"),
        Export::F32 => (DType::F32, Dtype::F32, "float32"),
    };
    let mut config = config.clone();
    config["dtype"] = dtype.2.into();
    write_json(&dir.join("config.json"), &config)?;
    write_json(
        &dir.join("generation_config.json"),
        &json!({ "bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"] }),
    )?;
    tokenizer.save(dir).map_err(ModelError::from)?;
    let mut specs = Vec::new();
    let mut tensors: Vec<Tensor> = Vec::new();
    model.visit(&mut |p| {
        specs.push(TensorSpec::new(p.name.clone(), dtype.1, p.tensor.shape()));
        tensors.push(p.tensor.detach());
    });
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut writer = SafetensorsWriter::create(&dir.join("model.safetensors"), specs.clone(), &metadata)?;
    for (spec, tensor) in specs.iter().zip(tensors) {
        writer.write(&spec.name, tensor.cast(dtype.0)?.bytes())?;
    }
    writer.finish()?;
    Ok(())
}

pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value).unwrap_or_default();
    text.push(b'\n');
    Ok(fsx::write_atomic(path, &text)?)
}

/// Everything that is written at a step.
pub(crate) struct Snapshot<'a> {
    pub(crate) model: &'a mut Model,
    pub(crate) optimizer: &'a Optimizer,
    pub(crate) config: &'a Value,
    pub(crate) tokenizer: &'a Tokenizer,
    pub(crate) recipe: &'a Recipe,
    pub(crate) state: State,
}

/// Writes `OUT/step-N/` and removes all but the last `keep` checkpoints.
pub(crate) fn save(out: &Path, snapshot: Snapshot<'_>) -> Result<()> {
    let Snapshot {
        model,
        optimizer,
        config,
        tokenizer,
        recipe,
        state,
    } = snapshot;
    let partial = out.join(format!(".step-{}.partial", state.step));
    let target = out.join(format!("step-{}", state.step));
    remove(&partial)?;
    remove(&target)?;
    fsx::create_dir_all(&partial)?;
    export(&partial, model, config, tokenizer, recipe.run.export)?;
    fsx::write_atomic(&partial.join("recipe.toml"), recipe.to_toml().as_bytes())?;

    let mut specs = Vec::new();
    let mut masters: Vec<Tensor> = Vec::new();
    model.visit(&mut |p| {
        for part in ["master", "first", "second"] {
            specs.push(TensorSpec::new(
                format!("{part}.{}", p.name),
                Dtype::F32,
                p.tensor.shape(),
            ));
        }
        masters.push(p.tensor.detach());
    });
    let mut writer = SafetensorsWriter::create(&partial.join("trainer.safetensors"), specs, &BTreeMap::new())?;
    for (master, (name, first, second)) in masters.iter().zip(&optimizer.moments) {
        writer.write(&format!("master.{name}"), master.bytes())?;
        writer.write(&format!("first.{name}"), as_bytes(first))?;
        writer.write(&format!("second.{name}"), as_bytes(second))?;
    }
    writer.finish()?;
    drop(masters);
    write_json(&partial.join("state.json"), &state)?;
    fsx::sync_dir(&partial)?;
    fsx::rename(&partial, &target)?;
    fsx::sync_dir(out)?;
    for (_, old) in list(out).into_iter().skip(recipe.run.keep) {
        remove(&old)?;
    }
    Ok(())
}

/// Removes a folder of ours, if it is there.
fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => folder_error(path, format!("cannot be removed: {e}"), ""),
        _ => Ok(()),
    }
}

/// Removes checkpoints that were never finished.
pub(crate) fn clear_partial(out: &Path) -> Result<()> {
    for entry in fs::read_dir(out).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.to_string_lossy().starts_with(".step-") {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Reads `state.json` of a checkpoint.
pub(crate) fn read_state(dir: &Path) -> Result<State> {
    let path = dir.join("state.json");
    let text = fsx::read_to_string(&path)?;
    let state: State = match serde_json::from_str(&text) {
        Ok(state) => state,
        Err(e) => {
            return folder_error(
                &path,
                format!("is damaged: {e}"),
                "remove the folder; the checkpoint before it is used",
            );
        }
    };
    if state.format != FORMAT {
        return folder_error(
            &path,
            format!("has format {}, this program reads {FORMAT}", state.format),
            "",
        );
    }
    Ok(state)
}

/// Puts masters and moments of the checkpoint `dir` into `model` and `optimizer`.
pub(crate) fn restore(dir: &Path, model: &mut Model, optimizer: &mut Optimizer) -> Result<()> {
    let file = SafetensorsFile::open(&dir.join("trainer.safetensors"))?;
    let mut failed = None;
    let mut index = 0;
    model.visit(&mut |p| {
        let shape = p.tensor.shape().to_vec();
        let mut load = || -> Result<()> {
            let read = |part: &str| -> Result<Vec<f32>> {
                let name = format!("{part}.{}", p.name);
                let view = file.view(&name)?;
                if view.shape != shape {
                    return folder_error(dir, format!("tensor \"{name}\" has another shape than the model"), "");
                }
                Ok(view.to_f32_vec()?)
            };
            p.tensor = Tensor::new(read("master")?, &shape)?.requires_grad();
            let (_, first, second) = &mut optimizer.moments[index];
            (*first, *second) = (read("first")?, read("second")?);
            Ok(())
        };
        if failed.is_none() {
            failed = load().err();
        }
        index += 1;
    });
    failed.map_or(Ok(()), Err)
}
