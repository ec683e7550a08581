//! Folders as other tools leave them: which files are the weights, what is said of the choice, and what is refused.

use ounce_formats::{Checkpoint, Dtype, write_file};
use serde_json::json;
use std::{collections::BTreeMap, fs, path::Path};

fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    dir
}

/// One tensor of two bytes.
fn file(dir: &Path, name: &str, tensor: &str, value: u8) {
    let list: &[ounce_formats::writer::MemoryTensor<'_>] = &[(tensor, Dtype::U8, &[2], &[value, value])];
    write_file(&dir.join(name), list, &BTreeMap::new()).unwrap();
}

fn index(dir: &Path, name: &str, map: &serde_json::Value, metadata: bool) {
    let mut json = json!({ "weight_map": map });
    if metadata {
        json["metadata"] = json!({ "total_size": 2, "total_parameters": null });
    }
    fs::write(dir.join(name), json.to_string()).unwrap();
}

#[track_caller]
fn opened(dir: &Path, values: &[(&str, u8)], notes: &[&str]) {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let mut names: Vec<&str> = checkpoint.names().collect();
    names.sort_unstable();
    assert_eq!(names, values.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    for (name, value) in values {
        assert_eq!(checkpoint.view(name).unwrap().bytes, [*value; 2], "{name}");
    }
    assert_eq!(checkpoint.notes().len(), notes.len(), "{:?}", checkpoint.notes());
    for (said, note) in checkpoint.notes().iter().zip(notes) {
        assert!(said.contains(note), "{said:?} should say {note:?}");
    }
}

#[track_caller]
fn refused(dir: &Path, rule: &str, advice: &str) {
    let error = Checkpoint::open(dir).expect_err("to be refused");
    let hint = error.hint().unwrap_or_default();
    assert!(error.to_string().contains(rule), "{error} should say {rule:?}");
    assert!(hint.contains(advice), "{hint} should say {advice:?}");
}

#[test]
fn an_index_may_name_the_single_file() {
    for metadata in [true, false] {
        let dir = folder();
        file(dir.path(), "model.safetensors", "a", 1);
        file(dir.path(), "other.safetensors", "b", 2);
        index(
            dir.path(),
            "model.safetensors.index.json",
            &json!({ "a": "model.safetensors" }),
            metadata,
        );
        opened(dir.path(), &[("a", 1)], &[]);
    }
}

#[test]
fn an_index_may_name_the_single_file_beside_others() {
    let dir = folder();
    file(dir.path(), "model.safetensors", "a", 1);
    file(dir.path(), "more.safetensors", "b", 2);
    let map = json!({ "a": "model.safetensors", "b": "more.safetensors" });
    index(dir.path(), "model.safetensors.index.json", &map, true);
    opened(dir.path(), &[("a", 1), ("b", 2)], &[]);
}

#[test]
fn of_two_exports_the_one_that_is_there_is_read_and_two_are_refused() {
    let dir = folder();
    file(dir.path(), "model.safetensors", "a", 1);
    let shard = "model-00001-of-00001.safetensors";
    index(dir.path(), "model.safetensors.index.json", &json!({ "a": shard }), true);
    opened(
        dir.path(),
        &[("a", 1)],
        &["the weights are read from model.safetensors"],
    );
    file(dir.path(), shard, "a", 2);
    refused(dir.path(), shard, "left over");
}

#[test]
fn safetensors_are_read_before_pickles_and_it_is_said() {
    let dir = folder();
    file(dir.path(), "model.safetensors", "a", 1);
    fs::write(dir.path().join("pytorch_model.bin"), "no pickle at all").unwrap();
    opened(dir.path(), &[("a", 1)], &["pytorch_model.bin beside them is not read"]);
}

#[test]
fn files_of_other_purposes_are_left_alone_and_an_adapter_is_named() {
    let dir = folder();
    file(dir.path(), "model.safetensors", "a", 1);
    file(dir.path(), "consolidated.safetensors", "other.names", 2);
    for name in ["training_args.bin", "optimizer.pt", "scheduler.pt"] {
        fs::write(dir.path().join(name), "x").unwrap();
    }
    opened(dir.path(), &[("a", 1)], &[]);
    file(dir.path(), "adapter_model.safetensors", "lora", 3);
    fs::write(dir.path().join("adapter_config.json"), "{}").unwrap();
    opened(dir.path(), &[("a", 1)], &["adapter"]);
}

#[test]
fn shards_that_say_how_many_they_are_need_no_index() {
    let dir = folder();
    file(dir.path(), "model-00001-of-00002.safetensors", "a", 1);
    refused(dir.path(), "neither an index nor shard 2 of 2", "incomplete");
    file(dir.path(), "model-00002-of-00002.safetensors", "b", 2);
    opened(dir.path(), &[("a", 1), ("b", 2)], &["there is no index"]);
    file(dir.path(), "model-00001-of-00003.safetensors", "c", 3);
    refused(dir.path(), "shards of another export", "incomplete");
}

#[test]
fn a_shard_that_was_never_downloaded_is_named() {
    let dir = folder();
    file(dir.path(), "model-00001-of-00002.safetensors", "a", 1);
    let missing = "model-00002-of-00002.safetensors";
    let map = json!({ "a": "model-00001-of-00002.safetensors", "b": missing });
    index(dir.path(), "model.safetensors.index.json", &map, false);
    refused(dir.path(), missing, "incomplete");
}

#[test]
fn a_folder_without_weights_says_what_is_there_instead() {
    for (name, advice) in [
        ("adapter_model.safetensors", "merge it into its base model"),
        ("consolidated.00.pth", "layout of its maker"),
        ("model.fp16.safetensors", "is a variant"),
        ("weights.npz", "is not looked for"),
        ("training_args.bin", "fetch the safetensors"),
    ] {
        let dir = folder();
        fs::write(dir.path().join(name), "x").unwrap();
        refused(dir.path(), "holds neither model.safetensors", advice);
    }
}
