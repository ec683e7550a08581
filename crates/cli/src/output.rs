//! Data on stdout: tables for people, JSON for machines.

use crate::exit::Outcome;
use ounce_lab::report::Table;
use serde::Serialize;
use std::io::{self, IsTerminal, Write};

/// Prints `value` as one line of JSON.
pub(crate) fn json(value: &impl Serialize) -> Outcome {
    let text = serde_json::to_string(value).unwrap_or_default();
    line(&text)
}

/// Prints one line.
pub(crate) fn line(text: &str) -> Outcome {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

/// Prints text as it is, at once.
pub(crate) fn piece(text: &str) -> Outcome {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Prints text beside the data, on stderr, at once.
pub(crate) fn aside(text: &str) {
    let mut err = io::stderr().lock();
    // Nothing depends on it.
    let _ = err.write_all(text.as_bytes()).and_then(|()| err.flush());
}

/// Prints a table, in colour on a terminal.
pub(crate) fn table(table: &Table) -> Outcome {
    let colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    line(table.to_terminal(width(), colour).trim_end())
}

/// Columns of the terminal; 100 where there is none.
pub(crate) fn width() -> usize {
    std::env::var("COLUMNS")
        .ok()
        .and_then(|c| c.parse().ok())
        .unwrap_or(100)
}
