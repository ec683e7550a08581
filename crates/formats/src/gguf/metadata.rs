//! Keys and values of a GGUF file. Numbers and strings are kept, arrays stay in the file.

use std::{ops::Range, path::Path, sync::Arc};

use ounce_kernels::mapped::MappedFile;

use super::{DAMAGED, cursor::Cursor};
use crate::error::{FormatError, Result};

/// Most keys anyone can mean.
const MOST_KEYS: u64 = 1 << 16;
/// Longest key that the format allows.
const LONGEST_KEY: usize = (1 << 16) - 1;
/// Longest string that is kept outside an array; chat templates and licences are the longest.
const LONGEST_STRING: usize = 16 << 20;
/// All strings outside arrays together.
const ALL_STRINGS: usize = 64 << 20;

/// One value.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Value {
    /// An unsigned integer of any width.
    Unsigned(u64),
    /// A signed integer of any width.
    Signed(i64),
    /// A number of single or double precision.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// A text.
    Text(String),
    /// Several values of one kind; they stay in the file.
    Array(Array),
}

/// What an array holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArrayKind {
    /// Unsigned integers of this many bytes.
    Unsigned(usize),
    /// Signed integers of this many bytes.
    Signed(usize),
    /// Single precision.
    F32,
    /// Double precision.
    F64,
    /// True or false.
    Bool,
    /// Texts.
    Text,
}

/// Where an array is in its file.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// What it holds.
    pub kind: ArrayKind,
    /// Number of elements.
    pub len: usize,
    range: Range<usize>,
}

/// The keys of a file in their order, and the file, for its arrays.
#[derive(Debug, Clone)]
pub struct Metadata {
    path: Arc<Path>,
    entries: Vec<(String, Value)>,
    /// Empty until [`Metadata::keep`]: a test or fuzzer that parses bytes passes them along.
    file: Option<Arc<MappedFile>>,
}

impl Metadata {
    pub(super) fn read(cursor: &mut Cursor<'_, '_>, keys: u64) -> Result<Self> {
        if keys > MOST_KEYS {
            let rule = format!("says that it has {keys} keys; at most {MOST_KEYS} are read");
            return Err(FormatError::place(cursor.path, rule, DAMAGED));
        }
        let mut entries: Vec<(String, Value)> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        let mut strings = 0;
        for i in 0..keys {
            let key = cursor.text(&format!("key number {i}"), LONGEST_KEY)?.to_owned();
            let value = Value::read(cursor, &key)?;
            if let Value::Text(text) = &value {
                strings += text.len();
                if strings > ALL_STRINGS {
                    let rule = format!("takes the strings beyond {ALL_STRINGS} bytes");
                    return Err(FormatError::key(cursor.path, &key, rule, DAMAGED));
                }
            }
            if !seen.insert(key.clone()) {
                return Err(FormatError::key(cursor.path, &key, "is there twice", DAMAGED));
            }
            entries.push((key, value));
        }
        Ok(Self {
            path: cursor.path.into(),
            entries,
            file: None,
        })
    }

    pub(super) fn keep(&mut self, file: Arc<MappedFile>) {
        self.file = Some(file);
    }

    /// The file, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All keys and values, in file order.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.iter().find(|(k, _)| k == key).map(|(_, value)| value)
    }

    /// The text `key` says, if it is there.
    ///
    /// # Errors
    /// It is there and says something else.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(other) => self.wrong(key, "a string", other),
        }
    }

    /// The whole number from 0 on that `key` says, if it is there; integers of all widths are taken.
    ///
    /// # Errors
    /// It is there and says something else.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(n)) => Ok(Some(*n)),
            Some(&Value::Signed(n)) if n >= 0 => Ok(Some(n.unsigned_abs())),
            Some(other) => self.wrong(key, "an integer that is not negative", other),
        }
    }

    /// The number `key` says, if it is there; integers are taken, too.
    ///
    /// # Errors
    /// It is there and says something else, or no finite number.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(&Value::Float(x)) if x.is_finite() => Ok(Some(x)),
            Some(&Value::Unsigned(n)) => Ok(Some(n as f64)),
            Some(&Value::Signed(n)) => Ok(Some(n as f64)),
            Some(other) => self.wrong(key, "a finite number", other),
        }
    }

    /// True or false, if `key` is there.
    ///
    /// # Errors
    /// It is there and says something else.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(&Value::Bool(b)) => Ok(Some(b)),
            Some(other) => self.wrong(key, "true or false", other),
        }
    }

    /// The texts of the array `key`, borrowed from the file; `None` if it is not there.
    ///
    /// # Errors
    /// It is there and no array of texts, or one of them is not UTF-8.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        self.texts_in(key, self.file.as_deref().map_or(&[], |f| &f[..]))
    }

    /// As [`Metadata::texts`], for metadata parsed from `bytes`.
    ///
    /// # Errors
    /// As [`Metadata::texts`].
    pub fn texts_in<'a>(&self, key: &str, bytes: &'a [u8]) -> Result<Option<Vec<&'a str>>> {
        let array = match self.get(key) {
            None => return Ok(None),
            Some(Value::Array(array)) if array.kind == ArrayKind::Text => array,
            Some(other) => return self.wrong(key, "an array of strings", other),
        };
        let mut cursor = Cursor::new(&self.path, bytes);
        cursor.at = array.range.start;
        let mut texts = Vec::with_capacity(array.len);
        for i in 0..array.len {
            let text = std::str::from_utf8(cursor.bytes("a string of an array")?);
            texts.push(text.map_err(|_| {
                let rule = format!("its string number {i} is not UTF-8");
                FormatError::key(&self.path, key, rule, DAMAGED)
            })?);
        }
        Ok(Some(texts))
    }

    /// The numbers of the array `key`, as f64 (exact up to 2^53), booleans as 0 and 1; `None` if it is not there.
    ///
    /// # Errors
    /// It is there and no array of numbers.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        self.numbers_in(key, self.file.as_deref().map_or(&[], |f| &f[..]))
    }

    /// As [`Metadata::numbers`], for metadata parsed from `bytes`.
    ///
    /// # Errors
    /// As [`Metadata::numbers`].
    pub fn numbers_in(&self, key: &str, bytes: &[u8]) -> Result<Option<Vec<f64>>> {
        let array = match self.get(key) {
            None => return Ok(None),
            Some(Value::Array(array)) if array.kind != ArrayKind::Text => array,
            Some(other) => return self.wrong(key, "an array of numbers", other),
        };
        let mut cursor = Cursor::new(&self.path, bytes);
        cursor.at = array.range.start;
        let bytes = cursor.take(array.range.len() as u64, "an array")?;
        Ok(Some(
            bytes
                .chunks_exact(array.kind.width())
                .map(|b| array.kind.number(b))
                .collect(),
        ))
    }

    /// The array `key`, if it is there.
    ///
    /// # Errors
    /// It is there and no array.
    pub fn array(&self, key: &str) -> Result<Option<&Array>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) => Ok(Some(array)),
            Some(other) => self.wrong(key, "an array", other),
        }
    }

    fn wrong<T>(&self, key: &str, wanted: &str, got: &Value) -> Result<T> {
        let rule = format!("is {}, where {wanted} is needed", got.describe());
        Err(FormatError::key(
            &self.path,
            key,
            rule,
            "the file was made by a faulty conversion; get another",
        ))
    }
}

impl Value {
    fn read(cursor: &mut Cursor<'_, '_>, key: &str) -> Result<Self> {
        let kind = cursor.u32("a type")?;
        Ok(match kind {
            8 => Self::Text(
                cursor
                    .text(&format!("the value of key {key:?}"), LONGEST_STRING)?
                    .to_owned(),
            ),
            9 => Self::Array(Array::read(cursor, key)?),
            _ => {
                let Some(kind) = ArrayKind::of(kind) else {
                    return unknown(cursor, key, kind);
                };
                kind.value(cursor.take(kind.width() as u64, "a value")?)
            }
        })
    }

    /// What the value is, for messages: numbers and short texts are shown.
    pub fn describe(&self) -> String {
        match self {
            Self::Unsigned(n) => n.to_string(),
            Self::Signed(n) => n.to_string(),
            Self::Float(x) => x.to_string(),
            Self::Bool(b) => b.to_string(),
            Self::Text(text) if text.chars().count() <= 40 => format!("{text:?}"),
            Self::Text(_) => "a string".to_owned(),
            Self::Array(array) => format!("an array of {}", array.len),
        }
    }
}

fn unknown<T>(cursor: &Cursor<'_, '_>, key: &str, kind: u32) -> Result<T> {
    let rule = format!("has a value of type {kind}, which the format does not have");
    Err(FormatError::key(cursor.path, key, rule, DAMAGED))
}

impl Array {
    fn read(cursor: &mut Cursor<'_, '_>, key: &str) -> Result<Self> {
        let kind = cursor.u32("the type of an array")?;
        let len = cursor.u64("the length of an array")?;
        if kind == 9 {
            let rule = "is an array of arrays, which is not read";
            return Err(FormatError::key(cursor.path, key, rule, DAMAGED));
        }
        let Some(kind) = ArrayKind::of(kind) else {
            return unknown(cursor, key, kind);
        };
        let what = format!("the array {key:?}");
        let start = cursor.at;
        if kind == ArrayKind::Text {
            for _ in 0..len {
                cursor.bytes(&what)?;
            }
        } else {
            cursor.take(len.saturating_mul(kind.width() as u64), &what)?;
        }
        Ok(Self {
            kind,
            // It fits: every element was found in memory.
            len: len as usize,
            range: start..cursor.at,
        })
    }
}

impl ArrayKind {
    /// The kind that the format gives this number; `None` for arrays and what it does not have.
    fn of(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Unsigned(1),
            1 => Self::Signed(1),
            2 => Self::Unsigned(2),
            3 => Self::Signed(2),
            4 => Self::Unsigned(4),
            5 => Self::Signed(4),
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::Text,
            10 => Self::Unsigned(8),
            11 => Self::Signed(8),
            12 => Self::F64,
            _ => return None,
        })
    }

    /// Bytes of a number of this kind; of a text, at least these.
    fn width(self) -> usize {
        match self {
            Self::Unsigned(width) | Self::Signed(width) => width,
            Self::F32 => 4,
            Self::F64 | Self::Text => 8,
            Self::Bool => 1,
        }
    }

    /// The number in `bytes`, which are as many as [`ArrayKind::width`] says.
    fn value(self, bytes: &[u8]) -> Value {
        let mut eight = [0; 8];
        eight[..bytes.len()].copy_from_slice(bytes);
        let unsigned = u64::from_le_bytes(eight);
        match self {
            Self::Unsigned(_) | Self::Text => Value::Unsigned(unsigned),
            Self::Signed(width) => {
                let unused = 64 - 8 * width as u32;
                Value::Signed((unsigned << unused).cast_signed() >> unused)
            }
            Self::F32 => Value::Float(f64::from(f32::from_bits(unsigned as u32))),
            Self::F64 => Value::Float(f64::from_bits(unsigned)),
            Self::Bool => Value::Bool(unsigned != 0),
        }
    }

    fn number(self, bytes: &[u8]) -> f64 {
        match self.value(bytes) {
            Value::Unsigned(n) => n as f64,
            Value::Signed(n) => n as f64,
            Value::Float(x) => x,
            Value::Bool(b) => f64::from(u8::from(b)),
            Value::Text(_) | Value::Array(_) => f64::NAN,
        }
    }
}
