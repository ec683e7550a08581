//! How the text of one token turns into bytes, by the tokenizer's decoder.

use serde_json::Value;

use super::error::{Result, guard};

/// How the text of one token turns into bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alphabet {
    /// Each character stands for one byte (GPT-2's table); the decoder is nothing but that.
    ByteLevel,
    /// Pieces of text.
    Pieces {
        /// `▁` stands for a space.
        space: bool,
        /// `<0x0A>` stands for a byte.
        bytes: bool,
        /// Some step reads GPT-2's table, so that one token may be half a character.
        halves: bool,
    },
}

impl Alphabet {
    /// The decoder's wrapper types do not expose their fields; what they serialise to does.
    pub(super) fn of(decoder: Option<&tokenizers::DecoderWrapper>) -> Result<Self> {
        let value = guard("reading the decoder", || serde_json::to_value(decoder))?;
        let mut steps = Vec::new();
        flatten(&value, &mut steps);
        let has = |name: &str| steps.iter().any(|step| step["type"] == name);
        if let [step] = steps[..]
            && step["type"] == "ByteLevel"
        {
            return Ok(Self::ByteLevel);
        }
        let replaces = steps
            .iter()
            .any(|step| step["type"] == "Replace" && step["pattern"]["String"] == "▁");
        Ok(Self::Pieces {
            space: has("Metaspace") || replaces,
            bytes: has("ByteFallback"),
            halves: has("ByteLevel"),
        })
    }
}

/// The steps of a decoder, sequences within sequences opened.
fn flatten<'a>(value: &'a Value, steps: &mut Vec<&'a Value>) {
    match value["decoders"].as_array() {
        Some(inner) => inner.iter().for_each(|step| flatten(step, steps)),
        None => steps.push(value),
    }
}

/// The byte of a byte-fallback piece: `<0x0A>` is 10.
pub(super) fn byte_piece(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (hex.len() == 2).then(|| u8::from_str_radix(hex, 16).ok())?
}

/// GPT-2's bijection: printable Latin-1 stands for itself, the other 68 bytes for the code points from 256 on.
pub(super) fn byte_chars() -> [char; 256] {
    let mut next = 256;
    std::array::from_fn(|byte| {
        let code = if matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) {
            byte as u32
        } else {
            next += 1;
            next - 1
        };
        char::from_u32(code).expect("invariant: the table stays below U+0180")
    })
}

/// [`byte_chars`] the other way, indexed by code point.
pub(super) fn char_bytes() -> Vec<Option<u8>> {
    let mut table = vec![None; 512];
    for (byte, c) in byte_chars().into_iter().enumerate() {
        table[c as usize] = Some(byte as u8);
    }
    table
}
