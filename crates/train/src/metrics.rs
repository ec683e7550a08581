//! `metrics.jsonl`: appended line by line, cut back to the checkpoint on resume.

use crate::error::{Result, TrainError};
use ounce_formats::FormatError;
use serde::Serialize;
use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

/// The open file.
pub(crate) struct Metrics {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Metrics {
    fn fail(path: &Path, error: std::io::Error) -> TrainError {
        TrainError::Format(FormatError::Io {
            path: path.to_owned(),
            action: "write it",
            error,
        })
    }

    /// Opens the file and cuts it to the `bytes` that belong to the steps done.
    pub(crate) fn open(path: &Path, bytes: u64) -> Result<Self> {
        let opened = OpenOptions::new().create(true).append(true).open(path);
        let file = opened.map_err(|e| Self::fail(path, e))?;
        let found = file.metadata().map_err(|e| Self::fail(path, e))?.len();
        if found < bytes {
            return Err(TrainError::Folder {
                place: path.display().to_string(),
                rule: format!("has {found} bytes, the checkpoint was made when it had {bytes}"),
                hint: "put the file back as it was, or start again in another folder".into(),
            });
        }
        file.set_len(bytes).map_err(|e| Self::fail(path, e))?;
        Ok(Self {
            path: path.into(),
            file,
            bytes,
        })
    }

    /// Appends one line.
    pub(crate) fn write(&mut self, row: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(row).unwrap_or_default();
        line.push(b'\n');
        self.file.write_all(&line).map_err(|e| Self::fail(&self.path, e))?;
        self.bytes += line.len() as u64;
        Ok(())
    }

    /// Makes what was written last; returns the length.
    pub(crate) fn sync(&mut self) -> Result<u64> {
        self.file.sync_data().map_err(|e| Self::fail(&self.path, e))?;
        Ok(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::Metrics;

    #[test]
    fn a_resumed_file_is_cut_and_never_padded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut metrics = Metrics::open(&path, 0).unwrap();
        metrics.write(&[1]).unwrap();
        let kept = metrics.sync().unwrap();
        metrics.write(&[2]).unwrap();
        drop(Metrics::open(&path, kept).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"[1]\n");
        let error = Metrics::open(&path, kept + 1).err().unwrap().to_string();
        assert!(
            error.ends_with("has 4 bytes, the checkpoint was made when it had 5"),
            "{error}"
        );
        assert_eq!(std::fs::read(&path).unwrap(), b"[1]\n");
    }
}
