//! The real binary, as a user meets it: words, exit codes, streams, files, signals.

mod errors;
mod help;
mod life;
mod methods;
mod results;
mod support;
