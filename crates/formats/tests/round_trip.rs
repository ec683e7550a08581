//! What is written is what is read, by us and by the `safetensors` crate; any file, any split, any pieces.

use std::{collections::BTreeMap, path::Path};

use half::{bf16, f16};
use ounce_formats::{
    Begun, Checkpoint, Dtype, Identity, Inputs, Output, OutputFolder, Overwrite, Resume, SafetensorsFile,
    SafetensorsWriter, ShardOptions, ShardedWriter, TensorSpec, as_bytes, write_file,
};
use proptest::{collection::vec, prelude::*};

fn folder(path: &Path, resume: Resume) -> OutputFolder {
    let begun = OutputFolder::create(Output {
        path,
        overwrite: Overwrite::Refuse,
        resume,
        identity: Identity::new("test"),
        inputs: Inputs::default(),
        sources: Vec::new(),
        command_line: "ounce test",
    });
    match begun.unwrap() {
        Begun::Work(folder) => folder,
        Begun::Whole => panic!("there is something to do"),
    }
}

const TYPES: [Dtype; 8] = [
    Dtype::F32,
    Dtype::F64,
    Dtype::F16,
    Dtype::BF16,
    Dtype::I64,
    Dtype::I32,
    Dtype::U8,
    Dtype::Bool,
];

/// Declared tensors with distinct, partly odd names, and their bytes.
fn tensors() -> impl Strategy<Value = Vec<(TensorSpec, Vec<u8>)>> {
    let one = (
        r#"[a-z."\\é\n]{0,8}"#,
        0..TYPES.len(),
        vec(0_usize..5, 0..4),
        any::<u8>(),
    );
    vec(one, 0..12).prop_map(|list| {
        let made = list.into_iter().enumerate().map(|(i, (name, dtype, shape, first))| {
            let spec = TensorSpec::new(format!("{name}{i}"), TYPES[dtype], shape);
            let len = spec.dtype.byte_len(&spec.shape).unwrap();
            let bytes = (0..len).map(|b| first.wrapping_add(b as u8)).collect();
            (spec, bytes)
        });
        made.collect()
    })
}

fn specs(tensors: &[(TensorSpec, Vec<u8>)]) -> Vec<TensorSpec> {
    tensors.iter().map(|(spec, _)| spec.clone()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn one_file(tensors in tensors(), metadata in proptest::collection::btree_map("[a-z\"]{1,4}", ".{0,4}", 0..3), piece in 1_usize..40) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let mut writer = SafetensorsWriter::create(&path, specs(&tensors), &metadata).unwrap();
        for (spec, bytes) in &tensors {
            let mut complete = false;
            for part in bytes.chunks(piece) {
                prop_assert!(!complete);
                complete = writer.write(&spec.name, part).unwrap();
            }
            prop_assert!(complete || (bytes.is_empty() && writer.write(&spec.name, &[]).unwrap()));
        }
        prop_assert!(!path.exists());
        writer.finish().unwrap();

        let ours = SafetensorsFile::open(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        prop_assert_eq!(ours.metadata(), &metadata);
        prop_assert_eq!(ours.names().len(), tensors.len());
        prop_assert_eq!(theirs.len(), tensors.len());
        for (spec, bytes) in &tensors {
            let (view, region) = (ours.view(&spec.name).unwrap(), ours.region(&spec.name).unwrap());
            prop_assert_eq!((view.dtype, view.shape, view.bytes), (spec.dtype, &spec.shape[..], &bytes[..]));
            prop_assert_eq!(region.view().bytes, &bytes[..]);
            prop_assert_eq!(region.range.start % (spec.dtype.bits() / 8), 0, "aligned to its elements");
            let peer = theirs.tensor(&spec.name).unwrap();
            prop_assert_eq!((peer.shape(), peer.data()), (&spec.shape[..], &bytes[..]));
            prop_assert_eq!(peer.dtype().to_string(), spec.dtype.name());
        }
    }

    #[test]
    fn a_folder_killed_and_resumed_at_any_tensor(tensors in tensors(), max in 1_u64..300, stops in vec(0_usize..14, 0..4), lost in 0_usize..3) {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let options = ShardOptions { max_shard_bytes: max, ..ShardOptions::default() };
        for (run, stop) in stops.iter().copied().chain([tensors.len()]).enumerate() {
            let resume = if run == 0 { Resume::No } else { Resume::Yes };
            let mut folder = folder(&out, resume);
            if run == 0 {
                std::fs::write(folder.path().join("config.json"), "{}").unwrap();
            }
            let partial = folder.path().to_owned();
            let mut writer = ShardedWriter::resume(&partial, specs(&tensors), &options, &folder).unwrap();
            let from = writer.finished();
            let last_run = run == stops.len();
            for (spec, bytes) in tensors.iter().take(stop).skip(from) {
                prop_assert!(writer.write(&spec.name, bytes).unwrap());
                writer.commit(&mut folder).unwrap();
            }
            if last_run {
                writer.finish().unwrap();
                folder.finish().unwrap();
            } else {
                // Written but not committed: up to two tensors and a piece of a third, lost with the process.
                let from = writer.finished();
                for (spec, bytes) in tensors.iter().skip(from).take(lost) {
                    writer.write(&spec.name, bytes).unwrap();
                }
                if let Some((spec, bytes)) = tensors.get(from + lost) {
                    writer.write(&spec.name, &bytes[..bytes.len() / 2]).unwrap();
                }
            }
        }
        let checkpoint = Checkpoint::open(&out).unwrap();
        prop_assert_eq!(checkpoint.names().count(), tensors.len());
        for (spec, bytes) in &tensors {
            let region = checkpoint.region(&spec.name).unwrap();
            prop_assert_eq!((region.dtype, &region.shape, region.bytes()), (spec.dtype, &spec.shape, &bytes[..]));
        }
        prop_assert_eq!(checkpoint.total_bytes(), tensors.iter().map(|(_, b)| b.len() as u64).sum::<u64>());
        for shard in checkpoint.shards() {
            let sum: usize = shard.header().tensors().iter().map(|t| t.range.len()).sum();
            let full = shard.header().tensors().iter().filter(|t| !t.range.is_empty()).count();
            prop_assert!(sum as u64 <= max || full == 1);
            prop_assert_eq!(shard.metadata()["format"].as_str(), "pt");
        }
        let left: Vec<_> = std::fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name()).collect();
        let index = usize::from(checkpoint.shards().len() > 1);
        prop_assert_eq!(left.len(), 2 + index + checkpoint.shards().len(), "nothing else: {:?}", left);
    }
}

#[test]
fn conversions_keep_values_at_any_alignment() {
    let floats = [0.0_f32, -1.5, f32::INFINITY, 65504.0, 2.0_f32.powi(-14)];
    let halves: Vec<f16> = floats.iter().map(|&x| f16::from_f32(x)).collect();
    let brains: Vec<bf16> = floats.iter().map(|&x| bf16::from_f32(x)).collect();
    let doubles = floats.map(f64::from);
    let longs = [i64::MIN, -1, i64::MAX];
    let ints = [i32::MIN, -1, i32::MAX];
    // One byte first in the header's order of bytes, so that everything behind it is misaligned.
    let parts: [(&str, &str, usize, &[u8]); 7] = [
        ("u8", "U8", 1, &[255]),
        ("f32", "F32", 5, as_bytes(&floats)),
        ("f16", "F16", 5, as_bytes(&halves)),
        ("bf16", "BF16", 5, as_bytes(&brains)),
        ("f64", "F64", 5, as_bytes(&doubles)),
        ("i64", "I64", 3, as_bytes(&longs)),
        ("i32", "I32", 3, as_bytes(&ints)),
    ];
    let (mut header, mut data) = (serde_json::Map::new(), Vec::<u8>::new());
    for (name, dtype, n, bytes) in parts {
        let start = data.len();
        data.extend(bytes);
        let entry = serde_json::json!({ "dtype": dtype, "shape": [n], "data_offsets": [start, data.len()] });
        header.insert(name.to_owned(), entry);
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    std::fs::write(&path, file).unwrap();
    let file = SafetensorsFile::open(&path).unwrap();
    for name in ["f32", "f64", "f16"] {
        assert_eq!(file.view(name).unwrap().to_f32_vec().unwrap(), floats, "{name}");
    }
    let rounded: Vec<f32> = brains.iter().map(|x| x.to_f32()).collect();
    assert_eq!(file.view("bf16").unwrap().to_f32_vec().unwrap(), rounded);
    assert_eq!(file.view("i64").unwrap().to_i64_vec().unwrap(), longs);
    assert_eq!(file.view("i32").unwrap().to_i64_vec().unwrap(), ints.map(i64::from));
    assert_eq!(file.view("u8").unwrap().to_i64_vec().unwrap(), [255]);
}

#[test]
fn a_region_outlives_the_file_it_came_from() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    write_file(
        &path,
        &[("a", Dtype::F32, &[2], as_bytes(&[1.0_f32, 2.0]))],
        &BTreeMap::new(),
    )
    .unwrap();
    let region = SafetensorsFile::open(&path).unwrap().region("a").unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(region.view().to_f32_vec().unwrap(), [1.0, 2.0]);
    assert_eq!((region.view().len(), region.view().is_empty()), (2, false));
}

#[test]
fn a_writer_holds_the_caller_to_its_declaration() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let none = BTreeMap::new();
    let declared = || {
        vec![
            TensorSpec::new("a", Dtype::U8, [2]),
            TensorSpec::new("b", Dtype::U8, [2]),
        ]
    };
    let mut writer = SafetensorsWriter::create(&path, declared(), &none).unwrap();
    let message = writer.write("b", &[1]).unwrap_err().to_string();
    assert!(
        message.ends_with(r#"tensor "b": is written where "a" is expected"#),
        "{message}"
    );
    let message = writer.write("a", &[1, 2, 3]).unwrap_err().to_string();
    assert!(
        message.ends_with(r#"tensor "a": is written with 3 bytes, 2 were declared"#),
        "{message}"
    );
    assert!(writer.write("a", &[1, 2]).unwrap());
    assert!(!writer.write("b", &[1]).unwrap());
    let message = writer.finish().unwrap_err().to_string();
    assert!(
        message.ends_with(r#"tensor "b": 1 of its 2 bytes are written"#),
        "{message}"
    );
    assert!(!path.exists());

    let mut writer = ShardedWriter::create(dir.path(), declared(), &ShardOptions::default()).unwrap();
    writer.write("a", &[1, 2]).unwrap();
    let message = writer.finish().unwrap_err().to_string();
    assert!(
        message.ends_with(r#"tensor "b": 0 of its 2 bytes are written"#),
        "{message}"
    );

    let twice = vec![TensorSpec::new("a", Dtype::U8, [2]); 2];
    let message = SafetensorsWriter::create(&path, twice.clone(), &none)
        .unwrap_err()
        .to_string();
    assert!(message.contains("is declared twice"), "{message}");
    let message = ShardedWriter::create(dir.path(), twice, &ShardOptions::default())
        .unwrap_err()
        .to_string();
    assert!(message.contains("is declared twice"), "{message}");
    let huge = vec![TensorSpec::new("a", Dtype::F32, [usize::MAX, 2])];
    let message = SafetensorsWriter::create(&path, huge, &none).unwrap_err().to_string();
    assert!(message.contains("is no countable number of bytes"), "{message}");

    let message = write_file(&path, &[("a", Dtype::U8, &[2], &[1])], &none)
        .unwrap_err()
        .to_string();
    assert!(
        message.ends_with(r#"tensor "a": has 1 bytes, its shape needs more"#),
        "{message}"
    );
    assert!(!path.exists() && !dir.path().join("x.safetensors.partial").exists());
}

#[test]
fn a_journal_of_other_tensors_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let options = ShardOptions::default();
    let declared = |first: &str, n: usize| {
        vec![
            TensorSpec::new(first, Dtype::U8, [2]),
            TensorSpec::new("b", Dtype::U8, [n]),
        ]
    };
    let mut folder = folder(&out, Resume::No);
    let partial = folder.path().to_owned();
    let mut writer = ShardedWriter::create(&partial, declared("a", 2), &options).unwrap();
    writer.write("a", &[1, 2]).unwrap();
    writer.commit(&mut folder).unwrap();
    drop(writer);
    let error = ShardedWriter::resume(&partial, declared("x", 2), &options, &folder).unwrap_err();
    assert!(
        error
            .to_string()
            .contains(r#"tensor "a": is number 1 of the journal's finished tensors"#),
        "{error}"
    );
    let error = ShardedWriter::resume(&partial, declared("a", 3), &options, &folder).unwrap_err();
    assert!(error.to_string().contains("was started for other tensors"), "{error}");
    assert_eq!(error.hint(), Some("`--overwrite` starts again"));

    let file = partial.join("model.safetensors.partial");
    let mut whole = std::fs::read(&file).unwrap();
    let first = whole.len() - 2;
    whole[first] ^= 1;
    std::fs::write(&file, &whole).unwrap();
    let error = ShardedWriter::resume(&partial, declared("a", 2), &options, &folder).unwrap_err();
    assert!(
        error
            .to_string()
            .contains(r#"tensor "a": is finished, says the journal, but does not hold the bytes"#),
        "{error}"
    );
    std::fs::write(&file, &whole[..whole.len() - 1]).unwrap();
    let error = ShardedWriter::resume(&partial, declared("a", 2), &options, &folder).unwrap_err();
    assert!(error.to_string().contains("the journal says that"), "{error}");
    std::fs::remove_file(&file).unwrap();
    let error = ShardedWriter::resume(&partial, declared("a", 2), &options, &folder).unwrap_err();
    assert!(error.to_string().contains("cannot continue it"), "{error}");
}

#[test]
fn a_link_at_the_temporary_name_is_not_written_through() {
    let dir = tempfile::tempdir().unwrap();
    let (path, victim) = (dir.path().join("x.safetensors"), dir.path().join("victim"));
    std::fs::write(&victim, "precious").unwrap();
    std::os::unix::fs::symlink(&victim, dir.path().join("x.safetensors.partial")).unwrap();
    write_file(&path, &[("a", Dtype::U8, &[2], &[1, 2])], &BTreeMap::new()).unwrap();
    assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    assert_eq!(SafetensorsFile::open(&path).unwrap().view("a").unwrap().bytes, [1, 2]);
}
