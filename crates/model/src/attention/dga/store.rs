//! Rows of keys or values that grow at the end and shrink in the middle, as f32 or f16.

use crate::cache::CacheType;
use half::f16;
use ounce_kernels::{Data, Heads};

/// `[rows, width]`.
#[derive(Debug, Clone)]
pub(super) struct Store {
    width: usize,
    values: Values,
}

#[derive(Debug, Clone)]
enum Values {
    F32(Vec<f32>),
    F16(Vec<f16>),
}

/// Makes room for `more` values with an eighth to spare: doubling would hold twice what was promised.
fn reserve<T>(values: &mut Vec<T>, more: usize) {
    if values.capacity() - values.len() < more {
        values.reserve_exact(more + values.len() / 8);
    }
}

impl Store {
    pub(super) fn new(kind: CacheType, width: usize) -> Self {
        let values = match kind {
            CacheType::F32 => Values::F32(Vec::new()),
            CacheType::F16 => Values::F16(Vec::new()),
        };
        Self { width, values }
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// As the one head of one row.
    pub(super) fn heads(&self) -> Heads<'_> {
        Heads {
            data: match &self.values {
                Values::F32(v) => Data::F32(v),
                Values::F16(v) => Data::F16(v),
            },
            batch_stride: 0,
            token_stride: self.width,
            head_stride: 0,
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match &self.values {
            Values::F32(v) => v.capacity() * 4,
            Values::F16(v) => v.capacity() * 2,
        }
    }

    /// Room for `rows` more.
    pub(super) fn reserve(&mut self, rows: usize) {
        let more = rows * self.width;
        match &mut self.values {
            Values::F32(v) => reserve(v, more),
            Values::F16(v) => reserve(v, more),
        }
    }

    /// Adds values at the end: a row, or a part of one.
    pub(super) fn push(&mut self, from: &[f32]) {
        match &mut self.values {
            Values::F32(v) => v.extend_from_slice(from),
            Values::F16(v) => v.extend(from.iter().map(|&x| f16::from_f32(x))),
        }
    }

    pub(super) fn truncate(&mut self, rows: usize) {
        match &mut self.values {
            Values::F32(v) => v.truncate(rows * self.width),
            Values::F16(v) => v.truncate(rows * self.width),
        }
    }

    /// The rows of a range, as f32.
    pub(super) fn widened(&self, rows: std::ops::Range<usize>) -> Vec<f32> {
        let range = rows.start * self.width..rows.end * self.width;
        match &self.values {
            Values::F32(v) => v[range].to_vec(),
            Values::F16(v) => v[range].iter().map(|x| x.to_f32()).collect(),
        }
    }

    /// Puts the rows `new` where a range was.
    pub(super) fn replace(&mut self, rows: std::ops::Range<usize>, new: &[f32]) {
        let range = rows.start * self.width..rows.end * self.width;
        match &mut self.values {
            Values::F32(v) => drop(v.splice(range, new.iter().copied())),
            Values::F16(v) => drop(v.splice(range, new.iter().map(|&x| f16::from_f32(x)))),
        }
    }
}
