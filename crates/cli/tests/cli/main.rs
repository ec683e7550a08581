//! The real binary, as a user meets it: words, exit codes, streams, files, signals.

mod attention;
mod bad_files;
mod chat;
mod disk;
mod errors;
mod help;
mod ignored_keys;
mod life;
mod merging;
#[cfg(target_os = "linux")]
mod merging_limits;
mod merging_resumed;
mod methods;
mod results;
mod retrieval;
mod support;
mod texts;
