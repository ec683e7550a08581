//! Thousands of damaged files for both parsers: an error or a value that keeps its promises, never a panic.

use std::path::Path;

use ounce_data::readers::parse_jsonl;
use ounce_data::{RandomStream, TokenStream};

/// Up to four random edits of `good`.
fn mutated(good: &[u8], round: u64) -> Vec<u8> {
    let mut bytes = good.to_vec();
    let mut roll = 0;
    let mut below = |n: usize| {
        roll += 1;
        RandomStream::at(11, 0, round, roll).below(n as u64) as usize
    };
    for _ in 0..=below(4) {
        let at = below(bytes.len());
        match below(5) {
            0 => bytes.truncate(at.max(8)),
            1 => drop(bytes.remove(at)),
            2 => bytes.insert(at, b"{}[]\",:\\u\n"[below(10)]),
            3 => bytes[at] = [0, 0x7f, 0xff, 0xc3][below(4)],
            _ => bytes[at] ^= 1 << below(8),
        }
    }
    bytes
}

#[test]
fn jsonl() {
    let good =
        "{\"text\": \"höher \\u00e9 \\\"quoted\\\"\", \"n\": [1, 2.5e3, null]}\n\n{\"text\": \"second\"}\n".repeat(3);
    let (mut read, mut refused) = (0, 0);
    for round in 0..5000 {
        match parse_jsonl(Path::new("m.jsonl"), &mutated(good.as_bytes(), round), "text") {
            Ok(documents) => {
                assert!(
                    documents
                        .iter()
                        .all(|document| !document.text.is_empty() && document.line.is_some())
                );
                read += 1;
            }
            Err(error) => {
                assert!(error.to_string().contains("m.jsonl"), "{error}");
                refused += 1;
            }
        }
    }
    assert!(read > 300 && refused > 1000, "{read} read, {refused} refused");
}

#[test]
fn tokens_file() {
    let key = [9; 32];
    let stream = TokenStream::from((0..50).map(|i| i * 2000).collect::<Vec<u32>>());
    let good = stream.to_bytes(&key);
    let body = &good[..good.len() - 32];
    let path = Path::new("m.tokens");
    let mut passed = 0;
    for round in 0..5000 {
        let bytes = mutated(&good, round);
        // Any change at all must be noticed.
        assert_eq!(
            TokenStream::from_bytes(path, &bytes).is_ok(),
            bytes == good,
            "round {round}"
        );
        // With the checksum made right again, the checks before and behind it are on their own.
        let sealed = TokenStream::sealed(mutated(body, round));
        if let Ok((key, stream)) = TokenStream::from_bytes(path, &sealed) {
            assert_eq!(stream.to_bytes(&key), sealed);
            passed += 1;
        }
    }
    assert!((100..4900).contains(&passed), "{passed} sealed files passed");
    // A count that would overflow, or ask for more memory than there is.
    for count in [u64::MAX, u64::MAX / 4, 1 << 40] {
        let mut bytes = body.to_vec();
        bytes[44..52].copy_from_slice(&count.to_le_bytes());
        let error = TokenStream::from_bytes(path, &TokenStream::sealed(bytes))
            .unwrap_err()
            .to_string();
        assert!(error.contains("promised"), "{error}");
    }
}
