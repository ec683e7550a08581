//! What decides every byte of a result: a job is continued only with what it was begun with.
//!
//! An identity is a list of facts, each with a name that reads well after "another": the recipe, the instruction set, a
//! file with the sum of its contents. Two jobs of equal identity make equal bytes; where they differ, the names of the
//! facts that do are what a person is told. Large inputs, whose contents take long to sum, are [`crate::Inputs`].

use std::{collections::BTreeSet, path::Path};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{error::Result, fsx};

/// The facts that decide every byte of a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Identity(Map<String, Value>);

impl Identity {
    /// The identity of `command` ("merge"), as this version of the program carries it out.
    pub fn new(command: &str) -> Self {
        Self(Map::new())
            .with("command", command)
            .with("version of Ounce", env!("CARGO_PKG_VERSION"))
    }

    /// Adds a fact; `what` is a noun that reads well after "another".
    #[must_use]
    pub fn with(mut self, what: &str, value: impl Into<Value>) -> Self {
        self.0.insert(what.to_owned(), value.into());
        self
    }

    /// Adds the instruction set that makes the bits.
    #[must_use]
    pub fn with_instruction_set(self) -> Self {
        let name = format!("{:?}", ounce_kernels::isa()).to_lowercase();
        self.with("instruction set (OUNCE_ISA)", name)
    }

    /// Adds a file by the SHA-256 of its contents.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn with_file(self, what: &str, path: &Path) -> Result<Self> {
        Ok(self.with(what, fsx::sha256_file(path)?))
    }

    /// One sum over all facts.
    pub fn sum(&self) -> String {
        fsx::sha256_bytes(Value::Object(self.0.clone()).to_string().as_bytes())
    }

    /// The names of the facts in which `other` differs: changed, new or gone.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let names: BTreeSet<&String> = self.0.keys().chain(other.0.keys()).collect();
        let differs = |name: &&&String| self.0.get(**name) != other.0.get(**name);
        names.iter().filter(differs).map(|name| (*name).clone()).collect()
    }
}

/// "another recipe, another version of Ounce and another command" of names.
pub fn others(names: &[String]) -> String {
    let all: Vec<String> = names.iter().map(|name| format!("another {name}")).collect();
    match all.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fact_counts_and_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x");
        std::fs::write(&file, "a").unwrap();
        let of = |recipe: &str| {
            Identity::new("merge")
                .with("recipe", recipe)
                .with_instruction_set()
                .with_file("text x", &file)
                .unwrap()
        };
        let first = of("r");
        assert!(first.differences(&of("r")).is_empty());
        assert_eq!(first.differences(&of("s")), ["recipe"]);
        std::fs::write(&file, "b").unwrap();
        let second = of("s");
        assert_eq!(others(&first.differences(&second)), "another recipe and another text x");
        assert_ne!(first.sum(), second.sum());
        // What only one of the two has is a difference as well.
        let more = first.clone().with("plan", 1);
        assert_eq!(first.differences(&more), ["plan"]);
        assert_eq!(more.differences(&first), ["plan"]);
        // As it comes back from a journal.
        let text = serde_json::to_string(&first).unwrap();
        assert_eq!(serde_json::from_str::<Identity>(&text).unwrap(), first);
    }
}
