//! Bounds for a stranger's program.
//!
//! Steps and text are counted by the engine (fuel). What it does not count is what happens inside one step: to write or
//! compare a value whose parts hold each other twice, thirty deep, takes 2^30 visits. So the program runs on a thread of its
//! own, whose time and whose share of the process's memory are watched, and whose stack carries any depth that the fuel
//! allows. Past a bound the caller gets its error at once; the thread cannot be stopped from outside, so that a process
//! which goes on after such an error should not render that template again.

use super::Message;
use std::{
    sync::mpsc::{RecvTimeoutError, sync_channel},
    thread,
    time::{Duration, Instant},
};

/// Fuel of the shortest conversation: one step or 64 bytes of text cost 1. The longest of the known templates take a few
/// thousand.
pub(super) const LEAST_FUEL: u64 = 250_000;

/// Fuel for each message beside it.
const FUEL_OF_MESSAGE: u64 = 2_000;

/// No conversation gets more: it bounds the depth of what a template can build, and so the stack.
const MOST_FUEL: u64 = 8_000_000;

/// Macros within macros.
pub(super) const RECURSION: usize = 100;

/// Memory of the thread's stack; what is not used costs nothing.
const STACK: usize = 1 << 30;

/// Time for one rendering.
const TIME: Duration = Duration::from_secs(10);

/// Memory that the process may take meanwhile.
const MEMORY: u64 = 1 << 30;

/// Fuel for a conversation: a template copies each message a few times.
pub(super) fn fuel(messages: &[Message]) -> u64 {
    let bytes: usize = messages.iter().map(|m| m.role.len() + m.content.len()).sum();
    (LEAST_FUEL + FUEL_OF_MESSAGE * messages.len() as u64 + bytes as u64).min(MOST_FUEL)
}

/// Runs `work` on a thread of its own.
///
/// # Errors
/// The broken rule, if it takes too long, takes too much memory or panics.
pub(super) fn within<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> std::result::Result<R, String> {
    let (send, receive) = sync_channel(1);
    let (start, before) = (Instant::now(), resident());
    thread::Builder::new()
        .name("chat template".into())
        .stack_size(STACK)
        .spawn(move || {
            // Nobody listens any more if it took too long.
            let _ = send.send(work());
        })
        .map_err(|e| format!("the template cannot be run: {e}"))?;
    loop {
        match receive.recv_timeout(Duration::from_millis(5)) {
            Ok(made) => return Ok(made),
            Err(RecvTimeoutError::Disconnected) => return Err("the template breaks the engine".into()),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if start.elapsed() > TIME {
            return Err(format!("the template runs for more than {} s", TIME.as_secs()));
        }
        if resident().saturating_sub(before) > MEMORY {
            return Err(format!("the template takes more than {} MiB", MEMORY >> 20));
        }
    }
}

/// Bytes of memory of this process; 0 where the system does not tell.
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: Option<u64> = pages.split(' ').nth(1).and_then(|n| n.parse().ok());
    pages.unwrap_or(0) * 4096
}
