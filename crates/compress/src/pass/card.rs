//! The model card of a checkpoint that was made of another: what was done, to what, by which command.

use crate::error::CompressError;
use ounce_formats::{Checkpoint, SideFiles, fsx};
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::Read,
    path::{Path, PathBuf},
};

/// What a plan tells of itself.
#[derive(Debug, Default)]
pub(crate) struct Card {
    /// The method, a tag of the card: "moh".
    pub(crate) method: &'static str,
    /// What it did, in a paragraph.
    pub(crate) what: String,
    /// Its parameters and their values, those that were left to the method included.
    pub(crate) parameters: Vec<(&'static str, String)>,
    /// What to do before the result is used, and what to expect if that is not done.
    pub(crate) advice: Option<String>,
}

/// More of a card than this is not searched for a licence.
const FRONT: u64 = 64 << 10;

impl Card {
    /// The card's text.
    ///
    /// # Errors
    /// The source's card cannot be read.
    pub(super) fn text(
        &self,
        source: &Checkpoint,
        side_files: &SideFiles,
        command: &str,
        sums: &BTreeMap<String, String>,
    ) -> Result<String, CompressError> {
        let name = name(source.path());
        let mut text = format!("---\nbase_model: {name:?}\n");
        for line in licence(source.path())? {
            let _ = writeln!(text, "{line}");
        }
        let _ = writeln!(text, "tags:\n- ounce\n- {}\n---", self.method);
        let _ = writeln!(text, "# Made with Ounce {}\n\n{}", env!("CARGO_PKG_VERSION"), self.what);
        if let Some(advice) = &self.advice {
            let _ = writeln!(text, "\n**{advice}**");
        }
        let _ = writeln!(text, "\n## Made from\n");
        let family = source.config()["model_type"].as_str().unwrap_or("unknown");
        let parameters: u64 = source.tensors().map(|t| t.shape.iter().product::<usize>() as u64).sum();
        let _ = writeln!(
            text,
            "- model: {name} (`{}`, {parameters} parameters)",
            family.escape_debug()
        );
        let _ = writeln!(text, "- method: {}", self.method);
        for (key, value) in &self.parameters {
            let _ = writeln!(text, "- {key}: {value}");
        }
        let _ = writeln!(text, "- command: `{command}`");
        if side_files.names().any(|name| name == "README.source.md") {
            let _ = writeln!(text, "\nThe card of that model is `README.source.md`.");
        }
        let _ = writeln!(text, "\nIts files, by their SHA-256:\n\n```");
        for (name, sum) in sums {
            let _ = writeln!(text, "{sum}  {}", name.escape_debug());
        }
        text.push_str("```\n");
        Ok(text)
    }
}

/// The name of a model: on the hub, if it lies in the hub's cache, else its folder's.
fn name(path: &Path) -> String {
    let real: PathBuf = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let cached = real
        .iter()
        .rev()
        .find_map(|part| part.to_str()?.strip_prefix("models--"));
    match cached {
        Some(name) => name.replacen("--", "/", 1),
        None => real.file_name().map_or_else(
            || "model".to_owned(),
            |name| name.to_string_lossy().escape_debug().to_string(),
        ),
    }
}

/// The lines on the licence at the head of the model's own card: they hold for what is made of it.
fn licence(model: &Path) -> Result<Vec<String>, CompressError> {
    let path = model.join("README.md");
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let mut front = Vec::new();
    let read = fsx::open(&path)?.take(FRONT).read_to_end(&mut front);
    if read.is_err() {
        return Ok(Vec::new());
    }
    let front = String::from_utf8_lossy(&front);
    let mut lines = front.lines();
    if lines.next() != Some("---") {
        return Ok(Vec::new());
    }
    let kept = |line: &&str| {
        let key = line.split(':').next().unwrap_or_default();
        let plain = line.len() < 200 && !line.contains(char::is_control);
        plain && ["license", "license_name", "license_link"].contains(&key)
    };
    Ok(lines
        .take_while(|line| *line != "---")
        .filter(kept)
        .map(str::to_owned)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_licence_stands_at_the_head_of_the_card() {
        let dir = tempfile::tempdir().unwrap();
        let with = |text: &str| {
            fs::write(dir.path().join("README.md"), text).unwrap();
            licence(dir.path()).unwrap()
        };
        let card = "---\nlicense: apache-2.0\ntags:\n- x\nlicense_link: https://example.org\n---\nlicense: none\n";
        assert_eq!(with(card), ["license: apache-2.0", "license_link: https://example.org"]);
        assert!(with("license: apache-2.0\n").is_empty());
        assert!(with("---\nlicense: \u{1b}[2J\n---\n").is_empty());
    }

    #[test]
    fn a_model_in_the_cache_of_the_hub_has_its_name_there() {
        let dir = tempfile::tempdir().unwrap();
        let snapshot = dir.path().join("models--org--small-model/snapshots/abc");
        fs::create_dir_all(&snapshot).unwrap();
        assert_eq!(name(&snapshot), "org/small-model");
        let plain = dir.path().join("mine");
        fs::create_dir_all(&plain).unwrap();
        assert_eq!(name(&plain), "mine");
    }
}
