//! What a DRT keeps while it reads and writes: a window of keys and values per layer, all finished chunks, the open chunk,
//! and what each group retrieved last.
//!
//! Nothing else grows with the text than the chunk memory and its landmarks, and both grow by appending: no step copies
//! what is there.

use super::{
    config::DrtConfig,
    layers::{ChunkTensors, Shape},
};
use crate::{
    cache::{Cache, CacheType, Kept, KvCache},
    ctx::Ctx,
    error::{ModelError, Result},
};
use half::f16;
use ounce_kernels::Data;
use ounce_tensor::{Tensor, ops, ops::KeyValue};
use std::any::Any;

/// Landmarks per block: what a step may copy.
const BLOCK: usize = 256;

/// The DRT's part of the cache; none without a cache.
///
/// # Errors
/// If the cache was not made for this model.
pub(super) fn state<'c>(ctx: &'c mut Ctx<'_>) -> Result<Option<&'c mut DrtCache>> {
    let Some(cache) = ctx.caches.first_mut() else {
        return Ok(None);
    };
    match cache.own_plan().and_then(|own| own.downcast_mut()) {
        Some(state) => Ok(Some(state)),
        None => Err(ModelError::Cache(
            "a retrieval decoder needs the cache that Model::cache makes".into(),
        )),
    }
}

#[derive(Clone)]
enum Store {
    F32(Vec<f32>),
    F16(Vec<f16>),
}

impl Store {
    fn new(kind: CacheType) -> Self {
        match kind {
            CacheType::F32 => Self::F32(Vec::new()),
            CacheType::F16 => Self::F16(Vec::new()),
        }
    }
    fn push(&mut self, values: &[f32]) {
        match self {
            Self::F32(v) => v.extend_from_slice(values),
            Self::F16(v) => {
                let from = v.len();
                v.resize(from + values.len(), f16::ZERO);
                ounce_kernels::to_f16(values, &mut v[from..]);
            }
        }
    }
    fn data(&self) -> Data<'_> {
        match self {
            Self::F32(v) => Data::F32(v),
            Self::F16(v) => Data::F16(v),
        }
    }
    fn bytes(&self) -> usize {
        match self {
            Self::F32(v) => v.capacity() * 4,
            Self::F16(v) => v.capacity() * 2,
        }
    }
}

/// What a group retrieved at the end of the last finished chunk.
#[derive(Clone)]
pub(super) struct Retrieval {
    /// Memory rows `[B·k]`; in a cache B is 1.
    pub(super) chunks: Vec<Option<usize>>,
    /// `[B,k]`.
    pub(super) weights: Tensor,
}

/// See the module.
#[derive(Clone)]
pub(super) struct DrtCache {
    window: KvCache,
    /// Positions of the window that stay after a step: W, and one chunk for going back within the open chunk.
    keep: usize,
    /// S.
    chunk: usize,
    /// Real tokens seen.
    seen: usize,
    keys: Store,
    values: Store,
    /// Rows of a chunk, heads, values per head.
    rows: (usize, usize, usize),
    /// Landmarks: full blocks `[BLOCK, D]`, and the rest.
    landmarks: (Vec<Tensor>, Vec<f32>),
    /// Lower layers' output of the open chunk `[seen mod S, D]`; none if it is empty.
    pub(super) open: Option<Tensor>,
    /// One per group; none before the first chunk is finished.
    pub(super) last: Vec<Option<Retrieval>>,
}

impl DrtCache {
    pub(super) fn new(drt: &DrtConfig, s: &Shape, kind: CacheType, reserve: usize) -> Self {
        let layers = drt.lower_layers + drt.groups.iter().sum::<usize>();
        let keep = drt.window + drt.positions();
        let memory = drt.memory.unwrap_or(kind);
        Self {
            window: KvCache::new(kind, vec![None; layers], s.kv_heads, s.head_dim, reserve.min(2 * keep)),
            keep,
            chunk: drt.chunk,
            seen: 0,
            keys: Store::new(memory),
            values: Store::new(memory),
            rows: (drt.rows(), s.heads, s.head_dim),
            landmarks: (Vec::new(), Vec::new()),
            open: None,
            last: vec![None; drt.groups.len()],
        }
    }

    /// Positions in the window of every layer.
    pub(super) fn in_window(&self) -> usize {
        self.window.len()
    }

    /// Adds finished chunks; their order is that of [`ChunkTensors`].
    pub(super) fn extend(&mut self, chunks: &ChunkTensors) -> Result<()> {
        let f32s = |t: &Tensor| t.values::<f32>().map(<[f32]>::to_vec);
        let all = (f32s(&chunks.keys), f32s(&chunks.values), f32s(&chunks.landmarks));
        let (Some(keys), Some(values), Some(landmarks)) = all else {
            return Err(ModelError::Cache("chunks must be f32".into()));
        };
        self.keys.push(&keys);
        self.values.push(&values);
        let d = chunks.landmarks.last_dim();
        let (full, tail) = &mut self.landmarks;
        for landmark in landmarks.chunks_exact(d.max(1)) {
            tail.extend_from_slice(landmark);
            if tail.len() == BLOCK * d {
                full.push(Tensor::new(std::mem::take(tail), &[BLOCK, d])?);
            }
        }
        Ok(())
    }

    /// Landmarks `[n, D]` in order, cut into blocks.
    pub(super) fn landmarks(&self, d: usize) -> Result<Vec<Tensor>> {
        let (full, tail) = &self.landmarks;
        let mut blocks = full.clone();
        if !tail.is_empty() {
            blocks.push(Tensor::new(tail.clone(), &[tail.len() / d, d])?);
        }
        Ok(blocks)
    }

    /// Keys and values of all chunks.
    pub(super) fn chunks(&self) -> (KeyValue<'_>, KeyValue<'_>) {
        let (rows, heads, head_dim) = self.rows;
        let side = |store| KeyValue::Cache {
            data: Store::data(store),
            batch_stride: rows * heads * head_dim,
            token_stride: heads * head_dim,
            head_stride: head_dim,
            heads,
        };
        (side(&self.keys), side(&self.values))
    }

    /// Ends a call that read `tokens` real tokens.
    pub(super) fn finish(&mut self, tokens: usize) {
        self.seen += tokens;
        // Moving what stays costs as much as reading it once: done every `keep` positions, it is not felt.
        if self.window.len() > 2 * self.keep {
            self.window.keep_last(self.keep);
        }
    }

    /// Positions, landmarks included, of the first `tokens` tokens.
    fn positions(&self, tokens: usize) -> usize {
        tokens + tokens / self.chunk
    }
}

impl Cache for DrtCache {
    fn append(&mut self, layer: usize, keys: &Tensor, values: &Tensor) -> Result<()> {
        self.window.append(layer, keys, values)
    }

    fn read(&self, layer: usize) -> Result<Kept<'_>> {
        self.window.read(layer)
    }

    fn len(&self) -> usize {
        self.seen
    }

    fn truncate(&mut self, to: usize) -> Result<()> {
        if to > self.seen {
            return Err(ModelError::Cache(format!(
                "cannot truncate {} tokens to {to}",
                self.seen
            )));
        }
        if to / self.chunk != self.seen / self.chunk {
            return Err(ModelError::Cache(format!(
                "cannot go back from {} to {to} tokens: chunks of {} tokens that are finished are in memory for good",
                self.seen, self.chunk
            )));
        }
        let dropped = self.positions(self.seen) - self.positions(to);
        self.window.truncate(self.window.len() - dropped)?;
        if let Some(open) = &self.open {
            let left = to % self.chunk;
            self.open = if left == 0 {
                None
            } else {
                Some(ops::narrow_rows(open, 0, left)?)
            };
        }
        self.seen = to;
        Ok(())
    }

    fn snapshot(&self) -> Box<dyn Cache> {
        Box::new(self.clone())
    }

    fn bytes(&self) -> usize {
        let (full, tail) = &self.landmarks;
        let landmarks = 4 * (full.iter().map(Tensor::numel).sum::<usize>() + tail.capacity());
        let open = self.open.as_ref().map_or(0, |t| 4 * t.numel());
        self.window.bytes() + self.keys.bytes() + self.values.bytes() + landmarks + open
    }

    fn own_plan(&mut self) -> Option<&mut dyn Any> {
        Some(self)
    }
}
