//! Everything that is wrong with a configuration, said at once.

use crate::error::{ModelError, Result};

/// What was found so far.
#[derive(Debug, Default)]
pub(super) struct Problems(Vec<ModelError>);

impl Problems {
    pub(super) fn add(&mut self, file: &str, key: &str, rule: impl Into<String>, hint: impl Into<String>) {
        self.0.push(ModelError::Config {
            file: file.into(),
            key: key.into(),
            rule: rule.into(),
            hint: hint.into(),
        });
    }

    /// The error, if there is one: itself if it is the only one.
    pub(super) fn result(mut self) -> Result<()> {
        match self.0.len() {
            0 => Ok(()),
            1 => Err(self.0.remove(0)),
            _ => Err(ModelError::Several(self.0)),
        }
    }
}
