//! What a killed job finds again: who it was, which layers are measured, what was decided.
//!
//! The journal of the output folder has a line for each; the statistics of a measured layer lie beside the hidden
//! states in `OUT.partial/calibration/`, which is removed once everything is decided.

use super::{LayerReport, MergeJob};
use crate::{calibrate::CalibrationIds, error::CompressError, geometry::Geometry, statistics::LayerStatistics};
use ounce_formats::{Checkpoint, Dtype, OutputFolder, SafetensorsFile, as_bytes, fsx, write_file};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::{Path, PathBuf},
};

/// Everything that decides a byte of the result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Identity {
    ounce: String,
    instruction_set: String,
    model: String,
    recipe: String,
    calibration: Option<String>,
    expanded: bool,
}

/// Bytes of each tensor that tell models of one shape apart; reading whole checkpoints would take too long.
const SAMPLE: usize = 256;

impl Identity {
    pub(super) fn of(
        job: &MergeJob,
        checkpoint: &Checkpoint,
        ids: Option<&CalibrationIds>,
    ) -> Result<Self, CompressError> {
        let mut model = checkpoint.config().to_string().into_bytes();
        for info in checkpoint.tensors() {
            let region = checkpoint.region(&info.name)?;
            let bytes = region.bytes();
            model.extend(format!("{} {:?} {:?} ", info.name, info.dtype, info.shape).as_bytes());
            model.extend(&bytes[..bytes.len().min(SAMPLE)]);
        }
        Ok(Self {
            ounce: env!("CARGO_PKG_VERSION").into(),
            instruction_set: format!("{:?}", ounce_kernels::isa()).to_lowercase(),
            model: fsx::sha256_bytes(&model),
            recipe: fsx::sha256_bytes(job.recipe.to_toml()?.as_bytes()),
            calibration: ids.map(CalibrationIds::hash),
            expanded: job.expanded,
        })
    }

    /// What another job differs in, in words.
    fn difference(&self, other: &Self) -> String {
        let mut text = String::new();
        for (differs, what) in [
            (self.ounce != other.ounce, "another version of Ounce"),
            (
                self.instruction_set != other.instruction_set,
                "another instruction set (OUNCE_ISA)",
            ),
            (self.model != other.model, "another model"),
            (self.recipe != other.recipe, "another recipe"),
            (self.calibration != other.calibration, "other calibration tokens"),
            (self.expanded != other.expanded, "another setting of --expanded"),
        ] {
            if differs {
                let _ = write!(text, "{}{what}", if text.is_empty() { "" } else { " and " });
            }
        }
        text
    }
}

/// What was decided.
#[derive(Serialize, Deserialize)]
pub(super) struct Decided {
    pub(super) plan: Vec<LayerReport>,
    pub(super) calibration_tokens: usize,
}

/// The journal and the folder it is in.
pub(super) struct Journal {
    pub(super) folder: OutputFolder,
    /// The command line that began the job.
    pub(super) command: String,
}

impl Journal {
    /// Begins the job in `folder`, or makes sure that it is the one begun there.
    ///
    /// # Errors
    /// Another job was begun there.
    pub(super) fn begin(mut folder: OutputFolder, identity: &Identity, job: &MergeJob) -> Result<Self, CompressError> {
        let place = || folder.path().display().to_string();
        let command = match folder.entries() {
            [] => job.command_line.clone(),
            [first, ..] => {
                let began: Option<Identity> = first.get("job").and_then(|j| serde_json::from_value(j.clone()).ok());
                let rule = match began {
                    Some(began) if began == *identity => None,
                    Some(began) => Some(format!("was begun with {}", began.difference(identity))),
                    None => Some("was begun by another version of Ounce, or another command".to_owned()),
                };
                if let Some(rule) = rule {
                    return Err(CompressError::input(
                        place(),
                        rule,
                        "--overwrite starts again; with what it was begun with, --resume continues",
                    ));
                }
                let command = first.get("command").and_then(Value::as_str);
                command.unwrap_or(&job.command_line).to_owned()
            }
        };
        if folder.entries().is_empty() {
            folder.record(&json!({ "job": identity, "command": command }))?;
        }
        Ok(Self { folder, command })
    }

    /// Where hidden states and statistics are kept meanwhile.
    pub(super) fn scratch(&self) -> PathBuf {
        self.folder.path().join(SCRATCH)
    }

    /// The decision of an earlier process, if it came so far.
    pub(super) fn decided(&self) -> Option<Decided> {
        let entry = self.folder.entries().iter().find_map(|e| e.get("decided"))?;
        serde_json::from_value(entry.clone()).ok()
    }

    /// Enters the decision; from here on, what was measured is not needed.
    pub(super) fn decide(&mut self, decided: &Decided) -> Result<(), CompressError> {
        Ok(self.folder.record(&json!({ "decided": decided }))?)
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
        for entry in self.folder.entries() {
            let Some(layer) = entry.get("measured").and_then(Value::as_u64) else {
                continue;
            };
            layers = layer as usize + 1;
            if entry["mixture"] == true {
                statistics.push(load(&statistics_file(&self.scratch(), layer as usize), layer as usize)?);
            }
        }
        Ok((layers, statistics))
    }

    /// Keeps what was measured of a layer.
    pub(super) fn measure(&mut self, layer: usize, statistics: Option<&LayerStatistics>) -> Result<(), CompressError> {
        if let Some(statistics) = statistics {
            save(&statistics_file(&self.scratch(), layer), statistics)?;
        }
        let mixture = statistics.is_some();
        Ok(self.folder.record(&json!({ "measured": layer, "mixture": mixture }))?)
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
