//! Thousands of damaged files from a fixed seed: every one is refused or read, and none panics.

use super::{build::Build, good};
use ounce_formats::gguf::{Value, parse};
use std::path::Path;

/// SplitMix64: the same damage on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

fn damaged(original: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = original.to_vec();
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len());
        match random.below(6) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = [0, 1, 255, 127, 128, 9][random.below(6)],
            2 => bytes.insert(at, random.below(4) as u8),
            3 if bytes.len() > 1 => drop(bytes.remove(at)),
            4 => {
                let end = (at + 8).min(bytes.len());
                bytes[at..end].fill([0, 255][random.below(2)]);
            }
            _ => bytes.truncate(at.max(1)),
        }
    }
    bytes
}

#[test]
fn damaged_files_are_refused_or_read() {
    let good = good().bytes();
    let mut random = Random(1);
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..20_000 {
        let bytes = damaged(&good, &mut random);
        match parse(Path::new("m"), &bytes) {
            Ok((keys, header)) => {
                accepted += 1;
                for info in header.tensors() {
                    let view = header.view(&bytes, &info.name).unwrap();
                    assert_eq!(Some(view.bytes.len()), view.dtype.byte_len(view.shape));
                    if let Ok(values) = view.to_f32_vec() {
                        assert_eq!(values.len(), view.len());
                    }
                }
                for (key, value) in keys.entries() {
                    if let Value::Array(array) = value {
                        if let Ok(Some(texts)) = keys.texts_in(key, &bytes) {
                            assert_eq!(texts.len(), array.len);
                        }
                        if let Ok(Some(numbers)) = keys.numbers_in(key, &bytes) {
                            assert_eq!(numbers.len(), array.len);
                        }
                    }
                }
            }
            Err(error) => {
                refused += 1;
                assert!(error.to_string().starts_with("m: "), "{error}");
                assert!(error.hint().is_some(), "{error}");
            }
        }
    }
    assert!(
        accepted > 500 && refused > 5000,
        "the damage reaches both sides: {accepted} accepted, {refused} refused"
    );
}

#[test]
fn every_truncation_is_refused() {
    let good = good().bytes();
    assert!(parse(Path::new("m"), &good).is_ok());
    for end in 0..good.len() {
        assert!(parse(Path::new("m"), &good[..end]).is_err(), "cut at {end}");
    }
}

#[test]
fn memory_is_bounded_by_what_is_there() {
    // A vocabulary of a million empty strings takes eight bytes each in the file and none in memory until asked for.
    let many = Build::new().array("k", 8, 1 << 20, &vec![0; 8 << 20]).bytes();
    let (keys, _) = parse(Path::new("m"), &many).unwrap();
    assert_eq!(keys.array("k").unwrap().unwrap().len, 1 << 20);
    // Lengths that no file can hold are refused at once, and not allocated.
    for len in [1 << 40, u64::MAX / 8, u64::MAX] {
        assert!(parse(Path::new("m"), &Build::new().array("k", 8, len, &[0; 64]).bytes()).is_err());
        assert!(parse(Path::new("m"), &Build::new().array("k", 10, len, &[0; 64]).bytes()).is_err());
        assert!(parse(Path::new("m"), &Build::new().key("k", 8, &len.to_le_bytes()).bytes()).is_err());
    }
    // So is a text that is all there, and longer than any chat template.
    let long = vec![b'a'; (16 << 20) + 1];
    let value = [&(long.len() as u64).to_le_bytes()[..], &long].concat();
    let error = parse(Path::new("m"), &Build::new().key("k", 8, &value).bytes()).unwrap_err();
    assert!(error.to_string().contains("at most 16777216 are allowed"), "{error}");
}
