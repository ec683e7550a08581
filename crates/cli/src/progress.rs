//! Progress on stderr, only if that is a terminal.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, IsTerminal, Write};

/// A bar of `total` steps with a changing message.
pub(crate) fn bar(shown: bool, total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total);
    if !shown || !io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let template = "{wide_bar:.cyan/dim} {pos}/{len} {msg} {eta_precise}";
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

/// How a checkpoint was understood, on stderr: what was chosen, taken away or ignored.
pub(crate) fn notes(of: &[String]) {
    for text in of {
        note(true, &format!("note: {text}"));
    }
}

/// One line of news on stderr.
pub(crate) fn note(shown: bool, text: &str) {
    if shown {
        // News are not worth failing for.
        let _ = writeln!(io::stderr(), "{text}");
    }
}
