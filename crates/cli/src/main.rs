//! The `ounce` command: arguments to calls, results to stdout, everything else to stderr. No logic lives here.

mod args;
mod commands;
mod exit;
mod interrupt;
mod output;
mod progress;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    exit::quiet_panics();
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return exit::usage(&error),
    };
    exit::run(|| {
        if let Err(rule) = ounce_kernels::check_isa() {
            return Err(exit::Failure::user(rule, "unset OUNCE_ISA to use the best there is"));
        }
        ounce_kernels::set_threads(cli.global.threads.unwrap_or(0));
        commands::run(&cli)
    })
}
