//! Fused attention, forward and backward, for training, prefill and decoding.
//!
//! This module owns the softmax(q kᵀ) v of grouped heads over keys that may be stored in half precision, with causal
//! and sliding windows and rows of unequal length. No T x T matrix exists: scores live in tiles of per-thread scratch.
//! It must not know caches (a caller describes them by strides), positions other than those in [`AttentionRows`], or
//! rotary embedding.
//!
//! Arithmetic: f32, to which half precision keys and values are widened exactly. Under [`Compute::Bf16`] the products of
//! prompts (32 query rows of a key head or more) are made in bf16 where the processor has tile registers, see `amx`; scores,
//! softmax and sums stay f32. Training is f32 throughout: the gradient computes the scores again, and they must be those
//! that its logarithms belong to. So is decoding, whose time is that of reading the cache.
//!
//! Bits: each query's softmax runs over tiles of `TILE` keys that start at multiples of `TILE`, whatever task or thread
//! takes it, so results depend on the inputs and the instruction set only.

#[cfg(target_arch = "x86_64")]
mod amx;
mod backward;
mod block;
mod forward;
mod running;
mod tiles;

#[cfg(all(test, target_arch = "x86_64"))]
mod amx_tests;
#[cfg(test)]
mod tests;

use crate::{Compute, Data, Float, reference};

/// Keys per tile: the unit of the online softmax, and so part of what the bits depend on.
const TILE: usize = 64;

/// What all rows of one attention call share.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionShape {
    /// Rows of the batch, B.
    pub batch: usize,
    /// Queries per row, Tq.
    pub q_len: usize,
    /// Query heads, Hq: a multiple of `kv_heads`. Query head a uses key head a / (Hq / Hk).
    pub q_heads: usize,
    /// Key and value heads, Hk.
    pub kv_heads: usize,
    /// Values per head.
    pub head_dim: usize,
    /// How many positions a query sees, itself included; none = all.
    pub window: Option<usize>,
    /// Whether a query sees only keys up to its own position.
    pub causal: bool,
    /// The factor on q · k, usually head_dim^-0.5. Positive.
    pub scale: f64,
    /// Linear biases (ALiBi): a query at position p adds `slopes[head]` · (j - p) to its score with key j. One slope per
    /// query head; none = no bias.
    pub slopes: Option<Vec<f32>>,
}

/// Where each batch row's queries stand and which keys it has; all slices have one entry per batch row.
///
/// Query i of row b has position p = `q_start[b]` + i and sees the keys j with `kv_begin[b]` <= j < `kv_len[b]`,
/// j <= p if causal, and p - j < window if there is one. A query that sees nothing yields zeros and lse = -inf.
/// `positions` replaces p where queries are not consecutive.
#[derive(Debug, Clone, Copy)]
pub struct AttentionRows<'a> {
    /// Position of the first query.
    pub q_start: &'a [usize],
    /// First key that exists (padding on the left is before it).
    pub kv_begin: &'a [usize],
    /// One past the last key.
    pub kv_len: &'a [usize],
    /// Position of every query [B, Tq], never falling within a batch row; none = consecutive from `q_start`.
    pub positions: Option<&'a [usize]>,
}

/// Keys or values as they lie in an activation or in a cache, strides in elements. The values of one head are
/// contiguous.
#[derive(Clone, Copy)]
pub struct Heads<'a> {
    /// The storage.
    pub data: Data<'a>,
    /// From one batch row to the next.
    pub batch_stride: usize,
    /// From one token to the next.
    pub token_stride: usize,
    /// From one head to the next.
    pub head_stride: usize,
}

impl AttentionShape {
    /// Query heads per key head.
    pub(crate) fn group(&self) -> usize {
        self.q_heads / self.kv_heads
    }

    /// The keys lo..hi that query `i` of batch row `b` sees; empty if lo >= hi. Both ends grow with `i`.
    pub(crate) fn visible(&self, rows: &AttentionRows<'_>, b: usize, i: usize) -> (usize, usize) {
        let position = rows.positions.map_or(rows.q_start[b] + i, |p| p[b * self.q_len + i]);
        let behind = self.window.map_or(0, |w| (position + 1).saturating_sub(w));
        let ahead = if self.causal { position + 1 } else { usize::MAX };
        (behind.max(rows.kv_begin[b]), ahead.min(rows.kv_len[b]))
    }

    /// The position of query `i` of batch row `b`, and the slope of `head`, if there are linear biases.
    pub(crate) fn bias(&self, rows: &AttentionRows<'_>, b: usize, i: usize, head: usize) -> Option<(usize, f32)> {
        let slopes = self.slopes.as_ref()?;
        let position = rows.positions.map_or(rows.q_start[b] + i, |p| p[b * self.q_len + i]);
        Some((position, slopes[head]))
    }

    /// Tokens per batch row of a contiguous [B, tokens, Hk, head_dim] buffer of `len` elements.
    pub(crate) fn kv_capacity(&self, len: usize) -> usize {
        len.checked_div(self.batch * self.kv_heads * self.head_dim).unwrap_or(0)
    }

    /// Panics unless `rows`, `q` and the keys that `rows` names fit this shape: what the tiled code relies on.
    fn check(&self, rows: &AttentionRows<'_>, q: usize, kv: [&Heads<'_>; 2]) {
        assert!(
            self.kv_heads > 0 && self.q_heads.is_multiple_of(self.kv_heads),
            "query heads must be a multiple of key heads"
        );
        assert!(self.scale > 0.0, "the scale of attention must be positive");
        assert!(
            self.slopes.as_ref().is_none_or(|slopes| slopes.len() == self.q_heads),
            "there must be one slope per query head"
        );
        assert_eq!(
            q,
            self.batch * self.q_len * self.q_heads * self.head_dim,
            "q must be [B, Tq, Hq, hd]"
        );
        for rows in [rows.q_start, rows.kv_begin, rows.kv_len] {
            assert_eq!(
                rows.len(),
                self.batch,
                "attention rows must have one entry per batch row"
            );
        }
        if let Some(positions) = rows.positions {
            assert_eq!(positions.len(), self.batch * self.q_len, "positions must be [B, Tq]");
            // The tiled walk reads the first and the last query of a block to know which keys all of them see.
            assert!(
                positions.chunks(self.q_len.max(1)).all(<[usize]>::is_sorted),
                "positions must not fall within a batch row"
            );
        }
        let longest = rows.kv_len.iter().enumerate().filter(|&(_, &len)| len > 0);
        for (b, &len) in longest {
            for heads in kv {
                let last = heads.offset(b, len - 1, self.kv_heads - 1) + self.head_dim;
                assert!(
                    last <= heads.data.len(),
                    "batch row {b} names {len} keys, more than their buffer holds"
                );
            }
        }
    }
}

impl<'a> Heads<'a> {
    /// The same values, seen as the only head of the only batch row.
    #[must_use]
    pub fn only(self, b: usize, head: usize) -> Heads<'a> {
        let at = self.offset(b, 0, head);
        Heads {
            data: self.data.part(at..usize::MAX),
            batch_stride: 0,
            head_stride: 0,
            ..self
        }
    }

    /// Index of the first value of a head of a token.
    pub(crate) fn offset(&self, b: usize, token: usize, head: usize) -> usize {
        b * self.batch_stride + token * self.token_stride + head * self.head_stride
    }

    /// One value, converted exactly where T can hold it.
    pub(crate) fn get<T: Float>(&self, b: usize, token: usize, head: usize, c: usize) -> T {
        T::from_f64(self.data.get(self.offset(b, token, head) + c))
    }

    fn is_f64(&self) -> bool {
        matches!(self.data, Data::F64(_))
    }
}

/// softmax(scale · q kᵀ) v over the keys each query sees.
///
/// `q`, `out`: [B, Tq, Hq, hd]; `lse`: [B, Hq, Tq], the logarithm of each softmax's denominator, which
/// [`attention_backward`] needs. Few queries against many keys (decoding) are split over the keys.
///
/// # Panics
/// If the slices do not fit the shape.
pub fn attention<T: Float>(
    s: &AttentionShape,
    rows: &AttentionRows<'_>,
    q: &[T],
    k: Heads<'_>,
    v: Heads<'_>,
    out: &mut [T],
    mut lse: Option<&mut [T]>,
    compute: Compute,
) {
    s.check(rows, q.len(), [&k, &v]);
    assert_eq!(out.len(), q.len(), "out must have q's shape");
    if let Some(lse) = &lse {
        assert_eq!(lse.len(), s.batch * s.q_heads * s.q_len, "lse must be [B, Hq, Tq]");
    }
    if k.is_f64() || v.is_f64() {
        return reference::attention::attention(s, rows, q, k, v, out, lse);
    }
    let fast_lse = lse.as_deref_mut().map(T::as_f32_mut);
    match (T::as_f32(q), T::as_f32_mut(out)) {
        (Some(q), Some(out)) => forward::attention(s, rows, q, k, v, out, fast_lse.flatten(), compute),
        _ => reference::attention::attention(s, rows, q, k, v, out, lse),
    }
}

/// Gradients of [`attention`], scores recomputed from `lse`.
///
/// `q`, `out`, `dout`, `dq`: [B, Tq, Hq, hd]; `lse`: [B, Hq, Tq]; `dk`, `dv`: [B, capacity, Hk, hd], contiguous, where
/// capacity is at least every `kv_len`. The three gradients are overwritten; keys nobody sees get zeros.
///
/// # Panics
/// If the slices do not fit the shape.
pub fn attention_backward<T: Float>(
    s: &AttentionShape,
    rows: &AttentionRows<'_>,
    q: &[T],
    k: Heads<'_>,
    v: Heads<'_>,
    out: &[T],
    lse: &[T],
    dout: &[T],
    dq: &mut [T],
    dk: &mut [T],
    dv: &mut [T],
    _compute: Compute,
) {
    s.check(rows, q.len(), [&k, &v]);
    for (name, len) in [("out", out.len()), ("dout", dout.len()), ("dq", dq.len())] {
        assert_eq!(len, q.len(), "{name} must have q's shape");
    }
    assert_eq!(lse.len(), s.batch * s.q_heads * s.q_len, "lse must be [B, Hq, Tq]");
    let capacity = s.kv_capacity(dk.len());
    assert_eq!(
        dk.len(),
        s.batch * capacity * s.kv_heads * s.head_dim,
        "dk must be [B, capacity, Hk, hd]"
    );
    assert_eq!(dv.len(), dk.len(), "dv must have dk's shape");
    assert!(
        rows.kv_len.iter().all(|&len| len <= capacity),
        "dk must have room for every key"
    );
    let f32s = (T::as_f32(q), T::as_f32(out), T::as_f32(lse), T::as_f32(dout));
    if let (false, (Some(q), Some(out), Some(lse), Some(dout))) = (k.is_f64() || v.is_f64(), f32s)
        && let (Some(dq), Some(dk), Some(dv)) = (T::as_f32_mut(dq), T::as_f32_mut(dk), T::as_f32_mut(dv))
    {
        return backward::attention_backward(s, rows, q, k, v, out, lse, dout, dq, dk, dv);
    }
    reference::attention::attention_backward(s, rows, q, k, v, out, lse, dout, dq, dk, dv);
}
