//! Reading forwards through a file's bytes; whatever is asked for beyond their end is refused with what it was.

use std::path::Path;

use super::DAMAGED;
use crate::error::{FormatError, Result};

/// A place in the bytes of one file.
pub(super) struct Cursor<'p, 'a> {
    pub(super) path: &'p Path,
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
}

impl<'p, 'a> Cursor<'p, 'a> {
    pub(super) fn new(path: &'p Path, bytes: &'a [u8]) -> Self {
        Self { path, bytes, at: 0 }
    }

    /// The next `len` bytes; `what` says what they are.
    pub(super) fn take(&mut self, len: u64, what: &str) -> Result<&'a [u8]> {
        let end = usize::try_from(len).ok().and_then(|len| self.at.checked_add(len));
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let Some(taken) = taken else {
            let rule = format!(
                "ends within {what}: {len} bytes from byte {} on, of {}",
                self.at,
                self.bytes.len()
            );
            return Err(FormatError::place(self.path, rule, DAMAGED));
        };
        self.at += taken.len();
        Ok(taken)
    }

    /// The next `N` bytes.
    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let bytes = self.take(N as u64, what)?;
        let mut array = [0; N];
        array.copy_from_slice(bytes);
        Ok(array)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A string: its length, then its bytes.
    pub(super) fn bytes(&mut self, what: &str) -> Result<&'a [u8]> {
        let len = self.u64(what)?;
        self.take(len, what)
    }

    /// A string that must be text of at most `most` bytes.
    pub(super) fn text(&mut self, what: &str, most: usize) -> Result<&'a str> {
        let bytes = self.bytes(what)?;
        let fail = |rule: String| Err(FormatError::place(self.path, rule, DAMAGED));
        if bytes.len() > most {
            return fail(format!("{what} has {} bytes, at most {most} are allowed", bytes.len()));
        }
        std::str::from_utf8(bytes).or_else(|_| fail(format!("{what} is not UTF-8")))
    }
}
