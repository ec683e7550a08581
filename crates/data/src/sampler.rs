//! Which tokens a training step sees.
//!
//! Owns the order of windows. Symbols: N tokens in the stream, T window length, W windows per epoch, B rows per
//! micro-batch, M micro-batches per step. A window is T inputs and the T tokens after them, so neighbouring windows
//! share one token and every token is predicted once. Each epoch starts at a random phase in 0..T (a token is not
//! always at the same position) and visits its W windows in an order given by a keyed permutation, computed per
//! index rather than shuffled: the window of (seed, step, index) is a pure function, and there is no cursor to save.
//! Aligned windows have no phase: for corpora whose items are one window long.
//! It must not know models or objectives.

use std::sync::Arc;

use crate::error::{DataError, Result};
use crate::packing::TokenStream;
use crate::rng::RandomStream;

/// Streams of randomness used here; other users of the same seed take other numbers.
const PHASE: u64 = 0x7068_6173;
const ORDER: u64 = 0x6f72_6465;

/// Rounds of the permutation; four already mix, the rest is margin at no visible cost.
const ROUNDS: u64 = 6;

/// Rows of inputs and the tokens that follow them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// B, rows.
    pub rows: usize,
    /// T, tokens per row.
    pub length: usize,
    /// `[B, T]`, row-major.
    pub inputs: Vec<u32>,
    /// `[B, T]`: `targets[b, t]` follows `inputs[b, t]`.
    pub targets: Vec<u32>,
}

/// Chooses windows of a stream.
#[derive(Clone, Debug)]
pub struct Sampler {
    stream: Arc<TokenStream>,
    length: usize,
    rows: usize,
    micro_batches: usize,
    windows: u64,
    seed: u64,
    /// Windows start at multiples of T.
    aligned: bool,
}

impl Sampler {
    /// Windows of `length` tokens (T), `rows` per micro-batch (B), `micro_batches` per step (M).
    ///
    /// # Errors
    /// A size of zero, or a stream shorter than one window and its last target (T + 1 tokens).
    pub fn new(stream: Arc<TokenStream>, length: usize, rows: usize, micro_batches: usize, seed: u64) -> Result<Self> {
        for (name, size) in [
            ("window length", length),
            ("batch size", rows),
            ("micro-batches per step", micro_batches),
        ] {
            if size == 0 {
                return Err(DataError::Setting {
                    rule: format!("the {name} must be at least 1"),
                    hint: "",
                });
            }
        }
        if stream.len() <= length {
            return Err(DataError::Setting {
                rule: format!(
                    "the corpus has {} tokens, a window of {length} needs {}",
                    stream.len(),
                    length.saturating_add(1)
                ),
                hint: "shorten the window or add text",
            });
        }
        // As many windows as fit at every phase, so that all epochs are equally long.
        let windows = ((stream.len() - length) / length).max(1) as u64;
        Ok(Self {
            stream,
            length,
            rows,
            micro_batches,
            windows,
            seed,
            aligned: false,
        })
    }

    /// The same with windows that start at multiples of T: for corpora whose items are one window long.
    #[must_use]
    pub fn aligned(mut self) -> Self {
        self.aligned = true;
        self.windows = ((self.stream.len() - 1) / self.length) as u64;
        self
    }

    /// W, windows per epoch.
    pub fn windows_per_epoch(&self) -> u64 {
        self.windows
    }

    /// B x T x M, tokens predicted per step.
    pub fn tokens_per_step(&self) -> usize {
        self.rows * self.length * self.micro_batches
    }

    /// Epoch and first token of window `index` (below B x M) of `step`.
    pub fn start(&self, step: u64, index: usize) -> (u64, usize) {
        let per_step = (self.rows * self.micro_batches) as u128;
        let serial = u128::from(step) * per_step + index as u128;
        let epoch = (serial / u128::from(self.windows)) as u64;
        let window = permute(
            (serial % u128::from(self.windows)) as u64,
            self.windows,
            self.seed,
            epoch,
        );
        if self.aligned {
            return (epoch, window as usize * self.length);
        }
        // A stream barely longer than its windows has less room than a whole phase.
        let slack = (self.stream.len() - 1 - self.windows as usize * self.length).min(self.length - 1);
        let phase = RandomStream::at(self.seed, PHASE, epoch, 0).below(slack as u64 + 1) as usize;
        (epoch, phase + window as usize * self.length)
    }

    /// The T + 1 tokens of window `index` of `step`.
    pub fn window(&self, step: u64, index: usize) -> Vec<u32> {
        let (_, start) = self.start(step, index);
        self.stream.slice(start..start + self.length + 1)
    }

    /// Micro-batch `micro_batch` (below M) of `step`.
    pub fn batch(&self, step: u64, micro_batch: usize) -> Batch {
        let size = self.rows * self.length;
        let (mut inputs, mut targets) = (Vec::with_capacity(size), Vec::with_capacity(size));
        for row in 0..self.rows {
            let window = self.window(step, micro_batch * self.rows + row);
            inputs.extend(&window[..self.length]);
            targets.extend(&window[1..]);
        }
        Batch {
            rows: self.rows,
            length: self.length,
            inputs,
            targets,
        }
    }
}

/// A pseudo-random permutation of 0..`n`, chosen by (`seed`, `epoch`): a balanced Feistel network over the next even
/// power of two, walked until it lands inside (less than four steps on average).
pub fn permute(index: u64, n: u64, seed: u64, epoch: u64) -> u64 {
    assert!(index < n, "invariant: index {index} below {n}");
    let half = (u64::BITS - (n - 1).leading_zeros()).div_ceil(2).max(1);
    let mask = (1u64 << half) - 1;
    let keyed = RandomStream::new(seed, ORDER);
    let mut at = index;
    loop {
        let (mut left, mut right) = (at >> half, at & mask);
        for round in 0..ROUNDS {
            // Both halves have at most 32 bits, so round and half share one index.
            let mixed = keyed.draw(epoch, round << 32 | right).u64() & mask;
            (left, right) = (right, left ^ mixed);
        }
        at = left << half | right;
        if at < n {
            return at;
        }
    }
}
