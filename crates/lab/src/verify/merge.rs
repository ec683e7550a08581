//! `merge` cases with a model: statistics, groups, merged weights, and logits of every written checkpoint.

use super::{Checks, VerifyError, doubles, floats, rows, worst};
use ounce_compress::{
    CalibrationIds, LayerReport, MergeJob, MergeRecipe,
    cluster::Linkage,
    hc_smoe, merge,
    prune::Score,
    recipe::Similarity,
    scores,
    statistics::{LayerStatistics, Wanted, gather},
};
use ounce_formats::{Checkpoint, SafetensorsFile};
use ounce_model::{Batch, Model};
use ounce_tensor::{Compute, no_grad};
use std::{
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

/// Logits, against the reference's float32.
const LOGITS: f64 = 1e-4;
/// Merged weights.
const WEIGHTS: f64 = 1e-6;

/// A statistic of a layer, flattened.
type Column = fn(&LayerStatistics) -> Vec<f64>;

struct Case<'a> {
    dir: &'a Path,
    expected: SafetensorsFile,
    model: Model,
    experts: usize,
    scratch: tempfile::TempDir,
}

pub(super) fn run(dir: &Path, checks: &mut Checks) -> Result<(), VerifyError> {
    let model = Model::open(&dir.join("model"), false)?;
    let experts = model.config.moe_layers().map(|(_, m)| m.experts).max().unwrap_or(0);
    let case = Case {
        dir,
        expected: SafetensorsFile::open(&dir.join("expected.safetensors"))?,
        model,
        experts,
        scratch: tempfile::tempdir().map_err(|e| VerifyError::Case(format!("a temporary folder: {e}")))?,
    };
    let statistics = case.statistics()?;
    case.check_statistics(&statistics, checks)?;
    case.check_groups(&statistics, checks)?;
    case.check_identity(checks)?;
    let names: Vec<String> = case
        .expected
        .names()
        .filter(|n| n.starts_with("logits."))
        .map(str::to_owned)
        .collect();
    for name in names {
        case.check_logits(&name, checks)?;
    }
    Ok(())
}

impl Case<'_> {
    fn statistics(&self) -> Result<Vec<LayerStatistics>, VerifyError> {
        let view = SafetensorsFile::open(&self.dir.join("calib.safetensors"))?;
        let view = view.view("input_ids")?;
        let length = view.shape.last().copied().unwrap_or(1);
        let ids = view.to_i64_vec()?;
        let rows = ids
            .chunks(length)
            .map(|row| row.iter().map(|&id| id as u32).collect())
            .collect();
        let wanted = Wanted {
            outputs: true,
            router_columns: true,
        };
        Ok(gather(
            &self.model,
            &CalibrationIds { rows },
            wanted,
            &mut |_, _| {},
            &AtomicBool::new(false),
        )?)
    }

    fn check_statistics(&self, ours: &[LayerStatistics], checks: &mut Checks) -> Result<(), VerifyError> {
        let counts: Vec<i64> = ours.iter().flat_map(|s| &s.usage_counts).map(|&c| c as i64).collect();
        let theirs = self.expected.view("usage_counts")?.to_i64_vec()?;
        checks.equal(
            "usage_counts",
            counts == theirs,
            format!("{counts:?} where {theirs:?} is expected"),
        );
        let columns: [(&str, Column); 6] = [
            ("usage_freq", LayerStatistics::usage_freq),
            ("router_prob_mean", |s| s.router_prob_mean.clone()),
            ("mean_output", |s| s.mean_output.clone()),
            ("ean_sum", |s| scores(s, Score::EanSum)),
            ("ean_mean", |s| scores(s, Score::EanMean)),
            ("reap_softmax", |s| scores(s, Score::ReapSoftmax)),
        ];
        for (name, column) in columns {
            if self.expected.contains(name) {
                let ours: Vec<f64> = ours.iter().flat_map(column).collect();
                let theirs = doubles(&self.expected, name)?;
                // 1e-5 absolute plus 1e-4 relative, expressed as a share of what is allowed.
                let share = |(a, b): (&f64, &f64)| (a - b).abs() / (1e-5 + 1e-4 * b.abs());
                let worst = ours.iter().zip(&theirs).map(share).fold(0.0, f64::max);
                checks.close(format!("{name} (share of 1e-5 + 1e-4 relative)"), worst, 1.0);
            }
        }
        Ok(())
    }

    fn check_groups(&self, statistics: &[LayerStatistics], checks: &mut Checks) -> Result<(), VerifyError> {
        let features = [
            ("output", Similarity::ExpertOutput),
            ("router", Similarity::RouterLogits),
            ("weight", Similarity::Weight),
        ];
        let linkages = [
            ("average", Linkage::Average),
            ("complete", Linkage::Complete),
            ("single", Linkage::Single),
        ];
        for (feature, similarity) in features {
            for (linkage_name, linkage) in linkages {
                for r in 1..=self.experts {
                    let name = format!("labels.{feature}.{linkage_name}.r{r}");
                    if !self.expected.contains(&name) {
                        continue;
                    }
                    let budget = MergeRecipe::from_toml(&recipe(&format!("budget = {{ experts = {r} }}"), "x"))
                        .map_err(|e| VerifyError::Case(e.to_string()))?
                        .budget;
                    let plans = hc_smoe::plan(&self.model, statistics, similarity, linkage, &budget)?;
                    let ours: Vec<i64> = plans
                        .iter()
                        .flat_map(|p| p.grouping.labels())
                        .map(|&l| l as i64)
                        .collect();
                    let theirs = self.expected.view(&name)?.to_i64_vec()?;
                    checks.equal(name, ours == theirs, format!("{ours:?} where {theirs:?} is expected"));
                }
            }
        }
        Ok(())
    }

    /// Keeping all experts gives back every weight, bit for bit.
    fn check_identity(&self, checks: &mut Checks) -> Result<(), VerifyError> {
        let (out, _) = self.merged("identity", &format!("budget = {{ experts = {} }}", self.experts), false)?;
        let (before, after) = (Checkpoint::open(&self.dir.join("model"))?, Checkpoint::open(&out)?);
        let mut differing = Vec::new();
        for name in before.names() {
            if before.region(name)?.bytes() != after.region(name)?.bytes() {
                differing.push(name.to_owned());
            }
        }
        checks.equal(
            "r = n changes no bit",
            differing.is_empty(),
            format!("{differing:?} differ"),
        );
        Ok(())
    }

    /// Merges or prunes into a scratch folder.
    fn merged(&self, name: &str, keys: &str, expanded: bool) -> Result<(PathBuf, Vec<LayerReport>), VerifyError> {
        let out = self.scratch.path().join(name);
        let calibration = self.dir.join("calib.safetensors");
        let recipe = MergeRecipe::from_toml(&recipe(keys, &calibration.display().to_string()))
            .map_err(|e| VerifyError::Case(e.to_string()))?;
        let job = MergeJob {
            model: self.dir.join("model"),
            recipe,
            out: out.clone(),
            expanded,
            overwrite: true,
            resume: false,
            command_line: "ounce verify".into(),
        };
        let report = merge(&job, &mut |_| {}, &AtomicBool::new(false))?;
        Ok((out, report.layers))
    }

    fn logits(&self, dir: &Path) -> Result<Vec<f32>, VerifyError> {
        let view = self.expected.view("test_ids")?;
        let ids: Vec<u32> = view.to_i64_vec()?.into_iter().map(|id| id as u32).collect();
        let batch = Batch {
            ids: &ids,
            batch: rows(&self.expected, "test_ids")?,
            compute: Compute::F32,
        };
        let model = Model::open(dir, true)?;
        Ok(no_grad(|| model.forward(batch))?.to_f32())
    }

    fn check_logits(&self, name: &str, checks: &mut Checks) -> Result<(), VerifyError> {
        let theirs = floats(&self.expected, name)?;
        let parts: Vec<&str> = name.split('.').collect();
        let r = |part: &str| part.strip_prefix('r').and_then(|r| r.parse::<usize>().ok());
        let merge_name = |rule: &str| match rule {
            "freq" => Some("frequency"),
            "average" => Some("average"),
            "aligned_freq" => Some("aligned"),
            "aligned_average" => Some("aligned-average"),
            _ => None,
        };
        match parts[1..] {
            ["original"] => {
                checks.close(name, worst(&self.logits(&self.dir.join("model"))?, &theirs), LOGITS);
            }
            ["prune", "global", _] => {
                // A global budget gives layers different counts, which no stock configuration can express.
            }
            ["prune", score, count] => {
                let Some(count) = r(count) else { return Ok(()) };
                let keys = format!(
                    "method = \"prune\"\nscore = \"{}\"\nbudget = {{ experts = {count} }}",
                    score.replace('_', "-")
                );
                let (out, _) = self.merged(name, &keys, false)?;
                checks.close(name, worst(&self.logits(&out)?, &theirs), LOGITS);
            }
            [rule] | [rule, _] => {
                // The cases of permuted and duplicated experts hold pairs: half as many groups.
                let count = parts.get(2).map_or(Some(self.experts / 2), |p| r(p));
                let (Some(rule), Some(count)) = (merge_name(rule), count) else {
                    return Ok(());
                };
                let keys = format!("merge = \"{rule}\"\nbudget = {{ experts = {count} }}");
                let (out, layers) = self.merged(name, &keys, false)?;
                let collapsed = self.logits(&out)?;
                checks.close(name, worst(&collapsed, &theirs), LOGITS);
                let (expanded, _) = self.merged(&format!("{name}.expanded"), &keys, true)?;
                checks.close(
                    format!("{name}, expanded"),
                    worst(&self.logits(&expanded)?, &theirs),
                    LOGITS,
                );
                if parts.len() > 2 {
                    self.check_weights(parts[1], count, &out, layers.len(), checks)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn check_weights(
        &self,
        rule: &str,
        count: usize,
        out: &Path,
        layers: usize,
        checks: &mut Checks,
    ) -> Result<(), VerifyError> {
        let model = Model::open(out, true)?;
        let blocks = model.plan().blocks();
        for (m, matrix) in ["gate_proj", "up_proj", "down_proj"].into_iter().enumerate() {
            let name = format!("merged.{rule}.r{count}.{matrix}");
            if !self.expected.contains(&name) {
                continue;
            }
            let mut ours = Vec::new();
            let moes = blocks.iter().filter_map(|b| b.ffn().as_moe()).take(layers);
            for expert in moes.flat_map(|moe| &moe.experts) {
                ours.extend([&expert.gate, &expert.up, &expert.down][m].weight.tensor.to_f32());
            }
            checks.close(name.clone(), worst(&ours, &floats(&self.expected, &name)?), WEIGHTS);
        }
        Ok(())
    }
}

/// A recipe with `keys` that calibrates on the ids in `file`.
fn recipe(keys: &str, file: &str) -> String {
    format!("{keys}\ncalibration = {{ ids = {file:?} }}\n")
}
