//! What a tokenizer may make of a text.
//!
//! Owns the bound on files that multiply a text: a normaliser that writes a page for each letter, a template that
//! repeats the text. Real ones add a few bytes for a space. Bounds come from the file, before any text is read.

use serde_json::Value;
use tokenizers::Tokenizer as Inner;

use super::error::{Result, guard};

/// Most bytes that a byte of text may become on its way to the ids, and that a byte of tokens may become on its way back.
pub(super) const MOST_GROWTH: usize = 1024;
/// Growth that no text is refused for.
const FREE_GROWTH: usize = 32;
/// Most bytes that may come of a text where the growth is beyond that.
const MOST_BYTES: usize = 256 << 20;
/// Most parts of a post-processor's template.
const MOST_PARTS: usize = 64;

/// The growth of a text of `bytes` bytes is bearable.
pub(super) fn fits(growth: usize, bytes: usize) -> bool {
    growth <= FREE_GROWTH || bytes.saturating_mul(growth) <= MOST_BYTES
}

/// How many bytes one byte of text may become; the broken rule if it is too many.
pub(super) fn growth(inner: &Inner) -> Result<std::result::Result<usize, String>> {
    let value = |part: &'static str, value: std::result::Result<Value, serde_json::Error>| guard(part, || value);
    let normalizer = value("reading the normalizer", serde_json::to_value(inner.get_normalizer()))?;
    let decoder = value("reading the decoder", serde_json::to_value(inner.get_decoder()))?;
    let template = value(
        "reading the post-processor",
        serde_json::to_value(inner.get_post_processor()),
    )?;
    let growth = of_steps(&normalizer);
    Ok(if growth > MOST_GROWTH {
        Err(format!("`normalizer` may make more than {MOST_GROWTH} bytes of one"))
    } else if of_steps(&decoder) > MOST_GROWTH {
        Err(format!("`decoder` may make more than {MOST_GROWTH} bytes of one"))
    } else if parts(&template) > MOST_PARTS {
        Err(format!("`post_processor` has more than {MOST_PARTS} parts"))
    } else {
        Ok(growth)
    })
}

/// The product over the steps of a normalizer or decoder.
fn of_steps(value: &Value) -> usize {
    for list in ["normalizers", "decoders"] {
        if let Some(steps) = value[list].as_array() {
            return steps.iter().map(of_steps).fold(1, usize::saturating_mul);
        }
    }
    match value["type"].as_str() {
        Some("Replace") => {
            let written = value["content"].as_str().map_or(0, str::len);
            match value["pattern"]["String"].as_str().map_or(0, str::len) {
                // A regular expression (or nothing) may match between any two bytes.
                0 => written.saturating_add(1),
                read => written.div_ceil(read).max(1),
            }
        }
        Some("Prepend") => value["prepend"].as_str().map_or(1, |text| text.len() / 64 + 1),
        _ => 1,
    }
}

fn parts(value: &Value) -> usize {
    match (value["processors"].as_array(), value["single"].as_array()) {
        (Some(inner), _) => inner.iter().map(parts).sum(),
        (_, Some(single)) => single.len(),
        _ => 0,
    }
}
