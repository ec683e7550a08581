//! Documents from files: the one reader of training, evaluation and calibration.
//!
//! Owns the walk over paths and folders and the two formats: a text file is one document, a JSONL file has one
//! document per line. Strict on purpose: a corpus with one silently dropped file gives another model than the recipe
//! promises, so bad bytes and bad lines stop the run and say where they are. Documents are handed out one at a time, so
//! that a corpus need not fit in memory. It must not know tokens.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{DataError, Result, io};

/// The JSONL field that holds the text, unless another is named.
pub const FIELD: &str = "text";

/// One text and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// The file.
    pub path: PathBuf,
    /// The line of a JSONL file, from 1.
    pub line: Option<usize>,
    /// The text, never empty.
    pub text: String,
}

impl Document {
    /// `file` or `file:line`, for messages.
    pub fn place(&self) -> String {
        match self.line {
            Some(line) => format!("{}:{line}", self.path.display()),
            None => self.path.display().to_string(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Text,
    Jsonl,
}

/// What a name says; `None` for names that a walk over a folder passes by.
fn format_of(path: &Path) -> Option<Format> {
    match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "txt" | "text" | "md" => Some(Format::Text),
        "jsonl" | "ndjson" => Some(Format::Jsonl),
        _ => None,
    }
}

/// A file that was named outright is read whatever it is called, but JSON is never read as prose: `.json` is often
/// JSON lines, and where it is not, its first line is refused.
fn format_named(path: &Path) -> Format {
    let json = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"));
    format_of(path).unwrap_or(if json { Format::Jsonl } else { Format::Text })
}

/// Files that hold documents, in order.
#[derive(Clone, Debug)]
pub struct Sources {
    files: Vec<(PathBuf, Format)>,
    /// What was asked for, for messages.
    names: String,
    field: String,
    most: usize,
}

impl Sources {
    /// The files of `paths` in the order given. A folder stands for the text and JSONL files below it, sorted by path,
    /// hidden ones and links to folders left out. A file named outright is read whatever it is called: as JSON lines if
    /// its name ends in `jsonl`, `ndjson` or `json`, else as text. `field` is the JSONL key that holds the text.
    ///
    /// # Errors
    /// A path that is not there, or a folder that cannot be read.
    pub fn open<P: AsRef<Path>>(paths: &[P], field: &str) -> Result<Self> {
        let mut files = Vec::new();
        let names: Vec<String> = paths.iter().map(|path| path.as_ref().display().to_string()).collect();
        for path in paths {
            let path = path.as_ref();
            if std::fs::metadata(path).map_err(io(path))?.is_dir() {
                collect(path, &mut files)?;
            } else {
                files.push((path.to_owned(), format_named(path)));
            }
        }
        Ok(Self {
            files,
            names: if names.is_empty() {
                "an empty list of paths".into()
            } else {
                names.join(", ")
            },
            field: field.to_owned(),
            most: usize::MAX,
        })
    }

    /// Only the first `bytes` of text, all documents together; the last one is cut before the character that would
    /// exceed it. No more than that is read of a text file.
    #[must_use]
    pub fn up_to(mut self, bytes: usize) -> Self {
        self.most = bytes;
        self
    }

    /// The documents, one at a time; an error where there is none at all. After an error there are no more.
    pub fn documents(&self) -> Documents<'_> {
        Documents {
            sources: self,
            next: 0,
            lines: None,
            left: self.most,
            none_yet: true,
        }
    }
}

/// See [`Sources::documents`].
pub struct Documents<'a> {
    sources: &'a Sources,
    /// The file after the one being read.
    next: usize,
    lines: Option<JsonLines<'a, BufReader<File>>>,
    /// Bytes of text that may still be given out.
    left: usize,
    none_yet: bool,
}

impl Documents<'_> {
    /// The next document before any limit.
    fn advance(&mut self) -> Result<Option<Document>> {
        loop {
            if let Some(lines) = &mut self.lines {
                if let Some(document) = lines.advance()? {
                    return Ok(Some(document));
                }
                self.lines = None;
            }
            let Some((path, format)) = self.sources.files.get(self.next) else {
                if !self.none_yet {
                    return Ok(None);
                }
                let what = self.sources.names.clone();
                return Err(DataError::Empty { what });
            };
            self.next += 1;
            let file = File::open(path).map_err(io(path))?;
            match format {
                Format::Text => {
                    let mut bytes = Vec::new();
                    // A mark of the byte order is no text, and a character has at most four bytes.
                    let most = (self.left as u64).saturating_add(8);
                    file.take(most).read_to_end(&mut bytes).map_err(io(path))?;
                    if bytes.len() as u64 == most {
                        bytes.truncate(whole_characters(&bytes));
                    }
                    if let Some(document) = parse_text(path, &bytes)? {
                        return Ok(Some(document));
                    }
                }
                Format::Jsonl => self.lines = Some(JsonLines::new(path, BufReader::new(file), &self.sources.field)),
            }
        }
    }
}

impl Iterator for Documents<'_> {
    type Item = Result<Document>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let mut found = self.advance();
        match &mut found {
            Ok(Some(document)) => {
                self.none_yet = false;
                let whole = document.text.floor_char_boundary(self.left);
                if whole < document.text.len() {
                    document.text.truncate(whole);
                    self.left = 0;
                } else {
                    self.left -= whole;
                }
                if document.text.is_empty() {
                    return None;
                }
            }
            Ok(None) | Err(_) => self.left = 0,
        }
        found.transpose()
    }
}

/// Where to cut bytes whose last character may be incomplete.
fn whole_characters(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        _ => bytes.len(),
    }
}

/// Reads all documents of `paths` at once; see [`Sources::open`].
///
/// # Errors
/// Unreadable files, text that is not UTF-8, malformed lines, and a corpus without any text.
pub fn read_documents<P: AsRef<Path>>(paths: &[P], field: &str) -> Result<Vec<Document>> {
    Sources::open(paths, field)?.documents().collect()
}

/// Appends the readable files below `folder`, sorted, so that the corpus does not depend on the file system.
fn collect(folder: &Path, files: &mut Vec<(PathBuf, Format)>) -> Result<()> {
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io(folder))? {
        let entry = entry.map_err(io(folder))?;
        if !entry.file_name().to_string_lossy().starts_with('.') {
            let path = entry.path();
            entries.push((entry.file_type().map_err(io(&path))?, path));
        }
    }
    entries.sort_by(|a, b| a.1.cmp(&b.1));
    for (kind, path) in entries {
        if kind.is_dir() {
            collect(&path, files)?;
        } else if let Some(format) = format_of(&path) {
            // A link to a folder may lead back here; a link to a file is the file.
            if !path.is_dir() {
                files.push((path, format));
            }
        }
    }
    Ok(())
}

/// `bytes`, which begin `before` bytes and `line` lines into the file, without the mark of the byte order.
fn utf8<'a>(path: &Path, bytes: &'a [u8], before: usize, line: usize) -> Result<&'a str> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let good = error.valid_up_to();
        DataError::NotUtf8 {
            path: path.to_owned(),
            line: line + bytes[..good].split(|&b| b == b'\n').count(),
            offset: before + good,
        }
    })?;
    // A byte-order mark is an editor's habit, not text.
    Ok(if before == 0 {
        text.strip_prefix('\u{feff}').unwrap_or(text)
    } else {
        text
    })
}

/// The document in a text file; `None` when it is empty.
///
/// # Errors
/// Bytes that are not UTF-8.
pub fn parse_text(path: &Path, bytes: &[u8]) -> Result<Option<Document>> {
    let text = utf8(path, bytes, 0, 0)?;
    Ok((!text.is_empty()).then(|| Document {
        path: path.to_owned(),
        line: None,
        text: text.to_owned(),
    }))
}

/// The documents in a JSONL file: one object per line with a string under `field`. Blank lines and empty texts are
/// left out.
///
/// # Errors
/// Bytes that are not UTF-8; a line that is not a JSON object, or whose `field` is missing or no string.
pub fn parse_jsonl(path: &Path, bytes: &[u8], field: &str) -> Result<Vec<Document>> {
    let mut lines = JsonLines::new(path, bytes, field);
    std::iter::from_fn(|| lines.advance().transpose()).collect()
}

/// A JSONL file, line by line.
struct JsonLines<'a, R> {
    path: &'a Path,
    reader: R,
    field: &'a str,
    /// Lines and bytes read so far.
    line: usize,
    bytes: usize,
    buffer: Vec<u8>,
}

impl<'a, R: BufRead> JsonLines<'a, R> {
    fn new(path: &'a Path, reader: R, field: &'a str) -> Self {
        Self {
            path,
            reader,
            field,
            line: 0,
            bytes: 0,
            buffer: Vec::new(),
        }
    }

    /// The next document, from the next line that has one.
    fn advance(&mut self) -> Result<Option<Document>> {
        loop {
            self.buffer.clear();
            let read = self.reader.read_until(b'\n', &mut self.buffer).map_err(io(self.path))?;
            if read == 0 {
                return Ok(None);
            }
            let line = utf8(self.path, &self.buffer, self.bytes, self.line)?;
            self.bytes += read;
            self.line += 1;
            if line.trim().is_empty() {
                continue;
            }
            let text = text_of(line, self.field).map_err(|reason| DataError::Line {
                path: self.path.to_owned(),
                line: self.line,
                reason,
            })?;
            if !text.is_empty() {
                return Ok(Some(Document {
                    path: self.path.to_owned(),
                    line: Some(self.line),
                    text,
                }));
            }
        }
    }
}

/// The string under `field` of one line, or the rule that the line breaks.
fn text_of(line: &str, field: &str) -> std::result::Result<String, String> {
    let mut fields = match serde_json::from_str(line).map_err(|error| format!("not JSON: {error}"))? {
        Value::Object(fields) => fields,
        other => return Err(format!("must be a JSON object, not {}", kind(&other))),
    };
    match fields.remove(field) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(format!("`{field}` must be a string, not {}", kind(&other))),
        None => {
            let keys: Vec<&str> = fields.keys().take(8).map(String::as_str).collect();
            Err(format!("no field `{field}` (found: {})", keys.join(", ")))
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
