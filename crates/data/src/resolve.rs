//! Where `${data}` points.
//!
//! Owns the expansion of file names in recipes, so that a recipe names files without knowing the machine. It must not
//! read the files.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::error::{DataError, Result, io};

/// The environment variable that names the data folder.
pub const VARIABLE: &str = "OUNCE_DATA";

/// The data folder, or the lack of one (an error only once a recipe asks for it).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DataDir {
    folder: Option<PathBuf>,
    source: &'static str,
}

impl DataDir {
    /// `--data DIR` if given, else the environment variable `OUNCE_DATA`.
    pub fn from_environment(flag: Option<PathBuf>) -> Self {
        Self::choose(flag, std::env::var_os(VARIABLE))
    }

    /// The choice itself; an empty variable counts as unset.
    pub fn choose(flag: Option<PathBuf>, variable: Option<OsString>) -> Self {
        match (flag, variable.filter(|value| !value.is_empty())) {
            (Some(folder), _) => Self {
                folder: Some(folder),
                source: "--data",
            },
            (None, Some(folder)) => Self {
                folder: Some(folder.into()),
                source: VARIABLE,
            },
            (None, None) => Self::default(),
        }
    }

    /// The folder, where one was named.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// `name` with every `${data}` replaced. Names without it pass unchanged, with or without a data folder.
    ///
    /// # Errors
    /// `${data}` without a folder, or with one that is none; any other `${…}`.
    pub fn expand(&self, name: &str) -> Result<PathBuf> {
        let mut out = String::new();
        let mut rest = name;
        while let Some(at) = rest.find("${") {
            out.push_str(&rest[..at]);
            let Some(end) = rest[at..].find('}') else {
                return Err(DataError::Setting {
                    rule: format!("`{name}`: `${{` without `}}`"),
                    hint: "only `${data}` exists",
                });
            };
            match &rest[at + 2..at + end] {
                "data" => out.push_str(self.text(name)?),
                other => {
                    return Err(DataError::Setting {
                        rule: format!("`{name}`: unknown `${{{other}}}`"),
                        hint: "only `${data}` exists",
                    });
                }
            }
            rest = &rest[at + end + 1..];
        }
        out.push_str(rest);
        Ok(out.into())
    }

    fn text(&self, name: &str) -> Result<&str> {
        let Some(folder) = &self.folder else {
            return Err(DataError::Setting {
                rule: format!("`{name}` needs a data folder: pass --data DIR or set {VARIABLE}=DIR"),
                hint: "`ounce data toy` writes small corpora to start with",
            });
        };
        if !std::fs::metadata(folder).map_err(io(folder))?.is_dir() {
            let folder = folder.display();
            return Err(DataError::Setting {
                rule: format!("{folder} (from {}) is not a folder", self.source),
                hint: "name the folder that holds the files of the recipe",
            });
        }
        folder.to_str().ok_or_else(|| DataError::Setting {
            rule: format!("{} (from {}) is not UTF-8", folder.display(), self.source),
            hint: "rename the folder",
        })
    }
}
