//! Every way a file can be wrong that we know of, and the message each one gets.

use std::{
    fs,
    path::{Path, PathBuf},
};

use ounce_formats::{
    Checkpoint, Dtype, FormatError, SafetensorsFile, checkpoint::ShardIndex, safetensors::Header, write_file,
};
use serde_json::json;

fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 7);
    bytes
}

fn refusal(bytes: &[u8]) -> (String, String) {
    said(&Header::parse(Path::new("model.safetensors"), bytes).expect_err("malformed on purpose"))
}

fn said(error: &FormatError) -> (String, String) {
    (error.to_string(), error.hint().unwrap_or_default().to_owned())
}

#[track_caller]
fn assert_refused(bytes: &[u8], message: &str, hint: &str) {
    let (got, got_hint) = refusal(bytes);
    assert!(got.contains(message), "message: {got}");
    assert!(got.starts_with("model.safetensors: "), "message: {got}");
    assert!(got_hint.contains(hint), "hint: {got_hint}");
}

#[test]
fn wrong_length_in_the_words_of_the_documentation() {
    let header = r#"{"model.norm.weight":{"dtype":"F32","shape":[64],"data_offsets":[0,128]}}"#;
    assert_eq!(
        refusal(&file(header, 128)),
        (
            r#"model.safetensors: tensor "model.norm.weight": shape [64] of F32 needs 256 bytes, its data_offsets span 128"#
                .to_owned(),
            "the file is truncated or was edited; download it again".to_owned()
        )
    );
}

#[test]
fn header_lengths() {
    assert_refused(&[], "has 0 bytes, a safetensors file starts with 8", "truncated");
    assert_refused(&[1, 2, 3], "has 3 bytes", "truncated");
    let mut huge = (1_u64 << 63).to_le_bytes().to_vec();
    huge.extend(b"{}");
    assert_refused(
        &huge,
        "header is 9223372036854775808 bytes long, the format allows 100000000",
        "not a safetensors",
    );
    let mut above = 100_000_001_u64.to_le_bytes().to_vec();
    above.extend(b"{}");
    assert_refused(
        &above,
        "header is 100000001 bytes long, the format allows 100000000",
        "not a safetensors",
    );
    let mut cut = file(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, 1);
    cut.truncate(20);
    assert_refused(&cut, "says its header is 53 bytes long, only 12 follow", "truncated");
    assert_refused(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
        "not a safetensors",
        "git lfs pull",
    );
}

#[test]
fn header_text() {
    assert_refused(&file("{\"a", 0), "header is not valid JSON", "not a safetensors file");
    assert_refused(&file("[]", 0), "header is not valid JSON", "not a safetensors file");
    assert_refused(
        &file("{} {}", 0),
        "header is not valid JSON: trailing characters",
        "not a safetensors file",
    );
    let mut bytes = file("{  }", 0);
    bytes[9] = 0xff;
    assert_refused(&bytes, "header is not UTF-8", "not a safetensors file");
    let deep = format!(r#"{{"a":{}"#, "[".repeat(100_000));
    assert_refused(&file(&deep, 0), r#"tensor "a": header entry is malformed"#, "edited");
    let deep = format!(r#"{{"a":{{"dtype":"U8","x":{}"#, "[".repeat(100_000));
    assert_refused(&file(&deep, 0), r#"tensor "a": header entry is malformed"#, "edited");
}

#[test]
fn header_entries() {
    let entry = |entry: &str| file(&format!(r#"{{"w":{entry}}}"#), 4);
    let message = |rule: &str| format!(r#"tensor "w": {rule}"#);
    for (broken, rule) in [
        (
            r#"{"shape":[1],"data_offsets":[0,4]}"#,
            "header entry is malformed: missing field `dtype`",
        ),
        (
            r#"{"dtype":"F32","data_offsets":[0,4]}"#,
            "header entry is malformed: missing field `shape`",
        ),
        (
            r#"{"dtype":"F32","shape":[1]}"#,
            "header entry is malformed: missing field `data_offsets`",
        ),
        (
            r#"{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}"#,
            "header entry is malformed: invalid value",
        ),
        (
            r#"{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}"#,
            "header entry is malformed: invalid type",
        ),
        (
            r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4,4]}"#,
            "header entry is malformed",
        ),
        (
            r#"{"dtype":"F32","shape":[1],"data_offsets":[0,99999999999999999999]}"#,
            "header entry is malformed",
        ),
        (
            r#"{"dtype":"F33","shape":[1],"data_offsets":[0,4]}"#,
            r#"dtype "F33" is none of the format's"#,
        ),
        (
            r#"{"dtype":"F32","shape":[1],"data_offsets":[4,0]}"#,
            "data_offsets [4, 0] end before they start",
        ),
        (
            r#"{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}"#,
            "shape [4294967296, 4294967296] of F32 is no countable number of bytes",
        ),
        (
            r#"{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]}"#,
            "shape [4611686018427387904] of F32 is no countable number of bytes",
        ),
        (
            r#"{"dtype":"F4","shape":[3],"data_offsets":[0,1]}"#,
            "shape [3] of F4 is no countable number of bytes",
        ),
    ] {
        assert_refused(&entry(broken), &message(rule), "edited");
    }
    let number = r#"{"__metadata__":{"format":1}}"#;
    assert_refused(
        &file(number, 0),
        r#"key "__metadata__": header entry is malformed"#,
        "edited",
    );
    let twice = r#"{"__metadata__":{},"__metadata__":{}}"#;
    assert_refused(
        &file(twice, 0),
        r#"key "__metadata__": header entry is malformed: listed twice"#,
        "edited",
    );
}

#[test]
fn coverage_of_the_data() {
    let two = |a: (usize, usize), b: (usize, usize)| {
        format!(
            r#"{{"a":{{"dtype":"U8","shape":[{}],"data_offsets":[{},{}]}},"b":{{"dtype":"U8","shape":[{}],"data_offsets":[{},{}]}}}}"#,
            a.1 - a.0,
            a.0,
            a.1,
            b.1 - b.0,
            b.0,
            b.1
        )
    };
    let overlap = file(&two((0, 4), (3, 8)), 8);
    assert_refused(
        &overlap,
        r#"tensor "b": its data starts at 3, within tensor "a" that ends at 4"#,
        "edited",
    );
    let gap = file(&two((0, 4), (5, 8)), 8);
    assert_refused(
        &gap,
        r#"tensor "b": its data starts at 5, tensor "a" before it ends at 4"#,
        "edited",
    );
    let late = file(&two((1, 4), (4, 8)), 8);
    assert_refused(
        &late,
        r#"tensor "a": its data starts at 1, the first tensor must start at 0"#,
        "edited",
    );
    let truncated = file(&two((0, 4), (4, 8)), 7);
    assert_refused(
        &truncated,
        r#"tensor "b": its data ends at 8, the file has 7 bytes of data"#,
        "truncated",
    );
    let surplus = file(&two((0, 4), (4, 8)), 10);
    assert_refused(&surplus, "has 2 bytes that belong to no tensor", "edited");
    let last = usize::MAX / 8;
    let far = format!(
        r#"{{"a":{{"dtype":"U8","shape":[{last}],"data_offsets":[0,{last}]}},"b":{{"dtype":"U8","shape":[0],"data_offsets":[{last},{last}]}}}}"#
    );
    assert_refused(
        &file(&far, 8),
        r#"tensor "a": its data ends at 2305843009213693951,"#,
        "truncated",
    );
    // Listed out of order is fine.
    assert!(Header::parse(Path::new("m"), &file(&two((4, 8), (0, 4)), 8)).is_ok());
}

#[test]
fn duplicate_names() {
    let header =
        r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"a":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}"#;
    assert_refused(
        &file(header, 4),
        r#"tensor "a": is listed twice in the header"#,
        "under one name",
    );
}

#[test]
fn what_cannot_be_asked_of_a_good_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let header = r#"{"a":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]},"n":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}"#;
    fs::write(&path, file(header, 4)).unwrap();
    let opened = SafetensorsFile::open(&path).unwrap();
    assert_eq!(opened.header().info("a").unwrap().dtype.name(), "F8_E4M3");
    let (message, hint) = said(&opened.view("a").unwrap_err());
    assert!(
        message.ends_with(r#"x.safetensors: tensor "a": its type F8_E4M3 is not supported"#),
        "{message}"
    );
    assert!(hint.contains("BF16"), "{hint}");
    assert!(opened.region("a").is_err());
    let (message, _) = said(&opened.region("b").unwrap_err());
    assert!(message.ends_with(r#"tensor "b": is not in this file"#), "{message}");
    let (message, _) = said(&opened.view("n").unwrap().to_f32_vec().unwrap_err());
    assert!(
        message.ends_with(r#"tensor "n": holds U8, where F32, F64, F16, BF16 or blocks is needed"#),
        "{message}"
    );
    assert_eq!(opened.view("n").unwrap().to_i64_vec().unwrap(), [7, 7]);

    let (message, _) = said(&SafetensorsFile::open(dir.path()).unwrap_err());
    assert!(message.ends_with("is not a regular file"), "{message}");
    fs::write(&path, b"").unwrap();
    let (message, _) = said(&SafetensorsFile::open(&path).unwrap_err());
    assert!(
        message.ends_with("has 0 bytes, a safetensors file starts with 8 of header length"),
        "{message}"
    );
}

/// A folder with a configuration, two shards and an index that can be edited.
fn sharded(dir: &Path, weight_map: &serde_json::Value) -> PathBuf {
    fs::write(dir.join("config.json"), "{}").unwrap();
    let none = std::collections::BTreeMap::new();
    write_file(&dir.join("one.safetensors"), &[("a", Dtype::U8, &[2], &[1, 2])], &none).unwrap();
    write_file(&dir.join("two.safetensors"), &[("b", Dtype::U8, &[2], &[3, 4])], &none).unwrap();
    let index = json!({ "metadata": { "total_size": 4 }, "weight_map": weight_map });
    fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
    dir.to_owned()
}

#[track_caller]
fn assert_folder_refused(dir: &Path, message: &str, hint: &str) {
    let (got, got_hint) = said(&Checkpoint::open(dir).expect_err("malformed on purpose"));
    assert!(got.contains(message), "message: {got}");
    assert!(got_hint.contains(hint), "hint: {got_hint}");
}

#[test]
fn folders_without_their_files() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    assert_folder_refused(&dir.join("absent"), "absent: does not exist", "Hugging Face folder");
    assert_folder_refused(dir, "config.json: does not exist", "holds config.json");
    fs::write(dir.join("config.json"), "{").unwrap();
    assert_folder_refused(dir, "config.json: is not valid JSON", "damaged");
    assert_folder_refused(
        &dir.join("config.json"),
        "config.json: is not a folder",
        "Hugging Face folder",
    );
    fs::write(dir.join("config.json"), "[]").unwrap();
    assert_folder_refused(dir, "config.json: is not a JSON object", "damaged");
    fs::write(dir.join("config.json"), "{}").unwrap();
    assert_folder_refused(
        dir,
        "holds neither model.safetensors nor model.safetensors.index.json",
        "incomplete",
    );
    fs::write(dir.join("pytorch_model.bin"), "").unwrap();
    // Pickled weights are read where there are no safetensors; nothing is no archive.
    assert_folder_refused(dir, "pytorch_model.bin: is too short to be a zip archive", "damaged");
}

#[test]
fn shards_that_do_not_fit_the_index() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = sharded(
        temporary.path(),
        &json!({ "a": "one.safetensors", "b": "two.safetensors" }),
    );
    let good = Checkpoint::open(&dir).unwrap();
    assert_eq!(
        (good.names().collect::<Vec<_>>(), good.total_bytes()),
        (vec!["a", "b"], 4)
    );
    assert_eq!(good.view("b").unwrap().bytes, [3, 4]);
    let (message, _) = said(&good.region("c").unwrap_err());
    assert!(
        message.ends_with(r#"tensor "c": is not in this checkpoint"#),
        "{message}"
    );

    sharded(&dir, &json!({ "a": "one.safetensors", "b": "three.safetensors" }));
    assert_folder_refused(
        &dir,
        r#"three.safetensors: does not exist; the index needs it, for tensor "b""#,
        "incomplete",
    );
    sharded(&dir, &json!({ "a": "one.safetensors", "b": "one.safetensors" }));
    assert_folder_refused(
        &dir,
        r#"one.safetensors: tensor "b": is not in this file"#,
        "different exports",
    );

    sharded(&dir, &json!({ "a": "one.safetensors", "b": "two.safetensors" }));
    let none = std::collections::BTreeMap::new();
    let both: &[ounce_formats::writer::MemoryTensor<'_>] =
        &[("a", Dtype::U8, &[2], &[1, 2]), ("b", Dtype::U8, &[2], &[3, 4])];
    write_file(&dir.join("two.safetensors"), both, &none).unwrap();
    assert_folder_refused(
        &dir,
        r#"two.safetensors: tensor "a": lies in one.safetensors as well"#,
        "two exports",
    );

    write_file(&dir.join("model.safetensors"), both, &none).unwrap();
    assert_folder_refused(
        &dir,
        "holds both model.safetensors and the shards of model.safetensors.index.json",
        "remove the one",
    );
}

#[test]
fn indices_by_themselves() {
    let refused = |json: &str, message: &str, hint: &str| {
        let error = ShardIndex::parse(Path::new("index.json"), json.as_bytes()).expect_err("malformed on purpose");
        let (got, got_hint) = said(&error);
        assert!(got.contains(message), "message: {got}");
        assert!(got_hint.contains(hint), "hint: {got_hint}");
    };
    refused("{", "index.json: is not a valid shard index", "download it again");
    refused("{}", "missing field `weight_map`", "download it again");
    refused(
        r#"{"weight_map":{"a":1}}"#,
        "is not a valid shard index",
        "download it again",
    );
    refused(
        r#"{"weight_map":{}}"#,
        r#"key "weight_map": lists no tensors"#,
        "download it again",
    );
    let twice = r#"{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}"#;
    refused(
        twice,
        r#"tensor "a": is listed twice, for x.safetensors and for y.safetensors"#,
        "download it again",
    );
    for path in ["../x.safetensors", "/etc/passwd", "a/../../x", "", ".", "./x", "x/.."] {
        let json = json!({ "weight_map": { "a": path } }).to_string();
        refused(&json, "is not a plain path within the folder", "do not trust");
    }
    let inner = ShardIndex::parse(Path::new("i"), br#"{"weight_map":{"a":"part/x.safetensors"}}"#).unwrap();
    assert_eq!(inner.weight_map["a"], "part/x.safetensors");
}
