//! `ounce convert`: another form of the same checkpoint, written in one streaming pass.
//!
//! A conversion is a pure plan: the new `config.json`, the tensors of the output in order, and for each whether its bytes
//! are copied or made. The pass below is common to all of them: output folder, journal, resume, side files, card. So a
//! conversion is one file and one line in [`CONVERSIONS`].

use crate::{error::CompressError, side_files};
use ounce_formats::{Checkpoint, OutputFolder, Overwrite, Resume, ShardOptions, ShardedWriter, TensorSpec, fsx};
use ounce_model::{OpenOptions, Opened};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

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
    pub(crate) plan: fn(&Opened, &Options) -> Result<Plan, CompressError>,
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
    /// Replace what is at `out`.
    pub overwrite: bool,
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
}

/// Options as given; a conversion reads what it knows.
pub(crate) type Options = BTreeMap<String, String>;

/// Takes the bytes of a tensor, piece by piece.
pub(crate) type Take<'a> = &'a mut dyn FnMut(&[u8]) -> Result<(), CompressError>;

/// Makes the bytes of a tensor, in bounded memory.
pub(crate) type Make = Box<dyn Fn(Take<'_>) -> Result<(), CompressError>>;

/// Adds to the configuration what is known only once every tensor of the output (the second argument) is on the disk.
pub(crate) type Seal = Box<dyn Fn(&mut Map<String, Value>, &Checkpoint) -> Result<(), CompressError>>;

/// Where the bytes of an output tensor come from.
pub(crate) enum Source {
    /// The tensor of the same name.
    Copy,
    /// A computation.
    Made(Make),
}

/// What a conversion writes.
pub(crate) struct Plan {
    /// The new `config.json`.
    pub(crate) config: Map<String, Value>,
    /// The tensors, in the order they are written.
    pub(crate) tensors: Vec<(TensorSpec, Source)>,
    /// What the model card says of it.
    pub(crate) card: String,
    /// The last word on the configuration, if there is one.
    pub(crate) seal: Option<Seal>,
}

impl Plan {
    /// Every tensor for which `keep` holds, copied; the caller adds what is new and edits the configuration.
    pub(crate) fn copying(checkpoint: &Checkpoint, card: impl Into<String>, keep: impl Fn(&str) -> bool) -> Self {
        let copied = |t: &ounce_formats::safetensors::TensorInfo| {
            let spec = TensorSpec::new(t.name.clone(), t.dtype, t.shape.clone());
            (spec, Source::Copy)
        };
        Self {
            config: checkpoint.config().as_object().cloned().unwrap_or_default(),
            tensors: checkpoint.tensors().filter(|t| keep(&t.name)).map(copied).collect(),
            card: card.into(),
            seal: None,
        }
    }
}

/// Bytes copied at one time.
const PIECE: usize = 16 << 20;

fn plan(job: &ConvertJob) -> Result<(&'static Conversion, Opened, Plan), CompressError> {
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
    let opened = Opened::new(&job.model, &OpenOptions::default())?;
    let plan = (conversion.plan)(&opened, &job.options)?;
    Ok((conversion, opened, plan))
}

fn bytes_of(plan: &Plan) -> u64 {
    let bytes = |(spec, _): &(TensorSpec, Source)| spec.dtype.byte_len(&spec.shape).unwrap_or(0) as u64;
    plan.tensors.iter().map(bytes).sum()
}

/// What the job would write, without writing it.
///
/// # Errors
/// If the model, the conversion's name or an option is wrong.
pub fn estimate_conversion(job: &ConvertJob) -> Result<ConvertReport, CompressError> {
    let (conversion, opened, plan) = plan(job)?;
    let (checkpoint, notes) = (opened.checkpoint(), opened.notes());
    Ok(ConvertReport {
        to: conversion.name,
        tensors: plan.tensors.len(),
        bytes_before: checkpoint.total_bytes(),
        notes,
        bytes_after: bytes_of(&plan),
        seconds: 0.0,
    })
}

/// Runs the job. `progress` hears how many bytes of how many are written; when `stop` is set, the job ends with
/// [`CompressError::Stopped`] and can be resumed.
///
/// # Errors
/// If the model, the conversion's name or an option is wrong, or the disk refuses.
pub fn convert(
    job: &ConvertJob,
    progress: &mut dyn FnMut(u64, u64),
    stop: &AtomicBool,
) -> Result<ConvertReport, CompressError> {
    let start = Instant::now();
    let (conversion, opened, mut plan) = plan(job)?;
    let (checkpoint, notes) = (opened.checkpoint(), opened.notes());
    let overwrite = if job.overwrite {
        Overwrite::Replace
    } else {
        Overwrite::Refuse
    };
    let resume = if job.resume { Resume::Yes } else { Resume::No };
    let mut folder = OutputFolder::create(&job.out, overwrite, resume)?;
    same_job(job, checkpoint, &mut folder)?;
    write_side_files(job, &folder, &plan.card)?;

    let declared = plan.tensors.iter().map(|(spec, _)| spec.clone()).collect();
    let mut writer = ShardedWriter::resume(folder.path(), declared, &ShardOptions::default(), &folder)?;
    let (total, mut done) = (bytes_of(&plan), 0);
    for (index, (spec, source)) in plan.tensors.iter().enumerate() {
        if index < writer.finished() {
            done += spec.dtype.byte_len(&spec.shape).unwrap_or(0) as u64;
            continue;
        }
        let mut empty = true;
        let mut take = |piece: &[u8]| {
            if stop.load(Ordering::Relaxed) {
                return Err(CompressError::Stopped(format!("{}.partial", job.out.display())));
            }
            empty = false;
            writer.write(&spec.name, piece)?;
            done += piece.len() as u64;
            progress(done, total);
            Ok(())
        };
        match source {
            Source::Copy => checkpoint
                .region(&spec.name)?
                .bytes()
                .chunks(PIECE)
                .try_for_each(&mut take)?,
            Source::Made(make) => make(&mut take)?,
        }
        if empty {
            writer.write(&spec.name, &[])?;
        }
        writer.commit(&mut folder)?;
    }
    writer.finish()?;
    let config_file = folder.path().join("config.json");
    plan.config
        .insert("ounce_version".into(), env!("CARGO_PKG_VERSION").into());
    let pretty = |config: &Map<String, Value>| format!("{:#}\n", Value::Object(config.clone()));
    fsx::write_atomic(&config_file, pretty(&plan.config).as_bytes())?;
    if let Some(seal) = &plan.seal {
        seal(&mut plan.config, &Checkpoint::open(folder.path())?)?;
        fsx::write_atomic(&config_file, pretty(&plan.config).as_bytes())?;
    }
    folder.finish()?;
    Ok(ConvertReport {
        to: conversion.name,
        tensors: plan.tensors.len(),
        bytes_before: checkpoint.total_bytes(),
        notes,
        bytes_after: total,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// A resumed job must be the same job: everything that decides a byte, the weights aside, is in its identity.
fn same_job(job: &ConvertJob, checkpoint: &Checkpoint, folder: &mut OutputFolder) -> Result<(), CompressError> {
    let text = format!("{} {:?} {}", job.to, job.options, checkpoint.config());
    let identity = Value::from(fsx::sha256_bytes(text.as_bytes()));
    match folder.entries().iter().find_map(|e| e.get("convert")) {
        Some(found) if *found == identity => Ok(()),
        Some(_) => Err(CompressError::input(
            format!("{}.partial", job.out.display()),
            "was begun with other options or another model",
            "--overwrite starts again",
        )),
        None => Ok(folder.record(&json!({ "convert": identity }))?),
    }
}

/// Everything but weights and configuration: tokenizer and card.
fn write_side_files(job: &ConvertJob, folder: &OutputFolder, card: &str) -> Result<(), CompressError> {
    side_files::copy(&job.model, folder.path())?;
    let text = format!(
        "# Made with Ounce {}\n\n{card}\n\n```\n{}\n```\n",
        env!("CARGO_PKG_VERSION"),
        job.command_line
    );
    Ok(fsx::write_atomic(&folder.path().join("README.md"), text.as_bytes())?)
}
