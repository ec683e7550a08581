//! `ounce reproduce`: the headline experiment of a paper, scaled down, with paired seeds, intervals and a verdict.
//!
//! Owns what all experiments share: which runs there are, that a finished one is reused and an interrupted one continued,
//! pairing by seed, intervals, table, plots, report and `result.json`. An experiment says which variants it compares, how
//! one run is made and measured (always with the product's own trainer and evaluations), and what follows from the
//! measurements. It must not train or evaluate by code of its own.
//!
//! A folder holds `data/` (toy corpora, made here), `runs/VARIANT-seed-N/` (checkpoints, and `measured.json` once the run
//! is done), `runs/shared/` (models that several variants start from), `report.html` and `result.json`.

mod aoe;
mod comparison;
mod copying;
mod dga;
mod drt;
mod ladder;
mod long_short;
mod moh;
mod mole;
mod recipe;
mod result;
mod workbench;

use crate::LabError;
use ounce_data::DataDir;
use ounce_formats::{FolderLock, fsx};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
    time::Instant,
};

pub use result::{Finding, Reproduced, Results, Row, Verdict};
pub use workbench::{Trained, Workbench};

/// The experiments. This is the one list to edit when one is added.
pub const REPRODUCTIONS: &[&dyn Reproduction] = &[
    &aoe::Aoe,
    &dga::Dga,
    &drt::Drt,
    &ladder::Ladder,
    &long_short::LongShort,
    &moh::Moh,
    &mole::Mole,
];

/// How much time an experiment may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Budget {
    /// At most 5 to 8 minutes on two quiet cores, without any data files.
    Quick,
    /// At most 40 minutes.
    Standard,
    /// Hours, over several sittings.
    Full,
}

impl Budget {
    /// As it is written on the command line.
    pub const ALL: [(&'static str, Self); 3] = [
        ("quick", Self::Quick),
        ("standard", Self::Standard),
        ("full", Self::Full),
    ];

    /// The one of three values that belongs to this budget.
    pub fn pick<T>(self, quick: T, standard: T, full: T) -> T {
        match self {
            Self::Quick => quick,
            Self::Standard => standard,
            Self::Full => full,
        }
    }
}

/// The experiment of one method.
pub trait Reproduction: Sync {
    /// What the command line calls it.
    fn name(&self) -> &'static str;
    /// Method and paper, one line.
    fn title(&self) -> &'static str;
    /// What the paper claims, and what of it is tested here.
    fn claim(&self) -> &'static str;
    /// What is compared: short names that can be part of a folder's name.
    fn variants(&self, budget: Budget) -> Vec<&'static str>;
    /// Seeds of each variant.
    fn seeds(&self, budget: Budget) -> u64;
    /// The recipe of a run as TOML, with what else decides what it measures in comments: a finished run is reused only if
    /// this is the same.
    ///
    /// # Errors
    /// If it cannot be expressed.
    fn settings(&self, variant: &str, seed: u64, budget: Budget) -> Result<String, LabError>;
    /// Makes and measures one run.
    ///
    /// # Errors
    /// If training or measuring fails, or is interrupted.
    fn run(&self, variant: &str, seed: u64, bench: &mut Workbench<'_>) -> Result<Measured, LabError>;
    /// What follows from all runs.
    ///
    /// # Errors
    /// If a measurement is missing.
    fn judge(&self, results: &Results) -> Result<Finding, LabError>;
}

/// What one run measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Numbers by name.
    pub values: BTreeMap<String, f64>,
    /// Curves by name, points `(x, y)`.
    #[serde(default)]
    pub curves: BTreeMap<String, Vec<(f64, f64)>>,
}

/// `measured.json` of a run.
#[derive(Serialize, Deserialize)]
struct Record {
    /// Hash of the run's settings, the version and the instruction set.
    identity: String,
    seconds: f64,
    #[serde(flatten)]
    measured: Measured,
    /// Check sum of all that.
    #[serde(default)]
    sum: String,
}

impl Record {
    fn new(identity: String, seconds: f64, measured: Measured) -> Self {
        let mut record = Self {
            identity,
            seconds,
            measured,
            sum: String::new(),
        };
        record.sum = record.sum_of_all();
        record
    }

    fn sum_of_all(&self) -> String {
        let all = (&self.identity, self.seconds, &self.measured);
        fsx::sha256_bytes(serde_json::to_string(&all).unwrap_or_default().as_bytes())
    }
}

/// What to reproduce, and where.
#[derive(Debug, Clone)]
pub struct ReproduceOptions {
    /// Name of the method.
    pub method: String,
    /// How much time it may take.
    pub budget: Budget,
    /// Seeds; the experiment's own if empty.
    pub seeds: Vec<u64>,
    /// The folder.
    pub out: PathBuf,
    /// Continue what is there.
    pub resume: bool,
    /// For the report.
    pub command_line: String,
}

/// Runs an experiment, or what is left of it; `news` hears a line for every run.
///
/// # Errors
/// If the method is unknown, the folder is not empty (without `resume`), a run fails, or `stop` is set: finished runs are
/// kept, and `resume` continues.
pub fn reproduce(
    options: &ReproduceOptions,
    news: &mut dyn FnMut(&str),
    stop: &AtomicBool,
) -> Result<Reproduced, LabError> {
    let fail = |what: String, rule: String, hint: String| Err(LabError::Reproduce { what, rule, hint });
    let Some(method) = REPRODUCTIONS.iter().find(|r| r.name() == options.method) else {
        let known: Vec<&str> = REPRODUCTIONS.iter().map(|r| r.name()).collect();
        return fail(
            format!("method \"{}\"", options.method),
            "has no experiment".into(),
            format!("known: {}", known.join(", ")),
        );
    };
    run_experiment(*method, options, news, stop)
}

/// [`reproduce`] for an experiment that need not be in the list.
///
/// # Errors
/// As [`reproduce`].
pub fn run_experiment(
    method: &dyn Reproduction,
    options: &ReproduceOptions,
    news: &mut dyn FnMut(&str),
    stop: &AtomicBool,
) -> Result<Reproduced, LabError> {
    let out = &options.out;
    let occupied = std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some());
    if occupied && !options.resume {
        return Err(LabError::Reproduce {
            what: out.display().to_string(),
            rule: "the folder is not empty".into(),
            hint: "--resume continues what is there; choose another folder to start again".into(),
        });
    }
    if let Some(seed) = options
        .seeds
        .iter()
        .enumerate()
        .find_map(|(i, s)| options.seeds[..i].contains(s).then_some(s))
    {
        return Err(LabError::Reproduce {
            what: format!("seed {seed}"),
            rule: "is named twice".into(),
            hint: "the same run counted twice narrows intervals without telling more: give different seeds".into(),
        });
    }
    std::fs::create_dir_all(out).map_err(|e| LabError::Reproduce {
        what: out.display().to_string(),
        rule: format!("cannot be made: {e}"),
        hint: "--out names the folder for runs and report: choose one that you may write to".into(),
    })?;
    // Two at once would each measure what the other trains.
    let _lock = FolderLock::take(out)?;
    let data = out.join("data");
    ounce_data::toy::write_toys(&data, 0, options.budget.pick(400_000, 4_000_000, 16_000_000))?;
    let data = DataDir::from_environment(Some(data));
    let seeds: Vec<u64> = if options.seeds.is_empty() {
        (1..=method.seeds(options.budget)).collect()
    } else {
        options.seeds.clone()
    };
    let variants = method.variants(options.budget);
    let total = seeds.len() * variants.len();
    let mut results = Results::new(options.budget, seeds.clone());
    let mut seconds = 0.0;
    let mut pace = Pace::default();
    // All variants of a seed, then the next seed: after an interruption the pairs that are there are complete.
    for (index, (&seed, variant)) in seeds
        .iter()
        .flat_map(|seed| variants.iter().map(move |v| (seed, *v)))
        .enumerate()
    {
        let dir = out.join("runs").join(format!("{variant}-seed-{seed}"));
        let identity = identity(method, variant, seed, options.budget)?;
        let file = dir.join("measured.json");
        let place = format!("{variant}, seed {seed} ({} of {total})", index + 1);
        let record = if let Some(record) = finished(&file, &identity) {
            news(&format!("{place}: done before"));
            record
        } else {
            news(&format!("{place}{}", pace.left(&variants, seeds.len(), index)));
            let start = Instant::now();
            let mut bench = Workbench::new(&dir, &data, options.budget, stop)?;
            let measured = method.run(variant, seed, &mut bench)?;
            let record = Record::new(identity, start.elapsed().as_secs_f64(), measured);
            fsx::write_atomic(&file, pretty(&record).as_bytes())?;
            record
        };
        seconds += record.seconds;
        pace.add(variant, record.seconds);
        results.insert(variant, seed, record.measured);
    }
    let finding = method.judge(&results)?;
    let made = Reproduced::new(method, options, &seeds, finding, seconds);
    fsx::write_atomic(&out.join("result.json"), pretty(&made.result).as_bytes())?;
    made.report(method, options)?.write_html(&out.join("report.html"))?;
    Ok(made)
}

/// Seconds of runs, by variant.
#[derive(Default)]
struct Pace<'a>(BTreeMap<&'a str, Vec<f64>>);

impl<'a> Pace<'a> {
    fn add(&mut self, variant: &'a str, seconds: f64) {
        self.0.entry(variant).or_default().push(seconds);
    }

    /// How long the runs from number `next` on will take, in words; nothing before the first is done. A variant without
    /// a run is taken to cost the mean of the others.
    fn left(&self, variants: &[&str], seeds: usize, next: usize) -> String {
        let mean = |all: &[f64]| all.iter().sum::<f64>() / all.len() as f64;
        let known: Vec<f64> = self.0.values().map(|v| mean(v)).collect();
        if known.is_empty() {
            return String::new();
        }
        let cost = |v: &str| self.0.get(v).map_or_else(|| mean(&known), |v| mean(v));
        let all = (0..seeds).flat_map(|_| variants).skip(next);
        let seconds: f64 = all.map(|v| cost(v)).sum();
        format!(", about {:.0} min left", (seconds / 60.0).ceil())
    }
}

fn pretty(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    text
}

/// Hash of everything that decides what a run measures.
fn identity(method: &dyn Reproduction, variant: &str, seed: u64, budget: Budget) -> Result<String, LabError> {
    let text = format!(
        "{} {} {variant} {seed} {budget:?} {:?}\n{}",
        env!("CARGO_PKG_VERSION"),
        method.name(),
        ounce_kernels::isa(),
        method.settings(variant, seed, budget)?
    );
    Ok(fsx::sha256_bytes(text.as_bytes()))
}

/// The record of a run that is done; none if it is not, was damaged or edited, or was made with other settings.
fn finished(file: &Path, identity: &str) -> Option<Record> {
    let text = fsx::read_to_string(file).ok()?;
    let record: Record = serde_json::from_str(&text).ok()?;
    (record.identity == identity && record.sum == record.sum_of_all()).then_some(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edited_measurement_is_measured_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("measured.json");
        let measured = Measured {
            values: BTreeMap::from([("loss".to_owned(), 2.1), ("third".to_owned(), 1.0 / 3.0)]),
            curves: BTreeMap::from([("validation".to_owned(), vec![(0.0, 1e-300)])]),
        };
        let text = pretty(&Record::new("id".into(), 0.1, measured.clone()));
        std::fs::write(&file, &text).unwrap();
        assert_eq!(finished(&file, "id").unwrap().measured, measured);
        assert!(finished(&file, "other").is_none());
        std::fs::write(&file, text.replace("2.1", "1.9")).unwrap();
        assert!(finished(&file, "id").is_none());
    }

    #[test]
    fn the_time_left_is_that_of_the_variants_left() {
        let mut pace = Pace::default();
        let left = |pace: &Pace<'_>, next| pace.left(&["a", "b"], 3, next);
        assert_eq!(left(&pace, 0), "");
        pace.add("a", 60.0);
        // b is not known yet: 2 of a, 3 of b.
        assert_eq!(left(&pace, 1), ", about 5 min left");
        pace.add("b", 600.0);
        assert_eq!(left(&pace, 2), ", about 22 min left");
        assert_eq!(left(&pace, 5), ", about 10 min left");
    }
}
