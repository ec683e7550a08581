//! Writing one safetensors file in bounded memory.
//!
//! The header comes first in the file and holds every offset, so the caller declares all tensors before it writes any,
//! then hands over their bytes in the declared order, in pieces if it likes. Until the last byte is there the file bears
//! the suffix `.partial`; the name that was asked for is only ever a whole file.

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, File},
    io::{BufWriter, Read, Seek, SeekFrom, Write},
    ops::Range,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};

use crate::{
    dtype::Dtype,
    error::{FormatError, Result},
    fsx,
    safetensors::{LENGTH_BYTES, MAX_HEADER_BYTES, METADATA_KEY},
};

const OUR_FAULT: &str = "this is a fault in the code that writes the file; please report it";
const BUFFER_BYTES: usize = 1 << 20;

/// A tensor that is going to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// The tensor's name.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Row-major shape; empty for a scalar.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// A tensor called `name`.
    pub fn new(name: impl Into<String>, dtype: Dtype, shape: impl Into<Vec<usize>>) -> Self {
        Self {
            name: name.into(),
            dtype,
            shape: shape.into(),
        }
    }
}

/// Where everything will lie, known before the first byte is written.
#[derive(Debug)]
pub(crate) struct Layout {
    /// Length, JSON and padding: the first bytes of the file.
    header: Vec<u8>,
    /// The bytes of each declared tensor, in declared order, counted from the start of the file.
    ranges: Vec<Range<u64>>,
}

impl Layout {
    /// Lays out `specs`. Wider types come first in the file (in declared order among themselves), so that every tensor
    /// starts at a multiple of its element size, and readers may use it in place.
    pub(crate) fn new(path: &Path, specs: &[TensorSpec], metadata: &BTreeMap<String, String>) -> Result<Self> {
        let mut order: Vec<usize> = (0..specs.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(specs[i].dtype.bits()));

        let mut header = Map::new();
        if !metadata.is_empty() {
            header.insert(METADATA_KEY.to_owned(), json!(metadata));
        }
        let mut ranges = vec![0..0; specs.len()];
        let mut end = 0_u64;
        for i in order {
            let TensorSpec { name, dtype, shape } = &specs[i];
            let start = end;
            end = byte_len(path, &specs[i])?.checked_add(start).ok_or_else(|| {
                FormatError::tensor(
                    path,
                    name,
                    "ends beyond what a file can hold",
                    "write it to a file of its own",
                )
            })?;
            ranges[i] = start..end;
            let entry = json!({ "dtype": dtype.name(), "shape": shape, "data_offsets": [start, end] });
            if name == METADATA_KEY || header.insert(name.clone(), entry).is_some() {
                let rule = "is declared twice, or is the format's reserved name";
                return Err(FormatError::tensor(path, name, rule, OUR_FAULT));
            }
        }

        let mut json = Value::Object(header).to_string().into_bytes();
        json.resize(json.len().next_multiple_of(LENGTH_BYTES), b' ');
        if json.len() > MAX_HEADER_BYTES {
            let rule = format!(
                "its header would be {} bytes long, the format allows {MAX_HEADER_BYTES}",
                json.len()
            );
            return Err(FormatError::place(path, rule, "write fewer tensors, or smaller shards"));
        }
        let mut header = (json.len() as u64).to_le_bytes().to_vec();
        header.append(&mut json);
        for range in &mut ranges {
            *range = range.start + header.len() as u64..range.end + header.len() as u64;
        }
        Ok(Self { header, ranges })
    }
}

/// Bytes of a declared tensor.
pub(crate) fn byte_len(path: &Path, spec: &TensorSpec) -> Result<u64> {
    let bytes = spec.dtype.byte_len(&spec.shape).map(|n| n as u64);
    bytes.ok_or_else(|| {
        let rule = format!(
            "shape {:?} of {} is no countable number of bytes",
            spec.shape, spec.dtype
        );
        FormatError::tensor(path, &spec.name, rule, "check the dimensions")
    })
}

/// Writes one safetensors file; see the module's text for the order of calls.
#[derive(Debug)]
pub struct SafetensorsWriter {
    path: PathBuf,
    partial: PathBuf,
    out: BufWriter<File>,
    specs: Vec<TensorSpec>,
    ranges: Vec<Range<u64>>,
    /// The tensor that is being written.
    next: usize,
    /// Bytes of it that have been handed over.
    written: u64,
    /// Check sum of those.
    sum: crc32fast::Hasher,
    /// Check sum of the tensor that was completed last.
    last_sum: u32,
    /// Where `out` stands; unknown after a failed write.
    position: Option<u64>,
}

impl SafetensorsWriter {
    /// Starts the file: writes the header for `specs` into `path` + `.partial`, over what may be there.
    ///
    /// # Errors
    /// A tensor is declared twice or is too large to count, the header would exceed the format's limit, or the file
    /// cannot be written.
    pub fn create(path: &Path, specs: Vec<TensorSpec>, metadata: &BTreeMap<String, String>) -> Result<Self> {
        let Layout { header, ranges } = Layout::new(path, &specs, metadata)?;
        let partial = partial_path(path);
        let file = fsx::create_new(&partial).map_err(FormatError::io(path, "create it"))?;
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, file);
        out.write_all(&header).map_err(FormatError::io(path, "write it"))?;
        let position = Some(header.len() as u64);
        Ok(Self {
            path: path.to_owned(),
            partial,
            out,
            specs,
            ranges,
            next: 0,
            written: 0,
            sum: crc32fast::Hasher::new(),
            last_sum: 0,
            position,
        })
    }

    /// Goes on with a file whose first declared tensors are on the disk, one for each check sum in `finished`.
    ///
    /// # Errors
    /// The file is gone, was started for other tensors, is shorter than what is said to be finished, or does not hold what
    /// was written.
    pub(crate) fn resume(
        path: &Path,
        specs: Vec<TensorSpec>,
        metadata: &BTreeMap<String, String>,
        finished: &[u32],
    ) -> Result<Self> {
        let hint = "`--overwrite` starts again";
        let Layout { header, ranges } = Layout::new(path, &specs, metadata)?;
        let partial = partial_path(path);
        // The file may have got its name before the journal learnt of its last tensors.
        if !partial.exists() && path.exists() {
            fsx::rename(path, &partial)?;
        }
        let mut file = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&partial)
            .map_err(FormatError::io(&partial, "continue it"))?;
        // A tensor without elements may lie beyond all that was written, and needs no byte there.
        let held = ranges[..finished.len()].iter().filter(|r| !r.is_empty());
        let needed = held.map(|r| r.end).max().unwrap_or(0);
        let len = file
            .metadata()
            .map_err(FormatError::io(&partial, "read its size"))?
            .len();
        if len < needed {
            let rule = format!("has {len} bytes, the journal says that {needed} were finished");
            return Err(FormatError::place(&partial, rule, hint));
        }
        let mut found = Vec::new();
        let read = (&mut file).take(header.len() as u64).read_to_end(&mut found);
        read.map_err(FormatError::io(&partial, "read its header"))?;
        if found != header {
            let rule = "was started for other tensors than are to be written now";
            return Err(FormatError::place(&partial, rule, hint));
        }
        for ((range, spec), sum) in ranges.iter().zip(&specs).zip(finished) {
            if sum_of(&mut file, range).map_err(FormatError::io(&partial, "read it"))? != *sum {
                let rule = "is finished, says the journal, but does not hold the bytes that were written";
                return Err(FormatError::tensor(&partial, &spec.name, rule, hint));
            }
        }
        let out = BufWriter::with_capacity(BUFFER_BYTES, file);
        Ok(Self {
            path: path.to_owned(),
            partial,
            out,
            specs,
            ranges,
            next: finished.len(),
            written: 0,
            sum: crc32fast::Hasher::new(),
            last_sum: 0,
            position: None,
        })
    }

    /// The tensor whose bytes are expected next; `None` when all are written.
    pub fn expected(&self) -> Option<&TensorSpec> {
        self.specs.get(self.next)
    }

    /// Appends `bytes` (little-endian elements; [`as_bytes`] makes them of a slice) to the tensor called
    /// `name`, which must be the expected one. A tensor without elements takes one empty piece. Returns whether the
    /// tensor is now complete.
    ///
    /// # Errors
    /// Another tensor is expected, there are more bytes than declared, or the disk refuses.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<bool> {
        let misuse = |rule: String| Err(FormatError::tensor(&self.path, name, rule, OUR_FAULT));
        let Some(expected) = self.expected() else {
            return misuse("is written after the last declared tensor".to_owned());
        };
        if expected.name != name {
            return misuse(format!("is written where {:?} is expected", expected.name));
        }
        let Range { start, end } = self.ranges[self.next];
        let (declared, total) = (end - start, self.written + bytes.len() as u64);
        if total > declared {
            return misuse(format!("is written with {total} bytes, {declared} were declared"));
        }
        self.write_at(start + self.written, bytes)
            .map_err(FormatError::io(&self.path, "write it"))?;
        self.sum.update(bytes);
        self.written = total;
        if total < declared {
            return Ok(false);
        }
        self.next += 1;
        self.written = 0;
        self.last_sum = std::mem::take(&mut self.sum).finalize();
        Ok(true)
    }

    /// The check sum (CRC-32) of the tensor that was completed last.
    pub(crate) fn last_sum(&self) -> u32 {
        self.last_sum
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        if self.position != Some(offset) {
            self.position = None;
            self.out.seek(SeekFrom::Start(offset))?;
        }
        self.position = None;
        self.out.write_all(bytes)?;
        self.position = Some(offset + bytes.len() as u64);
        Ok(())
    }

    /// Returns when everything handed over so far is on the disk.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn sync(&mut self) -> Result<()> {
        self.out.flush().map_err(FormatError::io(&self.path, "write it"))?;
        self.out
            .get_ref()
            .sync_data()
            .map_err(FormatError::io(&self.path, "flush it to the disk"))
    }

    /// Checks that all is written, fsyncs, and gives the file its name.
    ///
    /// # Errors
    /// A declared tensor is missing or incomplete, or the disk refuses; nothing is then changed at the final name.
    pub fn finish(mut self) -> Result<()> {
        if let Some(missing) = self.expected() {
            let Range { start, end } = self.ranges[self.next];
            let rule = format!("{} of its {} bytes are written", self.written, end - start);
            return Err(FormatError::tensor(&self.path, &missing.name, rule, OUR_FAULT));
        }
        self.out.flush().map_err(FormatError::io(&self.path, "write it"))?;
        self.out
            .get_ref()
            .sync_all()
            .map_err(FormatError::io(&self.path, "flush it to the disk"))?;
        self.check_ours()?;
        fsx::rename(&self.partial, &self.path)?;
        fsx::sync_parent(&self.path)
    }
}

impl SafetensorsWriter {
    /// Under the temporary name must be the file that was written: somebody may have removed it, and begun another.
    fn check_ours(&self) -> Result<()> {
        let io = |action| FormatError::io(&self.partial, action);
        let ours = self.out.get_ref().metadata().map_err(io("read its number"))?;
        let there = fs::symlink_metadata(&self.partial).map_err(io("give it its name"))?;
        if (ours.dev(), ours.ino()) == (there.dev(), there.ino()) {
            return Ok(());
        }
        let rule = "was replaced while this process wrote it";
        Err(FormatError::place(
            &self.partial,
            rule,
            "leave the file alone until the command ends",
        ))
    }
}

/// The check sum of a part of a file.
fn sum_of(file: &mut File, range: &Range<u64>) -> std::io::Result<u32> {
    file.seek(SeekFrom::Start(range.start))?;
    let mut part = file.take(range.end - range.start);
    let (mut sum, mut piece) = (crc32fast::Hasher::new(), vec![0; BUFFER_BYTES]);
    loop {
        match part.read(&mut piece)? {
            0 => return Ok(sum.finalize()),
            n => sum.update(&piece[..n]),
        }
    }
}

/// A tensor in memory, for [`write_file`]: name, element type, shape, little-endian bytes.
pub type MemoryTensor<'a> = (&'a str, Dtype, &'a [usize], &'a [u8]);

/// Writes a small file at once: all of `tensors`, with `metadata` (may be empty) in the header.
///
/// # Errors
/// The bytes of a tensor are not as many as its shape needs, a name occurs twice, or the file cannot be written; nothing
/// is then changed at `path`.
pub fn write_file(path: &Path, tensors: &[MemoryTensor<'_>], metadata: &BTreeMap<String, String>) -> Result<()> {
    let specs = tensors
        .iter()
        .map(|&(name, dtype, shape, _)| TensorSpec::new(name, dtype, shape))
        .collect();
    let mut writer = SafetensorsWriter::create(path, specs, metadata)?;
    let partial = writer.partial.clone();
    let written = tensors
        .iter()
        .try_for_each(|(name, _, _, bytes)| match writer.write(name, bytes) {
            Ok(true) => Ok(()),
            Ok(false) => {
                let rule = format!("has {} bytes, its shape needs more", bytes.len());
                Err(FormatError::tensor(path, name, rule, OUR_FAULT))
            }
            Err(e) => Err(e),
        });
    let result = written.and_then(|()| writer.finish());
    if result.is_err() {
        // Best effort: the first failure is the one worth reporting.
        let _ = std::fs::remove_file(&partial);
    }
    result
}

/// The bytes of a slice of elements (`f32`, `bf16`, `i64` …) as the format stores them.
pub fn as_bytes<T: bytemuck::NoUninit>(elements: &[T]) -> &[u8] {
    bytemuck::cast_slice(elements)
}

/// The name a file bears while it is being written.
pub(crate) fn partial_path(path: &Path) -> PathBuf {
    fsx::with_suffix(path, ".partial")
}

/// The first name that occurs twice among `specs`.
pub(crate) fn first_duplicate(specs: &[TensorSpec]) -> Option<&str> {
    let mut seen = HashSet::with_capacity(specs.len());
    specs.iter().map(|s| s.name.as_str()).find(|name| !seen.insert(*name))
}
