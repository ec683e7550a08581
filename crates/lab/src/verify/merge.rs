//! `merge` cases with a model: statistics, groups, merged weights, and logits of every written checkpoint.

use super::{Checks, VerifyError, doubles, floats, rows, worst};
use ounce_compress::{
    CalibrationIds, CompressError, LayerReport, MergeJob, MergeRecipe,
    cluster::{CutError, Linkage, agglomerate},
    gather,
    geometry::Geometry,
    grouping, hc_smoe, merge, oprune,
    prune::{Score, keep_best},
    recipe::Similarity,
    statistics::{LayerStatistics, Wanted},
};
use ounce_formats::{Checkpoint, Overwrite, SafetensorsFile};
use ounce_model::{Batch, Model, OpenOptions};
use ounce_tensor::{Compute, no_grad};
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

/// Logits, against the reference's float32.
const LOGITS: f64 = 1e-4;
/// Merged weights.
const WEIGHTS: f64 = 1e-6;

/// Pruning scores by their names in the cases.
const SCORES: [(&str, Score); 6] = [
    ("usage_counts", Score::UsageCounts),
    ("router_prob_mean", Score::RouterProbMean),
    ("ean_sum", Score::EanSum),
    ("ean_mean", Score::EanMean),
    ("reap_softmax", Score::ReapSoftmax),
    ("reap_renorm", Score::ReapRenorm),
];

/// A statistic of a layer, flattened.
type Column = fn(&LayerStatistics) -> Vec<f64>;

struct Case<'a> {
    dir: &'a Path,
    expected: SafetensorsFile,
    model: Model,
    experts: usize,
    /// Experts kept in all layers together by a global budget.
    global: usize,
    scratch: tempfile::TempDir,
}

pub(super) fn run(dir: &Path, json: &Value, checks: &mut Checks) -> Result<(), VerifyError> {
    let model = Model::open(&dir.join("model"), &OpenOptions::default())?;
    let experts = model.config.moe_layers().map(|(_, m)| m.experts).max().unwrap_or(0);
    let case = Case {
        dir,
        expected: SafetensorsFile::open(&dir.join("expected.safetensors"))?,
        model,
        experts,
        global: json["global_prune_budget"].as_u64().unwrap_or(0) as usize,
        scratch: tempfile::tempdir().map_err(|e| VerifyError::Case(format!("a temporary folder: {e}")))?,
    };
    let statistics = case.statistics(None)?;
    case.check_statistics(&statistics, checks)?;
    case.check_pruning(&statistics, checks)?;
    case.check_groups(&statistics, checks)?;
    case.check_members(&statistics, checks)?;
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
    fn statistics(&self, subsets: Option<usize>) -> Result<Vec<LayerStatistics>, VerifyError> {
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
            subsets,
        };
        Ok(gather(
            &self.model,
            &CalibrationIds { rows },
            wanted,
            self.scratch.path(),
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
        let columns: [(&str, Column); 7] = [
            ("usage_freq", LayerStatistics::usage_freq),
            ("router_prob_mean", |s| s.router_prob_mean.clone()),
            ("mean_output", |s| s.mean_output.clone()),
            ("ean_sum", |s| s.scores(Score::EanSum)),
            ("ean_mean", |s| s.scores(Score::EanMean)),
            ("reap_softmax", |s| s.scores(Score::ReapSoftmax)),
            ("reap_renorm", |s| s.scores(Score::ReapRenorm)),
        ];
        for (name, column) in columns {
            if self.expected.contains(name) {
                let ours: Vec<f64> = ours.iter().flat_map(column).collect();
                statistic(checks, name, &ours, &doubles(&self.expected, name)?);
            }
        }
        Ok(())
    }

    /// Kept ids for every score, and O-prune: all subsets, their losses, the best one.
    fn check_pruning(&self, statistics: &[LayerStatistics], checks: &mut Checks) -> Result<(), VerifyError> {
        for r in 1..=self.experts {
            for (name, score) in SCORES {
                let name = format!("prune.{name}.r{r}");
                if self.expected.contains(&name) {
                    let kept = statistics.iter().map(|s| keep_best(&s.scores(score), r));
                    let kept: Vec<Vec<usize>> = kept.collect::<Result<_, _>>().map_err(CompressError::from)?;
                    self.check_ids(name, &kept, checks)?;
                }
            }
            let name = format!("oprune.loss.r{r}");
            if !self.expected.contains(&name) {
                continue;
            }
            let measured = self.statistics(Some(r))?;
            let losses: Vec<f64> = measured.iter().flat_map(|s| s.subset_losses.clone()).collect();
            statistic(checks, &name, &losses, &doubles(&self.expected, &name)?);
            let subsets = oprune::subsets(self.experts, r);
            self.check_ids(format!("oprune.subsets.r{r}"), &subsets, checks)?;
            let best = measured.iter().map(|s| oprune::best(self.experts, r, &s.subset_losses));
            let best: Vec<Vec<usize>> = best.collect();
            self.check_ids(format!("oprune.best.r{r}"), &best, checks)?;
            // And through a written checkpoint.
            let keys = format!("method = \"o-prune\"\nbudget = {{ experts = {r} }}");
            let (_, layers) = self.merged(&format!("oprune.r{r}"), &keys, false)?;
            let written: Vec<Vec<usize>> = layers.iter().map(|l| l.groups().concat()).collect();
            checks.equal(
                format!("oprune.best.r{r}, written"),
                written == best,
                format!("{written:?}"),
            );
        }
        Ok(())
    }

    fn check_ids(&self, name: String, ours: &[Vec<usize>], checks: &mut Checks) -> Result<(), VerifyError> {
        let theirs = self.expected.view(&name)?.to_i64_vec()?;
        let ours: Vec<i64> = ours.iter().flatten().map(|&id| id as i64).collect();
        checks.equal(name, ours == theirs, format!("{ours:?} where {theirs:?} is expected"));
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

    /// Dominant members of the groups, and the groups of one-shot grouping.
    fn check_members(&self, statistics: &[LayerStatistics], checks: &mut Checks) -> Result<(), VerifyError> {
        let geometries = |of: fn(&LayerStatistics) -> &Option<Geometry>| -> Vec<&Geometry> {
            statistics.iter().filter_map(|s| of(s).as_ref()).collect()
        };
        let outputs = geometries(|s| &s.output_geometry);
        for r in 1..=self.experts {
            let name = format!("dominant.r{r}");
            if self.expected.contains(&name) {
                let dominants = |g: &&Geometry| -> Result<Vec<usize>, CutError> {
                    let grouping = agglomerate(g, Linkage::Average).cut(r)?;
                    let members = grouping.groups().iter();
                    Ok(members.filter_map(|group| grouping::dominant(g, group)).collect())
                };
                let ours: Vec<Vec<usize>> = outputs.iter().map(dominants).collect::<Result<_, _>>()?;
                self.check_ids(name, &ours, checks)?;
            }
            for (feature, geometries) in [("output", &outputs), ("router", &geometries(|s| &s.router_geometry))] {
                let name = format!("oneshot.{feature}.r{r}");
                if self.expected.contains(&name) {
                    let layers = geometries.iter().zip(statistics);
                    let ours = layers.map(|(g, s)| Ok(grouping::one_shot(g, &s.usage_counts, r)?.labels().to_vec()));
                    let ours: Vec<Vec<usize>> = ours.collect::<Result<_, CutError>>()?;
                    self.check_ids(name, &ours, checks)?;
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
            overwrite: Overwrite::Replace,
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
        let model = Model::open(dir, &OpenOptions::widened())?;
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
            ["prune", "global", score] => {
                let layers = self.model.config.moe_layers().count();
                let keys = format!(
                    "method = \"prune\"\nscore = \"{}\"\nbudget = {{ experts = {}, allocate = \"global\" }}",
                    score.replace('_', "-"),
                    self.global / layers
                );
                let (out, decided) = self.merged(name, &keys, false)?;
                let mask = |l: &LayerReport| l.labels.iter().map(|l| usize::from(l.is_some())).collect();
                let kept: Vec<Vec<usize>> = decided.iter().map(mask).collect();
                self.check_ids(format!("prune.global.{score}"), &kept, checks)?;
                checks.close(name, worst(&self.logits(&out)?, &theirs), LOGITS);
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
        let model = Model::open(out, &OpenOptions::widened())?;
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

/// 1e-5 absolute plus 1e-4 relative, expressed as a share of what is allowed.
fn statistic(checks: &mut Checks, name: &str, ours: &[f64], theirs: &[f64]) {
    let allowed: Vec<f64> = theirs.iter().map(|b| 1e-5 + 1e-4 * b.abs()).collect();
    let share = |values: &[f64]| -> Vec<f64> { values.iter().zip(&allowed).map(|(x, a)| x / a).collect() };
    let worst = if ours.len() == theirs.len() {
        worst(&share(ours), &share(theirs))
    } else {
        f64::INFINITY
    };
    checks.close(format!("{name} (share of 1e-5 + 1e-4 relative)"), worst, 1.0);
}

/// A recipe with `keys` that calibrates on the ids in `file`.
fn recipe(keys: &str, file: &str) -> String {
    format!("{keys}\ncalibration = {{ ids = {file:?} }}\n")
}
