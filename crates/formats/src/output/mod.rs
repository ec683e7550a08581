//! Output folders that are whole or not there.
//!
//! Work goes on in `OUT.partial/`, beside a journal of what is finished; the folder gets its name when everything is on
//! the disk. A process that is killed at any moment leaves OUT as it was, and a `.partial` that another process can
//! continue. (Only between the two renames of an overwrite is there, for an instant, no OUT: the old one is then
//! `OUT.replaced-PID`. The journal knows, and the next command of any kind puts it back or completes the new one.)
//!
//! - One process writes at a time ([`crate::lock`]), and notices if the folder was taken from under it.
//! - A job is continued only with what it was begun with ([`Identity`], [`Inputs`]).
//! - Nothing that is read is replaced, nor anything that is not ours (the owner's mark, [`MARK`]).

mod journal;
mod mark;
mod target;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    error::{FormatError, Result},
    fsx,
    identity::{Identity, others},
    inputs::{Inputs, Summing},
    lock::{FolderLock, LOCK},
};
pub use journal::JOURNAL;
use journal::Journal;
pub use mark::MARK;
use mark::Mark;
pub use target::check_output_file;

/// What to do with a finished OUT or an unfinished `OUT.partial` that is already there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overwrite {
    /// Leave it alone and fail.
    Refuse,
    /// Replace it if everything in it is ours; a finished OUT stays in place until the new one is complete.
    Replace,
    /// Replace it whatever it is, unless it is read.
    Any,
}

/// Whether to continue an unfinished `OUT.partial`. Takes precedence over [`Overwrite::Replace`] there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    /// Start from nothing.
    No,
    /// Continue it if there is one.
    Yes,
}

/// An output folder as it is asked for.
#[derive(Debug)]
pub struct Output<'a> {
    /// OUT.
    pub path: &'a Path,
    /// Whether to replace what is there.
    pub overwrite: Overwrite,
    /// Whether to continue what is there.
    pub resume: Resume,
    /// What decides every byte, the inputs aside.
    pub identity: Identity,
    /// The files it is made from.
    pub inputs: Inputs,
    /// Files and folders that are read, and must not be harmed.
    pub sources: Vec<PathBuf>,
    /// For the mark.
    pub command_line: &'a str,
}

/// What there is to do for an output folder.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
pub enum Begun {
    /// It is to be filled.
    Work(OutputFolder),
    /// It was to be continued, and is there already, made with the same.
    Whole,
}

impl From<OutputFolder> for Begun {
    fn from(folder: OutputFolder) -> Self {
        Self::Work(folder)
    }
}

/// A folder under construction, locked against other processes until it is dropped or finished.
#[derive(Debug)]
pub struct OutputFolder {
    target: PathBuf,
    /// `OUT.partial`.
    folder: PathBuf,
    overwrite: Overwrite,
    sources: Vec<PathBuf>,
    lock: FolderLock,
    journal: Journal,
    mark: Mark,
    inputs: Inputs,
    summing: Summing,
}

/// Keys of this module's own lines in the journal.
const JOB: &str = "job";
const SUMS: &str = "input_sums";
const REPLACES: &str = "replaces";

impl OutputFolder {
    /// Creates (or continues) `OUT.partial`, to become OUT in [`OutputFolder::finish`].
    ///
    /// # Errors
    /// OUT exists and may not be replaced; a `.partial` exists and may be neither continued nor replaced, or was begun with
    /// something else; another process is writing it; the journal is damaged before its last line; or the disk refuses.
    pub fn create(output: Output<'_>) -> Result<Begun> {
        let path = output.path;
        if path.file_name().is_none() {
            return Err(FormatError::place(
                path,
                "names no new folder",
                "give the output folder a name",
            ));
        }
        let partial = fsx::with_suffix(path, ".partial");
        target::keep_sources(&partial, &output.sources)?;
        complete(path)?;
        if found(&partial)? {
            Ok(Self::take_over(output, &partial)?.into())
        } else if output.resume == Resume::Yes && Mark::of(path).is_some_and(|mark| !mark.files.is_empty()) {
            Self::reopen(output, partial)
        } else {
            target::check(path, output.overwrite, &output.sources)?;
            fsx::create_dir_all(&partial)?;
            let lock = FolderLock::take(&partial)?;
            Ok(Self::begin(output, partial, lock)?.into())
        }
    }

    /// Continues, replaces or leaves alone the unfinished folder that is there.
    fn take_over(output: Output<'_>, partial: &Path) -> Result<Self> {
        check_ours(partial)?;
        let lock = FolderLock::take(partial)?;
        restore(output.path, partial)?;
        target::check(output.path, output.overwrite, &output.sources)?;
        match (output.resume, output.overwrite) {
            (Resume::Yes, _) => Self::resume(output, partial, lock),
            (Resume::No, Overwrite::Refuse) => Err(FormatError::place(
                partial,
                "is left over from a run that did not finish",
                "`--resume` continues it, `--overwrite` starts again",
            )),
            (Resume::No, _) => Self::begin(output, partial.to_owned(), lock),
        }
    }

    /// Starts from nothing in the locked folder `partial`.
    fn begin(output: Output<'_>, partial: PathBuf, lock: FolderLock) -> Result<Self> {
        clear(&partial)?;
        let mark = Mark {
            command: output.command_line.to_owned(),
            identity: output.identity.clone(),
            made_from: BTreeMap::new(),
            files: BTreeSet::new(),
        };
        mark.write(&partial)?;
        let mut journal = Journal::open(&partial)?;
        journal.clear()?;
        let job = json!({ "identity": output.identity, "inputs": output.inputs.to_json(), "command": mark.command });
        journal.append(json!({ JOB: job }))?;
        fsx::sync_dir(&partial)?;
        fsx::sync_parent(&partial)?;
        Ok(Self::over(output, partial, lock, journal, mark))
    }

    fn over(output: Output<'_>, folder: PathBuf, lock: FolderLock, journal: Journal, mark: Mark) -> Self {
        Self {
            target: output.path.to_owned(),
            folder,
            overwrite: output.overwrite,
            sources: output.sources,
            lock,
            journal,
            mark,
            summing: output.inputs.start_summing(),
            inputs: output.inputs,
        }
    }

    /// Goes on where an earlier process stopped.
    fn resume(mut output: Output<'_>, partial: &Path, lock: FolderLock) -> Result<Self> {
        let journal = Journal::open(partial)?;
        let Some(job) = journal.entries().iter().find_map(|e| e.get(JOB)) else {
            // Killed before it wrote its first line: nothing is lost.
            return Self::begin(output, partial.to_owned(), lock);
        };
        let sums = sums_in(journal.entries());
        let mut differ = match serde_json::from_value::<Identity>(job["identity"].clone()) {
            Ok(began) => began.differences(&output.identity),
            Err(_) => vec!["version of Ounce".to_owned()],
        };
        differ.extend(output.inputs.differences(&job["inputs"], &sums)?);
        if !differ.is_empty() {
            return Err(FormatError::place(
                partial,
                format!("was begun with {}", others(&differ)),
                "--overwrite starts again; with what it was begun with, --resume continues",
            ));
        }
        output.inputs.learn(&sums);
        fsx::remove_temporaries(partial)?;
        let mark = Mark {
            command: job["command"].as_str().unwrap_or(output.command_line).to_owned(),
            identity: output.identity.clone(),
            made_from: BTreeMap::new(),
            files: BTreeSet::new(),
        };
        Ok(Self::over(output, partial.to_owned(), lock, journal, mark))
    }

    /// OUT is whole already: by the same job, or in the way.
    fn reopen(mut output: Output<'_>, partial: PathBuf) -> Result<Begun> {
        let Some(mark) = Mark::of(output.path) else {
            return Err(FormatError::place(
                output.path,
                "has lost its mark",
                "choose another output folder",
            ));
        };
        let mut differ = mark.identity.differences(&output.identity);
        let sums = output.inputs.all_sums()?;
        let names: BTreeSet<&String> = mark.made_from.keys().chain(sums.keys()).collect();
        let other = names
            .into_iter()
            .filter(|name| mark.made_from.get(*name) != sums.get(*name));
        differ.extend(other.cloned());
        if differ.is_empty() {
            return Ok(Begun::Whole);
        }
        if output.overwrite == Overwrite::Refuse {
            let rule = format!("exists already, made with {}", others(&differ));
            let hint = "`--overwrite` replaces it, or choose another output folder";
            return Err(FormatError::place(output.path, rule, hint));
        }
        target::check(output.path, output.overwrite, &output.sources)?;
        fsx::create_dir_all(&partial)?;
        let lock = FolderLock::take(&partial)?;
        Ok(Self::begin(output, partial, lock)?.into())
    }

    /// The folder to write into, `OUT.partial`.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// The folder it will become, OUT.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// The command line that began the job.
    pub fn command(&self) -> &str {
        &self.mark.command
    }

    /// What was recorded by earlier processes, then by this one; this module's own lines among it.
    pub fn entries(&self) -> &[Value] {
        self.journal.entries()
    }

    /// Appends one line to the journal and returns when it is on the disk. What it speaks of should be there before.
    ///
    /// # Errors
    /// The folder is not ours any more, the entry cannot be expressed as JSON, or the disk refuses; the journal is then as
    /// before.
    pub fn record(&mut self, entry: &impl Serialize) -> Result<()> {
        self.lock.check()?;
        let entry = serde_json::to_value(entry).map_err(|e| {
            let hint = "this is a fault in the code that writes the journal; please report it";
            FormatError::place(&self.folder.join(JOURNAL), format!("entry is no JSON: {e}"), hint)
        })?;
        let sums = self.summing.ready()?;
        self.learn(&sums)?;
        self.journal.append(entry)
    }

    fn learn(&mut self, sums: &BTreeMap<String, String>) -> Result<()> {
        if !sums.is_empty() {
            self.inputs.learn(sums);
            self.journal.append(json!({ SUMS: sums }))?;
        }
        Ok(())
    }

    /// Writes a small file of the folder, at once and durably.
    ///
    /// # Errors
    /// The folder is not ours any more, or the disk refuses.
    pub fn write(&self, name: impl AsRef<OsStr>, bytes: &[u8]) -> Result<()> {
        self.lock.check()?;
        fsx::write_atomic(&self.folder.join(name.as_ref()), bytes)
    }

    /// The SHA-256 of every input, once all are made; `None` if `stop` is set before.
    ///
    /// # Errors
    /// An input could not be read.
    pub fn input_sums(&mut self, stop: &std::sync::atomic::AtomicBool) -> Result<Option<BTreeMap<String, String>>> {
        let Some(sums) = self.summing.wait(stop)? else {
            return Ok(None);
        };
        self.learn(&sums)?;
        Ok(Some(self.inputs.sums()))
    }

    /// Flushes every file and folder to the disk, gives the folder its name, and removes the journal.
    ///
    /// # Errors
    /// An input was changed meanwhile, OUT has appeared and may not be replaced, the folder is not ours any more, or the
    /// disk refuses; the work is then still in `.partial`.
    pub fn finish(mut self) -> Result<()> {
        self.inputs.check_untouched()?;
        let sums = self.summing.wait(&false.into())?.unwrap_or_default();
        self.learn(&sums)?;
        self.mark.made_from = self.inputs.sums();
        let files = mark::files(&self.folder)?;
        self.mark.files = files.into_iter().filter(|name| !mark::passing(name)).collect();
        self.mark.write(&self.folder)?;
        fsx::sync_tree(&self.folder)?;
        target::check(&self.target, self.overwrite, &self.sources)?;
        if self.target.exists() {
            let replaced = fsx::with_suffix(&self.target, &format!(".replaced-{}", std::process::id()));
            let name = replaced.file_name().unwrap_or_default().to_string_lossy().into_owned();
            self.record(&json!({ REPLACES: name }))?;
            fsx::rename(&self.target, &replaced)?;
        }
        self.lock.check()?;
        if let Err(e) = fs::rename(&self.folder, &self.target) {
            // Put the old one back; if that fails, too, the next command does.
            let _ = restore(&self.target, &self.folder);
            return Err(FormatError::io(&self.target, "give the finished folder its name")(e));
        }
        fsx::sync_parent(&self.target)?;
        self.lock.moved(&self.target);
        self.lock.check()?;
        tidy(&self.target, self.journal.entries())
    }
}

/// Whether there is an unfinished folder, which must be one itself: no link is followed out of the place that was named.
fn found(partial: &Path) -> Result<bool> {
    match fs::symlink_metadata(partial) {
        Err(_) => Ok(false),
        Ok(meta) if meta.is_dir() => Ok(true),
        Ok(_) => {
            let hint = "move it away, or choose another output folder";
            Err(FormatError::place(partial, "exists and is no folder", hint))
        }
    }
}

/// A folder with files but no mark was not made here, and is neither continued nor cleared.
fn check_ours(partial: &Path) -> Result<()> {
    let marked = Mark::of(partial).is_some();
    if marked || mark::files(partial)?.iter().all(|name| mark::passing(name)) {
        return Ok(());
    }
    let rule = format!("holds files but no {MARK}, so it is no unfinished output");
    let hint = "move it away, or choose another output folder";
    Err(FormatError::place(partial, rule, hint))
}

/// Completes what a process killed within [`OutputFolder::finish`] left to do in the finished folder.
fn complete(target: &Path) -> Result<()> {
    let finished = Mark::of(target).is_some_and(|mark| !mark.files.is_empty());
    if !finished || !target.join(JOURNAL).exists() {
        return Ok(());
    }
    let lock = FolderLock::take(target)?;
    let entries = Journal::open(target)?.entries().to_vec();
    tidy(target, &entries)?;
    drop(lock);
    fsx::sync_dir(target)
}

/// Removes what was replaced, then the journal that knows of it.
fn tidy(target: &Path, entries: &[Value]) -> Result<()> {
    for replaced in replaced(target, entries) {
        fsx::remove(&replaced)?;
    }
    fsx::remove(&target.join(JOURNAL))?;
    fsx::sync_dir(target)?;
    fsx::sync_parent(target)
}

/// Puts back what an unfinished overwrite had moved out of the way.
fn restore(target: &Path, partial: &Path) -> Result<()> {
    if target.exists() || !partial.join(JOURNAL).exists() {
        return Ok(());
    }
    // A damaged journal knows nothing; whoever continues it is told.
    let Ok(journal) = Journal::open(partial) else {
        return Ok(());
    };
    match replaced(target, journal.entries())
        .into_iter()
        .find(|path| path.is_dir())
    {
        Some(old) => fsx::rename(&old, target),
        None => Ok(()),
    }
}

/// The names under which overwrites of `target` moved the old folder away.
fn replaced(target: &Path, entries: &[Value]) -> Vec<PathBuf> {
    let names = entries.iter().filter_map(|e| e.get(REPLACES)?.as_str());
    let own = fsx::with_suffix(target, ".replaced-");
    let own = own.file_name().unwrap_or_default().to_string_lossy().into_owned();
    names
        .filter(|name| name.starts_with(&own) && !name.contains('/'))
        .map(|name| target.with_file_name(name))
        .collect()
}

/// The sums of inputs that a journal knows.
fn sums_in(entries: &[Value]) -> BTreeMap<String, String> {
    let sums = entries
        .iter()
        .filter_map(|e| serde_json::from_value(e.get(SUMS)?.clone()).ok());
    sums.flat_map(|sums: BTreeMap<String, String>| sums).collect()
}

/// Removes everything but the lock.
fn clear(partial: &Path) -> Result<()> {
    for path in fsx::list(partial)? {
        if !path.ends_with(LOCK) {
            fsx::remove(&path)?;
        }
    }
    Ok(())
}
