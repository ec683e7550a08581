//! Thousands of damaged files from a fixed seed: every one is refused or read, none panics, and whatever is accepted
//! the `safetensors` crate accepts with the same bytes.

use std::{collections::BTreeMap, fs, path::Path};

use ounce_formats::{
    Checkpoint, Dtype, ShardOptions, ShardedWriter, TensorSpec, as_bytes, checkpoint::ShardIndex, safetensors::Header,
    write_file,
};

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

/// Flips bits, replaces, inserts, removes and repeats bytes within the first `reach` ones, or cuts the end.
fn damaged(original: &[u8], reach: usize, random: &mut Random) -> Vec<u8> {
    let mut bytes = original.to_vec();
    for _ in 0..=random.below(3) {
        if bytes.is_empty() {
            break;
        }
        let at = random.below(bytes.len().min(reach));
        match random.below(7) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.below(256) as u8,
            2 => bytes[at] = b"0123456789-.,:{}[]\"\\"[random.below(20)],
            3 => bytes.insert(at, b"0129\"{[,"[random.below(8)]),
            4 => drop(bytes.remove(at)),
            5 => {
                let end = (at + random.below(40)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => bytes.truncate(random.below(bytes.len() + 1)),
        }
    }
    bytes
}

fn good_file() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let floats = [1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0];
    write_file(
        &path,
        &[
            ("model.embed.weight", Dtype::F32, &[2, 3], as_bytes(&floats)),
            ("model.ids", Dtype::I64, &[2], as_bytes(&[1_i64, 2])),
            ("model.half", Dtype::BF16, &[6, 1], &[7; 12]),
            ("empty", Dtype::F16, &[0, 4], &[]),
        ],
        &metadata,
    )
    .unwrap();
    fs::read(&path).unwrap()
}

#[test]
fn damaged_files_are_refused_or_read() {
    let good = good_file();
    let header_end = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let mut random = Random(1);
    let (mut accepted, mut refused) = (0, 0);
    for round in 0..20_000 {
        let mut bytes = damaged(&good, header_end, &mut random);
        // Most insertions break the length alone; put it right in half of the rounds, to get at the rules behind it.
        if round % 2 == 0 && bytes.len() > 8 {
            let grown = header_end as i64 - 8 + bytes.len() as i64 - good.len() as i64;
            bytes[..8].copy_from_slice(&grown.to_le_bytes());
        }
        match Header::parse(Path::new("m"), &bytes) {
            Ok(header) => {
                accepted += 1;
                let theirs = safetensors::SafeTensors::deserialize(&bytes).expect("accepted by us, so by the crate");
                assert_eq!(theirs.len(), header.tensors().len());
                for info in header.tensors() {
                    let peer = theirs.tensor(&info.name).unwrap();
                    assert_eq!(
                        (peer.shape(), peer.data()),
                        (&info.shape[..], &bytes[info.range.clone()])
                    );
                    if let Ok(view) = header.view(&bytes, &info.name) {
                        assert_eq!(view.bytes, peer.data());
                        if let Ok(floats) = view.to_f32_vec() {
                            assert_eq!(floats.len(), view.len());
                        }
                        if let Ok(longs) = view.to_i64_vec() {
                            assert_eq!(longs.len(), view.len());
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
    let good = good_file();
    assert!(Header::parse(Path::new("m"), &good).is_ok());
    for end in 0..good.len() {
        assert!(Header::parse(Path::new("m"), &good[..end]).is_err(), "cut at {end}");
    }
}

#[test]
fn damaged_folders_are_refused_or_read() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(dir.join("config.json"), r#"{"model_type":"x","n":[1,2]}"#).unwrap();
    let declared = vec![
        TensorSpec::new("a", Dtype::U8, [3]),
        TensorSpec::new("b", Dtype::U8, [3]),
    ];
    let options = ShardOptions {
        max_shard_bytes: 3,
        ..ShardOptions::default()
    };
    let mut writer = ShardedWriter::create(dir, declared, &options).unwrap();
    writer.write("a", &[1, 2, 3]).unwrap();
    writer.write("b", &[4, 5, 6]).unwrap();
    writer.finish().unwrap();
    assert_eq!(Checkpoint::open(dir).unwrap().shards().len(), 2);

    let mut random = Random(2);
    let (mut accepted, mut refused) = (0, 0);
    for name in [
        "config.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
    ] {
        let good = fs::read(dir.join(name)).unwrap();
        for _ in 0..700 {
            fs::write(dir.join(name), damaged(&good, good.len(), &mut random)).unwrap();
            match Checkpoint::open(dir) {
                Ok(checkpoint) => {
                    accepted += 1;
                    for name in checkpoint.names() {
                        if let Ok(view) = checkpoint.view(name) {
                            assert_eq!(Some(view.bytes.len()), view.dtype.byte_len(view.shape));
                        }
                    }
                }
                Err(error) => {
                    refused += 1;
                    assert!(error.to_string().contains(&*dir.to_string_lossy()), "{error}");
                }
            }
        }
        fs::write(dir.join(name), good).unwrap();
    }
    assert!(
        accepted > 50 && refused > 500,
        "the damage reaches both sides: {accepted} accepted, {refused} refused"
    );
}

#[test]
fn damaged_indices_never_lead_outside() {
    let good = br#"{"metadata":{"total_size":6},"weight_map":{"a":"../x","b":"sub/./y","c":"/z","d":"plain"}}"#;
    let mut random = Random(3);
    let mut accepted = 0;
    for _ in 0..20_000 {
        let Ok(index) = ShardIndex::parse(Path::new("i"), &damaged(good, good.len(), &mut random)) else {
            continue;
        };
        accepted += 1;
        for file in index.weight_map.values() {
            assert!(
                !file.starts_with('/') && file.split('/').all(|part| part != ".."),
                "{file:?}"
            );
        }
    }
    assert!(accepted > 0, "some damage makes all paths plain");
}
