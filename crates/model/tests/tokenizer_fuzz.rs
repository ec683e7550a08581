//! Thousands of damaged tokenizer.json files: an error or a tokenizer, never a panic.

use std::panic::{AssertUnwindSafe, catch_unwind};

use ounce_model::tokenizer::{SpecialTokens, StreamDecoder, Tokenizer, train_byte_level_bpe};
use serde_json::{Value, json};

/// SplitMix64.
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

/// Replaces, removes or doubles one random node.
fn mutate_tree(value: &mut Value, random: &mut Random) {
    match value {
        Value::Object(fields) if !fields.is_empty() && random.below(8) != 0 => {
            let key = fields.keys().nth(random.below(fields.len())).unwrap().clone();
            match random.below(10) {
                0 => drop(fields.remove(&key)),
                1 => {
                    let moved = fields.remove(&key).unwrap();
                    fields.insert(format!("{key}\u{0120}x"), moved);
                }
                _ => mutate_tree(&mut fields[&key], random),
            }
        }
        Value::Array(items) if !items.is_empty() && random.below(8) != 0 => {
            let at = random.below(items.len());
            match random.below(10) {
                0 => drop(items.remove(at)),
                1 => items.push(items[at].clone()),
                _ => mutate_tree(&mut items[at], random),
            }
        }
        other => {
            let byte_level = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false});
            let choices = [
                Value::Null,
                json!(true),
                json!(0),
                json!(-1),
                json!(u32::MAX),
                json!(u64::MAX),
                json!(0.5),
                json!(""),
                json!("Ġ"),
                json!("<|endoftext|>"),
                json!("Unigram"),
                json!("WordPiece"),
                json!("(?=("),
                json!([]),
                json!({}),
                byte_level,
                json!({"type": "Fuse"}),
                json!({"type": "Split", "pattern": {"Regex": "(a*)*b"}, "behavior": "Isolated", "invert": false}),
                json!({"type": "TemplateProcessing", "single": ["<|endoftext|>", "$A"], "pair": ["$A", "$B:1"],
                    "special_tokens": {}}),
            ];
            *other = choices[random.below(choices.len())].clone();
        }
    }
}

fn exercise(json: &[u8]) -> bool {
    let Ok(tokenizer) = Tokenizer::from_bytes(json) else {
        return false;
    };
    for special in [true, false] {
        if let Ok(ids) = tokenizer.encode("the cat's <|endoftext|> 🦙 aaaaaaaaaaaaaaaaaaaaaaaac\n", special) {
            drop(tokenizer.decode(&ids, special));
            let mut stream = StreamDecoder::new(&tokenizer, special);
            for id in ids {
                drop((stream.push(id), tokenizer.token_bytes(id)));
            }
            drop(stream.finish());
        }
    }
    drop((
        tokenizer.decode(&[0, 1, 258, u32::MAX], false),
        tokenizer.to_json(),
        tokenizer.vocab_size(),
    ));
    true
}

#[test]
fn mutated_files_never_panic() {
    let corpus = ["the cat sat on the mat, the cat's mat", "the cat sat and sat 12 12 12"];
    let good = train_byte_level_bpe(corpus, 270, SpecialTokens::default())
        .unwrap()
        .to_json()
        .unwrap();
    let tree: Value = serde_json::from_str(&good).unwrap();
    let mut random = Random(7);
    // Panics inside the tokenizers crate are expected and caught; their messages would bury the test's own.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let (mut loaded, mut escaped) = (0, Vec::new());
    for round in 0..6000 {
        let bytes = if round % 2 == 0 {
            let mut bytes = good.clone().into_bytes();
            for _ in 0..=random.below(2) {
                let at = random.below(bytes.len());
                match random.below(4) {
                    0 => bytes.truncate(at.max(8)),
                    1 => drop(bytes.remove(at)),
                    2 => bytes.insert(at, b"0{}[]\",:9e-"[random.below(11)]),
                    _ => bytes[at] = random.below(256) as u8,
                }
            }
            bytes
        } else {
            let mut tree = tree.clone();
            for _ in 0..=random.below(2) {
                mutate_tree(&mut tree, &mut random);
            }
            tree.to_string().into_bytes()
        };
        match catch_unwind(AssertUnwindSafe(|| exercise(&bytes))) {
            Ok(good) => loaded += usize::from(good),
            Err(_) => escaped.push(round),
        }
    }
    std::panic::set_hook(hook);
    assert!(escaped.is_empty(), "panics escaped in rounds {escaped:?}");
    assert!(
        (300..5400).contains(&loaded),
        "mutations are too weak or too strong: {loaded} of 6000 loaded"
    );
}
