//! What a killed merge finds again: which layers are measured, what was decided.
//!
//! The journal of the output folder has a line for each; the statistics of a measured layer lie beside the hidden
//! states in `OUT.partial/calibration/`, which is removed once everything is decided.

use super::LayerReport;
use crate::{error::CompressError, geometry::Geometry, statistics::LayerStatistics};
use ounce_formats::{Dtype, FormatError, OutputFolder, SafetensorsFile, as_bytes, fsx, write_file};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// What was decided.
#[derive(Serialize, Deserialize)]
pub(super) struct Decided {
    pub(super) plan: Vec<LayerReport>,
    pub(super) calibration_tokens: usize,
}

/// The merge's own lines in the journal of an output folder, and its scratch.
pub(super) struct Journal<'a>(pub(super) &'a mut OutputFolder);

impl Journal<'_> {
    /// Where hidden states and statistics are kept meanwhile.
    pub(super) fn scratch(&self) -> PathBuf {
        self.0.path().join(SCRATCH)
    }

    /// The decision of an earlier process, if it came so far.
    pub(super) fn decided(&self) -> Option<Decided> {
        let entry = self.0.entries().iter().find_map(|e| e.get("decided"))?;
        serde_json::from_value(entry.clone()).ok()
    }

    /// Enters the decision; from here on, what was measured is not needed.
    pub(super) fn decide(&mut self, decided: &Decided) -> Result<(), CompressError> {
        Ok(self.0.record(&json!({ "decided": decided }))?)
    }

    pub(super) fn remove_scratch(&self) -> Result<(), CompressError> {
        Ok(fsx::remove(&self.scratch())?)
    }

    /// The layers measured by earlier processes: how many, and the statistics of the mixtures among them.
    ///
    /// # Errors
    /// A file that the journal speaks of is gone or damaged.
    pub(super) fn measured(&self) -> Result<(usize, Vec<LayerStatistics>), CompressError> {
        let mut statistics = Vec::new();
        let mut layers = 0;
        for entry in self.0.entries() {
            let Some(layer) = entry.get("measured").and_then(Value::as_u64) else {
                continue;
            };
            layers = layer as usize + 1;
            if let Some(sum) = entry["statistics"].as_str() {
                let file = statistics_file(&self.scratch(), layer as usize);
                if fsx::sha256_file(&file)? != sum {
                    let rule = "does not hold what was measured";
                    let hint = "`--overwrite` starts again";
                    return Err(FormatError::Place {
                        path: file,
                        rule: rule.into(),
                        hint: hint.into(),
                    }
                    .into());
                }
                statistics.push(load(&file, layer as usize)?);
            }
        }
        Ok((layers, statistics))
    }

    /// Keeps what was measured of a layer.
    pub(super) fn measure(&mut self, layer: usize, statistics: Option<&LayerStatistics>) -> Result<(), CompressError> {
        let mut sum = None;
        if let Some(statistics) = statistics {
            let file = statistics_file(&self.scratch(), layer);
            save(&file, statistics)?;
            sum = Some(fsx::sha256_file(&file)?);
        }
        Ok(self.0.record(&json!({ "measured": layer, "statistics": sum }))?)
    }
}

const SCRATCH: &str = "calibration";

fn statistics_file(dir: &Path, layer: usize) -> PathBuf {
    dir.join(format!("statistics-{layer}.safetensors"))
}

const COUNTS: &str = "usage_counts";

/// Everything but the mean outputs, of which only the distances are needed later.
fn save(path: &Path, s: &LayerStatistics) -> Result<(), CompressError> {
    let mut all: Vec<(&str, &[f64])> = vec![
        ("router_prob_mean", &s.router_prob_mean),
        ("norm_sum", &s.norm_sum),
        ("norm_sum_softmax", &s.norm_sum_softmax),
        ("norm_sum_renorm", &s.norm_sum_renorm),
        ("subset_losses", &s.subset_losses),
    ];
    if let Some((squared, norm)) = s.output_geometry.as_ref().map(Geometry::parts) {
        all.extend([("output.squared", squared), ("output.norm", norm)]);
    }
    if let Some((squared, norm)) = s.router_geometry.as_ref().map(Geometry::parts) {
        all.extend([("router.squared", squared), ("router.norm", norm)]);
    }
    let shapes: Vec<[usize; 1]> = all.iter().map(|(_, values)| [values.len()]).collect();
    let counts: Vec<i64> = s.usage_counts.iter().map(|&c| c as i64).collect();
    let shape = [counts.len()];
    let mut tensors: Vec<(&str, Dtype, &[usize], &[u8])> = vec![(COUNTS, Dtype::I64, &shape, as_bytes(&counts))];
    for ((name, values), shape) in all.into_iter().zip(&shapes) {
        tensors.push((name, Dtype::F64, shape, as_bytes(values)));
    }
    Ok(write_file(path, &tensors, &BTreeMap::new())?)
}

fn load(path: &Path, layer: usize) -> Result<LayerStatistics, CompressError> {
    let file = SafetensorsFile::open(path)?;
    let doubles = |name: &str| -> Result<Vec<f64>, CompressError> {
        let view = file.view(name)?;
        Ok(view
            .bytes
            .as_chunks::<8>()
            .0
            .iter()
            .map(|&b| f64::from_le_bytes(b))
            .collect())
    };
    let geometry = |name: &str| -> Result<Option<Geometry>, CompressError> {
        let (squared, norm) = (format!("{name}.squared"), format!("{name}.norm"));
        if !file.contains(&squared) {
            return Ok(None);
        }
        Ok(Geometry::from_parts(doubles(&squared)?, doubles(&norm)?))
    };
    let counts = file.view(COUNTS)?.to_i64_vec()?;
    Ok(LayerStatistics {
        layer,
        usage_counts: counts.into_iter().map(|c| c as u64).collect(),
        router_prob_mean: doubles("router_prob_mean")?,
        mean_output: Vec::new(),
        output_geometry: geometry("output")?,
        router_geometry: geometry("router")?,
        norm_sum: doubles("norm_sum")?,
        norm_sum_softmax: doubles("norm_sum_softmax")?,
        norm_sum_renorm: doubles("norm_sum_renorm")?,
        subset_losses: doubles("subset_losses")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_come_back_bit_for_bit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let s = LayerStatistics {
            layer: 3,
            usage_counts: vec![0, 1 << 60],
            router_prob_mean: vec![0.1, 1.0 / 3.0],
            output_geometry: Some(Geometry::from_points(&[0.1, 0.2, 5.0, -0.3], 2).unwrap()),
            norm_sum: vec![5e-324, 7.0],
            norm_sum_softmax: vec![0.0; 2],
            norm_sum_renorm: vec![0.0; 2],
            ..LayerStatistics::default()
        };
        save(&path, &s).unwrap();
        assert_eq!(load(&path, 3).unwrap(), s);
    }
}
