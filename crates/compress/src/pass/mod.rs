//! The pass that writes a checkpoint made of another: conversions, merging and pruning are plans for it.
//!
//! A plan says what the output consists of: the configuration, the tensors in order with the origin of their bytes, files
//! of the method, what the model card tells. The pass does the rest, once for all: it begins or continues the output folder
//! under the identity of the job, streams the tensors with a journal of what is on the disk, and adds side files and card.
//! Memory holds one piece of a tensor, or what a plan's computation needs for one.

mod card;

use crate::error::CompressError;
use ounce_formats::{
    Begun, Checkpoint, Identity, Inputs, Output, OutputFolder, Overwrite, Resume, ShardOptions, ShardedWriter,
    SideFiles, TensorSpec,
    checkpoint::{CONFIG, INDEX, TORCH_INDEX},
    safetensors::TensorInfo,
};
use serde_json::{Map, Value};
use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

pub(crate) use card::Card;

/// Takes the bytes of a tensor, piece by piece.
pub(crate) type Take<'a> = &'a mut dyn FnMut(&[u8]) -> Result<(), CompressError>;

/// Makes the bytes of a tensor, in bounded memory.
pub(crate) type Make<'a> = Box<dyn Fn(Take<'_>) -> Result<(), CompressError> + 'a>;

/// Adds to the configuration what is known only once every tensor of the output (the second argument) is on the disk.
pub(crate) type Seal<'a> = Box<dyn Fn(&mut Map<String, Value>, &Checkpoint) -> Result<(), CompressError> + 'a>;

/// Where the bytes of an output tensor come from.
pub(crate) enum Source<'a> {
    /// The tensor of the same name.
    Copy,
    /// A computation.
    Made(Make<'a>),
}

/// What a checkpoint is to consist of.
pub(crate) struct Plan<'a> {
    /// The new `config.json`.
    pub(crate) config: Map<String, Value>,
    /// The tensors, in the order they are written.
    pub(crate) tensors: Vec<(TensorSpec, Source<'a>)>,
    /// Files of the method, by name.
    pub(crate) files: Vec<(&'static str, String)>,
    /// What the model card tells.
    pub(crate) card: Card,
    /// Whether a byte of it depends on the instruction set.
    pub(crate) computed: bool,
    /// The last word on the configuration, if there is one.
    pub(crate) seal: Option<Seal<'a>>,
}

impl Plan<'_> {
    /// Every tensor for which `keep` holds, copied; the caller adds what is new and edits the configuration.
    pub(crate) fn copying(checkpoint: &Checkpoint, card: Card, keep: impl Fn(&str) -> bool) -> Self {
        let copied = |t: &TensorInfo| {
            let spec = TensorSpec::new(t.name.clone(), t.dtype, t.shape.clone());
            (spec, Source::Copy)
        };
        Self {
            config: checkpoint.config().as_object().cloned().unwrap_or_default(),
            tensors: checkpoint.tensors().filter(|t| keep(&t.name)).map(copied).collect(),
            files: Vec::new(),
            card,
            computed: false,
            seal: None,
        }
    }

    /// Bytes of all tensors.
    pub(crate) fn bytes(&self) -> u64 {
        self.tensors.iter().map(|(spec, _)| byte_len(spec)).sum()
    }
}

fn byte_len(spec: &TensorSpec) -> u64 {
    spec.dtype.byte_len(&spec.shape).unwrap_or(0) as u64
}

/// Bytes copied at one time.
const PIECE: usize = 16 << 20;
/// The journal costs a sync: this many tensors, or bytes, are little enough to lose.
const COMMIT: (usize, usize) = (3, 64 << 20);

/// A job as it is asked for, whatever its plan.
pub(crate) struct Request<'a> {
    pub(crate) checkpoint: &'a Checkpoint,
    /// What decides every byte, the checkpoint aside.
    pub(crate) identity: Identity,
    /// What is read beside the checkpoint.
    pub(crate) read: Vec<PathBuf>,
    pub(crate) out: &'a Path,
    pub(crate) overwrite: Overwrite,
    pub(crate) resume: bool,
    pub(crate) command_line: &'a str,
}

/// A pass that has begun: its folder is open, and is that of this job.
pub(crate) struct Pass<'a> {
    checkpoint: &'a Checkpoint,
    side_files: SideFiles,
    pub(crate) folder: OutputFolder,
}

impl<'a> Pass<'a> {
    /// Opens the output folder. `None`: it was finished before, by the same job.
    ///
    /// # Errors
    /// The folder may not be written, or belongs to another job; a side file of the checkpoint is not its own.
    pub(crate) fn begin(request: Request<'a>) -> Result<Option<Self>, CompressError> {
        let checkpoint = request.checkpoint;
        let side_files = SideFiles::of(checkpoint.path())?;
        let begun = OutputFolder::create(Output {
            path: request.out,
            overwrite: request.overwrite,
            resume: if request.resume { Resume::Yes } else { Resume::No },
            identity: request.identity,
            inputs: inputs(checkpoint, &side_files)?,
            sources: [vec![checkpoint.path().to_owned()], request.read].concat(),
            command_line: request.command_line,
        })?;
        Ok(match begun {
            Begun::Whole => None,
            Begun::Work(folder) => Some(Self {
                checkpoint,
                side_files,
                folder,
            }),
        })
    }

    /// What the checkpoint holds and the output does not, side files of no known use.
    pub(crate) fn left(&self) -> Vec<String> {
        self.side_files.left().to_vec()
    }

    /// Carries out the plan. `progress` hears how many bytes of how many are written; when `stop` is set, the job ends with
    /// [`CompressError::Stopped`] and can be resumed.
    ///
    /// # Errors
    /// A computation fails, or the disk refuses; what is finished by then can be resumed.
    pub(crate) fn write(
        mut self,
        mut plan: Plan<'_>,
        progress: &mut dyn FnMut(u64, u64),
        stop: &AtomicBool,
    ) -> Result<(), CompressError> {
        let stopped = stopped(&self.folder);
        self.write_tensors(&plan, progress, stop)?;
        self.side_files.copy(self.folder.path())?;
        for (name, text) in &plan.files {
            self.folder.write(name, text.as_bytes())?;
        }
        plan.config
            .insert("ounce_version".into(), env!("CARGO_PKG_VERSION").into());
        self.write_config(&plan)?;
        if let Some(seal) = &plan.seal {
            seal(&mut plan.config, &Checkpoint::open(self.folder.path())?)?;
            self.write_config(&plan)?;
        }
        let Some(sums) = self.folder.input_sums(stop)? else {
            return Err(stopped);
        };
        let card = plan
            .card
            .text(self.checkpoint, &self.side_files, self.folder.command(), &sums)?;
        self.folder.write("README.md", card.as_bytes())?;
        Ok(self.folder.finish()?)
    }

    fn write_config(&self, plan: &Plan<'_>) -> Result<(), CompressError> {
        let text = format!("{:#}\n", Value::Object(plan.config.clone()));
        Ok(self.folder.write(CONFIG, text.as_bytes())?)
    }

    fn write_tensors(
        &mut self,
        plan: &Plan<'_>,
        progress: &mut dyn FnMut(u64, u64),
        stop: &AtomicBool,
    ) -> Result<(), CompressError> {
        let declared = plan.tensors.iter().map(|(spec, _)| spec.clone()).collect();
        let options = ShardOptions::default();
        let mut writer = ShardedWriter::resume(self.folder.path(), declared, &options, &self.folder)?;
        let finished = writer.finished();
        let total = plan.bytes();
        let mut done: u64 = plan.tensors[..finished].iter().map(|(spec, _)| byte_len(spec)).sum();
        let mut pending = (0, 0);
        for (spec, source) in &plan.tensors[finished..] {
            let (before, mut empty) = (done, true);
            let mut take = |piece: &[u8]| {
                if stop.load(Ordering::Relaxed) {
                    return Err(stopped(&self.folder));
                }
                empty = false;
                writer.write(&spec.name, piece)?;
                done += piece.len() as u64;
                progress(done, total);
                Ok(())
            };
            let made = match source {
                Source::Copy => {
                    let region = self.checkpoint.region(&spec.name)?;
                    region.bytes().chunks(PIECE).try_for_each(&mut take)
                }
                Source::Made(make) => make(&mut take),
            };
            if let Err(error) = made {
                // What is whole by now need not be made again.
                writer.commit(&mut self.folder)?;
                return Err(error);
            }
            if empty {
                writer.write(&spec.name, &[])?;
            }
            pending = (pending.0 + 1, pending.1 + (done - before) as usize);
            if pending.0 >= COMMIT.0 || pending.1 >= COMMIT.1 {
                writer.commit(&mut self.folder)?;
                pending = (0, 0);
            }
        }
        writer.commit(&mut self.folder)?;
        Ok(writer.finish()?)
    }
}

/// Every file of the checkpoint that the pass reads.
fn inputs(checkpoint: &Checkpoint, side_files: &SideFiles) -> Result<Inputs, CompressError> {
    let folder = checkpoint.path();
    let given = [CONFIG, INDEX, TORCH_INDEX].map(|name| folder.join(name));
    let given = given.iter().filter(|path| path.exists()).map(PathBuf::as_path);
    let weights = checkpoint.shards().iter().map(ounce_formats::SafetensorsFile::path);
    let files = given.chain(weights).chain(side_files.paths()).map(|path| {
        let name = path.strip_prefix(folder).unwrap_or(path);
        (name.to_string_lossy().into_owned(), path.to_owned())
    });
    Ok(Inputs::of(files)?)
}

pub(crate) fn stopped(folder: &OutputFolder) -> CompressError {
    CompressError::Stopped(folder.path().display().to_string())
}
