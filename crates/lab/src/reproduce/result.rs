//! Measurements of all runs, what follows from them, and how it is shown.

use super::{Budget, Measured, ReproduceOptions, Reproduction};
use crate::{
    LabError,
    report::{Block, Cell, Column, Footer, Plot, Point, Report, Series, Table},
};
use ounce_eval::Interval;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Measurements by variant and seed.
#[derive(Debug, Clone)]
pub struct Results {
    /// How much time the experiment had.
    pub budget: Budget,
    /// The seeds, in order.
    pub seeds: Vec<u64>,
    runs: BTreeMap<(String, u64), Measured>,
}

impl Results {
    /// No measurement yet.
    pub fn new(budget: Budget, seeds: Vec<u64>) -> Self {
        Self {
            budget,
            seeds,
            runs: BTreeMap::new(),
        }
    }

    /// Adds a run.
    pub fn insert(&mut self, variant: &str, seed: u64, measured: Measured) {
        self.runs.insert((variant.into(), seed), measured);
    }

    fn run(&self, variant: &str, seed: u64) -> Result<&Measured, LabError> {
        self.runs
            .get(&(variant.into(), seed))
            .ok_or_else(|| missing(variant, &format!("seed {seed}")))
    }

    /// A measurement of every seed, in the order of seeds.
    ///
    /// # Errors
    /// If a run has none of this name.
    pub fn values(&self, variant: &str, name: &str) -> Result<Vec<f64>, LabError> {
        self.seeds
            .iter()
            .map(|&seed| {
                let value = self.run(variant, seed)?.values.get(name);
                value.copied().ok_or_else(|| missing(variant, name))
            })
            .collect()
    }

    /// Mean and 95 % interval of a measurement over seeds.
    ///
    /// # Errors
    /// As [`Results::values`].
    pub fn interval(&self, variant: &str, name: &str) -> Result<Interval, LabError> {
        Interval::of(&self.values(variant, name)?).ok_or_else(|| missing(variant, name))
    }

    /// Mean and 95 % interval of the differences `variant - baseline`, seed by seed.
    ///
    /// # Errors
    /// As [`Results::values`].
    pub fn difference(&self, variant: &str, baseline: &str, name: &str) -> Result<Interval, LabError> {
        let pairs = self
            .values(variant, name)?
            .into_iter()
            .zip(self.values(baseline, name)?);
        let differences: Vec<f64> = pairs.map(|(a, b)| a - b).collect();
        Interval::of(&differences).ok_or_else(|| missing(variant, name))
    }

    /// Mean and 95 % interval of the differences `after - before` of two measurements of the same runs.
    ///
    /// # Errors
    /// As [`Results::values`].
    pub fn change(&self, variant: &str, after: &str, before: &str) -> Result<Interval, LabError> {
        let pairs = self
            .values(variant, after)?
            .into_iter()
            .zip(self.values(variant, before)?);
        let differences: Vec<f64> = pairs.map(|(a, b)| a - b).collect();
        Interval::of(&differences).ok_or_else(|| missing(variant, after))
    }

    /// A curve, averaged over seeds where all have the same x, with intervals.
    ///
    /// # Errors
    /// If a run has none of this name.
    pub fn curve(&self, variant: &str, name: &str) -> Result<Series, LabError> {
        let curves = self
            .seeds
            .iter()
            .map(|&seed| {
                let curve = self.run(variant, seed)?.curves.get(name);
                curve.ok_or_else(|| missing(variant, name))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let shortest = curves.iter().map(|c| c.len()).min().unwrap_or(0);
        let points = (0..shortest).filter_map(|i| {
            let ys: Vec<f64> = curves.iter().map(|c| c[i].1).collect();
            let interval = Interval::of(&ys)?;
            Some(Point {
                x: curves[0][i].0,
                y: interval.mean,
                low: interval.ci95.map(|c| c[0]),
                high: interval.ci95.map(|c| c[1]),
                label: String::new(),
            })
        });
        Ok(Series {
            name: variant.into(),
            points: points.collect(),
        })
    }
}

fn missing(variant: &str, what: &str) -> LabError {
    LabError::Reproduce {
        what: format!("variant \"{variant}\""),
        rule: format!("has no measurement \"{what}\""),
        hint: "remove its folder below runs/ and use --resume".into(),
    }
}

/// What an experiment says of its claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It holds here.
    Holds,
    /// It does not.
    DoesNotHold,
    /// This experiment cannot tell.
    Inconclusive,
}

impl Verdict {
    /// Is the measured quantity at most `bound`? Told only if the whole interval lies on one side.
    pub fn at_most(interval: &Interval, bound: f64) -> Self {
        match interval.ci95 {
            Some([_, high]) if high <= bound => Self::Holds,
            Some([low, _]) if low > bound => Self::DoesNotHold,
            _ => Self::Inconclusive,
        }
    }

    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::DoesNotHold => "does not hold",
            Self::Inconclusive => "inconclusive",
        }
    }
}

/// One line of the result: our figure beside the paper's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What was measured, with its unit.
    pub name: String,
    /// Our mean.
    pub ours: f64,
    /// Its 95 % interval (Student's t over seeds); none for one seed.
    pub ci95: Option<[f64; 2]>,
    /// The paper's figure for the same quantity, at its own scale; none if it has none.
    pub paper: Option<f64>,
    /// Values behind the mean.
    pub n: usize,
}

impl Row {
    /// A row of an interval.
    pub fn new(name: impl Into<String>, interval: Interval, paper: Option<f64>) -> Self {
        Self {
            name: name.into(),
            ours: interval.mean,
            ci95: interval.ci95,
            paper,
            n: interval.n,
        }
    }
}

/// What follows from all runs.
pub struct Finding {
    /// Figures.
    pub rows: Vec<Row>,
    /// Does the claim hold?
    pub verdict: Verdict,
    /// Why, in plain words; for an inconclusive one with the smallest effect that could have been seen.
    pub why: String,
    /// Plots.
    pub plots: Vec<Plot>,
}

/// `result.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResultFile {
    /// Name of the method.
    pub method: String,
    /// How much time it had.
    pub budget: Budget,
    /// Seeds of every variant.
    pub seeds: Vec<u64>,
    /// Figures.
    pub rows: Vec<Row>,
    /// Does the claim hold?
    pub verdict: Verdict,
    /// Why, in plain words.
    pub why: String,
    /// What all runs took together, those of earlier sittings included.
    pub seconds: f64,
    /// What it ran on.
    pub machine: String,
}

/// A finished experiment.
pub struct Reproduced {
    /// What `result.json` holds.
    pub result: ResultFile,
    plots: Vec<Plot>,
}

impl Reproduced {
    pub(super) fn new(
        method: &dyn Reproduction,
        options: &ReproduceOptions,
        seeds: &[u64],
        finding: Finding,
        seconds: f64,
    ) -> Self {
        let result = ResultFile {
            method: method.name().into(),
            budget: options.budget,
            seeds: seeds.to_vec(),
            rows: finding.rows,
            verdict: finding.verdict,
            why: finding.why,
            seconds,
            machine: crate::machine(),
        };
        Self {
            result,
            plots: finding.plots,
        }
    }

    /// The figures as a table.
    ///
    /// # Errors
    /// Never in practice: all rows have all cells.
    pub fn table(&self) -> Result<Table, LabError> {
        let columns = vec![
            Column::text("Measure"),
            Column::number("Ours", "mean"),
            Column::number("95 % interval", ""),
            Column::number("Paper", "at its scale"),
            Column::number("n", ""),
        ];
        let mut table = Table::new(
            format!("{}: {}", self.result.method, self.result.verdict.words()),
            columns,
        );
        for row in &self.result.rows {
            // Losses and shares want four decimals, percentages two, counts of parameters none.
            let decimals = match row.ours.abs() {
                size if size >= 1000.0 => 0,
                size if size >= 10.0 => 2,
                _ => 4,
            };
            let interval = match row.ci95 {
                Some([low, high]) => Cell::text(format!("{low:.decimals$} to {high:.decimals$}")),
                None => Cell::missing(),
            };
            table.push(vec![
                Cell::text(&row.name),
                Cell::number(row.ours, decimals),
                interval,
                row.paper.map_or_else(Cell::missing, |p| Cell::number(p, decimals)),
                Cell::count(row.n as u64),
            ])?;
        }
        Ok(table)
    }

    pub(super) fn report(&self, method: &dyn Reproduction, options: &ReproduceOptions) -> Result<Report, LabError> {
        let r = &self.result;
        let mut report = Report::new(format!("{}: {}", method.title(), r.verdict.words()), r.why.clone())
            .heading("The claim")
            .paragraph(method.claim())
            .heading("Figures")
            .with(Block::Table(self.table()?));
        for plot in &self.plots {
            report = report.with(Block::Plot(plot.clone()));
        }
        report = report.paragraph(format!(
            "Budget {:?}, seeds {:?}; differences are taken seed by seed. Intervals are 95 % intervals of Student's t \
             over seeds, where a row says nothing else. All runs together took {:.0} seconds.",
            r.budget, r.seeds, r.seconds
        ));
        report.footer = Footer {
            command: options.command_line.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            date: String::new(),
            machine: r.machine.clone(),
        };
        Ok(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interval(values: &[f64]) -> Interval {
        Interval::of(values).unwrap()
    }

    #[test]
    fn verdicts_need_the_whole_interval_on_one_side() {
        let bound = 0.1;
        assert_eq!(Verdict::at_most(&interval(&[0.0, 0.01, 0.02]), bound), Verdict::Holds);
        assert_eq!(
            Verdict::at_most(&interval(&[0.3, 0.31, 0.32]), bound),
            Verdict::DoesNotHold
        );
        assert_eq!(
            Verdict::at_most(&interval(&[0.0, 0.1, 0.2]), bound),
            Verdict::Inconclusive
        );
        // One seed has no interval and proves nothing.
        assert_eq!(Verdict::at_most(&interval(&[0.0]), bound), Verdict::Inconclusive);
    }

    #[test]
    fn differences_are_paired_by_seed() {
        let mut results = Results::new(Budget::Quick, vec![7, 9, 11]);
        for (seed, a, b) in [(7, 1.0, 1.1), (9, 5.0, 5.1), (11, 3.0, 3.1)] {
            for (variant, loss) in [("a", a), ("b", b)] {
                let measured = Measured {
                    values: BTreeMap::from([("loss".into(), loss)]),
                    curves: BTreeMap::from([("curve".into(), vec![(0.0, loss), (1.0, 2.0 * loss)])]),
                };
                results.insert(variant, seed, measured);
            }
        }
        let d = results.difference("b", "a", "loss").unwrap();
        // The spread between seeds is gone.
        assert!((d.mean - 0.1).abs() < 1e-12 && d.half_width().unwrap() < 1e-12, "{d:?}");
        assert!(results.interval("a", "loss").unwrap().half_width().unwrap() > 1.0);
        let curve = results.curve("a", "curve").unwrap();
        assert_eq!((curve.points[1].x, curve.points[1].y), (1.0, 6.0));
        assert!(
            results
                .values("a", "speed")
                .unwrap_err()
                .to_string()
                .contains("has no measurement \"speed\"")
        );
        assert!(results.values("c", "loss").is_err());
    }
}
