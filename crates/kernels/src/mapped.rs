//! Read-only memory maps of whole files: how weights stay file-backed.
//!
//! This module exists here, and not in `formats`, because mapping a file is `unsafe` and this crate is the only one
//! that may hold unsafe code. It knows nothing of what the bytes mean.

use std::{
    fs::File,
    io,
    ops::{Deref, Range},
};

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

    /// Bytes in memory, where a file's would be: for what a file holds in another order than it is used in.
    ///
    /// # Errors
    /// Whatever the operating system says of the memory.
    pub fn in_memory(bytes: &[u8]) -> io::Result<Self> {
        let mut map = memmap2::MmapMut::map_anon(bytes.len().max(1))?;
        map[..bytes.len()].copy_from_slice(bytes);
        let map = map.make_read_only()?;
        Ok(Self { map })
    }

    /// Says that the bytes `range` will be read whole and often, as weights are. What is not yet in memory is then loaded
    /// in pages of 2 MiB where the system can: fewer faults, and streaming them is faster. Not for tables of which single
    /// rows are read. Only a hint: elsewhere nothing changes, and a range outside the file is ignored.
    pub fn expect_whole_reads(&self, range: Range<usize>) {
        #[cfg(target_os = "linux")]
        if range.start < range.end && range.end <= self.map.len() {
            // The system refuses where it has no large pages, and then small ones do.
            let _ = self
                .map
                .advise_range(memmap2::Advice::HugePage, range.start, range.len());
        }
        #[cfg(not(target_os = "linux"))]
        let _ = range;
    }
}

impl Deref for MappedFile {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn hints_change_no_byte_and_any_range_is_taken() {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
        file.write_all(&bytes).unwrap();
        let map = MappedFile::new(&file).unwrap();
        map.expect_whole_reads(100..2_999_999);
        map.expect_whole_reads(7..7);
        map.expect_whole_reads(5..4_000_000);
        assert!(map[..] == bytes[..]);
    }
}
