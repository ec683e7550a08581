//! What a layer keeps: the first tokens, focal tokens and groups for good, then recent tokens as they are. When there are
//! enough of those, the oldest block of them is compressed.

use super::{
    DgaConfig, GroupBias, Selection, Shape, fast,
    grouped::{Head, collect, heads},
    layout::{aggregate, bias, logits, picked, split_block},
    store::Store,
};
use crate::{cache::CacheType, error::Result, layer_cache::LayerCache};
use ounce_kernels::{AttentionRows, AttentionShape, Compute};
use ounce_tensor::{Tensor, TensorError, ops::RowSpan};
use std::{any::Any, sync::Mutex};

/// One row and one key head. What a query sees of it is all that was there before it, so the order of what is kept does not
/// matter.
#[derive(Debug, Clone)]
struct Row {
    /// `[entries, hd]`: `kept` of them, then the recent tokens. With a group bias that is one more value, 0 for single tokens.
    keys: Store,
    /// `[entries, hd]`, and as wide as the keys.
    values: Store,
    /// Position of the token, or of the group's last one `[entries]`.
    last: Vec<usize>,
    kept: usize,
    /// Tokens seen, padding not counted.
    tokens: usize,
    /// What was seen before this position has been compressed.
    closed: usize,
}

/// The keys and values of one layer.
#[derive(Debug, Clone)]
pub struct DgaCache {
    config: DgaConfig,
    kv_heads: usize,
    hd: usize,
    /// `[B·Hk]`.
    rows: Vec<Row>,
    /// Positions seen, padding included.
    seen: usize,
}

/// What the rows of one call share.
#[derive(Clone, Copy)]
struct Call<'a> {
    config: &'a DgaConfig,
    hd: usize,
    scale: f64,
    compute: Compute,
}

impl DgaCache {
    /// An empty cache for `batch` sequences.
    pub fn new(config: DgaConfig, kind: CacheType, batch: usize, kv_heads: usize, hd: usize) -> Self {
        let width = hd + usize::from(config.group_bias != GroupBias::None);
        let row = Row {
            keys: Store::new(kind, width),
            values: Store::new(kind, width),
            last: Vec::new(),
            kept: 0,
            tokens: 0,
            closed: 0,
        };
        Self {
            config,
            kv_heads,
            hd,
            rows: vec![row; batch * kv_heads],
            seen: 0,
        }
    }

    /// Entries that row `b` and key head `head` keep: first and focal tokens and groups, and recent tokens.
    pub fn entries(&self, b: usize, head: usize) -> (usize, usize) {
        let row = &self.rows[b * self.kv_heads + head];
        (row.kept, row.last.len() - row.kept)
    }

    /// Adds new tokens and attends from them: `[B,T,H,hd]`, zeros for padding.
    ///
    /// # Errors
    /// If shapes do not fit this cache, or dtypes are not f32.
    pub fn attend(
        &mut self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        shape: &Shape,
        spans: &[RowSpan],
        compute: Compute,
    ) -> Result<Tensor> {
        let fits = shape.batch * shape.kv_heads == self.rows.len()
            && shape.kv_heads == self.kv_heads
            && shape.head_dim == self.hd;
        if !fits {
            return Err(TensorError::Shape {
                op: "grouped attention",
                rule: "the batch and heads the cache was made for",
                got: format!("{shape:?}"),
            }
            .into());
        }
        shape.check(q, k, v, spans)?;
        let (Some(qs), Some(ks), Some(vs)) = (q.values::<f32>(), k.values::<f32>(), v.values::<f32>()) else {
            return Err(TensorError::Dtype {
                op: "grouped attention with a cache",
                rule: "f32",
                got: format!("{:?}", q.dtype()),
            }
            .into());
        };
        let out = if self.seen == 0 && self.config.selection == Selection::Global {
            let heads: Vec<Head<f32>> = heads(q, k, v, shape, spans, &self.config)?;
            let call = Call {
                config: &self.config,
                hd: self.hd,
                scale: shape.scale,
                compute,
            };
            for (n, (row, head)) in self.rows.iter_mut().zip(&heads).enumerate() {
                let offset = spans[n / shape.kv_heads].q_start + shape.real(spans, n / shape.kv_heads).start;
                row.fill(head, offset, call);
            }
            fast::outputs(&heads, shape, spans)
        } else {
            self.step([qs, ks, vs], shape, spans, compute)
        };
        self.seen += shape.len;
        Ok(Tensor::new(out, q.shape())?)
    }

    /// New tokens behind those that are there: as many at once as none of them compresses anything.
    fn step(&mut self, [q, k, v]: [&[f32]; 3], shape: &Shape, spans: &[RowSpan], compute: Compute) -> Vec<f32> {
        let (hd, rep, hk) = (self.hd, shape.rep(), self.kv_heads);
        let call = Call {
            config: &self.config,
            hd,
            scale: shape.scale,
            compute,
        };
        let rows: Vec<Mutex<&mut Row>> = self.rows.iter_mut().map(Mutex::new).collect();
        let run = |n: usize| {
            let (b, g) = (n / hk, n % hk);
            let real = shape.real(spans, b);
            let mut out = vec![0f32; real.len() * rep * hd];
            let Ok(mut row) = rows[n].lock() else { return out };
            let mut done = 0;
            while done < real.len() {
                let count = row.until_compressed(&self.config).min(real.len() - done);
                row.reserve(count);
                let mut queries = Vec::with_capacity(count * rep * hd);
                for t in real.start + done..real.start + done + count {
                    let kv = ((b * shape.len + t) * hk + g) * hd;
                    row.push(&k[kv..kv + hd], &v[kv..kv + hd], 0.0, spans[b].q_start + t);
                    queries.extend_from_slice(&q[((b * shape.len + t) * shape.heads + g * rep) * hd..][..rep * hd]);
                }
                row.tokens += count;
                // The first tokens are kept; they come before anything else is.
                if row.kept < self.config.sink {
                    row.kept = self.config.sink.min(row.tokens);
                }
                let at = done * rep * hd;
                row.attend(&queries, count, call, &mut out[at..at + count * rep * hd]);
                row.compress(&queries[(count - 1) * rep * hd..], call);
                done += count;
            }
            out
        };
        // Few rows leave the threads to the kernel.
        let made: Vec<Vec<f32>> = if rows.len() < ounce_kernels::threads() {
            (0..rows.len()).map(run).collect()
        } else {
            collect(rows.len(), run)
        };
        let mut out = vec![0f32; q.len()];
        for (n, part) in made.iter().enumerate() {
            let from = shape.real(spans, n / hk).start;
            for (t, values) in part.chunks_exact(rep * hd).enumerate() {
                let at = ((n / hk * shape.len + from + t) * shape.heads + n % hk * rep) * hd;
                out[at..at + rep * hd].copy_from_slice(values);
            }
        }
        out
    }
}

impl Row {
    fn reserve(&mut self, more: usize) {
        self.keys.reserve(more);
        self.values.reserve(more);
    }

    fn push(&mut self, key: &[f32], value: &[f32], bias: f32, last: usize) {
        self.keys.push(key);
        self.values.push(value);
        if self.keys.width() > key.len() {
            self.keys.push(&[bias]);
            self.values.push(&[0.0]);
        }
        self.last.push(last);
    }

    /// How many tokens can be added before a block is compressed, that token included: at least 1.
    fn until_compressed(&self, config: &DgaConfig) -> usize {
        let Some(block) = config.m_prime else { return usize::MAX };
        let recent = self.last.len() - self.kept;
        let sinks = config.sink.saturating_sub(self.kept);
        let full = (sinks + config.window + block).saturating_sub(recent);
        let waits = if config.selection == Selection::Global {
            config.min_len.saturating_sub(self.tokens)
        } else {
            0
        };
        full.max(waits).max(1)
    }

    /// Takes over a prompt; `offset` is the position of its first real token.
    fn fill(&mut self, head: &Head<f32>, offset: usize, call: Call<'_>) {
        let Call { config, hd, .. } = call;
        let layout = &head.layout;
        let groups = layout.groups.iter().enumerate();
        let groups = groups.map(|(j, g)| (layout.len + j, g.members[g.members.len() - 1]));
        let focal = layout.focal.iter().map(|&t| (t, t));
        let tail = layout.tail.iter().map(|&t| (t, t));
        self.kept = layout.focal.len() + layout.groups.len();
        self.tokens = layout.len;
        self.reserve(self.kept + layout.tail.len());
        for (entry, last) in focal.chain(groups).chain(tail) {
            let at = entry * hd..(entry + 1) * hd;
            self.push(
                &head.keys[at.clone()],
                &head.values[at],
                head.bias[entry],
                offset + last,
            );
        }
        if layout.groups.is_empty() && layout.focal.len() <= config.sink {
            // Nothing was decided: the tokens stand in order.
            self.kept = config.sink.min(layout.len);
        } else {
            self.closed = self.last[..self.kept].iter().max().map_or(0, |last| last + 1);
        }
        if layout.len > 0 {
            // As after any other token: the newest query compresses what is due.
            let newest = head.q.chunks_exact(layout.len * hd);
            let newest: Vec<f32> = newest.flat_map(|q| &q[(layout.len - 1) * hd..]).copied().collect();
            self.compress(&newest, call);
        }
    }

    /// Attends from the newest `count` tokens, queries `[count, rep, hd]`, to all entries up to their own: `[count, rep, hd]`.
    fn attend(&self, queries: &[f32], count: usize, call: Call<'_>, out: &mut [f32]) {
        let (hd, width) = (call.hd, self.keys.width());
        let shape = AttentionShape {
            batch: 1,
            q_len: count,
            q_heads: queries.len() / (count * hd),
            kv_heads: 1,
            head_dim: width,
            window: None,
            causal: true,
            scale: call.scale,
            slopes: None,
        };
        let rows = AttentionRows {
            q_start: &[self.last.len() - count],
            kv_begin: &[0],
            kv_len: &[self.last.len()],
            positions: None,
        };
        let (keys, values) = (self.keys.heads(), self.values.heads());
        let run = |q: &[f32], out: &mut [f32]| {
            ounce_kernels::attention(&shape, &rows, q, keys, values, out, None, call.compute);
        };
        if width == hd {
            return run(queries, out);
        }
        // The bias is one more value of a key, which queries take as it is.
        let one = (1.0 / call.scale) as f32;
        let wide: Vec<f32> = queries
            .chunks_exact(hd)
            .flat_map(|q| q.iter().copied().chain([one]))
            .collect();
        let mut wide_out = vec![0f32; wide.len()];
        run(&wide, &mut wide_out);
        for (from, to) in wide_out.chunks_exact(width).zip(out.chunks_exact_mut(hd)) {
            to.copy_from_slice(&from[..hd]);
        }
    }

    /// Turns the oldest recent tokens into focal tokens and groups, if there is a block of them beyond the window: by the
    /// newest queries `[rep, hd]`.
    fn compress(&mut self, queries: &[f32], call: Call<'_>) {
        let Call { config, hd, scale, .. } = call;
        let Some(block) = config.m_prime else { return };
        let waits = config.selection == Selection::Global && self.tokens < config.min_len;
        while !waits && self.last.len() - self.kept >= config.window + block {
            let range = self.kept..self.kept + block;
            let width = self.keys.width();
            let (keys, values) = (self.keys.widened(range.clone()), self.values.widened(range.clone()));
            let bare = |of: &[f32]| -> Vec<f32> { of.chunks_exact(width).flat_map(|x| &x[..hd]).copied().collect() };
            let keys = if width == hd { keys } else { bare(&keys) };
            let values = if width == hd { values } else { bare(&values) };
            let queries: Vec<&[f32]> = queries.chunks_exact(hd).collect();
            let scores = logits(&queries, &keys, scale as f32);
            let (focal, groups) = split_block(&scores, block, config);
            let (mut new_keys, mut new_values, mut new_last) = (Vec::new(), Vec::new(), Vec::new());
            let mut put = |key: &[f32], value: &[f32], bias: f32, last: usize| {
                new_keys.extend_from_slice(key);
                new_values.extend_from_slice(value);
                if width > hd {
                    new_keys.push(bias);
                    new_values.push(0.0);
                }
                new_last.push(last);
            };
            let at = |t: usize| t * hd..(t + 1) * hd;
            let last = &self.last[range.clone()];
            for &t in &focal {
                put(&keys[at(t)], &values[at(t)], 0.0, last[t]);
            }
            for members in &groups {
                let k: Vec<&[f32]> = members.iter().map(|&t| &keys[at(t)]).collect();
                let v: Vec<&[f32]> = members.iter().map(|&t| &values[at(t)]).collect();
                let pair = aggregate(picked(&scores, block, members), &k, &v);
                let bias = bias(config.group_bias, pair.entropy, config.group_size);
                put(&pair.key, &pair.value, bias, last[members[members.len() - 1]]);
            }
            self.kept += new_last.len();
            self.keys.replace(range.clone(), &new_keys);
            self.values.replace(range.clone(), &new_values);
            self.last.splice(range, new_last);
            self.closed = self.last[self.last.len() - 1] + 1;
        }
    }
}

impl LayerCache for DgaCache {
    fn len(&self) -> usize {
        self.seen
    }

    fn cannot_truncate(&self, to: usize) -> Option<String> {
        let closed = self.rows.iter().map(|r| r.closed).max()?;
        (to < closed).then(|| {
            format!(
                "cannot go back to {to} tokens: older ones were compressed for good when position {} was reached; take a \
                 snapshot first",
                closed - 1
            )
        })
    }

    fn truncate(&mut self, to: usize) {
        for row in &mut self.rows {
            // Positions grow among the recent tokens, and among all while nothing is compressed.
            let fixed = if row.closed == 0 { 0 } else { row.kept };
            let keep = fixed + row.last[fixed..].partition_point(|&p| p < to);
            row.tokens -= row.last.len() - keep;
            row.kept = row.kept.min(keep);
            row.last.truncate(keep);
            row.keys.truncate(keep);
            row.values.truncate(keep);
        }
        self.seen = self.seen.min(to);
    }

    fn snapshot(&self) -> Box<dyn LayerCache> {
        Box::new(self.clone())
    }

    fn bytes(&self) -> usize {
        let row = |r: &Row| r.keys.bytes() + r.values.bytes() + r.last.capacity() * 8;
        self.rows.iter().map(row).sum()
    }

    fn as_any(&mut self) -> &mut dyn Any {
        self
    }
}
