//! Synthetic tasks of length generalisation, always paired with a long-range probe.
//!
//! From "Long-Short Alignment" (Du et al., ICML 2025, arXiv 2506.11769): over random bits, the *mean* has the same range
//! at every length and generalises beyond the lengths of training, the *length* itself does not; the *sum* (our addition)
//! needs the same statistic as the mean but grows. Every such line is followed by a line that asks for the *first* of
//! equally many bits: a model that has learnt to ignore distant tokens fails there, however stable its outputs are.
//!
//! As text, one task per line: `mean 0110 = 0.5`. A tokenizer must not merge bits: give it no more than 257 tokens.

use crate::{
    error::{DataError, Result, io},
    rng::RandomStream,
};
use std::{
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

/// What is asked of the bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LengthTask {
    /// Their mean, rounded half up to one decimal.
    Mean,
    /// How many they are.
    Length,
    /// How many are one.
    Sum,
    /// The first of them: the long-range probe.
    First,
}

/// Lengths of training.
pub const TRAIN: RangeInclusive<usize> = 1..=10;
/// Lengths beyond training.
pub const LONG: RangeInclusive<usize> = 11..=50;

/// Stream of randomness, with the held-out one beside it.
const STREAM: u64 = 0x6c65_6e67_0000;

impl LengthTask {
    /// The tasks that are paired with [`LengthTask::First`].
    pub const PAIRED: [Self; 3] = [Self::Mean, Self::Length, Self::Sum];

    /// The first word of its lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Length => "length",
            Self::Sum => "sum",
            Self::First => "first",
        }
    }

    /// The answer for these bits, of which there is at least one.
    pub fn answer(self, bits: &[bool]) -> String {
        let (n, ones) = (bits.len(), bits.iter().filter(|b| **b).count());
        match self {
            Self::Mean => {
                // Tenths, rounded half up, in whole numbers: the same on every machine.
                let tenths = (20 * ones + n) / (2 * n.max(1));
                format!("{}.{}", tenths / 10, tenths % 10)
            }
            Self::Length => n.to_string(),
            Self::Sum => ones.to_string(),
            Self::First => u8::from(bits.first().copied().unwrap_or_default()).to_string(),
        }
    }

    /// Question and answer, `("mean 0110 = ", "0.5")`.
    pub fn line(self, bits: &[bool]) -> (String, String) {
        let digits: String = bits.iter().map(|&b| if b { '1' } else { '0' }).collect();
        (format!("{} {digits} = ", self.name()), self.answer(bits))
    }
}

/// At least `bytes` of pairs of lines with bits of the given lengths (each as likely as the others), ending with a whole
/// pair. `held_out` draws from another stream; short strings of bits recur in both.
///
/// # Errors
/// If the range of lengths is empty or holds 0.
pub fn generate(seed: u64, bytes: usize, lengths: &RangeInclusive<usize>, held_out: bool) -> Result<String> {
    if lengths.is_empty() || *lengths.start() == 0 {
        return Err(DataError::Setting {
            rule: format!("lengths must be a range from 1 or more, are {lengths:?}"),
            hint: "give the shortest and the longest, such as 1..=20",
        });
    }
    let rng = RandomStream::new(seed, STREAM + u64::from(held_out));
    let spread = (lengths.end() - lengths.start() + 1) as u64;
    let mut out = String::with_capacity(bytes + 256);
    let mut item = 0;
    while out.len() < bytes {
        let mut roll = 0;
        let mut below = |n: u64| {
            roll += 1;
            rng.draw(item, roll).below(n) as usize
        };
        let length = lengths.start() + below(spread);
        let task = LengthTask::PAIRED[below(3)];
        for task in [task, LengthTask::First] {
            let bits: Vec<bool> = (0..length).map(|_| below(2) == 1).collect();
            let (question, answer) = task.line(&bits);
            out.push_str(&question);
            out.push_str(&answer);
            out.push('\n');
        }
        item += 1;
    }
    Ok(out)
}

/// Writes `length.txt` and the held-out `length.valid.txt` (lengths of training) and `length.long.txt` (beyond) into
/// `dir`, which is created if absent; held-out files have a tenth of `bytes`.
///
/// # Errors
/// When the folder or a file cannot be written.
pub fn write_lengths(dir: &Path, seed: u64, bytes: usize) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(dir).map_err(io(dir))?;
    [
        ("length.txt", bytes, TRAIN, false),
        ("length.valid.txt", bytes / 10, TRAIN, true),
        ("length.long.txt", bytes / 10, LONG, true),
    ]
    .into_iter()
    .map(|(name, bytes, lengths, held_out)| {
        let path = dir.join(name);
        std::fs::write(&path, generate(seed, bytes, &lengths, held_out)?).map_err(io(&path))?;
        Ok(path)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_right() {
        let bits = [false, true, true, false];
        let answers =
            [LengthTask::Mean, LengthTask::Length, LengthTask::Sum, LengthTask::First].map(|t| t.answer(&bits));
        assert_eq!(answers, ["0.5", "4", "2", "0"]);
        // 1/8 = 0.125, 3/8 = 0.375, 1/20 = 0.05: half up.
        let mean = |ones: usize, n: usize| {
            let bits: Vec<bool> = (0..n).map(|i| i < ones).collect();
            LengthTask::Mean.answer(&bits)
        };
        assert_eq!(
            [mean(1, 8), mean(3, 8), mean(1, 20), mean(7, 7), mean(0, 3)],
            ["0.1", "0.4", "0.1", "1.0", "0.0"]
        );
        assert_eq!(LengthTask::Sum.line(&[true, false]), ("sum 10 = ".into(), "1".into()));
    }

    #[test]
    fn every_task_is_paired_with_a_probe_of_its_length() {
        let text = generate(3, 60_000, &(2..=9), false).unwrap();
        let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split(' ').collect()).collect();
        let mut seen = [0usize; 10];
        for pair in lines.chunks(2) {
            assert!(LengthTask::PAIRED.iter().any(|t| t.name() == pair[0][0]));
            assert_eq!((pair[1][0], pair[0][1].len()), ("first", pair[1][1].len()));
            assert_eq!(pair[1][3], &pair[1][1][..1]);
            seen[pair[0][1].len()] += 1;
        }
        // Each length as likely as the others.
        let expected = lines.len() / 2 / 8;
        assert!(
            seen[2..].iter().all(|n| n.abs_diff(expected) < expected / 4),
            "{seen:?}"
        );
        assert_eq!(seen[..2], [0, 0]);
    }

    #[test]
    fn it_is_seeded_and_streams_differ() {
        let make = |seed, held_out| generate(seed, 2000, &TRAIN, held_out).unwrap();
        assert_eq!(make(1, false), make(1, false));
        assert_ne!(make(1, false), make(2, false));
        assert_ne!(make(1, false), make(1, true));
        let empty = RangeInclusive::new(3, 2);
        for bad in [0..=4, empty] {
            assert!(
                generate(1, 10, &bad, false)
                    .unwrap_err()
                    .to_string()
                    .contains("lengths must be")
            );
        }
    }

    #[test]
    fn files_hold_the_lengths_they_are_named_for() {
        let dir = tempfile::tempdir().unwrap();
        let files = write_lengths(dir.path(), 0, 20_000).unwrap();
        for (path, range) in files.iter().zip([TRAIN, TRAIN, LONG]) {
            let text = std::fs::read_to_string(path).unwrap();
            for line in text.lines() {
                let bits = line.split(' ').nth(1).unwrap();
                assert!(range.contains(&bits.len()), "{line}");
            }
        }
        assert_eq!(files.len(), 3);
    }
}
