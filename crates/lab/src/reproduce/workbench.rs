//! What an experiment makes its runs with: the product's trainer and evaluations in the folder of one run.

use super::Budget;
use crate::LabError;
use ounce_data::{DataDir, passkey::Passkey};
use ounce_eval::{
    Misalignment, MisalignmentOptions, Passage, PasskeyReport, ScoreOptions, find_passkeys, log_probabilities, silent,
};
use ounce_formats::fsx;
use ounce_model::{Batch, Model, ModelError, OpenOptions, Routing, Tokenizer};
use ounce_tensor::{Compute, no_grad};
use ounce_train::{Recipe, TrainJob, train};
use serde_json::Value;
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

/// The bench of one run.
pub struct Workbench<'a> {
    /// The run's folder.
    pub dir: PathBuf,
    /// Where `${data}` points: the toy corpora.
    pub data: &'a DataDir,
    /// How much time the experiment may take.
    pub budget: Budget,
    /// Whether to stop.
    pub(super) stop: &'a AtomicBool,
}

/// A model that was trained on the bench.
pub struct Trained {
    /// Its checkpoint folder.
    pub folder: PathBuf,
    /// The model, as exported.
    pub model: Model,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Validation loss over steps.
    pub validation: Vec<(f64, f64)>,
    /// Training loss over steps.
    pub training: Vec<(f64, f64)>,
}

const F32: ScoreOptions = ScoreOptions {
    compute: Compute::F32,
    batch_tokens: None,
};

impl<'a> Workbench<'a> {
    pub(super) fn new(dir: &Path, data: &'a DataDir, budget: Budget, stop: &'a AtomicBool) -> Result<Self, LabError> {
        fsx::create_dir_all(dir)?;
        Ok(Self {
            dir: dir.to_owned(),
            data,
            budget,
            stop,
        })
    }

    /// Trains a recipe in the folder `name` of the run, or continues what is there. What a killed process left of another
    /// recipe is removed first.
    ///
    /// # Errors
    /// If the recipe, the data or the model is wrong, the loss diverges, or the job is interrupted.
    pub fn train(&mut self, name: &str, recipe: &Recipe) -> Result<Trained, LabError> {
        self.train_in(&self.dir.clone(), name, recipe)
    }

    /// The same in a folder beside the runs: for a model that several variants start from. The first of them trains it, the
    /// others find it done.
    ///
    /// # Errors
    /// As [`Workbench::train`].
    pub fn train_shared(&mut self, name: &str, recipe: &Recipe) -> Result<Trained, LabError> {
        self.train_in(&self.dir.with_file_name("shared"), name, recipe)
    }

    fn train_in(&mut self, dir: &Path, name: &str, recipe: &Recipe) -> Result<Trained, LabError> {
        fsx::create_dir_all(dir)?;
        let out = dir.join(name);
        let stamp = dir.join(format!("{name}.recipe"));
        if fsx::read_to_string(&stamp).ok() != Some(recipe.hash()) && out.exists() {
            fs::remove_dir_all(&out).map_err(|e| LabError::Reproduce {
                what: out.display().to_string(),
                rule: format!("cannot be removed: {e}"),
                hint: "it is left over from another recipe".into(),
            })?;
        }
        fsx::write_atomic(&stamp, recipe.hash().as_bytes())?;
        let job = TrainJob {
            recipe: recipe.clone(),
            out: out.clone(),
            data: self.data.clone(),
            resume: out.exists(),
            force: false,
            command_line: "ounce reproduce".into(),
        };
        if !train(&job, &mut |_| {}, self.stop)? {
            return Err(LabError::Interrupted(out.display().to_string()));
        }
        let folder = out.join("final");
        let metrics = fsx::read_to_string(&folder.join("metrics.jsonl"))?;
        let curve = |key: &str| -> Vec<(f64, f64)> {
            let rows = metrics.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok());
            // The evaluation before the first step would hide all later ones in a plot.
            rows.filter_map(|row| Some((row["step"].as_f64()?, row[key].as_f64()?)))
                .filter(|&(step, _)| step > 0.0)
                .collect()
        };
        Ok(Trained {
            validation: curve("validation_loss"),
            training: curve("cross_entropy"),
            ..Trained::open(folder)?
        })
    }

    /// A text of the data folder, such as `toy-text.valid.txt`.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn text(&self, name: &str) -> Result<String, LabError> {
        Ok(fsx::read_to_string(&self.data.expand(&format!("${{data}}/{name}"))?)?)
    }
}

impl Trained {
    /// A checkpoint folder without curves.
    ///
    /// # Errors
    /// If it is no model with a tokenizer.
    pub fn open(folder: PathBuf) -> Result<Self, LabError> {
        Ok(Self {
            model: Model::open(&folder, &OpenOptions::widened())?,
            tokenizer: Tokenizer::open(&folder).map_err(ModelError::from)?,
            validation: Vec::new(),
            training: Vec::new(),
            folder,
        })
    }

    /// Parameters stored, and those that one token meets.
    pub fn parameters(&mut self) -> (u64, u64) {
        let all = self.model.parameters() as u64;
        let bills = self.model.plan().blocks().into_iter().map(|b| b.ffn().bill());
        (
            all,
            all - bills.map(|b| b.parameters - b.active_parameters).sum::<u64>(),
        )
    }

    /// What the routed layers decide in the first `windows` windows of `length` ids; one entry per such layer.
    ///
    /// # Errors
    /// If the text is shorter than a window, or the model has fewer positions.
    pub fn routing(&self, ids: &[u32], length: usize, windows: usize) -> Result<Vec<Routing>, LabError> {
        let batch = windows.min(ids.len() / length);
        let input = Batch {
            ids: &ids[..batch * length],
            batch,
            compute: Compute::F32,
        };
        let mut ctx = self.model.context(input)?;
        ctx.sink.want_routing = true;
        no_grad(|| self.model.hidden(&mut ctx))?;
        Ok(ctx.sink.routing)
    }

    /// The ids of a text.
    ///
    /// # Errors
    /// If it cannot be encoded.
    pub fn ids(&self, text: &str) -> Result<Vec<u32>, LabError> {
        Ok(self.tokenizer.encode(text, false).map_err(ModelError::from)?)
    }

    /// The last validation loss of the run, nats per token.
    ///
    /// # Errors
    /// If the recipe had no validation text.
    pub fn validation_loss(&self) -> Result<f64, LabError> {
        self.validation.last().map(|p| p.1).ok_or_else(|| LabError::Reproduce {
            what: "the recipe".into(),
            rule: "has no validation text".into(),
            hint: String::new(),
        })
    }

    /// Mean loss (nats per token) of the second halves of windows of `window` tokens that do not overlap, over the first
    /// `tokens` ids: every scored token has seen at least half a window.
    ///
    /// # Errors
    /// If the text is shorter than a window, or the model has fewer positions.
    pub fn loss_at(&self, ids: &[u32], window: usize, tokens: usize) -> Result<f64, LabError> {
        let ids = &ids[..tokens.min(ids.len())];
        let passages: Vec<Passage<'_>> = ids
            .windows(window + 1)
            .step_by(window)
            .map(|ids| Passage {
                ids,
                from: window / 2 + 1,
            })
            .collect();
        let scores = log_probabilities(&self.model, &passages, &F32, &mut silent)?;
        let (sum, n) = scores.iter().flatten().fold((0.0, 0usize), |(s, n), x| (s - x, n + 1));
        if n == 0 {
            return Err(LabError::Reproduce {
                what: "the text".into(),
                rule: format!("has {} tokens, fewer than a window of {window}", ids.len()),
                hint: String::new(),
            });
        }
        Ok(sum / n as f64)
    }

    /// How many of `items` keys hidden in held-out texts are found.
    ///
    /// # Errors
    /// If the texts do not fit the model or its tokenizer.
    pub fn passkeys(&self, passkey: Passkey, items: usize) -> Result<PasskeyReport, LabError> {
        let encode = |text: &str| self.tokenizer.encode(text, false).map_err(Into::into);
        let compute = Compute::F32;
        Ok(find_passkeys(
            &self.model,
            passkey,
            (0, items),
            compute,
            &encode,
            &mut silent,
        )?)
    }

    /// Misalignment, and the probe of long-range use beside it.
    ///
    /// # Errors
    /// If the text is too short, or the model has fewer positions.
    pub fn misalignment(&self, ids: &[u32], length: usize, samples: usize) -> Result<Misalignment, LabError> {
        let options = MisalignmentOptions {
            length,
            samples,
            seed: 0,
            compute: Compute::F32,
        };
        Ok(ounce_eval::misalignment(&self.model, ids, options, &mut silent)?)
    }

    /// The same weights under another attention method, see [`ounce_model::attention::overridden`]; curves stay behind.
    ///
    /// # Errors
    /// If the method does not fit the model.
    pub fn with_attention(&self, spec: &str) -> Result<Self, LabError> {
        let how = OpenOptions {
            widen: true,
            attention: Some(spec.into()),
        };
        Ok(Self {
            folder: self.folder.clone(),
            model: Model::open(&self.folder, &how)?,
            tokenizer: Tokenizer::open(&self.folder).map_err(ModelError::from)?,
            validation: Vec::new(),
            training: Vec::new(),
        })
    }

    /// Share of tokens that use each head, `[layer][head]`, over windows of `window` of the first `tokens` ids. Empty for
    /// a model whose heads have no gates.
    ///
    /// # Errors
    /// If the model has fewer positions.
    pub fn head_loads(&self, ids: &[u32], window: usize, tokens: usize) -> Result<Vec<Vec<f64>>, LabError> {
        let heads = self.model.config.heads;
        let (mut loads, mut seen) = (Vec::<Vec<f64>>::new(), 0.0);
        for ids in ids[..tokens.min(ids.len())].chunks_exact(window) {
            let batch = Batch {
                ids,
                batch: 1,
                compute: Compute::F32,
            };
            let mut ctx = self.model.context(batch)?;
            ctx.sink.want_head_gates = true;
            no_grad(|| self.model.hidden(&mut ctx))?;
            loads.resize(ctx.sink.head_gates.len(), vec![0.0; heads]);
            for (load, (_, gates)) in loads.iter_mut().zip(&ctx.sink.head_gates) {
                for row in gates.to_f32().chunks_exact(heads) {
                    for (load, &gate) in load.iter_mut().zip(row) {
                        *load += f64::from(u8::from(gate != 0.0));
                    }
                }
            }
            seen += window as f64;
        }
        loads.iter_mut().flatten().for_each(|load| *load /= seen);
        Ok(loads)
    }
}

/// Entropy (nats) of the distribution of single tokens in a text: the loss of the best model that sees no context.
pub(super) fn token_entropy(ids: &[u32]) -> f64 {
    let mut counts = HashMap::new();
    for id in ids {
        *counts.entry(id).or_insert(0.0f64) += 1.0;
    }
    let n = ids.len() as f64;
    // Sorted: the order of a hash map differs between runs, and sums depend on it.
    let mut counts: Vec<f64> = counts.into_values().collect();
    counts.sort_by(f64::total_cmp);
    counts.iter().map(|c| -c / n * (c / n).ln()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entropy_of_tokens_is_that_of_their_frequencies() {
        assert!((token_entropy(&[1, 2, 3, 4]) - 4f64.ln()).abs() < 1e-12);
        assert!((token_entropy(&[7, 7, 7, 9]) - (0.75 * (4f64 / 3.0).ln() + 0.25 * 4f64.ln())).abs() < 1e-12);
        assert!(token_entropy(&[5; 10]).abs() < 1e-12);
    }
}
