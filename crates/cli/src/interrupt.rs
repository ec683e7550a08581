//! Ctrl-C sets a flag that long jobs look at between steps; a second one ends the process at once.

use std::sync::{
    OnceLock,
    atomic::{AtomicBool, Ordering},
};

static STOP: AtomicBool = AtomicBool::new(false);

/// The flag; the first call installs the handler.
pub(crate) fn flag() -> &'static AtomicBool {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        // Without a handler Ctrl-C ends the process, which loses nothing but the last checkpoint.
        let _ = ctrlc::set_handler(|| {
            if STOP.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
        });
    });
    &STOP
}

/// Has Ctrl-C been pressed?
pub(crate) fn pressed() -> bool {
    flag().load(Ordering::Relaxed)
}
