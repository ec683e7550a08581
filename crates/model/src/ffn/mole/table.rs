//! The table of the lookup form as a thing in files: its names, and the note of what it was made from.

use crate::{
    error::{ModelError, Result},
    weights::Weights,
};
use ounce_formats::{Region, fsx};
use serde::{Deserialize, Serialize};

/// Name of the table in a checkpoint.
pub const TABLE: &str = "model.moe_table.weight";
/// Name of the embedding in a checkpoint.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// Key of [`TableRecord`] in a `config.json`.
pub const RECORD: &str = "mole_table";

/// What a table was made from, as lower-case hexadecimal SHA-256 sums.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableRecord {
    /// Of names and bytes of embedding, expert norms and experts.
    pub built_from: String,
    /// Of the embedding's bytes.
    pub embedding: String,
    /// Of the bytes of the rows that [`sampled`] names.
    pub sample: String,
    /// Of all bytes of the table.
    pub rows: String,
}

/// The rows of a table of `vocabulary` rows that [`TableRecord::sample`] covers: at most 64, spread evenly, the last row
/// included.
pub fn sampled(vocabulary: usize) -> Vec<usize> {
    let count = vocabulary.min(64);
    (1..=count).map(|i| i * vocabulary / count - 1).collect()
}

/// The sum of the rows of a table that [`sampled`] names.
pub fn sample_sum(table: &Region) -> String {
    let rows = table.shape.first().copied().unwrap_or(0);
    let row = table.bytes().len() / rows.max(1);
    let named = sampled(rows).into_iter();
    let sample: Vec<u8> = named
        .flat_map(|v| table.bytes()[v * row..(v + 1) * row].iter().copied())
        .collect();
    fsx::sha256_bytes(&sample)
}

/// Compares what the files hold with what the builder noted.
pub(super) fn check_record(record: &TableRecord, weights: &dyn Weights) -> Result<()> {
    let (Some(embedding), Some(table)) = (weights.stored(EMBEDDING)?, weights.stored(TABLE)?) else {
        return Ok(());
    };
    let refuse = |region: &Region, rule: &str| {
        Err(ModelError::Weight {
            file: region.path.display().to_string(),
            tensor: region.name.clone(),
            rule: format!("{rule}, by key \"{RECORD}\" of config.json"),
            hint: "build the table again from the trained model: `ounce convert MODEL --to mole-lut`".into(),
        })
    };
    if fsx::sha256_bytes(embedding.bytes()) != record.embedding {
        return refuse(&embedding, "is not the one the table was built from");
    }
    if sample_sum(&table) != record.sample {
        return refuse(&table, "is not the table that was built for this model");
    }
    Ok(())
}
