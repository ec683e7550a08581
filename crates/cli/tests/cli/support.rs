//! Running the binary, and checkpoints to run it on.

use serde_json::Value;
use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};
use tempfile::TempDir;

/// The binary, without anything that the surroundings could change in it.
pub(crate) fn ounce(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ounce"));
    command.args(args).stdin(Stdio::null());
    for variable in ["OUNCE_ISA", "OUNCE_DATA", "COLUMNS", "NO_COLOR"] {
        command.env_remove(variable);
    }
    command
}

/// Runs it to its end.
pub(crate) fn run(args: &[&str]) -> Output {
    ounce(args).output().unwrap()
}

/// Runs it, insists on success, and returns its stdout.
pub(crate) fn stdout(args: &[&str]) -> String {
    let output = run(args);
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {err}");
    String::from_utf8(output.stdout).unwrap()
}

/// The same, read as one JSON value.
pub(crate) fn json(args: &[&str]) -> Value {
    let text = stdout(args);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?}: {e}: {text}"))
}

/// What stands in a folder, sorted; nothing if there is none.
pub(crate) fn listing(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    let mut names: Vec<String> = entries
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Changes the header of a safetensors file; its data stay as they are.
pub(crate) fn set_header(file: &Path, change: impl FnOnce(&mut Value)) {
    let bytes = fs::read(file).unwrap();
    let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..end]).unwrap();
    change(&mut header);
    let header = header.to_string();
    let length = (header.len() as u64).to_le_bytes();
    fs::write(file, [&length[..], header.as_bytes(), &bytes[end..]].concat()).unwrap();
}

/// A golden case that ships with the tests of `ounce-lab`.
pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../lab/tests/fixtures/golden")
        .join(name)
}

/// A copy of a golden case that may be broken.
pub(crate) fn copy_of(name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden(name)).unwrap() {
        let from = entry.unwrap().path();
        fs::copy(&from, dir.path().join(from.file_name().unwrap())).unwrap();
    }
    dir
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Changes one key of a copy's `config.json`.
pub(crate) fn set_config(dir: &Path, key: &str, value: Value) {
    let path = dir.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config[key] = value;
    fs::write(path, config.to_string()).unwrap();
}

/// Overwrites the first element of an f32 tensor.
pub(crate) fn poke(file: &Path, tensor: &str, value: f32) {
    let range = ounce_formats::SafetensorsFile::open(file)
        .unwrap()
        .region(tensor)
        .unwrap()
        .range;
    let mut bytes = fs::read(file).unwrap();
    bytes[range.start..range.start + 4].copy_from_slice(&value.to_le_bytes());
    fs::write(file, bytes).unwrap();
}

/// A random bf16 mixture of experts: `config` fills in the keys of mixtral that matter to a test.
pub(crate) fn random_mixture(dir: &Path, config: &Value) {
    use ounce_formats::{Dtype, SafetensorsWriter, TensorSpec};
    let mut all = serde_json::json!({
        "model_type": "mixtral", "vocab_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "hidden_act": "silu",
        "rms_norm_eps": 1e-5, "rope_theta": 1e4, "max_position_embeddings": 65536, "tie_word_embeddings": false,
    });
    for (key, value) in config.as_object().unwrap() {
        all[key] = value.clone();
    }
    fs::write(dir.join("config.json"), all.to_string()).unwrap();
    let parsed = ounce_model::ModelConfig::parse("config.json", &all).unwrap();
    let tensors = ounce_model::model_tensors(&parsed).unwrap();
    let specs = tensors
        .iter()
        .map(|(name, shape)| TensorSpec::new(name.clone(), Dtype::BF16, shape.clone()));
    let path = dir.join("model.safetensors");
    let mut writer = SafetensorsWriter::create(&path, specs.collect(), &std::collections::BTreeMap::new()).unwrap();
    let mut state = 1u64;
    for (name, shape) in &tensors {
        let scale = if shape.len() == 1 { 0.0 } else { 0.1 };
        let mut element = || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            let x = ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * scale;
            let x = if shape.len() == 1 { 1.0 } else { x };
            ((x.to_bits() >> 16) as u16).to_le_bytes()
        };
        let n: usize = shape.iter().product();
        // A piece at a time: these may be large.
        for start in (0..n).step_by(1 << 20) {
            let piece: Vec<u8> = (start..n.min(start + (1 << 20))).flat_map(|_| element()).collect();
            writer.write(name, &piece).unwrap();
        }
    }
    writer.finish().unwrap();
}

/// Every file below a folder, by its path within it.
pub(crate) fn tree(dir: &Path) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
    let mut found = std::collections::BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            let below = tree(&path);
            found.extend(below.into_iter().map(|(name, bytes)| (path.join(name), bytes)));
        } else {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    let inside = |path: PathBuf| path.strip_prefix(dir).map_or(path.clone(), Path::to_owned);
    found.into_iter().map(|(path, bytes)| (inside(path), bytes)).collect()
}

/// Writes `input_ids` of a shape.
pub(crate) fn write_ids(path: &Path, ids: &[i64], shape: &[usize]) {
    use ounce_formats::{Dtype, as_bytes, write_file};
    write_file(
        path,
        &[("input_ids", Dtype::I64, shape, as_bytes(ids))],
        &std::collections::BTreeMap::new(),
    )
    .unwrap();
}

/// A tensor of a file as f32.
pub(crate) fn floats(path: &Path, tensor: &str) -> (Vec<usize>, Vec<f32>) {
    let file = ounce_formats::SafetensorsFile::open(path).unwrap();
    let view = file.view(tensor).unwrap();
    (view.shape.to_vec(), view.to_f32_vec().unwrap())
}

/// A recipe that trains in about a second, its data, and a place for output.
pub(crate) fn recipe() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    stdout(&["data", "toy", "--out", text(dir.path()), "--bytes", "20000"]);
    let recipe = dir.path().join("recipe.toml");
    let toml = r#"
[model]
hidden_size = 32
layers = 2
heads = 2
intermediate_size = 48
experts = 4
experts_per_token = 2
balance = 0.01
max_positions = 64
[tokenizer]
train_vocab = 300
[data]
train = ["${data}/toy-text.txt"]
validation = ["${data}/toy-text.valid.txt"]
[optimizer]
lr = 3e-3
[run]
steps = 60
batch = 2
length = 32
eval_tokens = 256
checkpoint_every = 4
export = "f32"
"#;
    fs::write(&recipe, toml).unwrap();
    (dir, recipe)
}

/// Runs every case and writes down what a user sees, with changing paths replaced by words.
pub(crate) struct Script {
    pub(crate) seen: String,
    names: Vec<(String, &'static str)>,
}

impl Script {
    pub(crate) fn new() -> Self {
        let mut script = Self {
            seen: String::new(),
            names: Vec::new(),
        };
        script.name(&golden(""), "GOLDEN");
        script
    }
    pub(crate) fn name(&mut self, path: &Path, name: &'static str) {
        self.names.push((text(path).trim_end_matches('/').to_owned(), name));
    }
    pub(crate) fn case(&mut self, args: &[&str]) {
        let output = run(args);
        let err = String::from_utf8(output.stderr).unwrap();
        let code = output.status.code();
        assert!(output.stdout.is_empty(), "{args:?} wrote to stdout");
        assert_eq!(code, Some(1), "{args:?}: {err}");
        assert!(err.starts_with("error: "), "{args:?}: {err}");
        let mut seen = format!("$ ounce {}\n{}\n", args.join(" "), err.trim_end());
        for (path, name) in &self.names {
            seen = seen.replace(path, name);
        }
        let _ = writeln!(self.seen, "{seen}");
    }
}
