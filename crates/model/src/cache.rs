//! Keys and values of earlier tokens: the memory of one sequence. Several sequences have a cache each (see `session`).

use crate::{
    error::{ModelError, Result},
    layer_cache::LayerCache,
};
use half::f16;
use ounce_kernels::Data;
use ounce_tensor::{
    Tensor,
    ops::{KeyValue, RowSpan},
};

/// What attention needs of the cache of a sequence.
pub trait Cache: Send {
    /// Adds keys and values `[T,Hk,hd]` of layer `layer` at the end.
    ///
    /// # Errors
    /// If shapes differ from those before, or memory is not to be had.
    fn append(&mut self, layer: usize, keys: &Tensor, values: &Tensor) -> Result<()>;
    /// Keys and values of layer `layer`: all of them, or those that its window can still see.
    ///
    /// # Errors
    /// If nothing was appended yet.
    fn read(&self, layer: usize) -> Result<Kept<'_>>;
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

/// Keys and values of one layer, of the positions from `first` on.
pub struct Kept<'a> {
    /// `[1, Hk, tokens, hd]`, by strides.
    pub keys: KeyValue<'a>,
    /// As the keys.
    pub values: KeyValue<'a>,
    /// Position of the first key: 0 unless the layer's window has moved on.
    pub first: usize,
}

impl Kept<'_> {
    /// Where `len` queries stand among these keys, the first of which has `past` tokens before it.
    #[must_use]
    pub fn span(&self, past: usize, len: usize) -> RowSpan {
        RowSpan {
            q_start: past - self.first,
            kv_begin: 0,
            kv_len: past + len - self.first,
        }
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
    /// Rearranges `[rows, old, hd]`, a row for each head, to `[rows, new, hd]`. What is not written yet takes no memory, unless it is `dense`: soon
    /// full.
    fn grow(&mut self, rows: usize, old: usize, new: usize, hd: usize, dense: bool) {
        fn grown<T: Copy + Default>(from: &[T], rows: usize, [old, new, hd]: [usize; 3], dense: bool) -> Vec<T> {
            let mut to = vec![T::default(); rows * new * hd];
            if dense {
                ounce_kernels::prefer_large_pages(&mut to);
            }
            for r in 0..rows {
                let row = &from[r * old * hd..(r + 1) * old * hd];
                to[r * new * hd..][..row.len()].copy_from_slice(row);
            }
            to
        }
        match self {
            Values::F32(v) => *v = grown(v, rows, [old, new, hd], dense),
            Values::F16(v) => *v = grown(v, rows, [old, new, hd], dense),
        }
    }
    fn shift(&mut self, from: std::ops::Range<usize>, to: usize) {
        match self {
            Values::F32(v) => v.copy_within(from, to),
            Values::F16(v) => v.copy_within(from, to),
        }
    }
    /// Writes `from [t,Hk,hd]` behind the `len` tokens of each of the Hk rows `[capacity, hd]`.
    fn write(&mut self, from: &[f32], [t, heads, hd]: [usize; 3], capacity: usize, len: usize) {
        fn rows<T: Send>(
            to: &mut [T],
            from: &[f32],
            [t, heads, hd]: [usize; 3],
            (capacity, len): (usize, usize),
            put: impl Fn(&[f32], &mut [T]) + Sync,
        ) {
            let each = |row: usize, to: &mut [T]| {
                for (token, to) in to[len * hd..(len + t) * hd].chunks_exact_mut(hd).enumerate() {
                    put(&from[(token * heads + row) * hd..][..hd], to);
                }
            };
            if from.len() < WORTH_THREADS {
                let all = to.chunks_exact_mut(capacity * hd).enumerate();
                all.for_each(|(row, to)| each(row, to));
            } else {
                ounce_kernels::parallel_chunks_mut(to, capacity * hd, each);
            }
        }
        let (shape, place) = ([t, heads, hd], (capacity, len));
        match self {
            Values::F32(v) => rows(v, from, shape, place, |from, to| to.copy_from_slice(from)),
            Values::F16(v) => rows(v, from, shape, place, ounce_kernels::to_f16),
        }
    }
}

/// So many values are worth the threads: prompts, not single tokens.
const WORTH_THREADS: usize = 1 << 16;

/// Tokens beyond the window that a layer keeps, so that a few can be taken back.
const BACK: usize = 64;

#[derive(Clone)]
struct Layer {
    keys: Values,
    values: Values,
    /// How many positions a token of this layer sees, itself included.
    window: Option<usize>,
    /// Tokens forgotten in front.
    first: usize,
    /// Tokens held.
    len: usize,
    capacity: usize,
}

impl Layer {
    /// Earlier tokens that a new one may look at, or that may be asked back.
    fn keep(&self) -> usize {
        self.window.map_or(usize::MAX, |w| w - 1 + BACK)
    }

    /// Forgets the first `n` tokens of each of `rows` rows; those that stay move to the front.
    fn forget(&mut self, n: usize, rows: usize, hd: usize) {
        for row in 0..rows {
            let (start, end) = (row * self.capacity * hd, (row * self.capacity + self.len) * hd);
            self.keys.shift(start + n * hd..end, start);
            self.values.shift(start + n * hd..end, start);
        }
        self.len -= n;
    }

    /// Makes room for `more` tokens in each of `rows` rows, if there is none: by forgetting what is out of sight, and by
    /// growing. A window's memory is twice what must stay, so that moving what stays is rare and costs no more than reading
    /// it once.
    fn make_room(&mut self, more: usize, reserve: usize, rows: usize, hd: usize) {
        if self.len + more <= self.capacity {
            return;
        }
        let most = self.keep().saturating_mul(2);
        if self.capacity >= most {
            let gone = self.len.saturating_sub(self.keep());
            self.forget(gone, rows, hd);
            self.first += gone;
        }
        let needed = self.len + more;
        if needed > self.capacity {
            let capacity = needed.max(most.min(reserve.max(self.capacity.saturating_mul(2))));
            let dense = needed >= capacity / 4 * 3;
            self.keys.grow(rows, self.capacity, capacity, hd, dense);
            self.values.grow(rows, self.capacity, capacity, hd, dense);
            self.capacity = capacity;
        }
    }

    /// Why the tokens from position `to` on cannot be forgotten, if they cannot.
    fn cannot_truncate(&self, to: usize) -> Option<String> {
        let window = self.window?;
        let seen = to.min(window - 1);
        (to < self.first + seen && self.first > 0).then(|| {
            format!(
                "cannot go back to {to} tokens: those before position {} are out of sight of a window of {window} and \
                 forgotten; take a snapshot first",
                self.first
            )
        })
    }
}

/// The tokens of a sequence, per layer `[Hk, capacity, hd]`; grows by doubling. A layer with a window keeps
/// what it can still see.
///
/// A head's tokens are neighbours: decoding reads them one head at a time, and memory is fastest when read in its order.
#[derive(Clone)]
pub struct KvCache {
    layers: Vec<Layer>,
    kv_heads: usize,
    head_dim: usize,
    reserve: usize,
}

impl KvCache {
    /// An empty cache of layers with these windows (none = everything is kept); `reserve` tokens are allocated
    /// at once, where a window does not need less.
    pub fn new(kind: CacheType, windows: Vec<Option<usize>>, kv_heads: usize, head_dim: usize, reserve: usize) -> Self {
        let layer = |window: Option<usize>| Layer {
            keys: Values::new(kind),
            values: Values::new(kind),
            window: window.map(|w| w.max(1)),
            first: 0,
            len: 0,
            capacity: 0,
        };
        Self {
            layers: windows.into_iter().map(layer).collect(),
            kv_heads,
            head_dim,
            reserve,
        }
    }

    fn side<'a>(&self, values: &'a Values, capacity: usize) -> KeyValue<'a> {
        let head = capacity * self.head_dim;
        KeyValue::Cache {
            data: values.data(),
            batch_stride: 0,
            token_stride: self.head_dim,
            head_stride: head,
            heads: self.kv_heads,
        }
    }

    /// Forgets all but the newest `n` tokens of every layer (all layers hold equally many). What stays moves to the
    /// front: positions are counted from the first token kept.
    pub(crate) fn keep_last(&mut self, n: usize) {
        for l in &mut self.layers {
            l.forget(l.len.saturating_sub(n), self.kv_heads, self.head_dim);
        }
    }

    /// Why the tokens from position `to` on cannot be forgotten, if they cannot.
    pub(crate) fn cannot_truncate(&self, to: usize) -> Option<String> {
        if to > self.len() {
            return Some(format!("cannot truncate {} tokens to {to}", self.len()));
        }
        self.layers.iter().find_map(|l| l.cannot_truncate(to))
    }

    fn layer(&self, layer: usize) -> Result<&Layer> {
        self.layers
            .get(layer)
            .ok_or_else(|| ModelError::Cache(format!("layer {layer} of {}", self.layers.len())))
    }
}

impl Cache for KvCache {
    fn append(&mut self, layer: usize, keys: &Tensor, values: &Tensor) -> Result<()> {
        let reserve = self.reserve;
        let [t, heads, hd] = keys.shape()[..] else {
            return Err(ModelError::Cache(format!("keys are [T,H,hd], got {:?}", keys.shape())));
        };
        let (Some(new_keys), Some(new_values)) = (keys.values::<f32>(), values.values::<f32>()) else {
            return Err(ModelError::Cache("keys and values must be f32".into()));
        };
        if heads != self.kv_heads || hd != self.head_dim || values.shape() != keys.shape() {
            return Err(ModelError::Cache(format!(
                "shape {:?} does not fit {} heads of {} values",
                keys.shape(),
                self.kv_heads,
                self.head_dim
            )));
        }
        self.layer(layer)?;
        let l = &mut self.layers[layer];
        l.make_room(t, reserve, heads, hd);
        l.keys.write(new_keys, [t, heads, hd], l.capacity, l.len);
        l.values.write(new_values, [t, heads, hd], l.capacity, l.len);
        l.len += t;
        Ok(())
    }

    fn read(&self, layer: usize) -> Result<Kept<'_>> {
        let l = self.layer(layer)?;
        Ok(Kept {
            keys: self.side(&l.keys, l.capacity),
            values: self.side(&l.values, l.capacity),
            first: l.first,
        })
    }

    fn len(&self) -> usize {
        self.layers.iter().map(|l| l.first + l.len).min().unwrap_or(0)
    }

    fn truncate(&mut self, to: usize) -> Result<()> {
        if let Some(why) = self.cannot_truncate(to) {
            return Err(ModelError::Cache(why));
        }
        for l in &mut self.layers {
            l.len = to - l.first;
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
