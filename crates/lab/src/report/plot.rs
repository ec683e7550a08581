//! Charts as data: what is drawn, in which units, and what had to be left out.
//!
//! Owns the numbers and the rules about which of them can be drawn; `svg` turns them into shapes. Numbers that
//! cannot be drawn are counted and reported under the chart, never dropped in silence.

use super::text::format_number;
use serde::{Deserialize, Deserializer, Serialize};

/// A chart with a title.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plot {
    /// What the chart shows, one line.
    pub title: String,
    /// How to read it; may be empty.
    pub caption: String,
    /// The shapes.
    pub data: PlotData,
}

/// The kinds of chart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "chart", rename_all = "snake_case")]
pub enum PlotData {
    /// One line per series, in the order of its points, with a band where points have `low` and `high`.
    Lines {
        /// The horizontal axis.
        x: Axis,
        /// The vertical axis.
        y: Axis,
        /// The lines.
        series: Vec<Series>,
    },
    /// One mark per point, with an error bar where points have `low` and `high`.
    Scatter {
        /// The horizontal axis.
        x: Axis,
        /// The vertical axis.
        y: Axis,
        /// The clouds.
        series: Vec<Series>,
    },
    /// Horizontal bars, one group per name. Bars start at zero, so their axis is always linear.
    Bars {
        /// What the length means.
        label: String,
        /// Its unit; may be empty.
        unit: String,
        /// Names of the groups, from top to bottom.
        groups: Vec<String>,
        /// One bar per group each.
        series: Vec<BarSeries>,
    },
}

/// One axis.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Axis {
    /// What it measures.
    pub label: String,
    /// Its unit; may be empty.
    pub unit: String,
    /// How numbers become places.
    pub scale: Scale,
}

impl Axis {
    /// A linear axis.
    pub fn linear(label: impl Into<String>, unit: impl Into<String>) -> Self {
        Self {
            label: label.into(),
            unit: unit.into(),
            scale: Scale::Linear,
        }
    }

    /// A logarithmic axis.
    pub fn log(label: impl Into<String>, unit: impl Into<String>) -> Self {
        Self {
            scale: Scale::Log,
            ..Self::linear(label, unit)
        }
    }
}

/// How numbers become places on an axis.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// Equal differences are equally far apart.
    #[default]
    Linear,
    /// Equal ratios are equally far apart; only positive numbers have a place.
    Log,
}

/// Named points.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// Shown in the legend.
    pub name: String,
    /// In drawing order.
    pub points: Vec<Point>,
}

impl Series {
    /// A series of plain points.
    pub fn new(name: impl Into<String>, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        let points = points.into_iter().map(|(x, y)| Point {
            x,
            y,
            ..Point::default()
        });
        Self {
            name: name.into(),
            points: points.collect(),
        }
    }
}

/// One point.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Place along the horizontal axis.
    #[serde(deserialize_with = "nan_if_null")]
    pub x: f64,
    /// Place along the vertical axis.
    #[serde(deserialize_with = "nan_if_null")]
    pub y: f64,
    /// Lower end of the uncertainty of `y`.
    #[serde(default)]
    pub low: Option<f64>,
    /// Upper end of the uncertainty of `y`.
    #[serde(default)]
    pub high: Option<f64>,
    /// Name of the point, written beside it in a scatter chart; may be empty.
    #[serde(default)]
    pub label: String,
}

/// The bars of one colour.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BarSeries {
    /// Shown in the legend.
    pub name: String,
    /// One per group; missing ones at the end are shown as missing.
    pub bars: Vec<Bar>,
}

impl BarSeries {
    /// Bars without uncertainty.
    pub fn new(name: impl Into<String>, values: impl IntoIterator<Item = f64>) -> Self {
        let bars = values.into_iter().map(|value| Bar {
            value,
            ..Bar::default()
        });
        Self {
            name: name.into(),
            bars: bars.collect(),
        }
    }
}

/// One bar.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Bar {
    /// Its length.
    #[serde(deserialize_with = "nan_if_null")]
    pub value: f64,
    /// Lower end of its uncertainty.
    #[serde(default)]
    pub low: Option<f64>,
    /// Upper end of its uncertainty.
    #[serde(default)]
    pub high: Option<f64>,
}

/// JSON has no not-a-number: serde writes it as null, and reading must give it back.
fn nan_if_null<'de, D: Deserializer<'de>>(source: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(source)?.unwrap_or(f64::NAN))
}

/// Whether a number has a place on the axis. The bounds leave room for the arithmetic of ranges: no difference
/// of two drawable numbers overflows.
pub(crate) fn drawable(value: f64, scale: Scale) -> bool {
    value.abs() <= 1e300 && (scale == Scale::Linear || value >= 1e-300)
}

impl Point {
    pub(crate) fn drawable(&self, x: Scale, y: Scale) -> bool {
        drawable(self.x, x) && drawable(self.y, y)
    }

    /// Both ends of the uncertainty, in order, when both have a place.
    pub(crate) fn band(&self, y: Scale) -> Option<(f64, f64)> {
        ordered(self.low, self.high, y)
    }
}

impl Bar {
    pub(crate) fn band(&self) -> Option<(f64, f64)> {
        ordered(self.low, self.high, Scale::Linear)
    }
}

fn ordered(low: Option<f64>, high: Option<f64>, scale: Scale) -> Option<(f64, f64)> {
    let (low, high) = (low?, high?);
    (drawable(low, scale) && drawable(high, scale)).then_some((low.min(high), low.max(high)))
}

impl Plot {
    /// What the chart leaves out, as a sentence; `None` when it shows everything.
    pub(crate) fn omissions(&self) -> Option<String> {
        let (missing, empty, log) = match &self.data {
            PlotData::Lines { x, y, series } | PlotData::Scatter { x, y, series } => {
                let outside = |s: &Series| s.points.iter().filter(|p| !p.drawable(x.scale, y.scale)).count();
                let missing: usize = series.iter().map(outside).sum();
                let empty = series.iter().filter(|s| s.points.is_empty()).map(|s| s.name.as_str());
                let log = x.scale == Scale::Log || y.scale == Scale::Log;
                (missing, empty.collect::<Vec<_>>(), log)
            }
            PlotData::Bars { groups, series, .. } => {
                let outside = |s: &BarSeries| {
                    let shown = s.bars.iter().take(groups.len());
                    let shown = shown.filter(|b| drawable(b.value, Scale::Linear)).count();
                    groups.len().max(s.bars.len()) - shown
                };
                let missing: usize = series.iter().map(outside).sum();
                (missing, Vec::new(), false)
            }
        };
        let mut parts = Vec::new();
        if missing > 0 {
            let rule = if log {
                "not a finite number, or not positive on a logarithmic axis"
            } else {
                "missing or not a finite number"
            };
            let values = if missing == 1 {
                "1 value is"
            } else {
                &format!("{missing} values are")
            };
            parts.push(format!("{values} not drawn: {rule}."));
        }
        if !empty.is_empty() {
            parts.push(format!("Without any point: {}.", empty.join(", ")));
        }
        (!parts.is_empty()).then(|| parts.join(" "))
    }

    /// The chart in words, one sentence per series: for terminals and for readers who do not see it.
    pub(crate) fn summary(&self) -> Vec<String> {
        let mut out: Vec<String> = match &self.data {
            PlotData::Lines { x, y, series } => series.iter().filter_map(|s| line_summary(s, x, y)).collect(),
            PlotData::Scatter { x, y, series } => series
                .iter()
                .map(|s| {
                    let shown = s.points.iter().filter(|p| p.drawable(x.scale, y.scale));
                    let named: Vec<String> = shown
                        .clone()
                        .filter(|p| !p.label.is_empty())
                        .map(|p| format!("{} at {}, {}", p.label, short(p.x), short(p.y)))
                        .collect();
                    let listed = if named.is_empty() {
                        String::new()
                    } else {
                        format!(": {}", named.join("; "))
                    };
                    format!(
                        "{}: {} points, {} against {}{listed}.",
                        s.name,
                        shown.count(),
                        y.label,
                        x.label
                    )
                })
                .collect(),
            PlotData::Bars {
                label,
                unit,
                groups,
                series,
            } => series
                .iter()
                .map(|s| {
                    let bars: Vec<String> = groups
                        .iter()
                        .zip(&s.bars)
                        .map(|(group, bar)| format!("{group} {}", short(bar.value)))
                        .collect();
                    let unit = if unit.is_empty() {
                        String::new()
                    } else {
                        format!(" in {unit}")
                    };
                    format!("{}, {label}{unit}: {}.", s.name, bars.join(", "))
                })
                .collect(),
        };
        if out.is_empty() {
            out.push("No data to draw.".into());
        }
        out.extend(self.omissions());
        out
    }
}

fn line_summary(series: &Series, x: &Axis, y: &Axis) -> Option<String> {
    let mut shown = series.points.iter().filter(|p| p.drawable(x.scale, y.scale));
    let first = shown.next()?;
    let last = shown.next_back().unwrap_or(first);
    Some(format!(
        "{}: {} from {} at {} {} to {} at {}.",
        series.name,
        y.label,
        short(first.y),
        x.label,
        short(first.x),
        short(last.y),
        short(last.x),
    ))
}

/// Four significant digits, without exponents where a person would not write one.
pub(crate) fn short(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(1e-4..1e15).contains(&size) {
        return format!("{value:.3e}").replace('-', "\u{2212}");
    }
    let whole = if size >= 1.0 { size.log10().floor() as i32 } else { -1 };
    let decimals = (3 - whole).clamp(0, 6) as usize;
    let text = format_number(value, decimals);
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}
