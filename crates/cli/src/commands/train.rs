//! `ounce train`.

use super::command_line;
use crate::{
    args::{Global, Train},
    exit::{Failure, Outcome},
    interrupt, output,
    progress::{bar, note},
};
use ounce_data::DataDir;
use ounce_lab::report::{format_bytes, format_count};
use ounce_train::{Event, Recipe, StepReport, TrainJob, estimate, train};
use serde_json::json;
use std::time::{Duration, Instant};

pub(super) fn run(args: &Train, global: &Global) -> Outcome {
    let recipe = Recipe::read(&args.recipe, &args.set)?;
    let data = DataDir::from_environment(args.data.clone());
    if args.dry_run {
        return dry_run(&recipe, &data, global);
    }
    let shown = !global.no_progress;
    let steps = bar(shown, recipe.run.steps);
    let job = TrainJob {
        recipe,
        out: args.out.clone(),
        data,
        resume: args.resume,
        force: args.force,
        command_line: command_line(),
    };
    let mut last = json!(null);
    let mut log = Log::new(shown && steps.is_hidden(), job.recipe.run.steps);
    let finished = train(
        &job,
        &mut |event| match event {
            Event::Ready {
                tokens,
                parameters,
                resumed_at,
            } => {
                steps.set_position(*resumed_at);
                log.begin(*resumed_at);
                let begun = if *resumed_at > 0 {
                    format!(", resumed after step {resumed_at}")
                } else {
                    String::new()
                };
                note(
                    shown,
                    &format!(
                        "{} parameters, {} training tokens{begun}",
                        format_count(*parameters as u64),
                        format_count(*tokens as u64)
                    ),
                );
            }
            // Told even with --no-progress: it is no progress.
            Event::Note(text) => steps.suspend(|| note(true, &format!("note: {text}"))),
            Event::Warning(text) => steps.suspend(|| note(true, &format!("warning: {text}"))),
            Event::Step(step) => {
                steps.set_message(format!("loss {:.3}  {:.0} tokens/s", step.loss, step.tokens_per_second));
                steps.set_position(step.step);
                log.step(step);
                last = json!({ "step": step.step, "loss": step.loss });
            }
            Event::Evaluated(e) => {
                steps.suspend(|| {
                    let text = format!(
                        "step {}: validation loss {:.4}, {:.4} bits per byte",
                        e.step, e.validation_loss, e.validation_bits_per_byte
                    );
                    note(shown, &text);
                });
                last["validation_loss"] = json!(e.validation_loss);
                last["validation_bits_per_byte"] = json!(e.validation_bits_per_byte);
            }
            Event::Saved(_) => {}
        },
        interrupt::flag(),
    )?;
    steps.finish_and_clear();
    if !finished {
        return Err(Failure::Interrupted(format!(
            "a checkpoint is in {}; --resume continues",
            args.out.display()
        )));
    }
    if global.json {
        last["model"] = json!(args.out.join("final"));
        return output::json(&last);
    }
    output::line(&args.out.join("final").display().to_string())
}

/// Lines where there is no terminal for a bar: after the first step, then every so often, and after the last.
struct Log {
    shown: bool,
    steps: u64,
    begun: (u64, Instant),
    told: Option<Instant>,
}

/// Time between two lines.
const EVERY: Duration = Duration::from_secs(10);

impl Log {
    fn new(shown: bool, steps: u64) -> Self {
        Self {
            shown,
            steps,
            begun: (0, Instant::now()),
            told: None,
        }
    }

    /// Steps begin after `done` of them.
    fn begin(&mut self, done: u64) {
        self.begun = (done, Instant::now());
    }

    fn step(&mut self, report: &StepReport) {
        let due = self.told.is_none_or(|told| told.elapsed() >= EVERY) || report.step == self.steps;
        if !due || !self.shown {
            return;
        }
        self.told = Some(Instant::now());
        let (from, begun) = self.begun;
        let each = begun.elapsed().as_secs_f64() / (report.step - from).max(1) as f64;
        let text = format!(
            "step {}/{}  loss {:.4}  lr {:.2e}  {:.0} tokens/s  {} left",
            report.step,
            self.steps,
            report.loss,
            report.lr,
            report.tokens_per_second,
            in_words(each * (self.steps - report.step) as f64)
        );
        note(true, &text);
    }
}

/// What the run will cost.
fn dry_run(recipe: &Recipe, data: &DataDir, global: &Global) -> Outcome {
    let mut e = estimate(recipe, data)?;
    e.time(recipe)?;
    if global.json {
        return output::json(&e);
    }
    let run = &recipe.run;
    output::line(&format!("parameters      {}", format_count(e.parameters)))?;
    output::line(&format!(
        "tokens          {} in {} steps of {} x {}",
        format_count(e.tokens),
        format_count(e.steps),
        run.batch,
        run.length
    ))?;
    output::line(&format!(
        "time            roughly {} on this machine now; ounce bench train --recipe times real steps",
        in_words(e.seconds)
    ))?;
    output::line(&format!("training state  {}", format_bytes(e.state_bytes)))?;
    output::line(&format!(
        "activations     about {}; run.micro_batch = {} windows at a time",
        format_bytes(e.activation_bytes),
        run.micro_batch()
    ))?;
    output::line(&format!(
        "checkpoint      {}, the last {} kept (run.keep)",
        format_bytes(e.checkpoint_bytes),
        e.checkpoints
    ))?;
    output::line(&format!("final model     {}", format_bytes(e.final_bytes)))?;
    output::line(&format!("disk            {} at most", format_bytes(e.disk_bytes)))
}

/// A duration as a person would say it.
fn in_words(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} days", s / 86_400.0),
    }
}
