//! Which files of a folder are its weights. Folders from many tools hold more than one candidate; what is chosen is what the
//! reference library would choose, it is said in a note, and where two exports are mixed the folder is refused.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use super::{INDEX, SINGLE, ShardIndex, TORCH_INDEX, TORCH_SINGLE, file_name};
use crate::{
    error::{FormatError, Result},
    fsx,
    safetensors::SafetensorsFile,
};

/// Opens one file of weights.
type Open = fn(&Path) -> Result<SafetensorsFile>;

/// The weight files of a folder, and what is to be said of the choice.
pub(super) struct Weights {
    pub(super) files: Vec<SafetensorsFile>,
    pub(super) notes: Vec<String>,
}

/// Finds and opens the weights of `folder`: safetensors before pickles.
pub(super) fn find(folder: &Path) -> Result<Weights> {
    let present = |name: &str| folder.join(name).exists();
    let mut notes = Vec::new();
    let files = if present(INDEX) || present(SINGLE) {
        let files = from(folder, SINGLE, INDEX, SafetensorsFile::open, &mut notes)?;
        for name in [TORCH_SINGLE, TORCH_INDEX].into_iter().filter(|name| present(name)) {
            notes.push(format!(
                "the weights are read from the safetensors; {name} beside them is not read"
            ));
        }
        files
    } else if present(TORCH_INDEX) || present(TORCH_SINGLE) {
        from(
            folder,
            TORCH_SINGLE,
            TORCH_INDEX,
            SafetensorsFile::open_torch,
            &mut notes,
        )?
    } else {
        without_index(folder, &mut notes)?
    };
    if present("adapter_config.json") || present("adapter_model.safetensors") {
        notes.push("the adapter in the folder (adapter_config.json) is not applied".into());
    }
    for file in &files {
        notes.extend(file.notes().iter().cloned());
    }
    Ok(Weights { files, notes })
}

/// One file, or the shards of an index.
fn from(folder: &Path, single: &str, index: &str, open: Open, notes: &mut Vec<String>) -> Result<Vec<SafetensorsFile>> {
    let (single_path, index_path) = (folder.join(single), folder.join(index));
    if !index_path.exists() {
        return Ok(vec![open(&single_path)?]);
    }
    let listed = ShardIndex::parse(&index_path, &fsx::read(&index_path)?)?;
    let files = listed.files();
    if single_path.exists() && !files.contains(&single) {
        // An index whose shards are gone is a leftover; shards that are there are a second export.
        if let Some(shard) = files.iter().find(|file| folder.join(file).exists()) {
            return Err(FormatError::place(
                folder,
                format!("holds both {single} and the shards of {index} ({shard})"),
                "remove the one that is left over from an earlier export",
            ));
        }
        notes.push(format!(
            "the weights are read from {single}; the files that {index} names are not there"
        ));
        return Ok(vec![open(&single_path)?]);
    }
    open_shards(folder, &index_path, &listed, open)
}

fn open_shards(folder: &Path, index_path: &Path, index: &ShardIndex, open: Open) -> Result<Vec<SafetensorsFile>> {
    let mut shards = BTreeMap::new();
    for (tensor, file) in &index.weight_map {
        if !shards.contains_key(file) {
            let path = folder.join(file);
            if !path.exists() {
                let rule = format!("does not exist; the index needs it, for tensor {tensor:?} among others");
                return Err(FormatError::place(
                    &path,
                    rule,
                    "the download is incomplete; fetch this file, too",
                ));
            }
            shards.insert(file, open(&path)?);
        }
        let shard = &shards[file];
        if !shard.contains(tensor) {
            let rule = format!("is not in this file, though {} says so", file_name(index_path));
            let hint = "index and shards are of different exports; download both again";
            return Err(FormatError::tensor(shard.path(), tensor, rule, hint));
        }
    }
    Ok(shards.into_values().collect())
}

/// `model-00001-of-00003.safetensors` and the like say themselves how many they are: an index that was not downloaded is
/// no loss if all of them are there.
fn without_index(folder: &Path, notes: &mut Vec<String>) -> Result<Vec<SafetensorsFile>> {
    let names = listing(folder)?;
    for (stem, ending, open) in [
        ("model", "safetensors", SafetensorsFile::open as Open),
        ("pytorch_model", "bin", SafetensorsFile::open_torch as Open),
    ] {
        let shards: BTreeSet<&String> = names.iter().filter(|n| shard_of(n, stem, ending).is_some()).collect();
        let Some(first) = shards.first() else { continue };
        let of = shard_of(first, stem, ending).map_or(0, |(_, of)| of);
        let missing = (1..=of).find(|i| !shards.contains(&format!("{stem}-{i:05}-of-{of:05}.{ending}")));
        if missing.is_some() || shards.len() as u64 != of {
            let rule = match missing {
                Some(i) => format!("holds {first}, but neither an index nor shard {i} of {of}"),
                None => format!("holds {first} and shards of another export, and no index"),
            };
            let hint = "the download is incomplete; fetch the index and all files it names";
            return Err(FormatError::place(folder, rule, hint));
        }
        notes.push(format!(
            "there is no index; the weights are all {of} files like {first}"
        ));
        return shards.into_iter().map(|name| open(&folder.join(name))).collect();
    }
    Err(no_weights(folder, &names))
}

/// Number and count of a shard called `STEM-NNNNN-of-NNNNN.ENDING`.
fn shard_of(name: &str, stem: &str, ending: &str) -> Option<(u64, u64)> {
    let middle = name.strip_prefix(stem)?.strip_prefix('-')?;
    let (number, of) = middle.strip_suffix(ending)?.strip_suffix('.')?.split_once("-of-")?;
    let read = |digits: &str| (digits.len() == 5).then(|| digits.parse().ok())?;
    Some((read(number)?, read(of)?))
}

/// Names of the files of `folder`, sorted.
fn listing(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).map_err(FormatError::io(folder, "list it"))?;
    let mut names: Vec<String> = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort_unstable();
    Ok(names)
}

/// Says what is there instead of weights, if it looks like some.
fn no_weights(folder: &Path, names: &[String]) -> FormatError {
    let rule = format!("holds neither {SINGLE} nor {INDEX}");
    let found = |f: &dyn Fn(&str) -> bool| names.iter().find(|n| f(n));
    let other = |n: &str| {
        let path = Path::new(n);
        let ending = path.extension().and_then(|e| e.to_str());
        matches!(
            ending,
            Some("safetensors" | "bin" | "pth" | "pt" | "npz" | "gguf" | "h5" | "msgpack")
        ) && !matches!(
            n,
            "training_args.bin" | "optimizer.bin" | "optimizer.pt" | "scheduler.pt" | "scaler.pt"
        )
    };
    let hint = if let Some(name) = found(&|n| n.starts_with("adapter_model.")) {
        format!("{name} is an adapter, which is not a whole model; merge it into its base model and save that")
    } else if let Some(name) = found(&|n| n.starts_with("consolidated.")) {
        format!("{name} is in the layout of its maker; fetch the Hugging Face files of the same model")
    } else if let Some(name) = found(&|n| n.starts_with("model.") && n.ends_with(".safetensors")) {
        format!("{name} is a variant; if it is the one you mean, rename it to {SINGLE}")
    } else if let Some(name) = found(&other) {
        format!("{name} is not looked for; if it is the model in safetensors, rename it to {SINGLE}")
    } else {
        "the download is incomplete; fetch the safetensors files, too".into()
    };
    FormatError::place(folder, rule, hint)
}
