//! Weights in blocks: a few bits a value, and a scale (and for some a minimum) that the values of a block share.
//!
//! The layouts are those of the GGML library, which GGUF files hold. This module owns how many bytes a block takes and
//! the exact value of each of its numbers; every kind is widened to the same f32 bits as GGML's own `dequantize_row_*`.
//! It must not know files or what the values are for.

mod widen;

pub use widen::widen_blocks;

/// A layout of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockKind {
    /// 32 values of 4 bits: scale.
    Q4_0,
    /// 32 values of 4 bits: scale and minimum.
    Q4_1,
    /// 32 values of 5 bits: scale.
    Q5_0,
    /// 32 values of 5 bits: scale and minimum.
    Q5_1,
    /// 32 values of 8 bits: scale.
    Q8_0,
    /// 256 values of 4 bits: eight groups, each with a scale and a minimum of 6 bits.
    Q4K,
    /// 256 values of 5 bits: as [`BlockKind::Q4K`].
    Q5K,
    /// 256 values of 6 bits: sixteen groups, each with a scale of 8 bits.
    Q6K,
}

impl BlockKind {
    /// All kinds.
    pub const ALL: [Self; 8] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// The name that GGML and its users call it by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// Values of a block.
    pub const fn values(self) -> usize {
        match self {
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
            _ => 32,
        }
    }

    /// Bytes of a block.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Bytes of `values` values; `None` if they are not whole blocks, or more than can be counted.
    pub fn byte_len(self, values: usize) -> Option<usize> {
        if values.is_multiple_of(self.values()) {
            (values / self.values()).checked_mul(self.bytes())
        } else {
            None
        }
    }
}

/// Values in blocks: whole ones, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Blocks<'a> {
    kind: BlockKind,
    bytes: &'a [u8],
}

impl<'a> Blocks<'a> {
    /// The blocks that `bytes` are.
    ///
    /// # Panics
    /// If they are not whole blocks.
    pub fn new(kind: BlockKind, bytes: &'a [u8]) -> Self {
        assert!(
            bytes.len().is_multiple_of(kind.bytes()),
            "{} bytes are not whole blocks of {}",
            bytes.len(),
            kind.name()
        );
        Self { kind, bytes }
    }

    /// Their layout.
    pub fn kind(&self) -> BlockKind {
        self.kind
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.kind.bytes() * self.kind.values()
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The blocks of the values `range`.
    ///
    /// # Panics
    /// If they are not whole blocks, or not there.
    #[must_use]
    pub fn part(self, range: std::ops::Range<usize>) -> Blocks<'a> {
        let at = |value| self.kind.byte_len(value).expect("a part begins and ends with a block");
        Self::new(self.kind, &self.bytes[at(range.start)..at(range.end)])
    }

    /// Widens `lines` lines of `len` values, the first from `start` on and the next `stride` further, one after the other.
    pub(crate) fn widen_lines(&self, start: usize, stride: usize, lines: usize, len: usize, out: &mut [f32]) {
        for (i, out) in out.chunks_exact_mut(len.max(1)).take(lines).enumerate() {
            self.widen_from(start + i * stride, out);
        }
    }

    /// Value `i`, exactly.
    ///
    /// # Panics
    /// If there are fewer values.
    pub fn get(&self, i: usize) -> f32 {
        let mut value = [0.0];
        self.widen_from(i, &mut value);
        value[0]
    }

    /// The values from number `start` on, as many as `out` takes, on this thread.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn widen_from(&self, start: usize, out: &mut [f32]) {
        assert!(
            start.checked_add(out.len()).is_some_and(|end| end <= self.len()),
            "values {start}.. ({}) of {}",
            out.len(),
            self.len()
        );
        let (values, bytes) = (self.kind.values(), self.kind.bytes());
        let (mut block, skip) = (start / values, start % values);
        let mut rest = out;
        let mut whole = [0.0; 256];
        if skip > 0 && !rest.is_empty() {
            widen_blocks(self.kind, &self.bytes[block * bytes..][..bytes], &mut whole[..values]);
            let (first, after) = rest.split_at_mut((values - skip).min(rest.len()));
            first.copy_from_slice(&whole[skip..][..first.len()]);
            (rest, block) = (after, block + 1);
        }
        let n = rest.len() / values;
        let (most, last) = rest.split_at_mut(n * values);
        widen_blocks(self.kind, &self.bytes[block * bytes..][..n * bytes], most);
        if !last.is_empty() {
            let end = &self.bytes[(block + n) * bytes..][..bytes];
            widen_blocks(self.kind, end, &mut whole[..values]);
            last.copy_from_slice(&whole[..last.len()]);
        }
    }
}

#[cfg(test)]
mod tests;
