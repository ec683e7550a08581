//! What a checkpoint carries beside configuration and weights: tokenizer, chat templates, generation settings, licence,
//! model card. Every command that makes a checkpoint of another passes them on, by this one list.
//!
//! A checkpoint may come from anybody, and its copy may be published: a file that is a link to somewhere outside of the
//! folder is refused, since it would put a private file there. The cache of the Hugging Face hub is made of links; those
//! into the cache's own `blobs` are followed.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use crate::{
    checkpoint::{CONFIG, INDEX, SINGLE, TORCH_INDEX, TORCH_SINGLE},
    error::{FormatError, Result},
    fsx,
    output::MARK,
};

/// Files that other programs look for by these names.
const NAMES: &[&str] = &[
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];

/// Folders of further chat templates.
const TEMPLATES: &[&str] = &["additional_chat_templates", "chat_templates"];

/// How names of what must go with a model begin, whatever their case.
const LEGAL: &[&str] = &[
    "license",
    "licence",
    "notice",
    "copying",
    "use_policy",
    "acceptable_use",
];

/// A checkpoint's own card, and what it becomes in a checkpoint made of it, which has a card of its own.
const CARD: &str = "README.md";
const KEPT_CARD: &str = "README.source";

/// The side files of one checkpoint.
#[derive(Debug, Clone, Default)]
pub struct SideFiles {
    /// Where each lies, and its name in a copy.
    files: Vec<(PathBuf, String)>,
    left: Vec<String>,
}

impl SideFiles {
    /// Looks for them in the folder `checkpoint`.
    ///
    /// # Errors
    /// The folder cannot be listed, or one of them is a link out of it or no regular file.
    pub fn of(checkpoint: &Path) -> Result<Self> {
        let mut found = Self::default();
        let mut names = names(checkpoint)?;
        names.sort();
        for name in names {
            let path = checkpoint.join(&name);
            if let Some(kept) = kept_name(&name) {
                check(checkpoint, &path)?;
                found.files.push((path, kept));
            } else if TEMPLATES.contains(&name.as_str()) && path.is_dir() {
                check_inside(checkpoint, &path)?;
                for inner in self::names(&path)?
                    .into_iter()
                    .filter(|n| Path::new(n).extension().is_some_and(|e| e == "jinja"))
                {
                    check(checkpoint, &path.join(&inner))?;
                    found.files.push((path.join(&inner), format!("{name}/{inner}")));
                }
            } else if !is_checkpoint_itself(&name) && !name.starts_with('.') {
                found.left.push(name);
            }
        }
        Ok(found)
    }

    /// Copies them into the folder `to`, each at once and durably. The card becomes `README.source.md`, one that was kept
    /// before moves on to `README.source.2.md`, and so on.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn copy(&self, to: &Path) -> Result<()> {
        for (from, name) in &self.files {
            let target = to.join(name);
            if let Some((folder, _)) = name.split_once('/') {
                fsx::create_dir_all(&to.join(folder))?;
            }
            copy(from, &target)?;
        }
        Ok(())
    }

    /// Names of the copies.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(|(_, name)| name.as_str())
    }

    /// Where each lies.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(path, _)| path.as_path())
    }

    /// Names of what is in the folder and not passed on: nothing that a model needs, as far as is known.
    pub fn left(&self) -> &[String] {
        &self.left
    }
}

/// The name in a copy; none if it is no side file.
fn kept_name(name: &str) -> Option<String> {
    let lower = name.to_ascii_lowercase();
    if NAMES.contains(&name) || LEGAL.iter().any(|start| lower.starts_with(start)) {
        return Some(name.to_owned());
    }
    if name == CARD {
        return Some(format!("{KEPT_CARD}.md"));
    }
    let number = name.strip_prefix(KEPT_CARD)?.strip_suffix("md")?;
    let number = match number {
        "." => 1,
        number => number.strip_prefix('.')?.strip_suffix('.')?.parse::<u32>().ok()?,
    };
    Some(format!("{KEPT_CARD}.{}.md", number.checked_add(1)?))
}

/// Configuration, weights, and the mark of an output folder: made anew.
fn is_checkpoint_itself(name: &str) -> bool {
    let fixed = [CONFIG, SINGLE, INDEX, TORCH_SINGLE, TORCH_INDEX, MARK].contains(&name);
    let shard = |start: &str, end: &str| name.starts_with(start) && name.contains("-of-") && name.ends_with(end);
    fixed || shard("model-", ".safetensors") || shard("pytorch_model-", ".bin")
}

fn names(dir: &Path) -> Result<Vec<String>> {
    let name = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
    Ok(fsx::list(dir)?.iter().filter_map(name).collect())
}

/// A side file must be a regular file that belongs to the checkpoint.
fn check(checkpoint: &Path, path: &Path) -> Result<()> {
    check_inside(checkpoint, path)?;
    if path.is_file() {
        return Ok(());
    }
    let hint = "remove it from the checkpoint, or put the file itself there";
    Err(FormatError::place(path, "is no regular file", hint))
}

fn check_inside(checkpoint: &Path, path: &Path) -> Result<()> {
    let io = |action| FormatError::io(path, action);
    if !fs::symlink_metadata(path).map_err(io("read its type"))?.is_symlink() {
        return Ok(());
    }
    let real = fs::canonicalize(path).map_err(io("follow this link"))?;
    let folder = fs::canonicalize(checkpoint).map_err(io("find its folder"))?;
    // models--ORG--NAME/snapshots/REVISION/FILE -> models--ORG--NAME/blobs/SUM
    let cache = folder
        .parent()
        .filter(|p| p.ends_with("snapshots"))
        .and_then(Path::parent);
    if real.starts_with(&folder) || cache.is_some_and(|cache| real.starts_with(cache.join("blobs"))) {
        return Ok(());
    }
    let rule = format!("is a link out of the checkpoint, to {}", real.display());
    let hint = "if it belongs to the model, put the file itself there";
    Err(FormatError::place(path, rule, hint))
}

/// Copies a file in pieces: beside its place, then by a rename.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let temporary = fsx::temporary(to);
    let mut source = fsx::open(from)?;
    let copied = (|| {
        let mut file: File = fsx::create_new(&temporary)?;
        io::copy(&mut source, &mut file)?;
        file.sync_all()
    })();
    let copied = copied
        .map_err(FormatError::io(to, "write it"))
        .and_then(|()| fsx::rename(&temporary, to));
    if copied.is_err() {
        // Best effort: the first failure is the one worth reporting.
        let _ = fs::remove_file(&temporary);
    }
    copied?;
    fsx::sync_parent(to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
        dir
    }

    #[test]
    fn all_that_belongs_to_a_model_is_passed_on_and_the_rest_is_named() {
        let from = folder(&[
            "config.json",
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
            "ounce.json",
            ".gitattributes",
            "tokenizer.json",
            "added_tokens.json",
            "chat_template.jinja",
            "additional_chat_templates/tool_use.jinja",
            "additional_chat_templates/notes.txt",
            "LICENSE",
            "Notice.txt",
            "USE_POLICY.md",
            "README.md",
            "README.source.md",
            "README.source.2.md",
            "README.sources.md",
            "thesis.tex",
            "onnx/model.onnx",
        ]);
        let side = SideFiles::of(from.path()).unwrap();
        assert_eq!(side.left(), ["README.sources.md", "onnx", "thesis.tex"]);
        let to = tempfile::tempdir().unwrap();
        side.copy(to.path()).unwrap();
        let mut copied: Vec<&str> = side.names().collect();
        copied.sort_unstable();
        assert_eq!(
            copied,
            [
                "LICENSE",
                "Notice.txt",
                "README.source.2.md",
                "README.source.3.md",
                "README.source.md",
                "USE_POLICY.md",
                "added_tokens.json",
                "additional_chat_templates/tool_use.jinja",
                "chat_template.jinja",
                "tokenizer.json",
            ]
        );
        let read = |name: &str| fs::read_to_string(to.path().join(name)).unwrap();
        assert_eq!(read("README.source.md"), "README.md");
        assert_eq!(read("README.source.2.md"), "README.source.md");
        assert_eq!(
            read("additional_chat_templates/tool_use.jinja"),
            "additional_chat_templates/tool_use.jinja"
        );
    }

    #[test]
    fn links_out_of_the_checkpoint_are_refused() {
        let private = folder(&["key"]);
        let key = private.path().join("key");
        for name in ["tokenizer.json", "LICENSE", "README.md", "chat_templates/a.jinja"] {
            let model = folder(&["config.json", "chat_templates/b.jinja"]);
            symlink(&key, model.path().join(name)).unwrap();
            let error = SideFiles::of(model.path()).unwrap_err();
            assert!(
                error.to_string().contains("is a link out of the checkpoint, to "),
                "{error}"
            );
        }
        let model = folder(&["config.json"]);
        symlink(private.path(), model.path().join("chat_templates")).unwrap();
        SideFiles::of(model.path()).unwrap_err();
        // Within the folder, or into the hub's cache, they are an ordinary way to keep files.
        let model = folder(&["vocab.txt"]);
        symlink("vocab.txt", model.path().join("vocab.json")).unwrap();
        assert_eq!(SideFiles::of(model.path()).unwrap().files.len(), 2);
        let cache = folder(&["models--a--b/blobs/1234", "models--a--b/snapshots/main/config.json"]);
        let model = cache.path().join("models--a--b/snapshots/main");
        symlink("../../blobs/1234", model.join("tokenizer.json")).unwrap();
        let to = tempfile::tempdir().unwrap();
        SideFiles::of(&model).unwrap().copy(to.path()).unwrap();
        let copy = to.path().join("tokenizer.json");
        assert!(!copy.is_symlink());
        assert_eq!(fs::read_to_string(copy).unwrap(), "models--a--b/blobs/1234");
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let model = folder(&["config.json", "tokenizer.json/x"]);
        let error = SideFiles::of(model.path()).unwrap_err();
        assert!(
            error.to_string().contains("tokenizer.json: is no regular file"),
            "{error}"
        );
    }
}
