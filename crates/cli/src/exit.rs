//! How the process ends: 0 good, 1 the user's input, 2 our failure, 130 interrupted; a broken pipe is good.

use std::{
    any::Any,
    error::Error,
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
};

/// Why a command did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The user's input, with a hint if there is one.
    User { message: String, hint: Option<String> },
    /// Told already (failed checks of `verify`).
    Told,
    /// Ctrl-C.
    Interrupted(String),
    /// The reader of our output is gone.
    BrokenPipe,
}

/// Result of a command.
pub(crate) type Outcome = Result<(), Failure>;

impl Failure {
    pub(crate) fn user(message: impl Into<String>, hint: impl Into<String>) -> Self {
        let hint = hint.into();
        Self::User {
            message: message.into(),
            hint: (!hint.is_empty()).then_some(hint),
        }
    }
}

macro_rules! from_library {
    ($($error:ty),*) => { $(
        impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                match error.hint() {
                    Some(hint) => Self::user(error.to_string(), hint),
                    None => Self::from_error(&error),
                }
            }
        }
    )* };
}
from_library!(
    ounce_model::ModelError,
    ounce_formats::FormatError,
    ounce_lab::LabError,
    ounce_eval::EvalError,
    ounce_train::TrainError,
    ounce_compress::CompressError,
    ounce_data::DataError,
    ounce_model::TokenizerError,
    ounce_lab::bench::CheckpointError
);

macro_rules! from_plain {
    ($($error:ty),*) => { $(
        impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::from_error(&error)
            }
        }
    )* };
}
from_plain!(
    ounce_compress::RecipeError,
    ounce_tensor::TensorError,
    ounce_lab::report::ReportError
);

impl Failure {
    /// Libraries that put hints in parentheses: the hint gets its own line.
    fn from_error(error: &dyn Error) -> Self {
        let text = error.to_string();
        if let Some((message, hint)) = text.rsplit_once("(hint: ")
            && let Some(hint) = hint.strip_suffix(')')
        {
            return Self::user(message.trim_end(), hint);
        }
        Self::user(text, "")
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::BrokenPipe,
            _ => Self::user(format!("cannot write the output: {error}"), "is the disk full?"),
        }
    }
}

/// Panics are reported once, by [`run`].
pub(crate) fn quiet_panics() {
    std::panic::set_hook(Box::new(|_| {}));
}

/// Help and version are good; anything else wrong with the arguments is the user's.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    // Nothing can be done if even this cannot be printed.
    let _ = error.print();
    if error.use_stderr() {
        ExitCode::from(1)
    } else {
        ExitCode::SUCCESS
    }
}

/// Runs a command and turns its end into an exit code.
#[expect(clippy::print_stderr, reason = "the one place where errors are printed")]
pub(crate) fn run(command: impl FnOnce() -> Outcome) -> ExitCode {
    match catch_unwind(AssertUnwindSafe(command)) {
        Ok(Ok(()) | Err(Failure::BrokenPipe)) => ExitCode::SUCCESS,
        Ok(Err(Failure::User { message, hint })) => {
            eprintln!("error: {message}");
            if let Some(hint) = hint {
                eprintln!("hint: {hint}");
            }
            ExitCode::from(1)
        }
        Ok(Err(Failure::Told)) => ExitCode::from(1),
        Ok(Err(Failure::Interrupted(what))) => {
            eprintln!("interrupted: {what}");
            ExitCode::from(130)
        }
        Err(panic) => {
            eprintln!("internal error: {}", panic_text(&*panic));
            eprintln!("hint: this is a fault in ounce; please report it with the command line you used");
            ExitCode::from(2)
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
        .unwrap_or_else(|| "unknown".into())
}
