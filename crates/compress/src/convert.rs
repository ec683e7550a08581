//! `ounce convert`: another form of the same checkpoint, written in one streaming pass.
//!
//! A conversion is a pure plan for the pass that writes checkpoints: the new `config.json`, the tensors of the output in
//! order, and for each whether its bytes are copied or made. So it is one file and one line in [`CONVERSIONS`].

use crate::{
    error::CompressError,
    pass::{Pass, Plan, Request},
};
use ounce_formats::{Identity, Overwrite};
use ounce_model::{OpenOptions, Opened};
use serde::Serialize;
use serde_json::json;
use std::{collections::BTreeMap, path::PathBuf, sync::atomic::AtomicBool, time::Instant};

/// The conversions. This is the one list to edit when one is added.
pub const CONVERSIONS: &[Conversion] = &[
    crate::ladder::CONVERSION,
    crate::moh::CONVERSION,
    crate::mole_lut::CONVERSION,
];

/// A conversion by name.
pub struct Conversion {
    /// What `--to` takes.
    pub name: &'static str,
    /// One line for the help.
    pub about: &'static str,
    /// Options it takes, each with its meaning.
    pub options: &'static [(&'static str, &'static str)],
    /// What it would write.
    pub(crate) plan: fn(&Opened, &Options) -> Result<Plan<'static>, CompressError>,
}

/// What to convert, to what, and where to.
#[derive(Debug, Clone)]
pub struct ConvertJob {
    /// Checkpoint folder.
    pub model: PathBuf,
    /// Name of the conversion.
    pub to: String,
    /// Its options, by key.
    pub options: BTreeMap<String, String>,
    /// Output folder.
    pub out: PathBuf,
    /// Whether to replace what is at `out`.
    pub overwrite: Overwrite,
    /// Continue what is at `out.partial`.
    pub resume: bool,
    /// For the model card.
    pub command_line: String,
}

/// What a conversion did, or (with `seconds` 0) would do.
#[derive(Debug, Clone, Serialize)]
pub struct ConvertReport {
    /// Name of the conversion.
    pub to: &'static str,
    /// Tensors written.
    pub tensors: usize,
    /// Bytes of weights before.
    pub bytes_before: u64,
    /// Bytes of weights after.
    pub bytes_after: u64,
    /// How the model was understood: what was chosen, taken away or ignored.
    pub notes: Vec<String>,
    /// How long it took.
    pub seconds: f64,
    /// What to do before the result is used.
    pub advice: Option<String>,
    /// Files of the original that are not in the result: nothing that a model needs, as far as is known.
    pub left: Vec<String>,
}

/// Options as given; a conversion reads what it knows.
pub(crate) type Options = BTreeMap<String, String>;

fn plan(job: &ConvertJob) -> Result<(&'static Conversion, Opened, Plan<'static>), CompressError> {
    let Some(conversion) = CONVERSIONS.iter().find(|c| c.name == job.to) else {
        let known: Vec<&str> = CONVERSIONS.iter().map(|c| c.name).collect();
        return Err(CompressError::input(
            "--to",
            format!("\"{}\" is no conversion", job.to),
            format!("known: {}", known.join(", ")),
        ));
    };
    let unknown = |key: &&String| !conversion.options.iter().any(|(known, _)| known == key);
    if let Some(key) = job.options.keys().find(unknown) {
        let known: Vec<&str> = conversion.options.iter().map(|(k, _)| *k).collect();
        return Err(CompressError::input(
            format!("option \"{key}\""),
            format!("is unknown to {}", conversion.name),
            format!("it takes: {}", known.join(", ")),
        ));
    }
    let opened = Opened::folder(&job.model, &OpenOptions::default())?;
    let plan = (conversion.plan)(&opened, &job.options)?;
    Ok((conversion, opened, plan))
}

impl ConvertReport {
    fn of(conversion: &Conversion, opened: &Opened, plan: &Plan<'_>) -> Self {
        Self {
            to: conversion.name,
            tensors: plan.tensors.len(),
            bytes_before: opened.checkpoint().total_bytes(),
            bytes_after: plan.bytes(),
            notes: opened.notes(),
            seconds: 0.0,
            advice: plan.card.advice.clone(),
            left: Vec::new(),
        }
    }
}

/// What the job would write, without writing it.
///
/// # Errors
/// If the model, the conversion's name or an option is wrong.
pub fn estimate_conversion(job: &ConvertJob) -> Result<ConvertReport, CompressError> {
    let (conversion, opened, plan) = plan(job)?;
    Ok(ConvertReport::of(conversion, &opened, &plan))
}

/// Runs the job. `progress` hears how many bytes of how many are written; when `stop` is set, the job ends with
/// [`CompressError::Stopped`] and can be resumed. A job to resume that is done already has nothing to do.
///
/// # Errors
/// If the model, the conversion's name or an option is wrong, or the disk refuses.
pub fn convert(
    job: &ConvertJob,
    progress: &mut dyn FnMut(u64, u64),
    stop: &AtomicBool,
) -> Result<ConvertReport, CompressError> {
    let start = Instant::now();
    let (conversion, opened, plan) = plan(job)?;
    let mut report = ConvertReport::of(conversion, &opened, &plan);
    let mut identity = Identity::new("convert")
        .with("form", conversion.name)
        .with("set of options", json!(job.options));
    if plan.computed {
        identity = identity.with_instruction_set();
    }
    let pass = Pass::begin(Request {
        checkpoint: opened.checkpoint(),
        identity,
        read: Vec::new(),
        out: &job.out,
        overwrite: job.overwrite,
        resume: job.resume,
        command_line: &job.command_line,
    })?;
    if let Some(pass) = pass {
        report.left = pass.left();
        pass.write(plan, progress, stop)?;
    }
    report.seconds = start.elapsed().as_secs_f64();
    Ok(report)
}
