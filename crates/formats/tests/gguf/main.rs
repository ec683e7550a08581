//! GGUF: read to the byte, and whatever breaks a rule is refused with the file, the key or tensor, and the rule.

mod build;
mod mutations;

use build::{Build, text};
use ounce_formats::{
    Dtype, Gguf,
    gguf::{Value, is_gguf, parse},
};
use ounce_kernels::BlockKind;
use std::path::Path;

fn refusal(bytes: &[u8]) -> String {
    let error = parse(Path::new("m.gguf"), bytes).unwrap_err();
    assert!(error.hint().is_some(), "{error}");
    error.to_string()
}

fn good() -> Build {
    Build::new()
        .text("general.architecture", "llama")
        .u32("llama.block_count", 3)
        .key("a.i8", 1, &(-5i8).to_le_bytes())
        .key("a.u16", 2, &65_535u16.to_le_bytes())
        .key("a.i64", 11, &(-1i64 << 40).to_le_bytes())
        .key("a.u64", 10, &u64::MAX.to_le_bytes())
        .key("a.f32", 6, &1e-5f32.to_le_bytes())
        .key("a.f64", 12, &0.1f64.to_le_bytes())
        .key("a.bool", 7, &[1])
        .texts("tokenizer.ggml.tokens", &["<s>", "é", ""])
        .array("tokenizer.ggml.scores", 6, 2, &[0, 0, 128, 63, 0, 0, 0, 192])
        .array("tokenizer.ggml.token_type", 5, 2, &[3, 0, 0, 0, 255, 255, 255, 255])
        .tensor("norm", &[3], 0, &[0, 0, 128, 63, 0, 0, 0, 64, 0, 0, 64, 192])
        .tensor("half", &[2, 3], 1, &[0, 60, 0, 64, 0, 66, 0, 68, 0, 69, 0, 70])
        .tensor(
            "eight",
            &[32, 2],
            8,
            &[[0, 60].as_slice(), &[1; 32], &[0, 64], &[254; 32]].concat(),
        )
}

#[test]
fn keys_and_tensors_are_read_where_they_lie() {
    for version in [2, 3] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        let build = Build {
            version: Some(version),
            ..good()
        };
        std::fs::write(&path, build.bytes()).unwrap();
        assert!(is_gguf(&path) && !is_gguf(dir.path()));
        let file = Gguf::open(&path).unwrap();
        let keys = file.metadata();
        assert_eq!(keys.text("general.architecture").unwrap(), Some("llama"));
        assert_eq!(keys.unsigned("llama.block_count").unwrap(), Some(3));
        assert_eq!(keys.unsigned("nothing").unwrap(), None);
        assert_eq!(keys.get("a.i8"), Some(&Value::Signed(-5)));
        assert_eq!(keys.unsigned("a.u16").unwrap(), Some(65_535));
        assert_eq!(keys.get("a.i64"), Some(&Value::Signed(-1 << 40)));
        assert_eq!(keys.unsigned("a.u64").unwrap(), Some(u64::MAX));
        assert_eq!(keys.float("a.f32").unwrap(), Some(f64::from(1e-5f32)));
        assert_eq!(keys.float("a.f64").unwrap(), Some(0.1));
        assert_eq!(keys.float("a.i8").unwrap(), Some(-5.0));
        assert_eq!(keys.bool("a.bool").unwrap(), Some(true));
        assert_eq!(keys.texts("tokenizer.ggml.tokens").unwrap().unwrap(), ["<s>", "é", ""]);
        assert_eq!(keys.numbers("tokenizer.ggml.scores").unwrap().unwrap(), [1.0, -2.0]);
        assert_eq!(keys.numbers("tokenizer.ggml.token_type").unwrap().unwrap(), [3.0, -1.0]);
        assert_eq!(keys.array("tokenizer.ggml.tokens").unwrap().unwrap().len, 3);
        let wrong = keys.unsigned("a.i8").unwrap_err().to_string();
        assert!(
            wrong.ends_with("key \"a.i8\": is -5, where an integer that is not negative is needed"),
            "{wrong}"
        );

        assert_eq!(file.types(), "1 F16, 1 F32, 1 Q8_0");
        assert_eq!(file.total_bytes(), 12 + 12 + 68);
        assert_eq!(file.view("norm").unwrap().to_f32_vec().unwrap(), [1.0, 2.0, -3.0]);
        let half = file.view("half").unwrap();
        assert_eq!(
            (half.shape, half.dtype),
            (&[3, 2][..], Dtype::F16),
            "the fastest dimension comes last"
        );
        assert_eq!(half.to_f32_vec().unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let eight = file.region("eight").unwrap();
        assert_eq!(eight.dtype, Dtype::Blocks(BlockKind::Q8_0));
        assert_eq!(eight.view().to_f32_vec().unwrap(), [[1.0; 32], [-4.0; 32]].concat());
        assert!(file.region("none").is_err() && !file.contains("none"));
    }
}

#[test]
fn another_alignment_is_kept() {
    let mut build = Build::new().u32("general.alignment", 64);
    build.alignment = 64;
    let build = build
        .tensor("a", &[1], 0, &[0; 4])
        .tensor("b", &[1], 0, &[0, 0, 128, 63]);
    let bytes = build.bytes();
    let (_, header) = parse(Path::new("m"), &bytes).unwrap();
    assert_eq!(header.info("b").unwrap().range.start % 64, 0);
    assert_eq!(header.view(&bytes, "b").unwrap().to_f32_vec().unwrap(), [1.0]);
}

#[test]
fn every_broken_rule_is_named() {
    let key = |kind, value: &[u8]| Build::new().key("k", kind, value).bytes();
    let array = |kind, len, values: &[u8]| Build::new().array("k", kind, len, values).bytes();
    let tensor = |dimensions: &[u64], kind, bytes: &[u8]| Build::new().tensor("t", dimensions, kind, bytes).bytes();
    let version = |v| {
        Build {
            version: Some(v),
            ..Build::new()
        }
        .bytes()
    };
    let two = || {
        Build::new()
            .tensor("a", &[8], 0, &[0; 32])
            .tensor("b", &[8], 0, &[0; 32])
    };
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"GGUX".to_vec(), "m.gguf: is not a GGUF file"),
        (
            b"GG".to_vec(),
            "m.gguf: ends within its first four bytes: 4 bytes from byte 0 on, of 2",
        ),
        (version(1), "m.gguf: is of GGUF version 1, which is not read"),
        (version(3 << 24), "m.gguf: is a big-endian GGUF file"),
        (version(9), "m.gguf: is of GGUF version 9; 2 and 3 are read"),
        (
            [b"GGUF".as_slice(), &[3, 0, 0, 0], &[0; 8], &[255; 8]].concat(),
            "at most 65536 are read",
        ),
        (
            [b"GGUF".as_slice(), &[3, 0, 0, 0], &[255; 8], &[0; 8]].concat(),
            "at most 1048576 are read",
        ),
        (
            key(13, &[]),
            "key \"k\": has a value of type 13, which the format does not have",
        ),
        (key(8, &u64::MAX.to_le_bytes()), "ends within the value of key \"k\""),
        (
            key(8, &[1, 0, 0, 0, 0, 0, 0, 0, 255]),
            "the value of key \"k\" is not UTF-8",
        ),
        (
            array(9, 1, &[0; 12]),
            "key \"k\": is an array of arrays, which is not read",
        ),
        (array(8, u64::MAX, &[0; 16]), "ends within the array \"k\""),
        (array(4, u64::MAX, &[0; 16]), "ends within the array \"k\""),
        (array(77, 1, &[0; 16]), "key \"k\": has a value of type 77"),
        (
            Build::new().u32("k", 1).u32("k", 2).bytes(),
            "key \"k\": is there twice",
        ),
        (
            Build::new().u32("general.alignment", 24).bytes(),
            "is 24, where a power of two is needed",
        ),
        (
            tensor(&[1, 1, 1, 1, 1], 0, &[0; 4]),
            "tensor \"t\": has 5 dimensions; at most 4 are allowed",
        ),
        (
            tensor(&[256], 10, &[0; 84]),
            "tensor \"t\": is of type Q2_K, which is not read",
        ),
        (
            tensor(&[256], 99, &[0; 84]),
            "tensor \"t\": is of type 99, which is unknown",
        ),
        (tensor(&[u64::MAX, 2], 0, &[]), "tensor \"t\": "),
        (
            tensor(&[1 << 62, 1], 0, &[]),
            "of shape [1, 4611686018427387904] has more bytes than can be counted",
        ),
        (
            tensor(&[16, 2], 2, &[0; 18]),
            "is not made of whole Q4_0 blocks of 32 values a row",
        ),
        (
            tensor(&[64], 0, &[0; 4]),
            "its 256 bytes at offset 0 of the data end beyond the file",
        ),
        (
            Build::new()
                .tensor("a", &[1], 0, &[0; 4])
                .tensor("a", &[1], 0, &[0; 4])
                .bytes(),
            "tensor \"a\": is listed twice",
        ),
        (two().bytes_with(&|_, _| 0), "tensor \"b\": overlaps tensor \"a\""),
        (
            two().bytes_with(&|i, at| at + 4 * i as u64),
            "is not a multiple of the alignment 32",
        ),
        (
            two().bytes_with(&|i, at| if i == 1 { u64::MAX - 31 } else { at }),
            "end beyond the file",
        ),
    ];
    for (bytes, wanted) in cases {
        let got = refusal(&bytes);
        assert!(
            got.starts_with("m.gguf: ") && got.contains(wanted),
            "{got}\nwanted: {wanted}"
        );
        assert!(!got.contains('\n'), "{got}");
    }
    let odd = Build::new().array("k", 8, 1, &[&1u64.to_le_bytes()[..], &[255]].concat());
    let (keys, _) = parse(Path::new("m"), &odd.bytes()).unwrap();
    let error = keys.texts_in("k", &odd.bytes()).unwrap_err().to_string();
    assert_eq!(error, "m: key \"k\": its string number 0 is not UTF-8");
}

/// Writes the parts of a model of two files.
fn parts(dir: &Path, second: impl FnOnce(Build) -> Build) -> std::path::PathBuf {
    let first = Build::new()
        .key("split.no", 2, &0u16.to_le_bytes())
        .key("split.count", 2, &2u16.to_le_bytes())
        .key("split.tensors.count", 5, &2i32.to_le_bytes())
        .tensor("a", &[1], 0, &[0; 4]);
    let path = dir.join("m-00001-of-00002.gguf");
    std::fs::write(&path, first.bytes()).unwrap();
    let part = second(Build::new().key("split.count", 2, &2u16.to_le_bytes()));
    std::fs::write(dir.join("m-00002-of-00002.gguf"), part.bytes()).unwrap();
    path
}

#[test]
fn split_files_are_one_model() {
    let dir = tempfile::tempdir().unwrap();
    let no = |build: Build, no: u16| build.key("split.no", 2, &no.to_le_bytes());
    let b = |build: Build| build.tensor("b", &[1], 0, &[0, 0, 128, 63]);
    let open = |path: &Path| Gguf::open(path).map_err(|e| e.to_string());
    let path = parts(dir.path(), |build| b(no(build, 1)));
    let model = open(&path).unwrap();
    assert_eq!(model.parts().len(), 2);
    assert_eq!(model.view("b").unwrap().to_f32_vec().unwrap(), [1.0]);

    let second = open(&dir.path().join("m-00002-of-00002.gguf")).unwrap_err();
    assert!(second.ends_with("is part 2 of 2"), "{second}");
    let moved = dir.path().join("other.gguf");
    std::fs::copy(&path, &moved).unwrap();
    let error = open(&moved).unwrap_err();
    assert!(
        error.contains("its name does not end in -00001-of-00002.gguf"),
        "{error}"
    );

    let error = open(&parts(dir.path(), |build| b(no(build, 0)))).unwrap_err();
    assert!(
        error.contains("key \"split.no\": is 0, where the first part and the file's name say 1"),
        "{error}"
    );
    let error = open(&parts(dir.path(), |build| no(build, 1))).unwrap_err();
    assert!(error.contains("is 2, and the parts hold 1 tensors"), "{error}");
    let error = open(&parts(dir.path(), |build| no(build, 1).tensor("a", &[1], 0, &[0; 4]))).unwrap_err();
    assert!(error.contains("tensor \"a\": lies in"), "{error}");
    std::fs::remove_file(dir.path().join("m-00002-of-00002.gguf")).unwrap();
    let error = open(&path).unwrap_err();
    assert!(error.contains("does not exist; it is part 2 of 2"), "{error}");
}

#[test]
fn text_builds_what_the_format_says() {
    assert_eq!(text("é"), [2, 0, 0, 0, 0, 0, 0, 0, 0xc3, 0xa9]);
}
