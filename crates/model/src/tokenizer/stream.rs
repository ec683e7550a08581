//! Decoding one id at a time.
//!
//! Owns the state between two tokens of a growing text: a character may be spread over several tokens and must not
//! be shown in halves, and what a token says may depend on what stands before it (a decoder that drops the first space
//! of a text drops none in its middle). Byte-level tokenizers are exact by construction: bytes are concatenated and the
//! longest decided prefix goes out. Others decode each token behind the last few, the prompt's to begin with. The work
//! of a token is bounded. It must not know who generates the ids.

use std::collections::VecDeque;

use super::Tokenizer;
use super::alphabet::Alphabet;

/// How many earlier tokens a token is decoded behind. One would do for every decoder known; a few more also serve a
/// decoder that trims several characters at the front.
const CONTEXT: usize = 6;
/// Most tokens held back when a decoder mixes half characters with other steps; a character has four bytes at most.
const HELD: usize = 8;

/// Turns ids into pieces of text whose concatenation (with [`StreamDecoder::finish`]) is what the text of prompt and
/// ids has beyond the text of the prompt. A character that the prompt's last token leaves open counts as new.
///
/// One exception, for tokenizers with byte fallback: a run of byte pieces that *turns* invalid after a valid part has
/// been shown. The whole decode then replaces the valid part too, and text once shown cannot be taken back.
#[derive(Clone, Debug)]
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// Byte-level, and a run of byte pieces: bytes not yet shown.
    bytes: Vec<u8>,
    /// The run of byte pieces is no UTF-8: each byte of it is a U+FFFD.
    broken: bool,
    /// Otherwise: the last ids shown.
    context: VecDeque<u32>,
    /// Ids that wait for the rest of a character.
    held: Vec<u32>,
}

impl StreamDecoder {
    /// A decoder at the start of a text; `skip_special` leaves out special tokens.
    pub fn new(tokenizer: &Tokenizer, skip_special: bool) -> Self {
        Self {
            tokenizer: tokenizer.clone(),
            skip_special,
            bytes: Vec::new(),
            broken: false,
            context: VecDeque::with_capacity(CONTEXT + 1),
            held: Vec::new(),
        }
    }

    /// A decoder of what comes after `prompt`.
    pub fn after(tokenizer: &Tokenizer, prompt: &[u32], skip_special: bool) -> Self {
        let mut stream = Self::new(tokenizer, skip_special);
        let counts = |id: &u32| stream.counts(*id);
        let bytes = |id: &u32| tokenizer.token_bytes(*id).unwrap_or_default();
        let last = |n: usize| prompt.iter().rev().filter(|id| counts(id)).take(n);
        match tokenizer.alphabet() {
            Alphabet::ByteLevel => {
                // A token has at least one byte, an open character at most three.
                let mut tail: Vec<u32> = last(4).copied().collect();
                tail.reverse();
                let tail: Vec<u8> = tail.iter().flat_map(bytes).collect();
                stream.bytes = tail[tail.len() - undecided(&tail)..].to_vec();
            }
            Alphabet::Pieces { bytes: fallback, .. } => {
                let context: Vec<u32> = last(CONTEXT).copied().collect();
                let run: Vec<u32> = last(prompt.len())
                    .copied()
                    .take_while(|&id| fallback && tokenizer.byte_of(id).is_some())
                    .collect();
                stream.context = context.into_iter().rev().collect();
                for byte in run.into_iter().rev().filter_map(|id| tokenizer.byte_of(id)) {
                    stream.take_byte(byte);
                }
            }
        }
        stream
    }

    /// Takes the next id; `Some` text as soon as it is certain. An id without a token (a model with a padded
    /// embedding can produce one) says nothing.
    pub fn push(&mut self, id: u32) -> Option<String> {
        if !self.counts(id) {
            return None;
        }
        let text = match self.tokenizer.alphabet() {
            Alphabet::ByteLevel => {
                self.bytes.extend(self.tokenizer.token_bytes(id).unwrap_or_default());
                self.decided()
            }
            Alphabet::Pieces { bytes: true, .. } if self.tokenizer.byte_of(id).is_some() => {
                let byte = self.tokenizer.byte_of(id).unwrap_or_default();
                let text = self.take_byte(byte);
                self.remember(id);
                text
            }
            Alphabet::Pieces { halves, .. } => {
                let mut text = self.end_of_run();
                self.held.push(id);
                text.push_str(&self.beyond_context(halves));
                text
            }
        };
        (!text.is_empty()).then_some(text)
    }

    /// What was held back, at the end of the text (an incomplete character becomes U+FFFD).
    pub fn finish(mut self) -> Option<String> {
        let text = match self.tokenizer.alphabet() {
            Alphabet::ByteLevel => String::from_utf8_lossy(&self.bytes).into_owned(),
            Alphabet::Pieces { .. } => {
                let mut text = self.end_of_run();
                text.push_str(&self.beyond_context(false));
                text
            }
        };
        (!text.is_empty()).then_some(text)
    }

    /// Whether `id` has a text here at all.
    fn counts(&self, id: u32) -> bool {
        self.tokenizer.has(id) && !(self.skip_special && self.tokenizer.is_special(id))
    }

    fn remember(&mut self, id: u32) {
        self.context.push_back(id);
        if self.context.len() > CONTEXT {
            self.context.pop_front();
        }
    }

    /// The bytes that later ones cannot change, as text.
    fn decided(&mut self) -> String {
        let decided = self.bytes.len() - undecided(&self.bytes);
        let text = String::from_utf8_lossy(&self.bytes[..decided]).into_owned();
        self.bytes.drain(..decided);
        text
    }

    /// One byte piece. The decoder takes a whole run of them as UTF-8, or each as U+FFFD.
    fn take_byte(&mut self, byte: u8) -> String {
        self.bytes.push(byte);
        if !self.broken {
            match std::str::from_utf8(&self.bytes) {
                Ok(_) => return self.decided(),
                Err(error) if error.error_len().is_none() => return String::new(),
                Err(_) => self.broken = true,
            }
        }
        "\u{fffd}".repeat(std::mem::take(&mut self.bytes).len())
    }

    /// A run of byte pieces is over: what is still open never becomes a character.
    fn end_of_run(&mut self) -> String {
        self.broken = false;
        "\u{fffd}".repeat(std::mem::take(&mut self.bytes).len())
    }

    /// The text of the held ids behind the context, unless it may be half a character.
    fn beyond_context(&mut self, halves: bool) -> String {
        let context: Vec<u32> = self.context.iter().copied().collect();
        let all: Vec<u32> = context.iter().chain(&self.held).copied().collect();
        let decode = |ids: &[u32]| self.tokenizer.decode(ids, false).unwrap_or_default();
        let (before, whole) = (decode(&context), decode(&all));
        if halves && whole.ends_with('\u{fffd}') && self.held.len() < HELD {
            return String::new();
        }
        // Where the context itself reads otherwise now, only what differs can still be told.
        let same = before.chars().zip(whole.chars()).take_while(|(a, b)| a == b);
        let same: usize = same.map(|(a, _)| a.len_utf8()).sum();
        for id in std::mem::take(&mut self.held) {
            self.remember(id);
        }
        whole[same..].to_owned()
    }
}

/// How many trailing bytes begin a character that later bytes may still complete.
fn undecided(mut bytes: &[u8]) -> usize {
    loop {
        match std::str::from_utf8(bytes) {
            Ok(_) => return 0,
            Err(error) => match error.error_len() {
                None => return bytes.len() - error.valid_up_to(),
                Some(bad) => bytes = &bytes[error.valid_up_to() + bad..],
            },
        }
    }
}
