//! The loop: batches to gradients to updates, with evaluation, checkpoints and a callback.

use crate::{
    checkpoint::{self, Snapshot, State, folder_error},
    corpus::Corpus,
    error::Result,
    estimate::check_memory,
    export::Exporter,
    metrics::Metrics,
    recipe::Recipe,
    resume,
    start::Start,
    step::{StepResult, TrainStep},
};
use ounce_data::{Batch, DataDir, Sampler};
use ounce_formats::fsx;
use serde::Serialize;
use serde_json::{Value, json};
use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

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
    /// How the checkpoint that `init` names was understood.
    Note(String),
    /// Something the user should know; the run goes on.
    Warning(String),
    /// A step is done.
    Step(StepReport),
    /// An evaluation is done.
    Evaluated(Evaluation),
    /// A checkpoint is written.
    Saved(PathBuf),
}

/// Everything the loop needs.
struct Prepared {
    corpus: Corpus,
    sampler: Sampler,
    trainer: TrainStep,
    exporter: Exporter,
    /// What checkpoints say of this run; step and metrics are filled in.
    state: State,
    metrics: Metrics,
    done: u64,
}

/// Reads and checks everything, down to the last checkpoint if there is one to continue from.
fn prepare(job: &TrainJob, on_event: &mut dyn FnMut(&Event)) -> Result<Prepared> {
    let (recipe, run, out) = (&job.recipe, &job.recipe.run, &job.out);
    checkpoint::clear_partial(out)?;
    let found = resume::newest(out)?;
    let corpus = Corpus::load(recipe, &job.data, found.as_ref().map(|f| f.tokenizer.clone()))?;
    let state = State {
        format: checkpoint::FORMAT,
        step: 0,
        recipe: recipe.hash(),
        data: ounce_data::packing::hex(&corpus.train.hash()),
        instruction_set: format!("{:?}", ounce_kernels::isa()).to_lowercase(),
        metrics_bytes: 0,
    };
    if let Some(found) = &found {
        found.agree(&state, job.force)?;
    }
    let start = Start::of(recipe, &job.data, || {
        let tokenizer = &corpus.tokenizer;
        Ok((tokenizer.vocab_size(), tokenizer.eos_ids().first().copied()))
    })?;
    check_memory(recipe, start.config())?;
    let base = recipe.init.as_deref().map(|init| job.data.expand(init)).transpose()?;
    let exporter = Exporter {
        config: start.json().clone(),
        tokenizer: corpus.tokenizer.clone(),
        recipe: recipe.clone(),
        command_line: job.command_line.clone(),
        base,
    };
    let model = start.model(recipe)?;
    for note in model.notes() {
        on_event(&Event::Note(note.clone()));
    }
    let mut trainer = TrainStep::new(model, recipe)?;
    let plan = trainer.model.config.plan.as_ref();
    if let Some(doubt) = plan.and_then(|plan| plan.doubt(run.length)) {
        on_event(&Event::Warning(doubt));
    }
    corpus.check_range(trainer.model.config.vocab_size)?;
    let micro_batches = run.batch / run.micro_batch();
    if micro_batches > 1 && trainer.balances() {
        on_event(&Event::Note(format!(
            "the balance loss is of the whole step: each of its {micro_batches} micro-batches is run forward once more to \
             count choices, about a third more time (run.micro_batch = run.batch needs no counting)"
        )));
    }
    let length = trainer.objective.tokens_needed(run.length) - 1;
    let mut sampler = Sampler::new(corpus.train.clone(), length, run.micro_batch(), micro_batches, run.seed)?;
    if run.aligned {
        sampler = sampler.aligned();
    }
    let (mut done, mut metrics_bytes) = (0, 0);
    if let Some(found) = &found {
        found.restore(&mut trainer.model, &mut trainer.optimizer)?;
        (done, metrics_bytes) = (found.state.step, found.state.metrics_bytes);
        for warning in found.set_damaged_aside()? {
            on_event(&Event::Warning(warning));
        }
    }
    Ok(Prepared {
        corpus,
        sampler,
        trainer,
        exporter,
        state,
        metrics: Metrics::open(&out.join("metrics.jsonl"), metrics_bytes)?,
        done,
    })
}

/// Runs a recipe to its end, or until `stop` is set: then a checkpoint is written first. Returns whether it finished.
///
/// # Errors
/// If anything in the recipe, the data, the folder or the model is wrong, or the loss diverges.
pub fn train(job: &TrainJob, on_event: &mut dyn FnMut(&Event), stop: &AtomicBool) -> Result<bool> {
    let (recipe, run, out) = (&job.recipe, &job.recipe.run, &job.out);
    let occupied = fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some());
    if occupied && !job.resume {
        return Err(folder_error(
            out,
            "the folder is not empty",
            "--resume continues what is there; choose another folder to start again",
        ));
    }
    // Made first, so that a place that cannot be written is told before the data are read.
    let new = !out.exists();
    fsx::create_dir_all(out)?;
    let prepared = prepare(job, on_event);
    if prepared.is_err() && new {
        // Removes an empty folder only; the error is what matters.
        let _ = fs::remove_dir(out);
    }
    let Prepared {
        corpus,
        sampler,
        mut trainer,
        exporter,
        state,
        mut metrics,
        mut done,
    } = prepared?;
    let micro_batches = run.batch / run.micro_batch();
    on_event(&Event::Ready {
        tokens: corpus.train.len(),
        parameters: trainer.model.parameters(),
        resumed_at: done,
    });

    if done == 0 {
        evaluate(&corpus, &trainer, recipe, 0, &mut metrics, on_event)?;
    }
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
        if due(run.eval_every) || last {
            evaluate(&corpus, &trainer, recipe, done, &mut metrics, on_event)?;
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
                exporter: &exporter,
                state,
            };
            checkpoint::save(out, snapshot)?;
            on_event(&Event::Saved(out.join(format!("step-{done}"))));
        }
        if stopping && !last {
            return Ok(false);
        }
    }
    checkpoint::write_final(out, &mut trainer.model, &exporter)?;
    on_event(&Event::Saved(out.join("final")));
    Ok(true)
}

/// Measures the model on the validation text, where there is one, and tells what came out.
fn evaluate(
    corpus: &Corpus,
    trainer: &TrainStep,
    recipe: &Recipe,
    step: u64,
    metrics: &mut Metrics,
    on_event: &mut dyn FnMut(&Event),
) -> Result<()> {
    let run = &recipe.run;
    let found = corpus.evaluate(&trainer.model, run.length, run.eval_tokens, trainer.compute)?;
    let Some((validation_loss, validation_bits_per_byte)) = found else {
        return Ok(());
    };
    let evaluation = Evaluation {
        step,
        validation_loss,
        validation_bits_per_byte,
    };
    metrics.write(&evaluation)?;
    on_event(&Event::Evaluated(evaluation));
    Ok(())
}
