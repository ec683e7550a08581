//! Calibration tokens: rows of ids, from a text or from a file of ids.

use crate::{
    error::CompressError,
    recipe::{Calibration, CalibrationSource},
};
use ounce_formats::{SafetensorsFile, fsx};
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

impl CalibrationIds {
    /// Reads what the recipe asks for; text is tokenised with the tokenizer in `model`, cut into blocks of `length`, and
    /// `sequences` of them are chosen by the seed, kept in the order of the text.
    ///
    /// # Errors
    /// If the file cannot be read, or holds fewer tokens than one sequence.
    pub fn load(calibration: &Calibration, model: &Path) -> Result<Self, CompressError> {
        match &calibration.source {
            CalibrationSource::Ids(path) => {
                let file = SafetensorsFile::open(path)?;
                let view = file.view("input_ids")?;
                let [rows, length] = view.shape[..] else {
                    let rule = format!("tensor \"input_ids\" must be [N, T], is {:?}", view.shape);
                    return Err(CompressError::input(path.display().to_string(), rule, ""));
                };
                let ids = view.to_i64_vec()?;
                let all: Vec<Vec<u32>> = ids
                    .chunks(length.max(1))
                    .map(|row| {
                        row.iter()
                            .take(calibration.length.unwrap_or(length))
                            .map(|&id| id as u32)
                            .collect()
                    })
                    .collect();
                if let Some(bad) = ids.iter().find(|&&id| u32::try_from(id).is_err()) {
                    let rule = format!("token id {bad} is no id");
                    return Err(CompressError::input(path.display().to_string(), rule, ""));
                }
                Ok(Self {
                    rows: chosen(all, calibration.sequences.unwrap_or(rows), calibration.seed),
                })
            }
            CalibrationSource::Text(path) => {
                let text = fsx::read_to_string(path)?;
                let tokenizer = Tokenizer::from_folder(model).map_err(ModelError::from)?;
                let ids = tokenizer.encode(&text, true).map_err(ModelError::from)?;
                let length = calibration.length.unwrap_or(2048);
                // A text shorter than one sequence is one short sequence.
                let length = length.min(ids.len());
                let all: Vec<Vec<u32>> = ids.chunks_exact(length.max(1)).map(<[u32]>::to_vec).collect();
                if all.is_empty() {
                    return Err(CompressError::input(
                        path.display().to_string(),
                        "holds no token",
                        "give a longer text",
                    ));
                }
                Ok(Self {
                    rows: chosen(all, calibration.sequences.unwrap_or(32), calibration.seed.or(Some(42))),
                })
            }
        }
    }

    /// All tokens.
    pub fn tokens(&self) -> usize {
        self.rows.iter().map(Vec::len).sum()
    }
}

/// `count` of the rows: the first ones without a seed, else a seeded choice in file order.
fn chosen(rows: Vec<Vec<u32>>, count: usize, seed: Option<u64>) -> Vec<Vec<u32>> {
    if count >= rows.len() {
        return rows;
    }
    let Some(seed) = seed else {
        return rows.into_iter().take(count).collect();
    };
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|&i| (Philox::at(seed, STREAM, 0, i as u64), i));
    let mut keep = vec![false; rows.len()];
    for &i in &order[..count] {
        keep[i] = true;
    }
    rows.into_iter()
        .zip(keep)
        .filter_map(|(row, keep)| keep.then_some(row))
        .collect()
}
