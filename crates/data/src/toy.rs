//! Small corpora made here, for runs without data files.
//!
//! Owns four generators whose regularities a small model can learn and a test can check: stories (agreement, names
//! that recur, facts repeated later), arithmetic (exact answers), retrieval (copying and key lookup, which plain
//! statistics of neighbouring words cannot solve) and notes (stories in which random words recur at a distance). Seeded, the same on every machine. It must not know tokenizers.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::error::{DataError, Result, io, write_whole};
use crate::rng::RandomStream;

/// The kinds of toy corpora.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Toy {
    /// Short stories in simple English.
    Text,
    /// Sums, differences and products, one per line.
    Arithmetic,
    /// Copies and key-value lookups, one per line.
    Retrieval,
    /// Stories with a note of random words that recurs word for word: only its first occurrence tells the others.
    Notes,
}

impl Toy {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Text, Self::Arithmetic, Self::Retrieval, Self::Notes];

    /// The stem of its file names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "toy-text",
            Self::Arithmetic => "toy-arithmetic",
            Self::Retrieval => "toy-retrieval",
            Self::Notes => "toy-notes",
        }
    }

    /// At least `bytes` of the corpus, ending with a whole item. `held_out` draws from another stream: its items are
    /// independent of the training part's (in the small spaces of numbers and names some recur).
    pub fn generate(self, seed: u64, bytes: usize, held_out: bool) -> String {
        let mut out = String::with_capacity(bytes + 1024);
        let rng = RandomStream::new(seed, 0x746f_7900 + 2 * self as u64 + u64::from(held_out));
        let mut item = 0;
        while out.len() < bytes {
            let mut dice = Dice { rng, item, roll: 0 };
            match self {
                Self::Text => story(&mut dice, &mut out),
                Self::Arithmetic => sum(&mut dice, &mut out),
                Self::Retrieval => lookup(&mut dice, &mut out),
                Self::Notes => noted(&mut dice, &mut out),
            }
            item += 1;
        }
        out
    }
}

/// Bytes of each training file written by [`write_toys`]; held-out files have a tenth.
pub const BYTES: usize = 400_000;

/// Most bytes of one file: it is made in memory.
pub const MOST_BYTES: usize = 1 << 30;

/// Writes `NAME.txt` and the held-out `NAME.valid.txt` of every kind into `dir` (created if absent).
///
/// # Errors
/// When more than [`MOST_BYTES`] are asked for, or the folder or a file cannot be written.
pub fn write_toys(dir: &Path, seed: u64, bytes: usize) -> Result<Vec<PathBuf>> {
    if bytes > MOST_BYTES {
        return Err(DataError::Setting {
            rule: format!("a toy corpus has at most {MOST_BYTES} bytes, {bytes} were asked for"),
            hint: "it is made in memory; a larger one teaches nothing new",
        });
    }
    std::fs::create_dir_all(dir).map_err(io(dir))?;
    let mut written = Vec::new();
    for toy in Toy::ALL {
        for (suffix, size, held_out) in [("txt", bytes, false), ("valid.txt", bytes / 10, true)] {
            let path = dir.join(format!("{}.{suffix}", toy.name()));
            write_whole(&path, toy.generate(seed, size, held_out).as_bytes())?;
            written.push(path);
        }
    }
    Ok(written)
}

/// Draws for one item.
struct Dice {
    rng: RandomStream,
    item: u64,
    roll: u64,
}

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.roll += 1;
        self.rng.draw(self.item, self.roll).below(n as u64) as usize
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// A pick that differs from `not`; `from` must hold two different values.
    fn other<T: Copy + PartialEq>(&mut self, from: &[T], not: T) -> T {
        loop {
            let choice = self.pick(from);
            if choice != not {
                return choice;
            }
        }
    }
}

/// Name, subject pronoun, possessive.
const PEOPLE: [(&str, &str, &str); 12] = [
    ("Anna", "she", "her"),
    ("Ben", "he", "his"),
    ("Clara", "she", "her"),
    ("David", "he", "his"),
    ("Emma", "she", "her"),
    ("Felix", "he", "his"),
    ("Greta", "she", "her"),
    ("Hugo", "he", "his"),
    ("Ida", "she", "her"),
    ("Jonas", "he", "his"),
    ("Lena", "she", "her"),
    ("Max", "he", "his"),
];
const PLACES: [&str; 12] = [
    "the forest",
    "the river",
    "the market",
    "the old mill",
    "the garden",
    "the harbour",
    "the castle",
    "the library",
    "the mountain",
    "the village",
    "the bridge",
    "the meadow",
];
/// Singular and plural.
const THINGS: [(&str, &str); 14] = [
    ("apple", "apples"),
    ("book", "books"),
    ("lamp", "lamps"),
    ("stone", "stones"),
    ("key", "keys"),
    ("cup", "cups"),
    ("shell", "shells"),
    ("coin", "coins"),
    ("feather", "feathers"),
    ("letter", "letters"),
    ("candle", "candles"),
    ("ribbon", "ribbons"),
    ("map", "maps"),
    ("bell", "bells"),
];
const LOOKS: [&str; 12] = [
    "red", "blue", "green", "yellow", "small", "heavy", "bright", "broken", "wooden", "silver", "strange", "white",
];
const NUMBERS: [&str; 6] = ["two", "three", "four", "five", "six", "seven"];
const ANIMALS: [&str; 10] = [
    "dog", "cat", "fox", "hare", "horse", "crow", "goat", "mouse", "bear", "duck",
];
const WEATHER: [&str; 6] = ["raining", "snowing", "windy", "sunny", "foggy", "very cold"];
const FEELINGS: [&str; 7] = ["happy", "tired", "curious", "hungry", "proud", "afraid", "surprised"];
const WORDS: [&str; 24] = [
    "amber", "birch", "cedar", "delta", "ember", "flint", "grove", "heath", "iris", "jade", "kelp", "lotus", "maple",
    "north", "onyx", "pearl", "quartz", "raven", "slate", "thorn", "umber", "vale", "willow", "zephyr",
];

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

macro_rules! say {
    ($out:expr, $($part:tt)*) => {
        write!($out, $($part)*).expect("invariant: writing to a String cannot fail")
    };
}

/// A story states facts (who, where, what, how many) and comes back to them at its end.
fn story(dice: &mut Dice, out: &mut String) {
    let hero = dice.pick(&PEOPLE);
    let friend = dice.other(&PEOPLE, hero);
    let (name, they, their) = hero;
    let (home, goal) = {
        let home = dice.pick(&PLACES);
        (home, dice.other(&PLACES, home))
    };
    let (one, many) = dice.pick(&THINGS);
    let (look, count, animal, feeling) = (
        dice.pick(&LOOKS),
        dice.pick(&NUMBERS),
        dice.pick(&ANIMALS),
        dice.pick(&FEELINGS),
    );
    let plural = dice.below(2) == 1;
    let (thing, it, was) = if plural {
        (format!("{count} {look} {many}"), "them", "were")
    } else {
        (format!("a {look} {one}"), "it", "was")
    };
    let upper = capital(they);
    match dice.below(3) {
        0 => say!(out, "{name} lived near {home}. "),
        1 => say!(out, "Once there was a child called {name} who lived near {home}. "),
        _ => say!(out, "It was {} when {name} left {home}. ", dice.pick(&WEATHER)),
    }
    say!(out, "One day {they} went to {goal} with {their} {animal}. ");
    for _ in 0..=dice.below(3) {
        match dice.below(5) {
            0 => say!(out, "The {animal} was {}. ", dice.pick(&FEELINGS)),
            1 => say!(out, "It was {} and {name} walked slowly. ", dice.pick(&WEATHER)),
            2 => say!(out, "{upper} sang a song about {}. ", dice.pick(&PLACES)),
            3 => say!(
                out,
                "A {} ran past, and the {animal} followed it. ",
                dice.other(&ANIMALS, animal)
            ),
            _ => say!(out, "{upper} thought of {} and smiled. ", friend.0),
        }
    }
    say!(out, "At {goal} {name} found {thing}. ");
    match dice.below(3) {
        0 => say!(
            out,
            "\"What {} you have there?\" asked {}. ",
            if plural { "things do" } else { "do" },
            friend.0
        ),
        1 => say!(out, "{} came and wanted to see {it}. ", friend.0),
        _ => say!(out, "{upper} showed {it} to {}. ", friend.0),
    }
    if dice.below(2) == 0 {
        say!(out, "\"I found {thing} at {goal},\" said {name}. ");
    }
    let shown = if plural { many } else { one };
    say!(
        out,
        "The {shown} {was} {look}. In the evening {name} went back to {home} and felt {feeling}"
    );
    if dice.below(2) == 0 {
        say!(out, ", because {they} had {thing}");
    }
    out.push_str(".\n\n");
}

fn sum(dice: &mut Dice, out: &mut String) {
    let limit = dice.pick(&[10, 100, 100, 1000]);
    let (a, b) = (dice.below(limit), dice.below(limit));
    match dice.below(5) {
        0 | 1 => say!(out, "{a} + {b} = {}\n", a + b),
        2 | 3 => say!(out, "{} - {} = {}\n", a.max(b), a.min(b), a.abs_diff(b)),
        _ => {
            let (a, b) = (a % 100, b % 10);
            say!(out, "{a} * {b} = {}\n", a * b);
        }
    }
}

fn lookup(dice: &mut Dice, out: &mut String) {
    if dice.below(2) == 0 {
        let words: Vec<&str> = (0..3 + dice.below(8)).map(|_| dice.pick(&WORDS)).collect();
        let words = words.join(" ");
        say!(out, "copy: {words} => {words}\n");
        return;
    }
    // Distinct keys: the first places of a partial shuffle.
    let mut keys = WORDS;
    let count = 2 + dice.below(7);
    for at in 0..count {
        let other = at + dice.below(keys.len() - at);
        keys.swap(at, other);
    }
    let values: Vec<usize> = (0..count).map(|_| 10 + dice.below(90)).collect();
    out.push_str("find:");
    for (key, value) in keys.iter().zip(&values) {
        say!(out, " {key}={value}");
    }
    let asked = dice.below(count);
    say!(out, " ? {} => {}\n", keys[asked], values[asked]);
}

/// A note, then a story; after each of its sentences the note comes again in one case of three.
fn noted(dice: &mut Dice, out: &mut String) {
    let words: Vec<&str> = (0..4 + dice.below(11)).map(|_| dice.pick(&WORDS)).collect();
    let note = words.join(" ");
    let mut text = String::new();
    story(dice, &mut text);
    out.push_str(&note);
    out.push_str(". ");
    for sentence in text.trim_end().split_inclusive(". ") {
        out.push_str(sentence);
        if sentence.ends_with(". ") && dice.below(3) == 0 {
            out.push_str(&note);
            out.push_str(". ");
        }
    }
    out.push_str("\n\n");
}
