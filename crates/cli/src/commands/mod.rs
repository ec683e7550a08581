//! One file per command.

mod bench;
mod chat;
mod convert;
mod data;
mod demo;
mod doctor;
mod eval;
mod generate;
mod generation;
mod inspect;
mod logits;
mod merge;
mod reproduce;
mod train;
mod verify;

use crate::{
    args::{Cli, Command},
    exit::Outcome,
};

/// Runs the command that was asked for.
pub(crate) fn run(cli: &Cli) -> Outcome {
    let global = &cli.global;
    match &cli.command {
        Command::Demo(args) => demo::demo(args, global),
        Command::Measure(args) => demo::measure(args),
        Command::Inspect(args) => inspect::run(args, global),
        Command::Generate(args) => generate::run(args, global),
        Command::Chat(args) => chat::run(args, global),
        Command::Train(args) => train::run(args, global),
        Command::Merge(args) => merge::run(args, global),
        Command::Convert(args) => convert::run(args, global),
        Command::Eval(args) => eval::run(args, global),
        Command::Logits(args) => logits::run(args, global),
        Command::Verify(args) => verify::run(args, global),
        Command::Bench(args) => bench::run(args, global),
        Command::Reproduce(args) => reproduce::run(args, global),
        Command::Data(args) => data::run(args, global),
        Command::Doctor(args) => doctor::run(args, global),
    }
}

/// This command line, for model cards and reports. How often a job was interrupted is not part of what it made.
fn command_line() -> String {
    let mut words: Vec<String> = std::env::args_os()
        .map(|w| w.to_string_lossy().into_owned())
        .filter(|w| w != "--resume")
        .collect();
    if let Some(program) = words.first_mut() {
        *program = "ounce".into();
    }
    let quoted = |w: String| {
        if w.contains(char::is_whitespace) {
            format!("{w:?}")
        } else {
            w
        }
    };
    words.into_iter().map(quoted).collect::<Vec<_>>().join(" ")
}

/// Names what a checkpoint made of another does not have of it.
fn tell_left(model: &std::path::Path, left: &[String]) {
    if !left.is_empty() {
        let names: Vec<String> = left.iter().map(|name| name.escape_debug().to_string()).collect();
        let text = format!("note: {}: not passed on: {}", model.display(), names.join(", "));
        crate::progress::note(true, &text);
    }
}
