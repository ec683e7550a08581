//! Training checkpoints: `OUT/step-N/`, whole or not there at all.
//!
//! A checkpoint is a Hugging Face export plus `trainer.safetensors` (f32 masters and moments) and `state.json`. It is
//! written as `OUT/.step-N.partial/`, synced, and renamed; so a kill at any moment leaves either the old set of
//! checkpoints or the new one.

use crate::{
    error::{Result, TrainError},
    export::Exporter,
    optimizer::Optimizer,
};
use ounce_formats::{Dtype, FormatError, SafetensorsWriter, TensorSpec, as_bytes, fsx};
use ounce_model::Model;
use ounce_tensor::Tensor;
use serde::{Deserialize, Serialize};
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

/// A broken rule of a training folder or a file in it.
pub(crate) fn folder_error(place: &Path, rule: impl Into<String>, hint: &str) -> TrainError {
    TrainError::Folder {
        place: place.display().to_string(),
        rule: rule.into(),
        hint: hint.into(),
    }
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

pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value).unwrap_or_default();
    text.push(b'\n');
    Ok(fsx::write_atomic(path, &text)?)
}

/// Everything that is written at a step.
pub(crate) struct Snapshot<'a> {
    pub(crate) model: &'a mut Model,
    pub(crate) optimizer: &'a Optimizer,
    pub(crate) exporter: &'a Exporter,
    pub(crate) state: State,
}

/// Writes `OUT/step-N/` and removes all but the last `keep` checkpoints.
pub(crate) fn save(out: &Path, snapshot: Snapshot<'_>) -> Result<()> {
    let (step, keep) = (snapshot.state.step, snapshot.exporter.recipe.run.keep);
    place(out, &format!("step-{step}"), |dir| write(dir, snapshot))?;
    for (_, old) in list(out).into_iter().skip(keep) {
        remove(&old)?;
    }
    Ok(())
}

/// Fills `out/.NAME.partial` and renames it to `out/NAME`, replacing an older one only then. After a failure nothing of
/// it is left.
fn place(out: &Path, name: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let partial = out.join(format!(".{name}.partial"));
    let target = out.join(name);
    remove(&partial)?;
    fsx::create_dir_all(&partial)?;
    let filled = fill(&partial).and_then(|()| Ok(fsx::sync_dir(&partial)?));
    if filled.is_err() {
        // Best effort, and it gives a full disk its space back; the failure is what matters.
        let _ = fs::remove_dir_all(&partial);
    }
    filled?;
    remove(&target)?;
    fsx::rename(&partial, &target)?;
    Ok(fsx::sync_dir(out)?)
}

fn write(dir: &Path, snapshot: Snapshot<'_>) -> Result<()> {
    let Snapshot {
        model,
        optimizer,
        exporter,
        state,
    } = snapshot;
    exporter.write(model, dir)?;

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
    let mut writer = SafetensorsWriter::create(&dir.join("trainer.safetensors"), specs, &BTreeMap::new())?;
    for (master, (name, first, second)) in masters.iter().zip(&optimizer.moments) {
        writer.write(&format!("master.{name}"), master.bytes())?;
        writer.write(&format!("first.{name}"), as_bytes(first))?;
        writer.write(&format!("second.{name}"), as_bytes(second))?;
    }
    writer.finish()?;
    write_json(&dir.join("state.json"), &state)
}

/// Removes a folder of ours, if it is there.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(FormatError::Io {
            path: path.to_owned(),
            action: "remove it",
            error,
        }
        .into()),
        _ => Ok(()),
    }
}

/// Removes what was never finished.
pub(crate) fn clear_partial(out: &Path) -> Result<()> {
    for entry in fs::read_dir(out).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with('.') && name.ends_with(".partial") {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// `OUT/final/`: the model alone, with the metrics.
pub(crate) fn write_final(out: &Path, model: &mut Model, exporter: &Exporter) -> Result<()> {
    place(out, "final", |dir| {
        exporter.write(model, dir)?;
        let metrics = fsx::read(&out.join("metrics.jsonl"))?;
        Ok(fsx::write_atomic(&dir.join("metrics.jsonl"), &metrics)?)
    })
}
