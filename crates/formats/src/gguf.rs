//! GGUF files: metadata and tensors in one file, or in parts that are split off it. Read where they lie.
//!
//! The format (versions 2 and 3, little-endian) begins with keys and values, then lists its tensors, then holds their
//! bytes at multiples of an alignment. Everything is checked when a file is opened: lengths against the file, types,
//! UTF-8 of names, places and overlaps of tensors. Arrays (a vocabulary is one) stay in the mapped file and are read when
//! asked for, so that what is kept in memory is bounded by the number of keys and tensors, whatever a file claims.
//!
//! This module knows bytes and names. What a key means is somebody else's business.

mod cursor;
mod metadata;
mod parts;
mod placed;
mod tensors;

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use ounce_kernels::mapped::MappedFile;

use crate::{
    error::{FormatError, Result},
    fsx,
    safetensors::{Header, SafetensorsFile, TensorInfo},
    view::{Region, TensorView},
};
use cursor::Cursor;
pub use metadata::{Array, ArrayKind, Metadata, Value};
pub use placed::Placed;

/// What a GGUF file begins with.
pub const MAGIC: [u8; 4] = *b"GGUF";

const DAMAGED: &str = "the file is damaged or the download incomplete; fetch it again";

/// Whether the file at `path` begins as a GGUF file does. `false` if it cannot be read.
pub fn is_gguf(path: &Path) -> bool {
    let Ok(mut file) = std::fs::File::open(path) else {
        return false;
    };
    let mut magic = [0; 4];
    std::io::Read::read_exact(&mut file, &mut magic).is_ok() && magic == MAGIC
}

/// Keys and tensors of one file whose whole content is `bytes`; `path` is for messages only.
///
/// # Errors
/// A rule of the format is broken, or a tensor is of a type that is not read.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<(Metadata, Header)> {
    let mut cursor = Cursor::new(path, bytes);
    if cursor.array::<4>("its first four bytes")? != MAGIC {
        let hint = "name a GGUF file, or a Hugging Face folder";
        return Err(FormatError::place(path, "is not a GGUF file", hint));
    }
    let version = cursor.u32("its version")?;
    match version {
        2 | 3 => {}
        1 => {
            let hint = "download a newer conversion of this model";
            return Err(FormatError::place(
                path,
                "is of GGUF version 1, which is not read",
                hint,
            ));
        }
        _ if version.swap_bytes() <= 3 => {
            let hint = "convert the model again for a little-endian machine";
            return Err(FormatError::place(path, "is a big-endian GGUF file", hint));
        }
        _ => {
            let rule = format!("is of GGUF version {version}; 2 and 3 are read");
            return Err(FormatError::place(path, rule, DAMAGED));
        }
    }
    let tensors = cursor.u64("its number of tensors")?;
    let keys = cursor.u64("its number of keys")?;
    let metadata = Metadata::read(&mut cursor, keys)?;
    let header = tensors::read(&mut cursor, tensors, &metadata)?;
    Ok((metadata, header))
}

/// An opened GGUF model: the keys of its first file, and the tensors of all its files.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    metadata: Metadata,
    parts: Vec<SafetensorsFile>,
}

impl Gguf {
    /// Maps the file, and the other parts if it is the first of several, and checks what they say of themselves.
    ///
    /// # Errors
    /// A file cannot be opened or mapped, breaks a rule, or is not the part it should be.
    pub fn open(path: &Path) -> Result<Self> {
        let (metadata, first) = open_part(path)?;
        let mut parts = vec![first];
        for (no, part) in parts::others(path, &metadata)? {
            let (of_part, file) = open_part(&part)?;
            parts::check(&part, &of_part, no, &metadata)?;
            parts.push(file);
        }
        let mut names = std::collections::HashMap::new();
        for part in &parts {
            for name in part.names() {
                if let Some(other) = names.insert(name, part.path()) {
                    let rule = format!("lies in {} as well", other.display());
                    return Err(FormatError::tensor(part.path(), name, rule, parts::MIXED));
                }
            }
        }
        parts::check_total(path, &metadata, names.len())?;
        Ok(Self {
            path: path.to_owned(),
            metadata,
            parts,
        })
    }

    /// The file it was opened under: the first part.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keys and values of the first part; those of the others only say which parts they are.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The files, in order.
    pub fn parts(&self) -> &[SafetensorsFile] {
        &self.parts
    }

    /// All tensors, part after part, each in file order.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.parts.iter().flat_map(|part| part.header().tensors())
    }

    /// What is said of the tensor called `name`.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.parts.iter().find_map(|part| part.header().info(name))
    }

    /// Whether there is a tensor called `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.info(name).is_some()
    }

    /// The tensor called `name`, with a share of its file's map.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn region(&self, name: &str) -> Result<Region> {
        self.part(name)?.region(name)
    }

    /// The tensor called `name`, borrowed from its file's map.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn view(&self, name: &str) -> Result<TensorView<'_>> {
        self.part(name)?.view(name)
    }

    /// Bytes of all tensors together.
    pub fn total_bytes(&self) -> u64 {
        self.tensors().map(|t| t.range.len() as u64).sum()
    }

    /// How many tensors there are of each type, the most frequent first: `210 Q4_1, 61 F32, 1 Q8_0`.
    pub fn types(&self) -> String {
        let mut counts: Vec<(&str, usize)> = Vec::new();
        for tensor in self.tensors() {
            match counts.iter_mut().find(|(name, _)| *name == tensor.dtype.name()) {
                Some((_, n)) => *n += 1,
                None => counts.push((tensor.dtype.name(), 1)),
            }
        }
        counts.sort_by_key(|&(name, n)| (std::cmp::Reverse(n), name));
        let mut text = String::new();
        for (i, (name, n)) in counts.into_iter().enumerate() {
            let comma = if i > 0 { ", " } else { "" };
            // Writing to a string cannot fail.
            let _ = write!(text, "{comma}{n} {name}");
        }
        text
    }

    fn part(&self, name: &str) -> Result<&SafetensorsFile> {
        let part = self.parts.iter().find(|part| part.contains(name));
        part.ok_or_else(|| FormatError::tensor(&self.path, name, "is not in this file", DAMAGED))
    }
}

fn open_part(path: &Path) -> Result<(Metadata, SafetensorsFile)> {
    let file = fsx::open(path)?;
    let file = MappedFile::new(&file).map_err(FormatError::io(path, "map it into memory"))?;
    let file = std::sync::Arc::new(file);
    let (mut metadata, header) = parse(path, &file)?;
    metadata.keep(std::sync::Arc::clone(&file));
    Ok((metadata, SafetensorsFile::listed(file, header)))
}
