//! Continuing a run: the newest checkpoint that is whole, and the refusal of one that belongs to another run.
//!
//! A checkpoint is renamed into place only when it is on the disk, so a kill leaves whole ones. Disks and people still
//! damage files; then the checkpoint before it gives the same result, only later, and the user is told.

use crate::{
    checkpoint::{self, FORMAT, State, folder_error},
    error::{Result, TrainError},
    optimizer::Optimizer,
};
use ounce_formats::{FormatError, SafetensorsFile, fsx};
use ounce_model::{Model, ModelError, Tokenizer, TokenizerError};
use ounce_tensor::Tensor;
use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

/// A checkpoint whose files are whole.
pub(crate) struct Found {
    pub(crate) dir: PathBuf,
    pub(crate) state: State,
    pub(crate) tokenizer: Tokenizer,
    tensors: SafetensorsFile,
    /// Newer ones that are damaged, and what is wrong with each.
    pub(crate) damaged: Vec<(PathBuf, String)>,
}

/// The newest whole checkpoint in `out`; `None` if there is none at all.
///
/// # Errors
/// If all of them are damaged, or one was made by another version or cannot be read.
pub(crate) fn newest(out: &Path) -> Result<Option<Found>> {
    let mut damaged = Vec::new();
    for (step, dir) in checkpoint::list(out) {
        match open(&dir, step) {
            Ok((state, tokenizer, tensors)) => {
                return Ok(Some(Found {
                    dir,
                    state,
                    tokenizer,
                    tensors,
                    damaged,
                }));
            }
            Err(Unusable::Damaged(why)) => damaged.push((dir, why)),
            Err(Unusable::Other(error)) => return Err(error),
        }
    }
    let Some((_, why)) = damaged.first() else {
        return Ok(None);
    };
    let count = damaged.len();
    let rule = match count {
        1 => format!("its only checkpoint is damaged: {why}"),
        _ => format!("all {count} checkpoints are damaged; the newest: {why}"),
    };
    let hint = "restore a step-N folder from a backup, or start again in another folder";
    Err(folder_error(out, rule, hint))
}

enum Unusable {
    Damaged(String),
    Other(TrainError),
}

impl From<FormatError> for Unusable {
    fn from(error: FormatError) -> Self {
        match &error {
            // No permission or a failing disk is not damage: the newest checkpoint may be fine.
            FormatError::Io { error: system, .. }
                if !matches!(system.kind(), ErrorKind::NotFound | ErrorKind::InvalidData) =>
            {
                Self::Other(error.into())
            }
            _ => Self::Damaged(error.to_string()),
        }
    }
}

fn open(dir: &Path, step: u64) -> std::result::Result<(State, Tokenizer, SafetensorsFile), Unusable> {
    let path = dir.join("state.json");
    let damaged = |rule: String| Unusable::Damaged(format!("{}: {rule}", path.display()));
    let text = fsx::read_to_string(&path)?;
    let state: State = serde_json::from_str(&text).map_err(|e| damaged(e.to_string()))?;
    if state.format != FORMAT {
        let rule = format!("has format {}, this program reads {FORMAT}", state.format);
        return Err(Unusable::Other(folder_error(
            &path,
            rule,
            "continue with the version of ounce that began the run",
        )));
    }
    if state.step != step {
        return Err(damaged(format!("says step {}", state.step)));
    }
    let tokenizer = Tokenizer::open(dir).map_err(|e| match e {
        TokenizerError::Io { ref source, .. } if source.kind() != ErrorKind::NotFound => {
            Unusable::Other(ModelError::from(e).into())
        }
        other => Unusable::Damaged(other.to_string()),
    })?;
    // Opening checks that header and length of the file agree, which finds whatever was cut off.
    let tensors = SafetensorsFile::open(&dir.join("trainer.safetensors"))?;
    if let Some(name) = incomplete(&tensors) {
        let place = tensors.path().display();
        return Err(Unusable::Damaged(format!(
            "{place}: tensor \"{name}\" has no master and two moments of one shape"
        )));
    }
    Ok((state, tokenizer, tensors))
}

/// The first tensor that is not one of three that belong together: a damaged name or shape in the header.
fn incomplete(file: &SafetensorsFile) -> Option<&str> {
    let whole = |name: &str| {
        let (_, parameter) = name.split_once('.')?;
        let shape = |part: &str| Some(&file.header().info(&format!("{part}.{parameter}"))?.shape);
        let master = shape("master")?;
        (shape("first")? == master && shape("second")? == master).then_some(())
    };
    file.names().find(|name| whole(name).is_none())
}

impl Found {
    /// Refuses to continue another run than `now`.
    ///
    /// # Errors
    /// If recipe, data or instruction set differ and `force` is not given.
    pub(crate) fn agree(&self, now: &State, force: bool) -> Result<()> {
        let saved = &self.state;
        let differences: Vec<&str> = [
            ("the recipe", saved.recipe != now.recipe),
            ("the training data", saved.data != now.data),
            ("the instruction set", saved.instruction_set != now.instruction_set),
        ]
        .into_iter()
        .filter_map(|(what, differs)| differs.then_some(what))
        .collect();
        if differences.is_empty() || force {
            return Ok(());
        }
        Err(folder_error(
            &self.dir,
            format!("was made with another version of {}", differences.join(" and ")),
            "--force resumes all the same; the result will differ from an uninterrupted run",
        ))
    }

    /// Puts masters and moments into `model` and `optimizer`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape than the model.
    pub(crate) fn restore(&self, model: &mut Model, optimizer: &mut Optimizer) -> Result<()> {
        let mut failed = None;
        let mut index = 0;
        model.visit(&mut |p| {
            let shape = p.tensor.shape().to_vec();
            let mut load = || -> Result<()> {
                let read = |part: &str| -> Result<Vec<f32>> {
                    let name = format!("{part}.{}", p.name);
                    let view = self.tensors.view(&name)?;
                    if view.shape != shape {
                        return Err(folder_error(
                            self.tensors.path(),
                            format!(
                                "tensor \"{name}\" has shape {:?}, the recipe's model has {shape:?}",
                                view.shape
                            ),
                            "resume with the recipe that began the run",
                        ));
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

    /// Moves damaged newer checkpoints out of the way, to `step-N.damaged`: they must not count among those that are
    /// kept. Returns one sentence for each.
    ///
    /// # Errors
    /// If a folder cannot be renamed.
    pub(crate) fn set_damaged_aside(&self) -> Result<Vec<String>> {
        let mut told = Vec::new();
        for (dir, why) in &self.damaged {
            let mut aside = dir.clone().into_os_string();
            aside.push(".damaged");
            let aside = PathBuf::from(aside);
            checkpoint::remove(&aside)?;
            fs::rename(dir, &aside).map_err(|error| FormatError::Io {
                path: dir.clone(),
                action: "rename it",
                error,
            })?;
            told.push(format!(
                "{why}; continuing from {} instead, the damaged checkpoint is now {}",
                self.dir.display(),
                aside.display()
            ));
        }
        Ok(told)
    }
}
