//! Passkeys in a haystack: text in which a random key is hidden once, and asked for at the end.
//!
//! After the data of "Efficient Length-Generalizable Attention via Causal Retrieval" (Hu et al., ICML 2025, arXiv
//! 2410.01651): the key stands in a short sentence at a random depth, at least two chunks before the end. All of the question
//! but its last token ends at a chunk boundary: the chunk that ends there can retrieve the key, and the question's last
//! token, which opens the next chunk and predicts the answer, is the first that sees what was retrieved. Items are bytes; with a tokenizer of 257 tokens (no merges) a byte is a token, an item with its end-of-text token is exactly one
//! window, and aligned training windows are whole items.
//!
//! A model that can neither find nor read has no use for either: with many copies of the key reading is learned first, as any
//! chunk will do, and the few copies of other items then teach finding. [`Passkey::copies`] mixes both.
//!
//! Symbols: L tokens of an item, S tokens of a chunk, n digits of a key, c most copies. The item is text, the needle somewhere in it, the
//! question, the key again, filler to L - 1 bytes. Text is the toy stories, whose alphabet the needle shares, or the four
//! sentences over and over that passkeys were first hidden in ("Landmark Attention", Mohtashami and Jaggi, NeurIPS 2023,
//! arXiv 2305.16300): those cost a small model next to nothing to learn, so that the answer soon is most of its loss.

use crate::{
    error::{DataError, Result, io, write_whole},
    rng::RandomStream,
    toy::Toy,
};
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    str::FromStr,
};

/// Asks for the key; the next byte is its first digit.
const QUESTION: &str = "\nThe passkey is ";

/// Stream of randomness, with the held-out one beside it.
const STREAM: u64 = 0x7061_7373_0000;

/// Bytes of stories that haystacks are cut from.
const POOL: usize = 1 << 20;

/// What [`Haystack::Sentences`] repeats.
const SENTENCES: &str = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. ";

/// What a key is hidden in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Haystack {
    /// The toy stories.
    #[default]
    Stories,
    /// Four sentences over and over, from anywhere in them.
    Sentences,
}

impl Haystack {
    /// Text that items of `length` are cut from.
    fn pool(self, seed: u64, length: usize, held_out: bool) -> String {
        match self {
            Self::Stories => Toy::Text.generate(seed, POOL.max(2 * length), held_out),
            Self::Sentences => SENTENCES.repeat(length / SENTENCES.len() + 2),
        }
    }
}

/// What an item looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Passkey {
    /// L, tokens of an item with its end-of-text token.
    pub length: usize,
    /// S, tokens of a chunk.
    pub chunk: usize,
    /// n, digits of a key.
    pub digits: usize,
    /// What the key is hidden in.
    pub haystack: Haystack,
    /// c: the key stands 1 to c times in the haystack of a training item (fewer where there is no room), once in that of a
    /// held-out one.
    pub copies: usize,
}

impl FromStr for Haystack {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        match name {
            "stories" => Ok(Self::Stories),
            "sentences" => Ok(Self::Sentences),
            _ => Err("is stories or sentences".into()),
        }
    }
}

/// A key in its haystack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// ASCII text of L - 1 bytes: haystack with needle, question, key, filler.
    pub text: String,
    /// Where the key's first digit stands in the haystack, the first time.
    pub key: usize,
    /// Where the answer's first digit stands: what is before it is the prompt.
    pub answer: usize,
}

impl Passkey {
    /// Where the answer begins: one token after the last chunk boundary that leaves room for it.
    pub fn answer(&self) -> usize {
        (self.length - 2 - self.digits) / self.chunk * self.chunk + 1
    }

    fn needle(&self) -> usize {
        QUESTION.len() + self.digits + 2
    }

    /// # Errors
    /// If a size is 0, or an item has no room for a needle two chunks before its end.
    pub fn check(&self) -> Result<()> {
        let Self {
            length,
            chunk,
            digits,
            copies,
            ..
        } = *self;
        for (what, value, most, hint) in [
            ("tokens of a chunk", chunk, 1 << 24, "64 is usual"),
            ("digits of a key", digits, 64, "5 are usual"),
            ("copies of a key", copies, 1 << 24, "1 is usual"),
            ("tokens of an item", length, 1 << 24, "four chunks are enough"),
        ] {
            if !(1..=most).contains(&value) {
                let rule = format!("{what} must be in 1..={most}, are {value}");
                return Err(DataError::Setting { rule, hint });
            }
        }
        if length < digits + 2 || self.answer() < 2 * chunk + self.needle() + 1 {
            return Err(DataError::Setting {
                rule: format!(
                    "an item of {length} tokens is too short for chunks of {chunk} and keys of {digits} digits"
                ),
                hint: "the key stands at least two chunks before the end: lengthen the item, or shorten the key",
            });
        }
        Ok(())
    }

    /// Item number `item`.
    fn make(&self, rng: RandomStream, item: u64, pool: &[u8], copies: usize) -> Item {
        let mut roll = 0;
        let mut below = |n: usize| {
            roll += 1;
            rng.draw(item, roll).below(n as u64) as usize
        };
        let key: String = (0..self.digits).map(|_| char::from(b'0' + below(10) as u8)).collect();
        let (answer, size) = (self.answer(), self.length - 1);
        let start = below(pool.len() - size);
        let mut text = pool[start..start + size].to_vec();
        let needle = format!("{QUESTION}{key}.\n");
        // Two whole chunks lie between the last needle's end and the boundary.
        let room = answer - 2 * self.chunk;
        let copies = 1 + below(copies.min((room - 1) / needle.len()));
        let mut gaps: Vec<usize> = (0..copies).map(|_| below(room - copies * needle.len())).collect();
        gaps.sort_unstable();
        let places: Vec<usize> = gaps.iter().enumerate().map(|(i, gap)| gap + i * needle.len()).collect();
        for &at in &places {
            text[at..at + needle.len()].copy_from_slice(needle.as_bytes());
        }
        text[answer - QUESTION.len()..answer].copy_from_slice(QUESTION.as_bytes());
        text[answer..answer + self.digits].copy_from_slice(key.as_bytes());
        let text = String::from_utf8(text).expect("invariant: stories are ASCII");
        Item {
            text,
            key: places[0] + QUESTION.len(),
            answer,
        }
    }

    /// `items` items, one after the other. `held_out` draws from other streams.
    ///
    /// # Errors
    /// As [`Passkey::check`].
    pub fn generate(&self, seed: u64, items: usize, held_out: bool) -> Result<impl Iterator<Item = Item> + use<>> {
        self.check()?;
        let pool = self.haystack.pool(seed, self.length, held_out);
        let rng = RandomStream::new(seed, STREAM + u64::from(held_out));
        let (sizes, copies) = (*self, if held_out { 1 } else { self.copies });
        Ok((0..items).map(move |item| sizes.make(rng, item as u64, pool.as_bytes(), copies)))
    }
}

/// Items of the held-out file.
const HELD_OUT: usize = 100;

/// Writes `passkey.jsonl` and the held-out `passkey.valid.jsonl` (100 items, or as many as in training if those are fewer)
/// into `dir`, which is created if absent: one item per line under the key `text`. At least `bytes` bytes of text are for
/// training.
///
/// # Errors
/// As [`Passkey::check`], for more than [`crate::toy::MOST_BYTES`], or when the folder or a file cannot be written.
pub fn write_passkeys(dir: &Path, seed: u64, bytes: usize, passkey: Passkey) -> Result<Vec<PathBuf>> {
    passkey.check()?;
    if bytes > crate::toy::MOST_BYTES {
        return Err(DataError::Setting {
            rule: format!(
                "a corpus has at most {} bytes, {bytes} were asked for",
                crate::toy::MOST_BYTES
            ),
            hint: "it is made in memory",
        });
    }
    std::fs::create_dir_all(dir).map_err(io(dir))?;
    let items = bytes.div_ceil(passkey.length).max(1);
    [
        ("passkey.jsonl", items, false),
        ("passkey.valid.jsonl", items.min(HELD_OUT), true),
    ]
    .into_iter()
    .map(|(name, items, held_out)| {
        let path = dir.join(name);
        let mut lines = String::new();
        for item in passkey.generate(seed, items, held_out)? {
            lines.push_str(&serde_json::json!({ "text": item.text }).to_string());
            lines.push('\n');
        }
        write_whole(&path, lines.as_bytes())?;
        Ok(path)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn the_key_stands_twice_and_the_question_ends_in_the_chunk_of_the_answer(
            chunk in 8usize..70, chunks in 5usize..20, extra in 0usize..64, digits in 1usize..6, seed in 0u64..9,
            sentences: bool, copies in 1usize..5,
        ) {
            let haystack = if sentences { Haystack::Sentences } else { Haystack::Stories };
            let passkey = Passkey { length: chunk * chunks + extra, chunk, digits, haystack, copies };
            prop_assume!(passkey.check().is_ok());
            for Item { text, key: at, answer } in passkey.generate(seed, 3, false).unwrap() {
                prop_assert_eq!(text.len(), passkey.length - 1);
                prop_assert_eq!(answer, passkey.answer());
                prop_assert!((answer - 1).is_multiple_of(chunk));
                prop_assert!(text[..answer].ends_with(QUESTION));
                let key = &text[answer..answer + digits];
                let needle = format!("{QUESTION}{key}.\n");
                // The answer itself may happen to be followed by a full stop.
                let found: Vec<usize> = text[..answer].match_indices(&needle).map(|(at, _)| at).collect();
                prop_assert_eq!(found[0] + QUESTION.len(), at);
                prop_assert!(found.len() <= copies && found[found.len() - 1] + needle.len() + 2 * chunk < answer);
                // Nobody else says so.
                prop_assert_eq!(text.matches(QUESTION).count(), found.len() + 1);
            }
        }
    }

    #[test]
    fn keys_and_depths_are_spread() {
        let passkey = Passkey {
            length: 1024,
            chunk: 64,
            digits: 1,
            haystack: Haystack::Stories,
            copies: 1,
        };
        let items: Vec<Item> = passkey.generate(1, 500, false).unwrap().collect();
        let mut keys = [0; 10];
        let mut depths = [0; 4];
        for item in &items {
            keys[usize::from(item.text.as_bytes()[item.answer] - b'0')] += 1;
            depths[item.text.find(QUESTION).unwrap() * 4 / 815] += 1;
        }
        assert!(keys.iter().all(|&n| (25..=80).contains(&n)), "{keys:?}");
        assert!(depths.iter().all(|&n| (80..=170).contains(&n)), "{depths:?}");
    }

    #[test]
    fn training_items_hold_one_to_all_copies_and_held_out_ones_one() {
        let passkey = Passkey {
            length: 512,
            chunk: 32,
            digits: 3,
            haystack: Haystack::Sentences,
            copies: 4,
        };
        let copies = |held_out| -> Vec<usize> {
            let items = passkey.generate(2, 400, held_out).unwrap();
            let mut counts = vec![0; 5];
            items.for_each(|item| counts[item.text.matches(QUESTION).count() - 1] += 1);
            counts
        };
        let (training, held_out) = (copies(false), copies(true));
        assert!(
            training[0] == 0 && training[1..].iter().all(|&n| (70..=130).contains(&n)),
            "{training:?}"
        );
        assert_eq!(held_out, [0, 400, 0, 0, 0]);
    }

    #[test]
    fn it_is_seeded_and_streams_differ() {
        let passkey = Passkey {
            length: 512,
            chunk: 32,
            digits: 2,
            haystack: Haystack::Stories,
            copies: 1,
        };
        let make = |seed, held_out| -> Vec<Item> { passkey.generate(seed, 4, held_out).unwrap().collect() };
        assert_eq!(make(1, false), make(1, false));
        assert_ne!(make(1, false), make(2, false));
        assert_ne!(make(1, false), make(1, true));
    }

    #[test]
    fn sizes_without_room_are_refused() {
        let good = Passkey {
            length: 512,
            chunk: 64,
            digits: 1,
            haystack: Haystack::Sentences,
            copies: 1,
        };
        assert!(good.check().is_ok());
        for (bad, rule) in [
            (
                Passkey { chunk: 0, ..good },
                "tokens of a chunk must be in 1..=16777216, are 0",
            ),
            (
                Passkey { digits: 0, ..good },
                "digits of a key must be in 1..=64, are 0",
            ),
            (Passkey { copies: 0, ..good }, "copies of a key must be"),
            (Passkey { digits: 65, ..good }, "are 65"),
            (Passkey { length: 0, ..good }, "tokens of an item must be"),
            (Passkey { length: 130, ..good }, "too short"),
            (Passkey { chunk: 300, ..good }, "too short"),
        ] {
            let error = bad.generate(0, 1, false).err().unwrap().to_string();
            assert!(error.contains(rule), "{error}");
        }
    }

    #[test]
    fn files_are_read_back_as_documents() {
        let dir = tempfile::tempdir().unwrap();
        let passkey = Passkey {
            length: 256,
            chunk: 32,
            digits: 1,
            haystack: Haystack::Stories,
            copies: 1,
        };
        let files = write_passkeys(dir.path(), 0, 2000, passkey).unwrap();
        let read = crate::read_documents(&files[..1], "text").unwrap();
        assert_eq!(read.len(), 8);
        assert!(read.iter().all(|d| d.text.len() == 255));
    }
}
