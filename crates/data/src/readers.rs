//! Documents from files.
//!
//! Owns the walk over paths and folders and the two formats: a text file is one document, a JSONL file has one
//! document per line. Strict on purpose: a corpus with one silently dropped file gives another model than the recipe
//! promises, so bad bytes and bad lines stop the run and say where they are. It must not know tokens.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{DataError, Result, io};

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

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Text,
    Jsonl,
}

fn format_of(path: &Path) -> Option<Format> {
    match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "txt" | "text" | "md" => Some(Format::Text),
        "jsonl" | "ndjson" => Some(Format::Jsonl),
        _ => None,
    }
}

/// Reads all documents of `paths` in the order given. A folder stands for the text and JSONL files below it, sorted
/// by path, hidden ones and links to folders left out. A file named outright is read whatever it is called (as text
/// unless its name says JSONL). `field` is the JSONL key that holds the text, usually `"text"`.
///
/// # Errors
/// Unreadable files, text that is not UTF-8, malformed lines, and a corpus without any text.
pub fn read_documents<P: AsRef<Path>>(paths: &[P], field: &str) -> Result<Vec<Document>> {
    let mut documents = Vec::new();
    for path in paths {
        let path = path.as_ref();
        let mut files = Vec::new();
        if std::fs::metadata(path).map_err(io(path))?.is_dir() {
            collect(path, &mut files)?;
        } else {
            files.push((path.to_owned(), format_of(path).unwrap_or(Format::Text)));
        }
        for (file, format) in files {
            let bytes = std::fs::read(&file).map_err(io(&file))?;
            match format {
                Format::Text => documents.extend(parse_text(&file, &bytes)?),
                Format::Jsonl => documents.extend(parse_jsonl(&file, &bytes, field)?),
            }
        }
    }
    if documents.is_empty() {
        let names: Vec<String> = paths.iter().map(|path| path.as_ref().display().to_string()).collect();
        let what = if names.is_empty() {
            "an empty list of paths".into()
        } else {
            names.join(", ")
        };
        return Err(DataError::Empty { what });
    }
    Ok(documents)
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

fn utf8<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a str> {
    let text = std::str::from_utf8(bytes).map_err(|error| DataError::NotUtf8 {
        path: path.to_owned(),
        offset: error.valid_up_to(),
    })?;
    // A byte-order mark is an editor's habit, not text.
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// The document in a text file; `None` when it is empty.
///
/// # Errors
/// Bytes that are not UTF-8.
pub fn parse_text(path: &Path, bytes: &[u8]) -> Result<Option<Document>> {
    let text = utf8(path, bytes)?;
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
    let mut documents = Vec::new();
    for (number, line) in utf8(path, bytes)?.split('\n').enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let broken = |reason: String| DataError::Line {
            path: path.to_owned(),
            line: number + 1,
            reason,
        };
        let fields = match serde_json::from_str(line).map_err(|error| broken(format!("not JSON: {error}")))? {
            Value::Object(fields) => fields,
            other => {
                return Err(broken(format!("must be a JSON object, not {}", kind(&other))));
            }
        };
        match fields.get(field) {
            Some(Value::String(text)) if text.is_empty() => {}
            Some(Value::String(text)) => {
                documents.push(Document {
                    path: path.to_owned(),
                    line: Some(number + 1),
                    text: text.clone(),
                });
            }
            Some(other) => {
                return Err(broken(format!("`{field}` must be a string, not {}", kind(other))));
            }
            None => {
                let keys: Vec<&str> = fields.keys().take(8).map(String::as_str).collect();
                return Err(broken(format!("no field `{field}` (found: {})", keys.join(", "))));
            }
        }
    }
    Ok(documents)
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
