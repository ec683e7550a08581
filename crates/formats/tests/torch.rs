//! Weights-only PyTorch files: read to the byte, and nothing executed, whatever is in them.

use ounce_formats::{
    Dtype, SafetensorsFile,
    torch::{TorchFile, parse},
};
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/torch")
        .join(name)
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(fixture(name)).unwrap()
}

fn refusal(bytes: &[u8]) -> (String, String) {
    let error = parse(Path::new("x.bin"), bytes).unwrap_err();
    (error.to_string(), error.hint().unwrap_or_default().to_owned())
}

#[test]
fn tensors_are_read_where_they_lie() {
    for name in ["weights.bin", "weights4.bin"] {
        let file = SafetensorsFile::open_torch(&fixture(name)).unwrap();
        let mut names: Vec<&str> = file.names().collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "bf.weight",
                "embed.weight",
                "half.bias",
                "head.weight",
                "row.weight",
                "scalar",
                "steps"
            ]
        );
        let floats = |name: &str| file.view(name).unwrap().to_f32_vec().unwrap();
        let table: Vec<f32> = (0..12).map(|i| i as f32 * 0.5 - 1.0).collect();
        assert_eq!(floats("embed.weight"), table);
        assert_eq!(floats("head.weight"), table, "two names may share a storage");
        assert_eq!(
            floats("row.weight"),
            table[4..8],
            "a tensor may begin within its storage"
        );
        assert_eq!(floats("bf.weight"), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(floats("half.bias"), [1.0, -2.0, 0.25, 8.0], "a parameter is its tensor");
        assert_eq!(file.view("steps").unwrap().to_i64_vec().unwrap(), [-5, 7]);
        assert_eq!(file.view("scalar").unwrap().to_i64_vec().unwrap(), [7]);
        let info = file.header().info("bf.weight").unwrap();
        assert_eq!((info.dtype, &info.shape[..]), (Dtype::BF16, &[2, 3][..]));
    }
    let file = SafetensorsFile::open_torch(&fixture("nested.bin")).unwrap();
    assert_eq!(
        file.names().collect::<Vec<_>>(),
        ["a"],
        "a training checkpoint's weights are found"
    );
}

/// Files that PyTorch itself wrote (`real/make.py`).
#[test]
fn files_of_pytorch_itself_are_read() {
    let table: Vec<f32> = (0..12).map(|i| i as f32 * 0.25 - 1.0).collect();
    for name in ["tied", "proto4", "proto5", "module", "training"] {
        let file = SafetensorsFile::open_torch(&fixture(&format!("real/{name}.bin"))).unwrap();
        // Data-parallel training puts this before every name; whoever knows the model takes it away.
        let around = if name == "module" { "module." } else { "" };
        let mut names: Vec<&str> = file.names().map(|n| n.strip_prefix(around).unwrap()).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            ["embed.weight", "head.weight", "norm.bias", "norm.weight", "steps"],
            "{name}"
        );
        let stored = |tensor: &str| format!("{around}{tensor}");
        let floats = |tensor: &str| file.view(&stored(tensor)).unwrap().to_f32_vec().unwrap();
        assert_eq!(floats("head.weight"), floats("embed.weight"), "{name}: tied");
        let info = |tensor: &str| file.header().info(&stored(tensor));
        let (tied, embed) = (info("head.weight"), info("embed.weight"));
        assert_eq!(tied.unwrap().range, embed.unwrap().range, "{name}: one storage");
        // One step of an optimiser was made before the training checkpoint was saved.
        let near = if name == "training" { 2e-3 } else { 0.0 };
        let far = floats("embed.weight")
            .iter()
            .zip(&table)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(far <= near && (far > 0.0) == (name == "training"), "{name}: {far}");
        assert!(floats("norm.weight").iter().all(|x| (x - 1.0).abs() <= near), "{name}");
        assert_eq!(
            file.view(&stored("steps")).unwrap().to_i64_vec().unwrap(),
            [7, -8],
            "{name}"
        );
    }

    let file = SafetensorsFile::open_torch(&fixture("real/half.bin")).unwrap();
    let floats = |tensor: &str| file.view(tensor).unwrap().to_f32_vec().unwrap();
    let info = |tensor: &str| file.header().info(tensor).unwrap();
    assert_eq!(
        (info("embed.weight").dtype, floats("embed.weight")),
        (Dtype::BF16, table)
    );
    assert_eq!(floats("f16.weight"), [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]);
    assert_eq!(info("f16.weight").dtype, Dtype::F16);
    assert_eq!(
        (info("f64.weight").dtype, &info("f64.weight").shape[..]),
        (Dtype::F64, &[2][..])
    );
    assert_eq!((info("mask").dtype, info("byte").dtype), (Dtype::Bool, Dtype::U8));
    assert_eq!(file.view("i32").unwrap().to_i64_vec().unwrap(), [-1, 2]);
    assert_eq!(&info("empty").shape[..], [0, 3]);
    assert!(floats("empty").is_empty());

    let file = SafetensorsFile::open_torch(&fixture("real/views.bin")).unwrap();
    let floats = |tensor: &str| file.view(tensor).unwrap().to_f32_vec().unwrap();
    let all: Vec<f32> = (0..24).map(|i| i as f32).collect();
    assert_eq!((floats("all"), floats("rows")), (all.clone(), all[6..18].to_vec()));
    assert_eq!(
        (floats("vector"), floats("p")),
        (all[5..9].to_vec(), all[18..].to_vec())
    );

    let file = SafetensorsFile::open_torch(&fixture("real/small.bin")).unwrap();
    assert_eq!(file.header().info("i16").unwrap().dtype.name(), "I16");
    assert!(file.view("i8").is_err(), "listed, not read");
}

#[test]
fn what_pytorch_writes_and_is_not_read_is_refused_in_words() {
    for (name, rule, help) in [
        (
            "f8",
            "asks for \"torch._utils\" \"_rebuild_tensor_v3\"",
            "export safetensors",
        ),
        (
            "meta",
            "asks for \"torch._utils\" \"_rebuild_meta_tensor_no_storage\"",
            "plain state_dict",
        ),
    ] {
        let (message, hint) = refusal(&bytes(&format!("real/{name}.bin")));
        assert!(message.contains(rule), "{name}: {message}");
        assert!(hint.contains(help), "{name}: {hint}");
    }
}

/// `base` is 4 rows of 6 in `real/make.py`.
#[test]
fn tensors_that_step_over_their_storage_are_gathered() {
    let floats = |file: &str, tensor: &str| {
        let file = SafetensorsFile::open_torch(&fixture(&format!("real/{file}.bin"))).unwrap();
        let region = file.region(tensor).unwrap();
        let view = file.view(tensor).unwrap();
        assert_eq!(region.bytes(), view.bytes);
        (view.shape.to_vec(), view.to_f32_vec().unwrap())
    };
    let at = |row: usize, column: usize| (row * 6 + column) as f32;
    let columns: Vec<f32> = (0..4).flat_map(|r| (0..3).map(move |c| at(r, 2 * c))).collect();
    assert_eq!(floats("strided", "columns"), (vec![4, 3], columns));
    let turned: Vec<f32> = (0..6).flat_map(|c| (0..4).map(move |r| at(r, c))).collect();
    assert_eq!(floats("transposed", "t"), (vec![6, 4], turned));
    assert_eq!(floats("expanded", "n"), (vec![3], vec![0.0; 3]));
    let (shape, values) = {
        let file = SafetensorsFile::open_torch(&fixture("transposed.bin")).unwrap();
        let view = file.view("t").unwrap();
        (view.shape.to_vec(), view.to_f32_vec().unwrap())
    };
    assert_eq!(values.len(), shape.iter().product::<usize>());
}

/// The form before PyTorch 1.6 holds what the newer one holds.
#[test]
fn the_old_form_is_read() {
    let old = SafetensorsFile::open_torch(&fixture("real/legacy.bin")).unwrap();
    let new = SafetensorsFile::open_torch(&fixture("real/tied.bin")).unwrap();
    let mut names: Vec<&str> = new.names().collect();
    names.sort_unstable();
    let mut found: Vec<&str> = old.names().collect();
    found.sort_unstable();
    assert_eq!(found, names);
    for name in names {
        let (old, new) = (old.view(name).unwrap(), new.view(name).unwrap());
        assert_eq!((old.dtype, old.shape, old.bytes), (new.dtype, new.shape, new.bytes));
    }
}

#[test]
fn code_is_refused_by_name() {
    let (message, hint) = refusal(&bytes("evil.bin"));
    assert!(message.contains("asks for \"posix\" \"system\""), "{message}");
    assert!(hint.contains("nothing is executed"), "{hint}");
    assert!(!Path::new("/tmp/executed").exists());
}

#[test]
fn what_cannot_be_a_range_of_the_file_is_refused() {
    let (message, _) = refusal(b"PK");
    assert!(message.contains("too short"), "{message}");
    let (message, _) = refusal(&[0; 64]);
    assert!(message.contains("is not a zip archive"), "{message}");
    // Method 8 is deflate; the field is 10 bytes into each directory entry.
    let mut packed = bytes("weights.bin");
    let entry = packed.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    packed[entry + 10] = 8;
    let (message, hint) = refusal(&packed);
    assert!(
        message.contains("compressed") && hint.contains("torch.save"),
        "{message} {hint}"
    );
}

/// An archive with one pickle and one storage of 8 bytes.
fn archive(pickle: &[u8]) -> Vec<u8> {
    zip(&[("a/data.pkl", pickle), ("a/data/0", &[1; 8])])
}

/// A zip archive of these members, nothing compressed.
fn zip(members: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in members {
        let (at, size) = ((out.len() as u32).to_le_bytes(), (data.len() as u32).to_le_bytes());
        out.extend(b"PK\x03\x04");
        out.extend([0; 14]);
        out.extend([size, size].concat());
        out.extend([name.len() as u8, 0, 0, 0]);
        out.extend(name.bytes());
        out.extend(*data);
        directory.extend(b"PK\x01\x02");
        directory.extend([0; 16]);
        directory.extend([size, size].concat());
        directory.extend([name.len() as u8, 0]);
        directory.extend([0; 12]);
        directory.extend(at);
        directory.extend(name.bytes());
    }
    let (at, size) = (out.len() as u32, directory.len() as u32);
    out.extend(directory);
    let count = members.len() as u8;
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend([count, 0, count, 0]);
    out.extend(size.to_le_bytes());
    out.extend(at.to_le_bytes());
    out.extend([0, 0]);
    out
}

/// A text of a pickle.
fn text(s: &str) -> Vec<u8> {
    [&[0x8c, s.len() as u8][..], s.as_bytes()].concat()
}

/// A dictionary of texts to values that are pickled already.
fn dict(items: &[(&str, &[u8])]) -> Vec<u8> {
    let pairs: Vec<u8> = items
        .iter()
        .flat_map(|(key, value)| [&text(key)[..], value].concat())
        .collect();
    [b"}(", &pairs[..], b"u"].concat()
}

/// `{"w": tensor}` of f32 storage "0" with these numbers, each one byte.
fn tensor_pickle(elements: u8, offset: u8, shape: &[u8], stride: &[u8]) -> Vec<u8> {
    let value = tensor(elements, offset, shape, stride);
    [b"\x80\x02", &dict(&[("w", &value)])[..], b"."].concat()
}

/// A tensor of f32 storage "0".
fn tensor(elements: u8, offset: u8, shape: &[u8], stride: &[u8]) -> Vec<u8> {
    let ints = |list: &[u8]| {
        [
            &b"("[..],
            &list.iter().flat_map(|&n| [b'K', n]).collect::<Vec<_>>(),
            b"t",
        ]
        .concat()
    };
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
        text("storage"),
        b"ctorch\nFloatStorage\n".to_vec(),
        text("0"),
        text("cpu"),
        vec![b'K', elements, b't', b'Q', b'K', offset],
        ints(shape),
        ints(stride),
        b"\x89}tR".to_vec(),
    ]
    .concat()
}

#[test]
fn every_limit_is_checked() {
    let good = parse(Path::new("x"), &archive(&tensor_pickle(2, 0, &[2], &[1]))).unwrap();
    assert_eq!(good.header.info("w").unwrap().shape, [2]);
    for (pickle, rule) in [
        (tensor_pickle(3, 0, &[2], &[1]), "in the file it has 8 bytes"),
        (tensor_pickle(2, 1, &[2], &[1]), "lie outside its storage"),
        (tensor_pickle(2, 0, &[3], &[1]), "lie outside its storage"),
        (tensor_pickle(2, 0, &[1, 2], &[1]), "more dimensions than strides"),
        (tensor_pickle(2, 0, &[1; 17], &[1; 17]), "17 dimensions"),
        (
            tensor_pickle(2, 0, &[255; 9], &[1; 9]),
            "more elements than can be counted",
        ),
        (
            tensor_pickle(2, 0, &[255; 7], &[0; 7]),
            "more memory than the file has bytes",
        ),
        (b"\x80\x02N.".to_vec(), "leaves no dictionary"),
        (b"\x80\x09N.".to_vec(), "protocol 9"),
        (b"\x80\x02}K\x01K\x02s.".to_vec(), "a key is no text"),
        (b"\x80\x02}X\x01\0\0\0aNs.".to_vec(), "\"a\" is no tensor"),
        (b"\x80\x020.".to_vec(), "instruction 0x30"),
        (b"\x80\x02)R.".to_vec(), "empty stack"),
        (b"\x80\x02NN\x85R.".to_vec(), "calls something that is no global"),
        (b"\x80\x02(t(R.".to_vec(), "below a mark"),
        (b"\x80\x02h\x05.".to_vec(), "was not remembered"),
        (b"\x80\x02X\xff\xff\xff\xff.".to_vec(), "ends within an instruction"),
        (
            b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.".to_vec(),
            "arguments it does not take",
        ),
        (b"\x80\x02cbuiltins\neval\n.".to_vec(), "asks for \"builtins\" \"eval\""),
        (b"\x80\x02".to_vec(), "ends within an instruction"),
        (b"\x80\x02NNa.".to_vec(), "no list"),
        (b"\x80\x02N(Ne.".to_vec(), "no list"),
        (b"\x80\x02]Ne.".to_vec(), "looks for a mark"),
        (b"\x80\x02G\0.".to_vec(), "ends within an instruction"),
    ] {
        let (message, hint) = refusal(&archive(&pickle));
        assert!(message.contains(rule), "{message} should say {rule}");
        assert!(!hint.is_empty());
    }
}

/// A nesting of a million tuples and marks costs no recursion.
#[test]
fn deep_nesting_is_harmless() {
    for op in [&b"\x85"[..], b"(", b"}", b"Nh\x00"] {
        let mut pickle = b"\x80\x02Nq\x00".to_vec();
        for _ in 0..1_000_000 {
            pickle.extend(op);
        }
        pickle.push(b'.');
        assert!(
            parse(Path::new("x"), &archive(&pickle)).is_ok() == (op == b"}"),
            "{op:?}"
        );
    }
}

fn all_within(file: &TorchFile, len: usize) {
    let memory = file.gathered.as_ref().map_or(0, |gathered| gathered.len());
    assert!(memory <= len + (1 << 20));
    for info in file.header.tensors() {
        let inside = info.range.end <= len || (len <= info.range.start && info.range.end <= len + memory);
        assert!(inside && info.range.start <= info.range.end);
        assert_eq!(info.dtype.byte_len(&info.shape), Some(info.range.len()));
    }
}

#[test]
fn every_mutation_of_one_byte_and_every_cut_is_refused_or_within_the_file() {
    for name in [
        "weights.bin",
        "weights4.bin",
        "real/half.bin",
        "real/training.bin",
        "real/legacy.bin",
        "real/strided.bin",
    ] {
        let whole = bytes(name);
        let mut refused = 0;
        for at in 0..whole.len() {
            for change in [0x01, 0x80, 0xff] {
                let mut broken = whole.clone();
                broken[at] ^= change;
                match parse(Path::new("x"), &broken) {
                    Ok(file) => all_within(&file, broken.len()),
                    Err(_) => refused += 1,
                }
            }
            if let Ok(file) = parse(Path::new("x"), &whole[..at]) {
                all_within(&file, at);
            }
        }
        assert!(refused > whole.len() / 4, "{refused} of {} refused", 3 * whole.len());
    }
}

/// Where the weights of a training checkpoint are, by its keys.
#[test]
fn weights_are_found_under_the_keys_of_training() {
    let w = tensor(2, 0, &[2], &[1]);
    let weights = dict(&[("w", &w)]);
    let step = b"K\x07".to_vec();
    let read = |root: Vec<u8>| {
        parse(Path::new("x.bin"), &archive(&[b"\x80\x02", &root[..], b"."].concat()))
            .map(|file| (file.header.tensors().len(), file.notes.join("\n")))
            .map_err(|e| e.to_string())
    };
    for key in ["state_dict", "model_state_dict", "model", "module", "anything"] {
        let (tensors, said) = read(dict(&[("step", &step), (key, &weights)])).unwrap();
        assert_eq!(tensors, 1, "{key}");
        assert!(said.contains(key), "{said}");
    }
    // Two levels, beside the moments of an optimiser and an average of the weights.
    let inner = dict(&[("model", &weights)]);
    let (tensors, said) = read(dict(&[
        ("optimizer", &weights),
        ("state_dict", &inner),
        ("ema", &weights),
    ]))
    .unwrap();
    assert_eq!(tensors, 1);
    assert!(said.contains("state_dict.model"), "{said}");
    // A number beside the tensors is passed over and named; a setting may be a type.
    let kind = b"ctorch\nbfloat16\n".to_vec();
    let (tensors, said) = read(dict(&[("w", &w), ("global_step", &step), ("kind", &kind)])).unwrap();
    assert_eq!(tensors, 1);
    assert!(said.contains("global_step") && said.contains("kind"), "{said}");

    for ambiguous in [
        dict(&[("model", &weights), ("state_dict", &weights)]),
        dict(&[("one", &weights), ("two", &weights)]),
    ] {
        assert!(read(ambiguous).unwrap_err().contains("holds tensors under"));
    }
    assert!(
        read(dict(&[("step", &step)]))
            .unwrap_err()
            .contains("\"step\" is no tensor")
    );
    // A dictionary that holds itself.
    let (tensors, _) = read(
        b"}q\x00\x8c\x04selfh\x00s\x8c\x05model"
            .iter()
            .copied()
            .chain(weights)
            .chain(*b"s")
            .collect(),
    )
    .unwrap();
    assert_eq!(tensors, 1);
}

#[test]
fn two_pickles_in_one_archive_are_ambiguous() {
    let pickle = tensor_pickle(2, 0, &[2], &[1]);
    let both = zip(&[("a/data.pkl", &pickle), ("b/data.pkl", &pickle), ("a/data/0", &[1; 8])]);
    let (message, hint) = refusal(&both);
    assert!(message.contains("a/data.pkl and b/data.pkl"), "{message}");
    assert!(hint.contains("by itself"), "{hint}");
}

/// Reversed, repeated and overlapping steps: gathered to what the indices say.
#[test]
fn any_strides_within_the_storage_are_gathered() {
    let storage: Vec<u8> = [10f32, 11.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let cases: [(&[u8], &[u8], &[f32]); 4] = [
        (&[2, 3], &[1, 0], &[10.0, 10.0, 10.0, 11.0, 11.0, 11.0]),
        (&[3, 2], &[0, 1], &[10.0, 11.0, 10.0, 11.0, 10.0, 11.0]),
        (&[2, 1, 2], &[1, 9, 0], &[10.0, 10.0, 11.0, 11.0]),
        (&[2, 0], &[1, 5], &[]),
    ];
    for (shape, stride, expected) in cases {
        let pickle = tensor_pickle(2, 0, shape, stride);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.bin");
        std::fs::write(&path, zip(&[("a/data.pkl", &pickle), ("a/data/0", &storage)])).unwrap();
        let file = SafetensorsFile::open_torch(&path).unwrap();
        assert_eq!(
            file.view("w").unwrap().to_f32_vec().unwrap(),
            expected,
            "{shape:?} {stride:?}"
        );
    }
}
