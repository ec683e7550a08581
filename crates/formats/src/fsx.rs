//! File-system calls whose failures say which path they failed on.
//!
//! The rest of the crate goes through here, so that an error never reads "No such file or directory" alone, and so that
//! the order of write, fsync and rename is written once.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use crate::error::{FormatError, Result};

/// Reads a whole UTF-8 file.
///
/// # Errors
/// The file cannot be read or is not UTF-8.
pub fn read_to_string(path: &Path) -> Result<String> {
    check_regular(path)?;
    fs::read_to_string(path).map_err(FormatError::io(path, "read it"))
}

/// Reads a whole file.
///
/// # Errors
/// The file cannot be read.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    check_regular(path)?;
    fs::read(path).map_err(FormatError::io(path, "read it"))
}

/// Opens a file for reading.
///
/// # Errors
/// It does not exist, is a folder, or may not be read.
pub fn open(path: &Path) -> Result<File> {
    check_regular(path)?;
    File::open(path).map_err(FormatError::io(path, "open it"))
}

/// Looked at before it is opened: opening a pipe that nobody writes to would wait for ever, and a device has no end.
fn check_regular(path: &Path) -> Result<()> {
    match fs::metadata(path) {
        Ok(meta) if !meta.is_file() => Err(FormatError::place(
            path,
            "is not a regular file",
            "name a file, not a folder, a pipe or a device",
        )),
        // Whatever else is wrong is told by who opens it.
        _ => Ok(()),
    }
}

/// What the names of [`write_atomic`]'s temporary files have before the number of their process.
const TEMPORARY: &str = ".tmp-";

/// The name a file bears until it is whole.
pub(crate) fn temporary(path: &Path) -> PathBuf {
    with_suffix(path, &format!("{TEMPORARY}{}", std::process::id()))
}

/// Whether a file is one that [`write_atomic`] had not finished.
pub(crate) fn is_temporary(name: &str) -> bool {
    let number = name.rsplit_once(TEMPORARY).map(|(_, number)| number);
    number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// Removes what killed processes left of [`write_atomic`] in `dir` and the folders in it. Only for whoever holds its lock.
///
/// # Errors
/// A folder cannot be listed, or a file cannot be removed.
pub fn remove_temporaries(dir: &Path) -> Result<()> {
    for path in list(dir)? {
        let meta = fs::symlink_metadata(&path).map_err(FormatError::io(&path, "read its type"))?;
        if meta.is_dir() {
            remove_temporaries(&path)?;
        } else if path
            .file_name()
            .is_some_and(|name| is_temporary(&name.to_string_lossy()))
        {
            remove(&path)?;
        }
    }
    Ok(())
}

/// Creates a file where there is none. What is left over there is removed first; a link is not followed, whatever it
/// points at.
pub(crate) fn create_new(path: &Path) -> std::io::Result<File> {
    let create = || File::options().read(true).write(true).create_new(true).open(path);
    match create() {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            create()
        }
        other => other,
    }
}

/// Writes `bytes` beside `path`, fsyncs, and renames: readers see the old file or the new one, never a part.
///
/// # Errors
/// The folder cannot be written or is full; the file at `path`, if there was one, is then as before.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = temporary(path);
    let written = (|| {
        let mut file = create_new(&temporary).map_err(FormatError::io(path, "write it"))?;
        file.write_all(bytes).map_err(FormatError::io(path, "write it"))?;
        file.sync_all().map_err(FormatError::io(path, "flush it to the disk"))?;
        rename(&temporary, path)
    })();
    if written.is_err() {
        // Best effort: the first failure is the one worth reporting.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    sync_parent(path)
}

/// Creates a folder and those above it; an existing folder is fine.
///
/// # Errors
/// One of them cannot be created.
pub fn create_dir_all(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(FormatError::io(path, "create this folder"))
}

/// Removes a file, or a folder and all that is in it; it is no fault if there is none.
///
/// # Errors
/// Something of it cannot be removed.
pub fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(FormatError::io(path, "remove it")(e)),
        _ => Ok(()),
    }
}

/// Renames within one file system.
///
/// # Errors
/// What the system says; the message names the target.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(FormatError::io(to, "move the finished file here"))
}

/// Makes renames and removals within a folder durable.
///
/// # Errors
/// The folder cannot be opened or flushed.
pub fn sync_dir(path: &Path) -> Result<()> {
    let sync = || File::open(path)?.sync_all();
    sync().map_err(FormatError::io(path, "flush this folder to the disk"))
}

/// Makes everything in a folder durable: every file, every folder, the folder itself.
///
/// # Errors
/// Something of it cannot be opened or flushed.
pub fn sync_tree(dir: &Path) -> Result<()> {
    for path in list(dir)? {
        let meta = fs::symlink_metadata(&path).map_err(FormatError::io(&path, "read its type"))?;
        if meta.is_dir() {
            sync_tree(&path)?;
        } else if meta.is_file() {
            let sync = File::open(&path).and_then(|file| file.sync_all());
            sync.map_err(FormatError::io(&path, "flush it to the disk"))?;
        }
    }
    sync_dir(dir)
}

/// What lies in a folder.
pub(crate) fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).and_then(|entries| entries.map(|e| Ok(e?.path())).collect());
    entries.map_err(FormatError::io(dir, "list this folder"))
}

/// [`sync_dir`] of the folder that holds `path`.
///
/// # Errors
/// As [`sync_dir`].
pub fn sync_parent(path: &Path) -> Result<()> {
    sync_dir(parent(path))
}

/// The SHA-256 of a file in lower-case hexadecimal, read in pieces.
///
/// # Errors
/// The file cannot be read.
pub fn sha256_file(path: &Path) -> Result<String> {
    let mut file = open(path)?;
    let mut hasher = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut piece).map_err(FormatError::io(path, "read it"))?;
        if n == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&piece[..n]);
    }
}

/// The SHA-256 of `bytes` in lower-case hexadecimal.
pub fn sha256_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
            write!(text, "{byte:02x}").expect("invariant: writing to a String cannot fail");
            text
        })
}

/// The folder that holds `path`; "." for a bare file name.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// `path` with `suffix` appended to its last component, which it must have.
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sha256_is_the_published_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abc");
        write_atomic(&path, b"abc").unwrap();
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256_bytes(b"abc"), expected);
        assert_eq!(sha256_file(&path).unwrap(), expected);
    }

    #[test]
    fn failures_name_the_path_and_hint() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("absent.json");
        let error = read_to_string(&path).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with(&format!("{}: cannot read it: ", path.display())),
            "{error}"
        );
        assert_eq!(error.hint(), Some("check the spelling of the path"));
        let error = open(dir.path()).unwrap_err();
        assert!(error.to_string().ends_with("is not a regular file"), "{error}");
    }

    #[test]
    fn a_replaced_file_is_whole_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        write_atomic(&path, b"first").unwrap();
        write_atomic(&path, b"second").unwrap();
        assert_eq!(read(&path).unwrap(), b"second");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failure_names_the_path_and_keeps_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        write_atomic(&path, b"first").unwrap();
        let temporary = temporary(&path);
        fs::create_dir(&temporary).unwrap();
        let error = write_atomic(&path, b"second").unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with(&format!("{}: cannot write it: ", path.display())),
            "{error}"
        );
        assert_eq!(read(&path).unwrap(), b"first");
        let full = FormatError::io(&path, "write it")(std::io::ErrorKind::StorageFull.into());
        assert_eq!(
            full.hint(),
            Some("free some space on this disk, or choose another place")
        );
    }

    #[test]
    fn a_link_at_the_temporary_name_is_not_followed_and_leftovers_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, victim) = (dir.path().join("x"), dir.path().join("victim"));
        fs::write(&victim, "precious").unwrap();
        let temporary = temporary(&path);
        std::os::unix::fs::symlink(&victim, &temporary).unwrap();
        write_atomic(&path, b"new").unwrap();
        assert_eq!(
            (read(&victim).unwrap(), read(&path).unwrap()),
            (b"precious".to_vec(), b"new".to_vec())
        );

        fs::create_dir(dir.path().join("inner")).unwrap();
        for name in ["x.tmp-123", "inner/y.json.tmp-9", "x.tmp-", "x.tmp-12a"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        remove_temporaries(dir.path()).unwrap();
        let mut left: Vec<String> = list(dir.path())
            .unwrap()
            .iter()
            .map(|p| p.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        left.sort();
        assert_eq!(left, ["inner", "victim", "x", "x.tmp-", "x.tmp-12a"]);
        assert!(list(&dir.path().join("inner")).unwrap().is_empty());
    }

    /// Opening it would wait for a writer.
    #[test]
    fn a_pipe_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        for error in [
            read(&path).unwrap_err(),
            read_to_string(&path).unwrap_err(),
            open(&path).unwrap_err(),
            read(Path::new("/dev/zero")).unwrap_err(),
        ] {
            assert!(error.to_string().ends_with("is not a regular file"), "{error}");
        }
    }
}
