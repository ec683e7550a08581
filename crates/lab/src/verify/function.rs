//! `function` cases: one function of a method, its inputs and what it must return. `fn` in `case.json` names it.

use super::{Checks, VerifyError, dga, gca, long_short};
use ounce_formats::SafetensorsFile;
use serde_json::Value;
use std::path::Path;

/// A `function` case.
pub(crate) struct Function<'a> {
    /// `case.json`.
    pub(crate) case: &'a Value,
    /// `inputs.safetensors`.
    pub(crate) inputs: SafetensorsFile,
    /// `expected.safetensors`.
    pub(crate) expected: SafetensorsFile,
}

/// Runs the checks of one function.
type Run = fn(&Function<'_>, &mut Checks) -> Result<(), VerifyError>;

/// The functions, by name: one line to add when a method brings its own.
const FUNCTIONS: &[(&str, Run)] = &[
    ("dga_attention", dga::run),
    ("gca_attention", gca::run),
    ("long_short", long_short::run),
];

pub(super) fn run(dir: &Path, case: &Value, checks: &mut Checks) -> Result<(), VerifyError> {
    let name = case["fn"].as_str().unwrap_or_default();
    let Some((_, run)) = FUNCTIONS.iter().find(|(known, _)| *known == name) else {
        return Err(VerifyError::Case(format!("function \"{name}\" is not supported")));
    };
    let function = Function {
        case,
        inputs: SafetensorsFile::open(&dir.join("inputs.safetensors"))?,
        expected: SafetensorsFile::open(&dir.join("expected.safetensors"))?,
    };
    run(&function, checks)
}
