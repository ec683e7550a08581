//! The real binary, as a user meets it: words, exit codes, streams, files, signals.

mod attention;
mod errors;
mod help;
mod life;
mod results;
mod support;
