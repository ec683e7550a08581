//! Decoding one id at a time.
//!
//! Owns the state between two tokens of a growing text: a character may be spread over several tokens and must not
//! be shown in halves. Byte-level tokenizers are exact by construction (bytes are concatenated, the longest decided
//! prefix goes out). Others decode a short window, because what a piece says may depend on its neighbours. It must
//! not know who generates the ids.

use super::{Alphabet, Tokenizer};

/// Turns ids into pieces of text whose concatenation (with [`StreamDecoder::finish`]) is the decoded whole.
///
/// One exception, for tokenizers with byte fallback: a run of byte pieces that *turns* invalid after a valid part has
/// been shown. The whole decode then replaces the valid part too, and text once shown cannot be taken back.
#[derive(Clone, Debug)]
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// Byte-level: bytes not yet shown.
    bytes: Vec<u8>,
    /// Otherwise: the ids last shown (context), then those not yet shown.
    window: Vec<u32>,
    shown: usize,
}

impl StreamDecoder {
    /// A decoder at the start of a text; `skip_special` leaves out special tokens.
    pub fn new(tokenizer: &Tokenizer, skip_special: bool) -> Self {
        Self {
            tokenizer: tokenizer.clone(),
            skip_special,
            bytes: Vec::new(),
            window: Vec::new(),
            shown: 0,
        }
    }

    /// Takes the next id; `Some` text as soon as it is certain. An id without a token (a model with a padded
    /// embedding can produce one) says nothing.
    pub fn push(&mut self, id: u32) -> Option<String> {
        if self.skip_special && self.tokenizer.is_special(id) {
            return None;
        }
        let bytes = self.tokenizer.token_bytes(id).ok()?;
        if self.tokenizer.0.alphabet == Alphabet::ByteLevel {
            self.bytes.extend(bytes);
            let decided = self.bytes.len() - undecided(&self.bytes);
            let text = String::from_utf8_lossy(&self.bytes[..decided]).into_owned();
            self.bytes.drain(..decided);
            return (!text.is_empty()).then_some(text);
        }
        self.window.push(id);
        let whole = self.tokenizer.decode(&self.window, false).ok()?;
        // A window ending in U+FFFD may be half a character.
        if whole.ends_with('\u{fffd}') {
            return None;
        }
        let text = self.fresh(&whole);
        if !text.is_empty() {
            self.window.drain(..self.shown);
            self.shown = self.window.len();
        }
        (!text.is_empty()).then_some(text)
    }

    /// What was held back, at the end of the text (an incomplete character becomes U+FFFD).
    pub fn finish(mut self) -> Option<String> {
        let text = if self.tokenizer.0.alphabet == Alphabet::ByteLevel {
            String::from_utf8_lossy(&std::mem::take(&mut self.bytes)).into_owned()
        } else {
            self.tokenizer
                .decode(&self.window, false)
                .map(|whole| self.fresh(&whole))
                .unwrap_or_default()
        };
        (!text.is_empty()).then_some(text)
    }

    /// The part of the window's text that has not been shown.
    fn fresh(&self, whole: &str) -> String {
        let (context, rest) = self.window.split_at(self.shown);
        let before = if context.is_empty() {
            Ok(String::new())
        } else {
            self.tokenizer.decode(context, false)
        };
        match before.ok().and_then(|before| whole.strip_prefix(&before)) {
            Some(text) => text.to_owned(),
            // The exception above: the context changed under our feet, so only the rest can still be told.
            None => self.tokenizer.decode(rest, false).unwrap_or_default(),
        }
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
