//! Golden cases: numbers made by independent programs, compared with ours.
//!
//! A case is a folder with a `case.json`, whose `kind` decides what is checked. A case whose kind, or whose method, this
//! program does not know counts as failed: silence would look like success.

mod checkpoint;
mod dga;
mod function;
mod gca;
mod linkage;
mod long_short;
mod merge;

use ounce_formats::{Dtype, FormatError, SafetensorsFile, fsx};
use ounce_model::ModelError;
use serde::Serialize;
use serde_json::Value;
use std::path::Path;

/// One comparison within a case.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// Name of the case's folder.
    pub case: String,
    /// What was compared.
    pub check: String,
    /// Largest deviation, if a number was compared.
    pub worst: Option<f64>,
    /// What it may be.
    pub tolerance: Option<f64>,
    /// Did it hold?
    pub passed: bool,
    /// Why not, in words.
    pub note: String,
}

/// Why a case could not be run.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The case itself is broken.
    #[error("{0}")]
    Case(String),
    /// A file of it.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The model in it.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// An operation on it.
    #[error(transparent)]
    Tensor(#[from] ounce_tensor::TensorError),
    /// Merging in it.
    #[error(transparent)]
    Compress(#[from] ounce_compress::CompressError),
    /// Grouping in it.
    #[error(transparent)]
    Cut(#[from] ounce_compress::cluster::CutError),
}

/// Collects the checks of one case.
pub(crate) struct Checks {
    case: String,
    list: Vec<Check>,
}

impl Checks {
    /// Largest difference against a tolerance.
    pub(crate) fn close(&mut self, check: impl Into<String>, worst: f64, tolerance: f64) {
        self.push(
            check.into(),
            Some(worst),
            Some(tolerance),
            worst <= tolerance,
            String::new(),
        );
    }
    /// Equality of discrete things.
    pub(crate) fn equal(&mut self, check: impl Into<String>, equal: bool, note: impl Into<String>) {
        self.push(
            check.into(),
            None,
            None,
            equal,
            if equal { String::new() } else { note.into() },
        );
    }
    fn push(&mut self, check: String, worst: Option<f64>, tolerance: Option<f64>, passed: bool, note: String) {
        self.list.push(Check {
            case: self.case.clone(),
            check,
            worst,
            tolerance,
            passed,
            note,
        });
    }
}

pub(crate) use ounce_tensor::largest_difference as worst;

/// A named tensor of a golden file as f32.
pub(crate) fn floats(file: &SafetensorsFile, name: &str) -> Result<Vec<f32>, VerifyError> {
    Ok(file.view(name)?.to_f32_vec()?)
}

/// First dimension of a named tensor of a golden file.
pub(crate) fn rows(file: &SafetensorsFile, name: &str) -> Result<usize, VerifyError> {
    let shape = file.view(name)?.shape;
    let first = shape.first().copied();
    first.ok_or_else(|| VerifyError::Case(format!("{}: tensor \"{name}\" is a scalar", file.path().display())))
}

/// A named tensor of a golden file as f64.
pub(crate) fn doubles(file: &SafetensorsFile, name: &str) -> Result<Vec<f64>, VerifyError> {
    let view = file.view(name)?;
    if view.dtype != Dtype::F64 {
        return Ok(view.to_f32_vec()?.into_iter().map(f64::from).collect());
    }
    let eight = |b: &[u8]| b.try_into().map_or(f64::NAN, f64::from_le_bytes);
    Ok(view.bytes.chunks_exact(8).map(eight).collect())
}

/// Runs every check of the case in `dir`. Whatever keeps it from running becomes one failed check.
pub fn verify_case(dir: &Path) -> Vec<Check> {
    let case = dir
        .file_name()
        .map_or_else(|| dir.display().to_string(), |n| n.to_string_lossy().into_owned());
    let mut checks = Checks { case, list: Vec::new() };
    if let Err(error) = run(dir, &mut checks) {
        checks.push("run".into(), None, None, false, error.to_string());
    }
    if checks.list.is_empty() {
        checks.push(
            "run".into(),
            None,
            None,
            false,
            "the case holds nothing to check".into(),
        );
    }
    checks.list
}

/// The list of kinds: one line to add when a method brings its own.
fn run(dir: &Path, checks: &mut Checks) -> Result<(), VerifyError> {
    let path = dir.join("case.json");
    let text = fsx::read_to_string(&path)?;
    let case: Value = serde_json::from_str(&text).map_err(|e| VerifyError::Case(format!("{}: {e}", path.display())))?;
    match case["kind"].as_str() {
        Some("checkpoint") => checkpoint::run(dir, checks),
        Some("merge") if dir.join("model").is_dir() => merge::run(dir, &case, checks),
        Some("function") => function::run(dir, &case, checks),
        Some("merge") => linkage::run(dir, checks),
        Some(kind) => Err(VerifyError::Case(format!("kind \"{kind}\" is not supported"))),
        None => Err(VerifyError::Case(format!(
            "{}: key \"kind\" is missing",
            path.display()
        ))),
    }
}
