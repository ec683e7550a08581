//! Several sequences in one call: ragged rows.
//!
//! The tokens of a call stand one sequence after the other, activations are `[N, D]` with N the sum of lengths. A sequence
//! knows its own past, so that sequences of any length and age share a call and none sees its neighbours. Training is the
//! case of equal lengths and no past.

use crate::error::Result;
use ounce_tensor::{Tensor, ops};
use std::ops::Range;

/// The part of a call that belongs to one sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seq {
    /// Its tokens among those of the call.
    pub tokens: Range<usize>,
    /// How many tokens it has had before, in the count of its cache: the position of the first of `tokens`.
    pub past: usize,
}

/// The sequences of a call, and the rotary angles of their tokens.
#[derive(Debug, Clone)]
pub struct Rows {
    /// In the order of their tokens, which they part without gaps.
    pub seqs: Vec<Seq>,
    /// Cosines of the rotary angles `[N, hd/2]`.
    pub cos: Tensor,
    /// Sines of the rotary angles `[N, hd/2]`.
    pub sin: Tensor,
    /// Number of the first of these sequences among those of the whole call: methods that draw lots per sequence want it.
    pub first: usize,
}

impl Rows {
    /// `batch` sequences of `len` tokens each after `past` others.
    pub fn even(batch: usize, past: usize, len: usize, cos: Tensor, sin: Tensor) -> Self {
        Self {
            seqs: seqs(std::iter::repeat_n((past, len), batch)),
            cos,
            sin,
            first: 0,
        }
    }

    /// Number of tokens, N.
    pub fn tokens(&self) -> usize {
        self.seqs.last().map_or(0, |s| s.tokens.end)
    }

    /// Number of sequences, and the tokens of each in this call and before it, if all have equally many.
    pub fn uniform(&self) -> Option<Even> {
        let first = self.seqs.first()?;
        let alike = |s: &Seq| s.tokens.len() == first.tokens.len() && s.past == first.past;
        self.seqs.iter().all(alike).then(|| Even {
            batch: self.seqs.len(),
            len: first.tokens.len(),
            past: first.past,
        })
    }

    /// Ranges of sequences that can be computed as one: all neighbours alike, or each by itself.
    pub(crate) fn groups(&self, each: bool) -> Vec<Range<usize>> {
        let mut groups: Vec<Range<usize>> = Vec::new();
        for (i, seq) in self.seqs.iter().enumerate() {
            match groups.last_mut() {
                Some(group)
                    if !each && {
                        let other = &self.seqs[group.start];
                        other.tokens.len() == seq.tokens.len() && other.past == seq.past
                    } =>
                {
                    group.end = i + 1;
                }
                _ => groups.push(i..i + 1),
            }
        }
        groups
    }

    /// The tokens of a range of sequences.
    pub(crate) fn tokens_of(&self, group: &Range<usize>) -> Range<usize> {
        self.seqs[group.start].tokens.start..self.seqs[group.end - 1].tokens.end
    }

    /// A range of sequences as a call of its own.
    pub(crate) fn of(&self, group: Range<usize>) -> Result<Self> {
        let tokens = self.tokens_of(&group);
        let angles = |t: &Tensor| match t.rows() {
            0 => Ok(t.clone()),
            _ => ops::narrow_rows(t, tokens.start, tokens.end),
        };
        Ok(Self {
            seqs: seqs(self.seqs[group.clone()].iter().map(|s| (s.past, s.tokens.len()))),
            cos: angles(&self.cos)?,
            sin: angles(&self.sin)?,
            first: self.first + group.start,
        })
    }
}

/// Sequences that are all alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Even {
    /// How many.
    pub batch: usize,
    /// Tokens of each in this call.
    pub len: usize,
    /// Tokens of each before this call.
    pub past: usize,
}

/// Sequences of these `(past, tokens)`, one after the other.
pub(crate) fn seqs(parts: impl IntoIterator<Item = (usize, usize)>) -> Vec<Seq> {
    let mut from = 0;
    let place = |(past, len)| {
        let tokens = from..from + len;
        from += len;
        Seq { tokens, past }
    };
    parts.into_iter().map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(parts: &[(usize, usize)]) -> Rows {
        let seqs = seqs(parts.iter().copied());
        let angle = |i: usize| i as f32;
        let n = seqs.last().map_or(0, |s| s.tokens.end);
        let table = Tensor::new((0..n).map(angle).collect(), &[n, 1]).unwrap();
        Rows {
            seqs,
            cos: table.clone(),
            sin: table,
            first: 0,
        }
    }

    #[test]
    fn neighbours_alike_are_one_group_unless_each_has_a_cache() {
        let rows = rows(&[(0, 3), (0, 3), (0, 2), (4, 2), (4, 2)]);
        assert_eq!(rows.groups(false), [0..2, 2..3, 3..5]);
        assert_eq!(rows.groups(true), [0..1, 1..2, 2..3, 3..4, 4..5]);
        assert_eq!(rows.uniform(), None);
        let last = rows.of(3..5).unwrap();
        assert_eq!(
            last.uniform(),
            Some(Even {
                batch: 2,
                len: 2,
                past: 4
            })
        );
        assert_eq!((last.tokens(), last.first), (4, 3));
        assert_eq!(last.cos.to_f32(), [8.0, 9.0, 10.0, 11.0]);
    }
}
