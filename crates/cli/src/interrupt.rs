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

/// For commands that leave nothing behind: Ctrl-C ends the process within the given time, whatever is being computed.
pub(crate) fn at_once(what: &'static str) {
    const PATIENCE: std::time::Duration = std::time::Duration::from_millis(120);
    static WATCHED: OnceLock<()> = OnceLock::new();
    flag();
    WATCHED.get_or_init(|| {
        std::thread::spawn(move || {
            while !pressed() {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            // Between two tokens the command ends by itself, with what it has.
            std::thread::sleep(PATIENCE);
            crate::progress::note(true, &format!("\ninterrupted: {what}"));
            std::process::exit(130);
        });
    });
}
