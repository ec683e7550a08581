//! Output folders that are whole or not there.
//!
//! Work goes on in `OUT.partial/`, beside a journal of what is finished; the folder gets its name when everything is on
//! the disk. A process that is killed at any moment leaves OUT as it was, and a `.partial` that another process can
//! continue. (Only between the two renames of an overwrite is there, for an instant, no OUT: the old one is then
//! `OUT.replaced-PID`, and the new one is complete in `OUT.partial`.)

use std::{
    fs::{self, File, TryLockError},
    io::{Read, Seek, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::Serialize;
use serde_json::Value;

use crate::{
    error::{FormatError, Result},
    fsx,
};

/// The journal's file name within `OUT.partial`.
pub const JOURNAL: &str = "journal.jsonl";

/// What to do with a finished OUT or an unfinished `OUT.partial` that is already there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overwrite {
    /// Leave it alone and fail.
    Refuse,
    /// Replace it; a finished OUT stays in place until the new one is complete.
    Replace,
}

/// Whether to continue an unfinished `OUT.partial`. Takes precedence over [`Overwrite::Replace`] there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    /// Start from nothing.
    No,
    /// Continue it if there is one.
    Yes,
}

/// A folder under construction, locked against other processes until it is dropped or finished.
#[derive(Debug)]
pub struct OutputFolder {
    target: PathBuf,
    partial: PathBuf,
    overwrite: Overwrite,
    journal: File,
    /// Bytes of whole lines in the journal.
    journal_len: u64,
    entries: Vec<Value>,
}

impl OutputFolder {
    /// Creates (or continues) `path` + `.partial`, to become `path` in [`OutputFolder::finish`].
    ///
    /// # Errors
    /// `path` exists and may not be replaced; a `.partial` exists and may be neither continued nor replaced; another
    /// process is writing it; the journal is damaged before its last line; or the disk refuses.
    pub fn create(path: &Path, overwrite: Overwrite, resume: Resume) -> Result<Self> {
        if path.file_name().is_none() {
            return Err(FormatError::place(
                path,
                "names no new folder",
                "give the output folder a name",
            ));
        }
        let partial = fsx::with_suffix(path, ".partial");
        check_target(path, overwrite)?;
        let found = partial.exists();
        if found && overwrite == Overwrite::Refuse && resume == Resume::No {
            let rule = "is left over from a run that did not finish";
            return Err(FormatError::place(
                &partial,
                rule,
                "`--resume` continues it, `--overwrite` starts again",
            ));
        }
        fsx::create_dir_all(&partial)?;
        check_ours(&partial)?;

        let journal_path = partial.join(JOURNAL);
        let mut journal = open_locked(&partial, &journal_path)?;
        let (entries, journal_len) = if resume == Resume::Yes {
            read_journal(&journal_path, &mut journal)?
        } else {
            clear(&partial)?;
            (Vec::new(), 0)
        };
        // Cuts a torn last line, or everything when starting again.
        let cut = journal.set_len(journal_len).and_then(|()| journal.sync_all());
        cut.map_err(FormatError::io(&journal_path, "prepare the journal"))?;
        fsx::sync_dir(&partial)?;
        Ok(Self {
            target: path.to_owned(),
            partial,
            overwrite,
            journal,
            journal_len,
            entries,
        })
    }

    /// The folder to write into, `OUT.partial`.
    pub fn path(&self) -> &Path {
        &self.partial
    }

    /// The folder it will become, OUT.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// The journal: lines of earlier processes, then those of this one.
    pub fn entries(&self) -> &[Value] {
        &self.entries
    }

    /// Appends one line to the journal and returns when it is on the disk. What it speaks of should be there before.
    ///
    /// # Errors
    /// The entry cannot be expressed as JSON, or the disk refuses; the journal is then as before.
    pub fn record(&mut self, entry: &impl Serialize) -> Result<()> {
        let path = self.partial.join(JOURNAL);
        let entry = serde_json::to_value(entry).map_err(|e| {
            let hint = "this is a fault in the code that writes the journal; please report it";
            FormatError::place(&path, format!("entry is no JSON: {e}"), hint)
        })?;
        let line = format!("{entry}\n");
        let written = self
            .journal
            .write_all(line.as_bytes())
            .and_then(|()| self.journal.sync_data());
        if let Err(e) = written {
            // Cut a torn line, so that a later one does not end up behind it; the first failure is the one to report.
            let _ = self.journal.set_len(self.journal_len);
            return Err(FormatError::io(&path, "append to the journal")(e));
        }
        self.journal_len += line.len() as u64;
        self.entries.push(entry);
        Ok(())
    }

    /// Flushes every file and folder to the disk, gives the folder its name, and removes the journal.
    ///
    /// # Errors
    /// OUT has appeared meanwhile and may not be replaced, or the disk refuses; the work is then still in `.partial`.
    pub fn finish(self) -> Result<()> {
        check_target(&self.target, self.overwrite)?;
        sync_tree(&self.partial)?;
        let replaced = fsx::with_suffix(&self.target, &format!(".replaced-{}", std::process::id()));
        let replaces = self.target.exists();
        if replaces {
            fsx::rename(&self.target, &replaced)?;
        }
        if let Err(e) = fs::rename(&self.partial, &self.target) {
            if replaces {
                // Put the old one back; if that fails, too, it is still there under the other name.
                let _ = fs::rename(&replaced, &self.target);
            }
            return Err(FormatError::io(&self.target, "give the finished folder its name")(e));
        }
        // Only now: without its journal, a `.partial` would lose hours of work to a kill before the rename.
        let journal = self.target.join(JOURNAL);
        fs::remove_file(&journal).map_err(FormatError::io(&journal, "remove the journal"))?;
        fsx::sync_dir(&self.target)?;
        fsx::sync_parent(&self.target)?;
        if replaces {
            fs::remove_dir_all(&replaced).map_err(FormatError::io(&replaced, "remove the replaced folder"))?;
        }
        Ok(())
    }
}

/// OUT must be absent, or a folder that may be replaced.
fn check_target(path: &Path, overwrite: Overwrite) -> Result<()> {
    let Ok(found) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !found.is_dir() {
        return Err(FormatError::place(
            path,
            "exists and is not a folder",
            "choose another output folder",
        ));
    }
    if overwrite == Overwrite::Refuse {
        let hint = "`--overwrite` replaces it, or choose another output folder";
        return Err(FormatError::place(path, "exists already", hint));
    }
    // A slip of the hand like `--out .. --overwrite` must not remove the folder one works in.
    let inside = match (fs::canonicalize(path), std::env::current_dir()) {
        (Ok(target), Ok(current)) => current.starts_with(target),
        _ => false,
    };
    if inside {
        return Err(FormatError::place(
            path,
            "holds the current folder",
            "choose another output folder",
        ));
    }
    Ok(())
}

/// A folder with files but no journal was not made here, and is neither continued nor cleared.
fn check_ours(partial: &Path) -> Result<()> {
    if partial.join(JOURNAL).exists() || list(partial)?.is_empty() {
        return Ok(());
    }
    let rule = format!("holds files but no {JOURNAL}, so it is no unfinished output");
    Err(FormatError::place(
        partial,
        rule,
        "move it away, or choose another output folder",
    ))
}

/// Opens the journal and takes its lock, which ends with the process however that ends.
fn open_locked(partial: &Path, path: &Path) -> Result<File> {
    let busy = || {
        let hint = "wait for it to end, or choose another output folder";
        FormatError::place(partial, "another process is writing it", hint)
    };
    let open = File::options().read(true).append(true).create(true).open(path);
    let file = open.map_err(FormatError::io(path, "open the journal"))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(busy()),
        Err(TryLockError::Error(e)) => return Err(FormatError::io(path, "lock the journal")(e)),
    }
    // Between our opening and our locking, its owner may have finished and moved it.
    let ours = file.metadata().map_err(FormatError::io(path, "lock the journal"))?;
    match fs::metadata(path) {
        Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => Ok(file),
        _ => Err(busy()),
    }
}

/// The entries and the length of the part that is whole. A process killed while it appends leaves a last line that is
/// cut short or, after a power failure, filled with zeros; what that line spoke of is done again.
fn read_journal(path: &Path, journal: &mut File) -> Result<(Vec<Value>, u64)> {
    let mut bytes = Vec::new();
    let read = journal.rewind().and_then(|()| journal.read_to_end(&mut bytes));
    read.map_err(FormatError::io(path, "read the journal"))?;
    let mut entries = Vec::new();
    let mut whole = 0;
    for (i, line) in bytes.split_inclusive(|&b| b == b'\n').enumerate() {
        let last = whole + line.len() == bytes.len();
        match serde_json::from_slice(line) {
            Ok(entry) if line.ends_with(b"\n") => entries.push(entry),
            Err(e) if !last => {
                let rule = format!("line {} is damaged: {e}", i + 1);
                return Err(FormatError::place(path, rule, "`--overwrite` starts again"));
            }
            _ => break,
        }
        whole += line.len();
    }
    Ok((entries, whole as u64))
}

/// Removes everything but the journal, whose lock must outlive the clearing.
fn clear(partial: &Path) -> Result<()> {
    for path in list(partial)? {
        let remove = match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => fs::remove_dir_all(&path),
            _ if path.ends_with(JOURNAL) => continue,
            _ => fs::remove_file(&path),
        };
        remove.map_err(FormatError::io(&path, "remove it to start again"))?;
    }
    Ok(())
}

fn sync_tree(dir: &Path) -> Result<()> {
    for path in list(dir)? {
        let meta = fs::symlink_metadata(&path).map_err(FormatError::io(&path, "read its type"))?;
        if meta.is_dir() {
            sync_tree(&path)?;
        } else if meta.is_file() {
            let sync = File::open(&path).and_then(|file| file.sync_all());
            sync.map_err(FormatError::io(&path, "flush it to the disk"))?;
        }
    }
    fsx::sync_dir(dir)
}

fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).and_then(|entries| entries.map(|e| Ok(e?.path())).collect());
    entries.map_err(FormatError::io(dir, "list this folder"))
}
