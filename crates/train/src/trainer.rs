//! The loop: batches to gradients to updates, with evaluation, checkpoints and a callback.

use crate::{
    checkpoint::{self, Snapshot, State},
    corpus::Corpus,
    error::{Result, TrainError},
    objective::{At, Objective},
    optimizer::Optimizer,
    recipe::{Recipe, TokenizerConfig},
};
use ounce_data::{Batch, DataDir, Sampler};
use ounce_formats::{Checkpoint, fsx};
use ounce_model::{
    Model, ModelConfig, Tokenizer,
    weights::{CheckpointWeights, FreshWeights},
};
use ounce_tensor::{Compute, Gradients, Tensor};
use serde::Serialize;
use serde_json::{Value, json};
use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

/// Bytes of buffers kept between operations and steps.
const BUFFERS: usize = 512 << 20;

/// What to train and where.
#[derive(Debug, Clone)]
pub struct TrainJob {
    /// The recipe.
    pub recipe: Recipe,
    /// The folder for checkpoints, metrics and the final model.
    pub out: PathBuf,
    /// Where `${data}` points.
    pub data: DataDir,
    /// Continue what is there.
    pub resume: bool,
    /// Resume although recipe, data or instruction set differ.
    pub force: bool,
    /// For the model card.
    pub command_line: String,
}

/// One finished step.
#[derive(Debug, Clone, Serialize)]
pub struct StepReport {
    /// Counted from 1.
    pub step: u64,
    /// What was minimised.
    pub loss: f64,
    /// What it is made of.
    #[serde(flatten)]
    pub parts: serde_json::Map<String, Value>,
    /// Learning rate.
    pub lr: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Tokens trained on so far.
    pub tokens: u64,
    /// Tokens per second of this step.
    #[serde(skip)]
    pub tokens_per_second: f64,
}

/// One evaluation on the validation text.
#[derive(Debug, Clone, Serialize)]
pub struct Evaluation {
    /// After this step.
    pub step: u64,
    /// Nats per token.
    pub validation_loss: f64,
    /// Bits per byte.
    pub validation_bits_per_byte: f64,
}

/// What the callback is told.
#[derive(Debug, Clone)]
pub enum Event {
    /// The corpus is ready: training tokens, validation tokens, parameters, steps already done.
    Ready {
        /// Training tokens.
        tokens: usize,
        /// Parameters.
        parameters: usize,
        /// Steps done before.
        resumed_at: u64,
    },
    /// A step is done.
    Step(StepReport),
    /// An evaluation is done.
    Evaluated(Evaluation),
    /// A checkpoint is written.
    Saved(PathBuf),
}

/// What a run will cost.
#[derive(Debug, Clone, Serialize)]
pub struct Estimate {
    /// Parameters.
    pub parameters: usize,
    /// Tokens the run trains on.
    pub tokens: u64,
    /// Bytes of masters, moments and gradients.
    pub state_bytes: u64,
    /// Rough bytes of activations kept for one micro-batch.
    pub activation_bytes: u64,
    /// Bytes of one checkpoint.
    pub checkpoint_bytes: u64,
}

/// What one step found.
#[derive(Debug, Clone)]
pub struct StepResult {
    /// What was minimised, the mean over micro-batches.
    pub loss: f64,
    /// What it is made of.
    pub parts: Vec<(&'static str, f64)>,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
}

/// A model, its optimiser and its objective: everything one step needs but tokens.
pub struct TrainStep {
    /// The model; every parameter is an f32 leaf.
    pub model: Model,
    /// The optimiser.
    pub optimizer: Optimizer,
    objective: Box<dyn Objective>,
    compute: Compute,
    seed: u64,
}

impl TrainStep {
    /// Makes every parameter of `model` trainable.
    ///
    /// # Errors
    /// If a weight cannot be widened.
    pub fn new(mut model: Model, recipe: &Recipe) -> Result<Self> {
        // Every step needs the same buffers again.
        Tensor::limit_buffers(BUFFERS);
        let mut failed = None;
        model.visit(&mut |p| match p.tensor.cast(ounce_tensor::DType::F32) {
            Ok(wide) => p.tensor = wide.requires_grad(),
            Err(e) => failed = Some(e),
        });
        if let Some(error) = failed {
            return Err(error.into());
        }
        let optimizer = Optimizer::new(recipe.optimizer, &mut model);
        let objective = recipe.objective.build(recipe.run.length);
        Ok(Self {
            model,
            optimizer,
            objective,
            compute: recipe.run.compute.into(),
            seed: recipe.run.seed,
        })
    }

    /// A fresh model of the recipe's shape with `vocab_size` tokens.
    ///
    /// # Errors
    /// If the recipe has no `[model]`, or a value in it is out of range.
    pub fn fresh(recipe: &Recipe, vocab_size: usize) -> Result<Self> {
        let (config, _) = fresh_config(recipe, vocab_size, None)?;
        let weights = &mut FreshWeights {
            seed: recipe.run.seed,
            std: config.initializer_range,
        };
        Self::new(Model::new(config, weights)?, recipe)
    }

    /// One optimiser step over the micro-batches; `step` counts from 1.
    ///
    /// # Errors
    /// If shapes do not fit, or the loss is not finite.
    pub fn run(&mut self, micro_batches: &[Batch], step: u64, lr: f64) -> Result<StepResult> {
        let mut gradients = Gradients::new();
        let (mut loss, mut parts): (f64, Vec<(&'static str, f64)>) = (0.0, Vec::new());
        let n = micro_batches.len() as f64;
        let at = At { seed: self.seed, step };
        for batch in micro_batches {
            let made = self.objective.loss(&self.model, batch, at, self.compute)?;
            let value = made.total.item()?;
            if !value.is_finite() {
                return Err(TrainError::Diverged { step, loss: value });
            }
            made.total.backward(&mut gradients)?;
            loss += value / n;
            for (i, (name, value)) in made.parts.into_iter().enumerate() {
                match parts.get_mut(i) {
                    Some(part) => part.1 += value / n,
                    None => parts.push((name, value / n)),
                }
            }
        }
        let grad_norm = self.optimizer.step(&mut self.model, gradients, n, step, lr)?;
        Ok(StepResult { loss, parts, grad_norm })
    }
}

/// Configuration of a fresh model, and the `config.json` it is exported with.
fn fresh_config(recipe: &Recipe, vocab_size: usize, eos: Option<u32>) -> Result<(ModelConfig, Value)> {
    let Some(shape) = &recipe.model else {
        return Err(TrainError::Recipe {
            file: "recipe".into(),
            key: "model".into(),
            rule: "is missing".into(),
            hint: "give [model], or init = \"FOLDER\"".into(),
        });
    };
    Ok((
        shape.to_config(vocab_size, eos, eos)?,
        shape.to_json(vocab_size, eos, eos),
    ))
}

/// What a run of `recipe` will cost.
///
/// # Errors
/// If the recipe's model cannot be built: it must have a `[model]` and a vocabulary that it trains.
pub fn estimate(recipe: &Recipe) -> Result<Estimate> {
    let vocab_size = match &recipe.tokenizer {
        Some(TokenizerConfig::TrainVocab(size)) => *size,
        Some(TokenizerConfig::Reuse(folder)) => Tokenizer::from_folder(folder)
            .map_err(ounce_model::ModelError::from)?
            .vocab_size(),
        None => 0,
    };
    let (config, _) = fresh_config(recipe, vocab_size, None)?;
    let parameters: usize = ounce_model::model_tensors(&config)?
        .iter()
        .map(|(_, s)| s.iter().product::<usize>())
        .sum();
    let tokens = recipe.run.batch * recipe.run.length;
    // About 16 values of model width and 4 of feed-forward width per token and layer stay alive for the backward walk.
    let ffn = |l: &ounce_model::config::LayerConfig| match &l.ffn {
        ounce_model::config::FfnConfig::Dense { width } => *width,
        ounce_model::config::FfnConfig::Moe(m) => m.width * m.top_k,
    };
    let per_token: usize = config.layers.iter().map(|l| 16 * config.hidden_size + 4 * ffn(l)).sum();
    let objective = recipe.objective.build(recipe.run.length);
    let micro = objective.forward_rows(recipe.run.micro_batch()) * recipe.run.length;
    Ok(Estimate {
        parameters,
        tokens: recipe.run.steps * tokens as u64,
        state_bytes: parameters as u64 * 16,
        activation_bytes: (per_token * micro * 4) as u64,
        checkpoint_bytes: parameters as u64 * 14,
    })
}

/// Runs a recipe to its end, or until `stop` is set: then a checkpoint is written first. Returns whether it finished.
///
/// # Errors
/// If anything in the recipe, the data, the folder or the model is wrong, or the loss diverges.
pub fn train(job: &TrainJob, on_event: &mut dyn FnMut(&Event), stop: &AtomicBool) -> Result<bool> {
    let (recipe, run, out) = (&job.recipe, &job.recipe.run, &job.out);
    let existing = checkpoint::list(out);
    let occupied = fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some());
    if occupied && !job.resume {
        return Err(TrainError::Folder {
            place: out.display().to_string(),
            rule: "the folder is not empty".into(),
            hint: "--resume continues what is there; choose another folder to start again".into(),
        });
    }
    fsx::create_dir_all(out)?;
    checkpoint::clear_partial(out)?;
    let resumed = match existing.first() {
        Some((_, dir)) if job.resume => Some((dir.clone(), checkpoint::read_state(dir)?)),
        _ => None,
    };

    let known = match &resumed {
        Some((dir, _)) => Some(Tokenizer::from_folder(dir).map_err(ounce_model::ModelError::from)?),
        None => None,
    };
    let corpus = Corpus::load(recipe, &job.data, known)?;
    let state = State {
        format: checkpoint::FORMAT,
        step: 0,
        recipe: recipe.hash(),
        data: ounce_data::packing::hex(&corpus.train.hash()),
        instruction_set: format!("{:?}", ounce_kernels::isa()).to_lowercase(),
        metrics_bytes: 0,
    };
    let (model, config) = open_model(job, &corpus)?;
    let mut trainer = TrainStep::new(model, recipe)?;
    let mut done = 0;
    let mut metrics_bytes = 0;
    if let Some((dir, saved)) = &resumed {
        agree(dir, saved, &state, job.force)?;
        checkpoint::restore(dir, &mut trainer.model, &mut trainer.optimizer)?;
        (done, metrics_bytes) = (saved.step, saved.metrics_bytes);
    }
    let mut metrics = Metrics::open(&out.join("metrics.jsonl"), metrics_bytes)?;
    let micro_batches = run.batch / run.micro_batch();
    let length = trainer.objective.tokens_needed(run.length) - 1;
    let sampler = Sampler::new(corpus.train.clone(), length, run.micro_batch(), micro_batches, run.seed)?;
    on_event(&Event::Ready {
        tokens: corpus.train.len(),
        parameters: trainer.model.parameters(),
        resumed_at: done,
    });

    while done < run.steps {
        let start = Instant::now();
        let step = done + 1;
        let lr = recipe.optimizer.lr * recipe.schedule.factor(step, run.steps);
        let batches: Vec<Batch> = (0..micro_batches).map(|m| sampler.batch(done, m)).collect();
        let StepResult { loss, parts, grad_norm } = trainer.run(&batches, step, lr)?;
        done = step;
        let tokens = step * (run.batch * run.length) as u64;
        let report = StepReport {
            step,
            loss,
            parts: parts.into_iter().map(|(k, v)| (k.to_owned(), json!(v))).collect(),
            lr,
            grad_norm,
            tokens,
            tokens_per_second: (run.batch * run.length) as f64 / start.elapsed().as_secs_f64(),
        };
        metrics.write(&report)?;
        on_event(&Event::Step(report));

        let stopping = stop.load(Ordering::Relaxed);
        let last = done == run.steps;
        let due = |every: u64| every > 0 && done % every == 0;
        if (due(run.eval_every) || last)
            && let Some((loss, bits)) = corpus.evaluate(&trainer.model, run.length, run.eval_tokens, trainer.compute)?
        {
            let evaluation = Evaluation {
                step: done,
                validation_loss: loss,
                validation_bits_per_byte: bits,
            };
            metrics.write(&evaluation)?;
            on_event(&Event::Evaluated(evaluation));
        }
        if due(run.checkpoint_every) || last || stopping {
            let state = State {
                step: done,
                metrics_bytes: metrics.sync()?,
                ..state.clone()
            };
            let snapshot = Snapshot {
                model: &mut trainer.model,
                optimizer: &trainer.optimizer,
                config: &config,
                tokenizer: &corpus.tokenizer,
                recipe,
                state,
            };
            checkpoint::save(out, snapshot)?;
            on_event(&Event::Saved(out.join(format!("step-{done}"))));
        }
        if stopping && !last {
            return Ok(false);
        }
    }
    finish(job, &mut trainer.model, &config, &corpus.tokenizer)?;
    on_event(&Event::Saved(out.join("final")));
    Ok(true)
}

/// The model a run starts from, and the `config.json` it is exported with.
fn open_model(job: &TrainJob, corpus: &Corpus) -> Result<(Model, Value)> {
    let recipe = &job.recipe;
    if let Some(init) = &recipe.init {
        let checkpoint = Arc::new(Checkpoint::open(&job.data.expand(init)?)?);
        let json = checkpoint.config().clone();
        let file = checkpoint.path().join("config.json").display().to_string();
        let config = ModelConfig::parse(&file, &json)?;
        return Ok((Model::new(config, &mut CheckpointWeights::new(checkpoint, true))?, json));
    }
    let eos = corpus.tokenizer.eos_ids().first().copied();
    let (config, json) = fresh_config(recipe, corpus.tokenizer.vocab_size(), eos)?;
    let weights = &mut FreshWeights {
        seed: recipe.run.seed,
        std: config.initializer_range,
    };
    Ok((Model::new(config, weights)?, json))
}

/// Refuses to resume another run.
fn agree(dir: &Path, saved: &State, now: &State, force: bool) -> Result<()> {
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
    Err(TrainError::Folder {
        place: dir.display().to_string(),
        rule: format!("was made with another version of {}", differences.join(" and ")),
        hint: "--force resumes all the same; the result will differ from an uninterrupted run".into(),
    })
}

/// `OUT/final/`: the model alone, with recipe, metrics and card.
fn finish(job: &TrainJob, model: &mut Model, config: &Value, tokenizer: &Tokenizer) -> Result<()> {
    let partial = job.out.join(".final.partial");
    let target = job.out.join("final");
    for old in [&partial, &target] {
        if old.exists() {
            fs::remove_dir_all(old).map_err(|e| TrainError::Folder {
                place: old.display().to_string(),
                rule: format!("cannot be replaced: {e}"),
                hint: String::new(),
            })?;
        }
    }
    fsx::create_dir_all(&partial)?;
    checkpoint::export(&partial, model, config, tokenizer, job.recipe.run.export)?;
    fsx::write_atomic(&partial.join("recipe.toml"), job.recipe.to_toml().as_bytes())?;
    fsx::write_atomic(
        &partial.join("metrics.jsonl"),
        &fsx::read(&job.out.join("metrics.jsonl"))?,
    )?;
    let card = format!(
        "# {} parameters, trained with Ounce {}\n\n```\n{}\n```\n\nThe recipe is in `recipe.toml`, every step in `metrics.jsonl`.\n",
        model.parameters(),
        env!("CARGO_PKG_VERSION"),
        job.command_line,
    );
    fsx::write_atomic(&partial.join("README.md"), card.as_bytes())?;
    fsx::sync_dir(&partial)?;
    fsx::rename(&partial, &target)?;
    Ok(())
}

/// `metrics.jsonl`: appended line by line, cut back to the checkpoint on resume.
struct Metrics {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Metrics {
    fn fail(path: &Path, e: &std::io::Error) -> TrainError {
        TrainError::Folder {
            place: path.display().to_string(),
            rule: e.to_string(),
            hint: String::new(),
        }
    }

    fn open(path: &Path, bytes: u64) -> Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .and_then(|f| f.set_len(bytes).map(|()| f))
            .map_err(|e| Self::fail(path, &e))?;
        Ok(Self {
            path: path.into(),
            file,
            bytes,
        })
    }

    fn write(&mut self, row: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(row).unwrap_or_default();
        line.push(b'\n');
        self.file.write_all(&line).map_err(|e| Self::fail(&self.path, &e))?;
        self.bytes += line.len() as u64;
        Ok(())
    }

    /// Makes what was written last; returns the length.
    fn sync(&mut self) -> Result<u64> {
        self.file.sync_data().map_err(|e| Self::fail(&self.path, &e))?;
        Ok(self.bytes)
    }
}
