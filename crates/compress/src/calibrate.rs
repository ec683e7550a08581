//! Calibration tokens: rows of ids, from a text or from a file of ids.

use crate::{
    error::CompressError,
    recipe::{Calibration, CalibrationSource},
};
use ounce_data::Sources;
use ounce_formats::{SafetensorsFile, TensorView, fsx};
use ounce_kernels::Philox;
use ounce_model::{ModelError, Tokenizer};
use std::path::Path;

/// Sequences of token ids, all of one length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CalibrationIds {
    /// The rows.
    pub rows: Vec<Vec<u32>>,
}

/// Philox stream of the choice of sequences.
const STREAM: u64 = 0x6361_6c69;

/// A calibration text is read up to here: thousands of sequences to choose from, and their ids fit in little memory.
pub const CALIBRATION_TEXT_BYTES: usize = 16 << 20;
/// Bytes of text that are tokenised together; the tokenizer needs many times as much memory.
const PIECE_BYTES: usize = 1 << 20;

impl CalibrationIds {
    /// Reads what the recipe asks for; text (its first 16 MiB, document after document) is tokenised with the tokenizer
    /// in `model`, cut into blocks of `length`, and `sequences` of them are chosen by the seed, kept in the order of the text.
    ///
    /// # Errors
    /// If the file cannot be read, holds no token, or an id is none.
    pub fn load(calibration: &Calibration, model: &Path) -> Result<Self, CompressError> {
        match &calibration.source {
            CalibrationSource::Ids(path) => {
                let file = SafetensorsFile::open(path)?;
                let view = file.view("input_ids")?;
                let &[rows, length] = view.shape else {
                    let rule = format!("tensor \"input_ids\" must be [N, T], is {:?}", view.shape);
                    return Err(refuse(path, rule, "store one sequence of ids per row"));
                };
                let taken = calibration.length.unwrap_or(length).min(length);
                if rows == 0 || taken == 0 {
                    return Err(refuse(
                        path,
                        "tensor \"input_ids\" holds no token",
                        "give at least one row",
                    ));
                }
                // Only the chosen rows are read: the file may be large.
                let chosen = chosen(rows, calibration.sequences.unwrap_or(rows), calibration.seed);
                let read = |row: usize| -> Result<Vec<u32>, CompressError> {
                    let size = view.bytes.len() / (rows * length);
                    let start = row * length * size;
                    let part = TensorView {
                        bytes: &view.bytes[start..start + taken * size],
                        ..view
                    };
                    let ids = part.to_i64_vec()?;
                    let id = |&id: &i64| {
                        let rule = || format!("tensor \"input_ids\": {id} in row {row} is no token id");
                        u32::try_from(id).map_err(|_| refuse(path, rule(), "ids are not negative"))
                    };
                    ids.iter().map(id).collect()
                };
                Ok(Self {
                    rows: chosen.into_iter().map(read).collect::<Result<_, _>>()?,
                })
            }
            CalibrationSource::Text { path, field } => {
                let tokenizer = Tokenizer::open(model).map_err(ModelError::from)?;
                let mut ids = Vec::new();
                // A few bytes more than are used tell whether the text goes on.
                let sources = Sources::open(&[path], field)?.up_to(CALIBRATION_TEXT_BYTES + 4);
                let mut left = CALIBRATION_TEXT_BYTES;
                for document in sources.documents() {
                    let text = document?.text;
                    let text = &text[..cut(&text, left)];
                    left -= text.len();
                    let mut rest = text;
                    while !rest.is_empty() {
                        let (piece, after) = rest.split_at(cut(rest, PIECE_BYTES));
                        // Marks of the beginning belong to the text, not to its pieces.
                        let first = rest.len() == text.len();
                        ids.extend(tokenizer.encode(piece, first).map_err(ModelError::from)?);
                        rest = after;
                    }
                }
                // A text shorter than one sequence is one short sequence.
                let length = calibration.length.unwrap_or(2048).min(ids.len());
                if length == 0 {
                    return Err(refuse(path, "holds no token", "give a longer text"));
                }
                let blocks: Vec<&[u32]> = ids.chunks_exact(length).collect();
                let chosen = chosen(
                    blocks.len(),
                    calibration.sequences.unwrap_or(32),
                    calibration.seed.or(Some(42)),
                );
                Ok(Self {
                    rows: chosen.into_iter().map(|i| blocks[i].to_vec()).collect(),
                })
            }
        }
    }

    /// All tokens.
    pub fn tokens(&self) -> usize {
        self.rows.iter().map(Vec::len).sum()
    }

    /// Refuses ids that the model has no embedding for.
    pub(crate) fn check(&self, calibration: &Calibration, vocabulary: usize) -> Result<(), CompressError> {
        let path = calibration.source.path();
        match self.rows.iter().flatten().find(|&&id| id as usize >= vocabulary) {
            Some(id) => Err(refuse(
                path,
                format!("token id {id} is outside the vocabulary of {vocabulary}"),
                "were the ids made by the tokenizer of this model?",
            )),
            None => Ok(()),
        }
    }

    /// SHA-256 of all rows and their lengths.
    pub(crate) fn hash(&self) -> String {
        let mut bytes = Vec::with_capacity(4 * self.tokens() + 8 * self.rows.len());
        for row in &self.rows {
            bytes.extend((row.len() as u64).to_le_bytes());
            bytes.extend(row.iter().flat_map(|id| id.to_le_bytes()));
        }
        fsx::sha256_bytes(&bytes)
    }
}

fn refuse(path: &Path, rule: impl Into<String>, hint: &str) -> CompressError {
    CompressError::input(path.display().to_string(), rule, hint)
}

/// Where to end a piece of at most `most` bytes: after its last line, or at least between two characters.
fn cut(text: &str, most: usize) -> usize {
    if text.len() <= most {
        return text.len();
    }
    let end = text.floor_char_boundary(most);
    text[..end].rfind('\n').map_or(end, |line| line + 1)
}

/// `count` of `rows`: the first ones without a seed, else a seeded choice, in order.
fn chosen(rows: usize, count: usize, seed: Option<u64>) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rows).collect();
    if count >= rows {
        return order;
    }
    if let Some(seed) = seed {
        order.sort_by_key(|&i| (Philox::at(seed, STREAM, 0, i as u64), i));
    }
    order.truncate(count);
    order.sort_unstable();
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_chosen_by_the_seed_and_stay_in_order() {
        assert_eq!(chosen(3, 9, Some(1)), [0, 1, 2]);
        assert_eq!(chosen(9, 3, None), [0, 1, 2]);
        let (one, two) = (chosen(1000, 5, Some(1)), chosen(1000, 5, Some(2)));
        assert!(one.is_sorted() && one != two && one == chosen(1000, 5, Some(1)));
    }

    #[test]
    fn texts_are_cut_after_a_line_and_never_within_a_character() {
        assert_eq!(cut("ab\ncd", 9), 5);
        assert_eq!(cut("ab\ncd", 4), 3);
        assert_eq!(cut("aäöü", 4), 3);
    }
}
