//! Keys and values of earlier tokens.

use crate::{
    error::{ModelError, Result},
    layer_cache::LayerCache,
};
use half::f16;
use ounce_kernels::Data;
use ounce_tensor::{Tensor, ops::KeyValue};

/// What attention needs of a cache.
pub trait Cache: Send {
    /// Adds keys and values `[B,T,Hk,hd]` of layer `layer` at the end.
    ///
    /// # Errors
    /// If shapes differ from those before, or memory is not to be had.
    fn append(&mut self, layer: usize, keys: &Tensor, values: &Tensor) -> Result<()>;
    /// All keys and values of layer `layer`.
    ///
    /// # Errors
    /// If nothing was appended yet.
    fn read(&self, layer: usize) -> Result<(KeyValue<'_>, KeyValue<'_>)>;
    /// Tokens every layer holds.
    fn len(&self) -> usize;
    /// Does it hold no token?
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Forgets all tokens from position `to` on.
    ///
    /// # Errors
    /// If the cache cannot go back that far, or holds fewer tokens.
    fn truncate(&mut self, to: usize) -> Result<()>;
    /// A copy that can be gone back to.
    fn snapshot(&self) -> Box<dyn Cache>;
    /// Bytes held.
    fn bytes(&self) -> usize;
    /// What the plan keeps, if it does not leave that to its layers: its own type.
    fn own_plan(&mut self) -> Option<&mut dyn std::any::Any> {
        None
    }
    /// What the method of layer `layer` keeps instead of plain keys and values, if it does.
    fn own_layer(&mut self, _layer: usize) -> Option<&mut dyn LayerCache> {
        None
    }
}

/// Element type of a [`KvCache`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheType {
    /// As computed.
    F32,
    /// Half the memory; 11 bits of precision.
    F16,
}

#[derive(Clone)]
enum Values {
    F32(Vec<f32>),
    F16(Vec<f16>),
}

impl Values {
    fn new(kind: CacheType) -> Self {
        match kind {
            CacheType::F32 => Values::F32(Vec::new()),
            CacheType::F16 => Values::F16(Vec::new()),
        }
    }
    fn data(&self) -> Data<'_> {
        match self {
            Values::F32(v) => Data::F32(v),
            Values::F16(v) => Data::F16(v),
        }
    }
    fn bytes(&self) -> usize {
        match self {
            Values::F32(v) => v.capacity() * 4,
            Values::F16(v) => v.capacity() * 2,
        }
    }
    /// Rearranges `[rows, old, hd]` to `[rows, new, hd]`.
    fn grow(&mut self, rows: usize, old: usize, new: usize, hd: usize) {
        fn grown<T: Copy + Default>(from: &[T], rows: usize, old: usize, new: usize, hd: usize) -> Vec<T> {
            let mut to = vec![T::default(); rows * new * hd];
            for r in 0..rows {
                let row = &from[r * old * hd..(r + 1) * old * hd];
                to[r * new * hd..][..row.len()].copy_from_slice(row);
            }
            to
        }
        match self {
            Values::F32(v) => *v = grown(v, rows, old, new, hd),
            Values::F16(v) => *v = grown(v, rows, old, new, hd),
        }
    }
    fn shift(&mut self, from: std::ops::Range<usize>, to: usize) {
        match self {
            Values::F32(v) => v.copy_within(from, to),
            Values::F16(v) => v.copy_within(from, to),
        }
    }
    fn write(&mut self, at: usize, from: &[f32]) {
        match self {
            Values::F32(v) => v[at..at + from.len()].copy_from_slice(from),
            Values::F16(v) => ounce_kernels::to_f16(from, &mut v[at..at + from.len()]),
        }
    }
}

#[derive(Clone)]
struct Layer {
    keys: Values,
    values: Values,
    len: usize,
    capacity: usize,
}

/// All tokens of a batch of sequences, per layer `[B, Hk, capacity, hd]`; grows by doubling.
///
/// A head's tokens are neighbours: decoding reads them one head at a time, and memory is fastest when read in its order.
#[derive(Clone)]
pub struct KvCache {
    layers: Vec<Layer>,
    batch: usize,
    kv_heads: usize,
    head_dim: usize,
    reserve: usize,
}

impl KvCache {
    /// An empty cache; `reserve` tokens per sequence are allocated at once.
    pub fn new(kind: CacheType, layers: usize, batch: usize, kv_heads: usize, head_dim: usize, reserve: usize) -> Self {
        let layer = Layer {
            keys: Values::new(kind),
            values: Values::new(kind),
            len: 0,
            capacity: 0,
        };
        Self {
            layers: vec![layer; layers],
            batch,
            kv_heads,
            head_dim,
            reserve,
        }
    }

    fn side<'a>(&self, values: &'a Values, capacity: usize) -> KeyValue<'a> {
        let head = capacity * self.head_dim;
        KeyValue::Cache {
            data: values.data(),
            batch_stride: self.kv_heads * head,
            token_stride: self.head_dim,
            head_stride: head,
            heads: self.kv_heads,
        }
    }

    /// Forgets all but the newest `n` tokens of every layer (all layers hold equally many). What stays moves to the
    /// front: positions are counted from the first token kept.
    pub(crate) fn keep_last(&mut self, n: usize) {
        let hd = self.head_dim;
        for l in &mut self.layers {
            let drop = l.len.saturating_sub(n);
            for row in 0..self.batch * self.kv_heads {
                let (start, end) = (row * l.capacity * hd, (row * l.capacity + l.len) * hd);
                l.keys.shift(start + drop * hd..end, start);
                l.values.shift(start + drop * hd..end, start);
            }
            l.len -= drop;
        }
    }

    fn layer(&self, layer: usize) -> Result<&Layer> {
        self.layers
            .get(layer)
            .ok_or_else(|| ModelError::Cache(format!("layer {layer} of {}", self.layers.len())))
    }
}

impl Cache for KvCache {
    fn append(&mut self, layer: usize, keys: &Tensor, values: &Tensor) -> Result<()> {
        let (batch, reserve) = (self.batch, self.reserve);
        let [b, t, heads, hd] = keys.shape()[..] else {
            return Err(ModelError::Cache(format!(
                "keys are [B,T,H,hd], got {:?}",
                keys.shape()
            )));
        };
        let (Some(new_keys), Some(new_values)) = (keys.values::<f32>(), values.values::<f32>()) else {
            return Err(ModelError::Cache("keys and values must be f32".into()));
        };
        if b != batch || heads != self.kv_heads || hd != self.head_dim || values.shape() != keys.shape() {
            return Err(ModelError::Cache(format!(
                "shape {:?} does not fit a batch of {batch}",
                keys.shape()
            )));
        }
        self.layer(layer)?;
        let l = &mut self.layers[layer];
        let needed = l.len + t;
        if needed > l.capacity {
            let capacity = needed.max(reserve).max(l.capacity * 2);
            l.keys.grow(batch * heads, l.capacity, capacity, hd);
            l.values.grow(batch * heads, l.capacity, capacity, hd);
            l.capacity = capacity;
        }
        for (i, (key, value)) in new_keys.chunks_exact(hd).zip(new_values.chunks_exact(hd)).enumerate() {
            // [B, t, Hk] -> [B, Hk, capacity]
            let (row, token, head) = (i / (t * heads), i / heads % t, i % heads);
            let at = ((row * heads + head) * l.capacity + l.len + token) * hd;
            l.keys.write(at, key);
            l.values.write(at, value);
        }
        l.len = needed;
        Ok(())
    }

    fn read(&self, layer: usize) -> Result<(KeyValue<'_>, KeyValue<'_>)> {
        let l = self.layer(layer)?;
        Ok((self.side(&l.keys, l.capacity), self.side(&l.values, l.capacity)))
    }

    fn len(&self) -> usize {
        self.layers.iter().map(|l| l.len).min().unwrap_or(0)
    }

    fn truncate(&mut self, to: usize) -> Result<()> {
        if to > self.len() {
            return Err(ModelError::Cache(format!(
                "cannot truncate {} tokens to {to}",
                self.len()
            )));
        }
        for l in &mut self.layers {
            l.len = to;
        }
        Ok(())
    }

    fn snapshot(&self) -> Box<dyn Cache> {
        Box::new(self.clone())
    }

    fn bytes(&self) -> usize {
        self.layers.iter().map(|l| l.keys.bytes() + l.values.bytes()).sum()
    }
}
