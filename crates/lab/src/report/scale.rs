//! From numbers to places: the range of an axis, its ticks, and their labels.
//!
//! Every function here accepts any set of drawable numbers, however small, large, equal or few. Must not know
//! what is drawn.

use super::plot::Scale;
use super::text::{format_number, superscript};

/// One tick.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tick {
    pub value: f64,
    pub label: String,
}

/// An axis with its range chosen: from `low` to `high`, which are never equal.
#[derive(Debug, Clone)]
pub(crate) struct AxisScale {
    pub low: f64,
    pub high: f64,
    pub scale: Scale,
    pub ticks: Vec<Tick>,
    /// Power of ten that every label leaves out; the axis title has to say it.
    pub exponent: i32,
}

impl AxisScale {
    /// An axis that holds all `values`, with about `count` ticks. With `tight`, the range ends where the data
    /// ends (time axes); otherwise it ends on ticks. `None` without values.
    pub(crate) fn new(values: impl Iterator<Item = f64>, scale: Scale, count: usize, tight: bool) -> Option<Self> {
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| {
            // What is smaller than any normal number is zero to the eye and would break the logarithms below.
            let v = if v.abs() < 1e-300 && scale == Scale::Linear {
                0.0
            } else {
                v
            };
            (low.min(v), high.max(v))
        });
        if low > high {
            return None;
        }
        Some(match scale {
            Scale::Linear => linear(low, high, count, tight),
            Scale::Log => log(low, high, count, tight),
        })
    }

    /// Place of a value: 0 at the low end, 1 at the high end.
    pub(crate) fn place(&self, value: f64) -> f64 {
        match self.scale {
            // Halves, because the difference of two huge numbers of unlike sign may overflow.
            Scale::Linear => (value / 2.0 - self.low / 2.0) / (self.high / 2.0 - self.low / 2.0),
            Scale::Log => (value.log10() - self.low.log10()) / (self.high.log10() - self.low.log10()),
        }
    }

    /// What to add to the axis title so that the labels are true; empty when they are as they stand.
    pub(crate) fn factor(&self) -> String {
        match self.exponent {
            0 => String::new(),
            e => format!("×10{}", superscript(e)),
        }
    }
}

fn linear(mut low: f64, mut high: f64, count: usize, tight: bool) -> AxisScale {
    let size = low.abs().max(high.abs());
    // Closer together than their own digits can tell: the same number as far as a reader is concerned.
    let constant = high - low <= size * 1e-9;
    if constant {
        let room = if size == 0.0 { 1.0 } else { size * 0.1 };
        (low, high) = (low - room, high + room);
    }
    let step = nice_step((high - low) / count.max(2) as f64);
    let (first, last) = ((low / step).floor(), (high / step).ceil());
    if !tight || constant {
        (low, high) = (first * step, last * step);
    }
    let values: Vec<f64> = (0..=(last - first) as usize)
        .map(|i| (first + i as f64) * step)
        .filter(|v| *v >= low - step * 1e-6 && *v <= high + step * 1e-6)
        .collect();
    let largest = values.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
    let exponent = match largest {
        0.0 => 0,
        v if (1e-2..1e6).contains(&v) => 0,
        // Multiples of three, as in SI prefixes.
        v => (v.log10().floor() as i32).div_euclid(3) * 3,
    };
    let decimals = decimals_of(step, exponent);
    let ticks = values.into_iter().map(|value| Tick {
        value,
        label: format_number(shift(value, -exponent), decimals),
    });
    AxisScale {
        low,
        high,
        scale: Scale::Linear,
        ticks: ticks.collect(),
        exponent,
    }
}

/// The value times a power of ten, in two steps because the power alone may overflow.
fn shift(value: f64, power: i32) -> f64 {
    let half = power / 2;
    value * 10f64.powi(half) * 10f64.powi(power - half)
}

/// The nearest of 1, 2, 2.5, 5 times a power of ten at or above `raw`.
fn nice_step(raw: f64) -> f64 {
    let power = raw.log10().floor() as i32;
    let mantissa = shift(raw, -power);
    let nice = [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .find(|nice| mantissa <= nice * (1.0 + 1e-9))
        .unwrap_or(10.0);
    shift(nice, power)
}

/// Decimals that tell one tick from the next.
fn decimals_of(step: f64, exponent: i32) -> usize {
    let step = shift(step, -exponent);
    (0..=12)
        .find(|d| {
            let scaled = step * 10f64.powi(*d);
            (scaled - scaled.round()).abs() < 1e-6 * scaled.max(1.0) && scaled.round() >= 1.0
        })
        .unwrap_or(12) as usize
}

fn log(mut low: f64, mut high: f64, count: usize, tight: bool) -> AxisScale {
    if high / low < 1.0 + 1e-9 {
        (low, high) = (low / 2.0, high * 2.0);
    } else if !tight {
        // A margin, so that no mark lies on the frame.
        let margin = 10f64.powf((high.log10() - low.log10()) * 0.04);
        // Within the bounds of what can be drawn: beyond them the ticks would leave the range of f64.
        (low, high) = (
            (low / margin).max(low.min(1e-300)),
            (high * margin).min(high.max(1e300)),
        );
    }
    let decades = high.log10() - low.log10();
    let mantissas: &[f64] = match decades {
        d if d < 1.0 => &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0],
        d if d < 2.5 => &[1.0, 2.0, 5.0],
        _ => &[1.0],
    };
    let stride = (decades / count.max(2) as f64).round().max(1.0) as i32;
    let first = low.log10().floor() as i32;
    let last = high.log10().ceil() as i32;
    let all: Vec<f64> = (first..=last)
        .filter(|power| power.rem_euclid(stride) == 0)
        .flat_map(|power| mantissas.iter().map(move |m| shift(*m, power)))
        .collect();
    let slack = 1.0 + 1e-9;
    let values: Vec<f64> = all
        .iter()
        .copied()
        .filter(|v| *v * slack >= low && *v <= high * slack)
        .collect();
    if values.len() < 2 {
        // Less than a doubling: equal steps are the honest ticks, at their logarithmic places.
        let inner = linear(low, high, count, true);
        return AxisScale {
            low,
            high,
            scale: Scale::Log,
            ..inner
        };
    }
    let ticks = values.into_iter().map(|value| Tick {
        value,
        label: log_label(value),
    });
    AxisScale {
        low,
        high,
        scale: Scale::Log,
        ticks: ticks.collect(),
        exponent: 0,
    }
}

fn log_label(value: f64) -> String {
    if (0.99e-3..1e6).contains(&value) {
        let decimals = if value >= 0.999 { 1 } else { 4 };
        let text = format_number(value, decimals);
        return text.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    let power = (value.log10() + 1e-9).floor() as i32;
    let mantissa = format_number(shift(value, -power), 1);
    match mantissa.trim_end_matches('0').trim_end_matches('.') {
        "1" => format!("10{}", superscript(power)),
        m => format!("{m}×10{}", superscript(power)),
    }
}
