//! Read-only memory maps of whole files: how weights stay file-backed.
//!
//! This module exists here, and not in `formats`, because mapping a file is `unsafe` and this crate is the only one
//! that may hold unsafe code. It knows nothing of what the bytes mean.

use std::{fs::File, io, ops::Deref};

/// The bytes of one file, mapped read-only. Pages are loaded on first use and can be dropped by the system at any time.
#[derive(Debug)]
pub struct MappedFile {
    map: memmap2::Mmap,
}

impl MappedFile {
    /// Maps the whole of `file`. Empty files map to an empty slice.
    ///
    /// # Errors
    /// Whatever the operating system says of the mapping.
    pub fn new(file: &File) -> io::Result<Self> {
        // SAFETY: the map is private and read-only. Its contents can change only if another process writes to the same
        // file; Ounce itself never writes into a file in place (every output is a new file that is renamed), and a
        // truncation from outside ends the process with SIGBUS, which no in-process check can prevent.
        let map = unsafe { memmap2::MmapOptions::new().map(file)? };
        Ok(Self { map })
    }
}

impl Deref for MappedFile {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.map
    }
}
