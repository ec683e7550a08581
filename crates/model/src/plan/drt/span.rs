//! The layout of one call: which positions are real tokens, which are landmarks, and which chunk each belongs to. Knows
//! numbers only.

use std::ops::Range;

/// Where the tokens of one call stand. Positions are counted from the first of the call and include landmarks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    /// S.
    pub(super) chunk: usize,
    /// Real tokens before the call.
    pub(super) past: usize,
    /// Real tokens of the call, T.
    pub(super) len: usize,
}

impl Span {
    /// Chunks finished before the call; also the number of the chunk that the first token is in.
    pub(super) fn first(&self) -> usize {
        self.past / self.chunk
    }
    /// Real tokens of the open chunk before the call.
    pub(super) fn open(&self) -> usize {
        self.past % self.chunk
    }
    /// Chunks that the call finishes.
    pub(super) fn finished(&self) -> usize {
        (self.past + self.len) / self.chunk - self.first()
    }
    /// Positions of the call.
    pub(super) fn total(&self) -> usize {
        self.len + self.finished()
    }
    /// Position of real token `i`.
    pub(super) fn position(&self, i: usize) -> usize {
        i + (self.past + i) / self.chunk - self.first()
    }
    /// Position of the landmark of the `n`th chunk that the call finishes.
    pub(super) fn landmark(&self, n: usize) -> usize {
        (n + 1) * (self.chunk + 1) - 1 - self.open()
    }
    /// How many of the chunks that the call finishes end at or before position `p`.
    pub(super) fn chunks_before(&self, p: usize) -> usize {
        ((p + self.open()) / (self.chunk + 1)).min(self.finished())
    }
    /// What follows the first `n` chunks that the call finishes, and at which position it begins.
    pub(super) fn after(&self, n: usize) -> (Self, usize) {
        if n == 0 {
            return (*self, 0);
        }
        let tokens = n * self.chunk - self.open();
        let rest = Self {
            chunk: self.chunk,
            past: self.past + tokens,
            len: self.len - tokens,
        };
        (rest, self.landmark(n - 1) + 1)
    }
    /// The positions of each chunk that the call touches, the last of which may be empty: finished + 1 of them.
    pub(super) fn chunks(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        (0..=self.finished()).map(|n| {
            let start = if n == 0 { 0 } else { self.landmark(n - 1) + 1 };
            let end = if n == self.finished() {
                self.total()
            } else {
                self.landmark(n) + 1
            };
            start..end
        })
    }
}
