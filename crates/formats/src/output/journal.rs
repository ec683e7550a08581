//! The journal of an output folder: what is finished, one checked line each.
//!
//! A line is the CRC-32 of its JSON in hexadecimal, a space and the JSON. A process that is killed while it appends leaves
//! a last line that is cut short or, after a power failure, filled with anything; what that line spoke of is done again.
//! Damage before the last line is refused.

use std::{
    fs::File,
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::error::{FormatError, Result};

/// The journal's file name.
pub const JOURNAL: &str = "journal.jsonl";

#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    path: PathBuf,
    /// Bytes of whole lines.
    len: u64,
    entries: Vec<Value>,
}

impl Journal {
    /// Opens the journal in `folder`, or begins one; the part of it that is not whole is cut.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(JOURNAL);
        let mut options = File::options();
        let open = options
            .read(true)
            .append(true)
            .create(true)
            .custom_flags(libc::O_NOFOLLOW);
        let mut file = open.open(&path).map_err(FormatError::io(&path, "open the journal"))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)
            .map_err(FormatError::io(&path, "read the journal"))?;
        let (entries, len) = whole_lines(&path, &bytes)?;
        let mut journal = Self {
            file,
            path,
            len,
            entries,
        };
        journal.cut()?;
        Ok(journal)
    }

    pub(super) fn entries(&self) -> &[Value] {
        &self.entries
    }

    pub(super) fn append(&mut self, entry: Value) -> Result<()> {
        let json = entry.to_string();
        let line = format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes()));
        let written = self
            .file
            .write_all(line.as_bytes())
            .and_then(|()| self.file.sync_data());
        if let Err(e) = written {
            // Cut a torn line, so that a later one does not end up behind it; the first failure is the one to report.
            let _ = self.file.set_len(self.len);
            return Err(FormatError::io(&self.path, "append to the journal")(e));
        }
        self.len += line.len() as u64;
        self.entries.push(entry);
        Ok(())
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) -> Result<()> {
        self.len = 0;
        self.entries.clear();
        self.cut()
    }

    fn cut(&mut self) -> Result<()> {
        let cut = self.file.set_len(self.len).and_then(|()| self.file.sync_all());
        cut.map_err(FormatError::io(&self.path, "prepare the journal"))
    }
}

/// The entries and the length of the part that is whole.
fn whole_lines(path: &Path, bytes: &[u8]) -> Result<(Vec<Value>, u64)> {
    let (mut entries, mut whole) = (Vec::new(), 0);
    for (i, line) in bytes.split_inclusive(|&b| b == b'\n').enumerate() {
        let last = whole + line.len() == bytes.len();
        match entry(line) {
            Some(entry) => entries.push(entry),
            None if last => break,
            None => {
                let rule = format!("line {} is damaged", i + 1);
                return Err(FormatError::place(path, rule, "`--overwrite` starts again"));
            }
        }
        whole += line.len();
    }
    Ok((entries, whole as u64))
}

fn entry(line: &[u8]) -> Option<Value> {
    let text = std::str::from_utf8(line.strip_suffix(b"\n")?).ok()?;
    let (sum, json) = text.split_once(' ')?;
    let sum = u32::from_str_radix(sum, 16).ok()?;
    (sum == crc32fast::hash(json.as_bytes())).then(|| serde_json::from_str(json).ok())?
}
