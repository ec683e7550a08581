//! One writer at a time: the lock of a folder.
//!
//! The lock is the system's, on a file within the folder, so it ends with the process that holds it, however that ends.
//! The file says who holds it. It also tells whether the folder under a name is still the one that was locked: somebody
//! may have removed it and begun another.

use std::{
    fs::{self, File, TryLockError},
    io::{Read, Seek, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use crate::error::{FormatError, Result};

/// Name of the lock's file within its folder.
pub const LOCK: &str = ".ounce-lock";

/// A folder that no other process writes to until this is dropped.
#[derive(Debug)]
pub struct FolderLock {
    file: File,
    folder: PathBuf,
}

impl FolderLock {
    /// Locks the folder `folder`, which must be there.
    ///
    /// # Errors
    /// Another process holds its lock, whose number and command the message gives; or the disk refuses.
    pub fn take(folder: &Path) -> Result<Self> {
        let path = folder.join(LOCK);
        loop {
            let mut options = File::options();
            // Whoever put a link there must not make us write to what it points at.
            let open = options
                .read(true)
                .write(true)
                .create(true)
                .custom_flags(libc::O_NOFOLLOW);
            let mut file = open.open(&path).map_err(FormatError::io(&path, "open the lock"))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(busy(folder, &mut file)),
                Err(TryLockError::Error(e)) => return Err(FormatError::io(&path, "lock it")(e)),
            }
            let mut lock = Self {
                file,
                folder: folder.to_owned(),
            };
            // Between our opening and our locking, its owner may have ended and removed it.
            if lock.is_held() {
                let written = lock
                    .file
                    .set_len(0)
                    .and_then(|()| lock.file.write_all(owner().as_bytes()));
                written.map_err(FormatError::io(&path, "write the lock"))?;
                return Ok(lock);
            }
        }
    }

    /// Whether the folder is still the one that was locked.
    pub fn is_held(&self) -> bool {
        let (Ok(ours), Ok(there)) = (self.file.metadata(), fs::symlink_metadata(self.folder.join(LOCK))) else {
            return false;
        };
        (ours.dev(), ours.ino()) == (there.dev(), there.ino())
    }

    /// [`FolderLock::is_held`], as an error if it is not.
    ///
    /// # Errors
    /// The folder is another one by now.
    pub fn check(&self) -> Result<()> {
        if self.is_held() {
            return Ok(());
        }
        let rule = "was removed or replaced while this process wrote it";
        Err(FormatError::place(
            &self.folder,
            rule,
            "leave the folder alone until the command ends",
        ))
    }

    /// The locked folder has this name now.
    pub(crate) fn moved(&mut self, folder: &Path) {
        folder.clone_into(&mut self.folder);
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        if self.is_held() {
            // A file that stays is no harm: its lock is gone, and the next process takes it over.
            let _ = fs::remove_file(self.folder.join(LOCK));
        }
    }
}

/// What stands in the file: number and command of the process, which is all that a message needs.
fn owner() -> String {
    let words = std::env::args_os().take(2).map(|w| w.to_string_lossy().into_owned());
    let mut words: Vec<String> = words.collect();
    if let Some(program) = words.first_mut() {
        let name = Path::new(program.as_str())
            .file_name()
            .map(|n| n.to_string_lossy().into_owned());
        *program = name.unwrap_or_default();
    }
    format!("{} ({})", std::process::id(), words.join(" "))
}

fn busy(folder: &Path, file: &mut File) -> FormatError {
    let mut holder = String::new();
    // Its holder may not have written it yet; the rule holds without.
    let _ = file.rewind().and_then(|()| file.take(200).read_to_string(&mut holder));
    let rule = match holder.trim() {
        "" => "another process is writing it".to_owned(),
        holder => format!("another process is writing it: {}", holder.escape_debug()),
    };
    FormatError::place(folder, rule, "wait for it to end, or choose another output folder")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_the_first_is_and_gets_in_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = FolderLock::take(dir.path()).unwrap();
        let error = FolderLock::take(dir.path()).unwrap_err().to_string();
        let who = format!("another process is writing it: {} (", std::process::id());
        assert!(error.contains(&who), "{error}");
        drop(first);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left");
        // As a killed process leaves it: the file is there, its lock is not.
        fs::write(dir.path().join(LOCK), "1 (gone)").unwrap();
        let second = FolderLock::take(dir.path()).unwrap();
        assert!(second.is_held());
    }

    #[test]
    fn a_folder_that_was_replaced_is_not_held() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        fs::create_dir(&out).unwrap();
        let first = FolderLock::take(&out).unwrap();
        first.check().unwrap();
        fs::remove_dir_all(&out).unwrap();
        assert!(
            first
                .check()
                .unwrap_err()
                .to_string()
                .contains("was removed or replaced")
        );
        fs::create_dir(&out).unwrap();
        let second = FolderLock::take(&out).unwrap();
        drop(first);
        assert!(second.is_held(), "the lock of another is left alone");
    }

    #[test]
    fn a_link_in_its_place_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, dir.path().join(LOCK)).unwrap();
        FolderLock::take(dir.path()).unwrap_err();
        assert_eq!(fs::read_to_string(victim).unwrap(), "precious");
    }
}
