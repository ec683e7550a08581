//! What a layer keeps: focal tokens and groups for good, then a buffer of recent tokens that is compressed when full.

use super::{
    DgaConfig, Selection, Shape, fast,
    grouped::{Head, collect, heads},
    layout::{add_scaled, aggregate, bias, dot, softmax, split_block},
};
use crate::{error::Result, layer_cache::LayerCache};
use ounce_kernels::{AttentionRows, AttentionShape, Compute, Data, Heads};
use ounce_tensor::{Tensor, TensorError, ops::RowSpan};
use std::{any::Any, sync::Mutex};

/// One row and one key head. The newest query sees every entry, so their order does not matter.
#[derive(Debug, Clone, Default)]
struct Row {
    /// `[entries, hd]`: `kept` focal tokens and groups, then the buffer.
    keys: Vec<f32>,
    /// `[entries, hd]`.
    values: Vec<f32>,
    /// Added to scores `[entries]`.
    bias: Vec<f32>,
    /// Position of the token, or of the group's last one `[entries]`.
    last: Vec<usize>,
    kept: usize,
    /// Tokens seen, padding not counted.
    tokens: usize,
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

impl DgaCache {
    /// An empty cache for `batch` sequences.
    pub fn new(config: DgaConfig, batch: usize, kv_heads: usize, hd: usize) -> Self {
        Self {
            config,
            kv_heads,
            hd,
            rows: vec![Row::default(); batch * kv_heads],
            seen: 0,
        }
    }

    /// Entries that row `b` and key head `head` keep: focal tokens and groups, and the buffer.
    pub fn entries(&self, b: usize, head: usize) -> (usize, usize) {
        let row = &self.rows[b * self.kv_heads + head];
        (row.kept, row.last.len() - row.kept)
    }

    /// Adds new tokens and attends from them: `[B,T,H,hd]`, zeros for padding.
    ///
    /// # Errors
    /// If shapes do not fit this cache, or dtypes are not f32.
    pub fn attend(&mut self, q: &Tensor, k: &Tensor, v: &Tensor, shape: &Shape, spans: &[RowSpan]) -> Result<Tensor> {
        let fits = shape.batch * shape.kv_heads == self.rows.len()
            && shape.kv_heads == self.kv_heads
            && shape.head_dim == self.hd
            && spans.len() == shape.batch;
        let (Some(qs), Some(ks), Some(vs), true) = (q.values::<f32>(), k.values::<f32>(), v.values::<f32>(), fits)
        else {
            return Err(TensorError::Shape {
                op: "grouped attention",
                rule: "f32 tensors of the batch and heads the cache was made for",
                got: format!("{shape:?}, {:?}", q.dtype()),
            }
            .into());
        };
        let out = if self.seen == 0 {
            let heads: Vec<Head<f32>> = heads(q, k, v, shape, spans, &self.config)?;
            let out = fast::outputs(&heads, shape, spans, self.config.blocks());
            for (n, (row, head)) in self.rows.iter_mut().zip(&heads).enumerate() {
                let offset = spans[n / shape.kv_heads].q_start + shape.real(spans, n / shape.kv_heads).start;
                row.fill(head, self.hd, offset, shape.scale as f32, &self.config);
            }
            out
        } else {
            self.step(qs, ks, vs, shape, spans)
        };
        self.seen += shape.len;
        Ok(Tensor::new(out, q.shape())?)
    }

    /// Token after token on a filled cache.
    fn step(&mut self, q: &[f32], k: &[f32], v: &[f32], shape: &Shape, spans: &[RowSpan]) -> Vec<f32> {
        let (hd, rep, hk) = (self.hd, shape.rep(), self.kv_heads);
        let config = &self.config;
        let rows: Vec<Mutex<&mut Row>> = self.rows.iter_mut().map(Mutex::new).collect();
        let made = collect(rows.len(), |n| {
            let (b, g) = (n / hk, n % hk);
            let mut out = vec![0f32; shape.len * rep * hd];
            let Ok(mut row) = rows[n].lock() else { return out };
            for t in shape.real(spans, b) {
                let kv = ((b * shape.len + t) * hk + g) * hd;
                let heads = &q[((b * shape.len + t) * shape.heads + g * rep) * hd..][..rep * hd];
                row.push(&k[kv..kv + hd], &v[kv..kv + hd], 0.0, spans[b].q_start + t);
                row.tokens += 1;
                row.attend(
                    heads,
                    hd,
                    shape.scale as f32,
                    &mut out[t * rep * hd..(t + 1) * rep * hd],
                );
                let queries: Vec<&[f32]> = heads.chunks_exact(hd).collect();
                row.compress(&queries, shape.scale as f32, config);
            }
            out
        });
        let mut out = vec![0f32; q.len()];
        for (n, part) in made.iter().enumerate() {
            for (t, values) in part.chunks_exact(rep * hd).enumerate() {
                let at = ((n / hk * shape.len + t) * shape.heads + n % hk * rep) * hd;
                out[at..at + rep * hd].copy_from_slice(values);
            }
        }
        out
    }
}

impl Row {
    fn push(&mut self, key: &[f32], value: &[f32], bias: f32, last: usize) {
        self.keys.extend_from_slice(key);
        self.values.extend_from_slice(value);
        self.bias.push(bias);
        self.last.push(last);
    }

    /// Takes over a prompt; `offset` is the position of its first real token.
    fn fill(&mut self, head: &Head<f32>, hd: usize, offset: usize, scale: f32, config: &DgaConfig) {
        let len = head.layout.len;
        let groups = head.layout.groups.iter().enumerate();
        let groups: Vec<(usize, usize)> = groups.map(|(j, g)| (len + j, g.members[g.members.len() - 1])).collect();
        let focal = head.layout.focal.iter().map(|&t| (t, t));
        let kept: Vec<(usize, usize)> = focal.chain(groups).collect();
        self.kept = kept.len();
        self.tokens = len;
        for (entry, last) in kept.into_iter().chain(head.layout.tail.iter().map(|&t| (t, t))) {
            let at = entry * hd..(entry + 1) * hd;
            self.push(
                &head.keys[at.clone()],
                &head.values[at],
                head.bias[entry],
                offset + last,
            );
        }
        if len > 0 {
            let rep = head.q.len() / (len * hd);
            let newest: Vec<&[f32]> = (0..rep).map(|a| &head.q[(a * len + len - 1) * hd..][..hd]).collect();
            self.compress(&newest, scale, config);
        }
    }

    /// Attends from queries `[rep, hd]` to all entries: `[rep, hd]`.
    fn attend(&self, queries: &[f32], hd: usize, scale: f32, out: &mut [f32]) {
        if self.bias.iter().all(|&b| b == 0.0) {
            // Without a bias this is ordinary attention over fewer keys: the vector kernel does it.
            let shape = AttentionShape {
                batch: 1,
                q_len: 1,
                q_heads: queries.len() / hd,
                kv_heads: 1,
                head_dim: hd,
                window: None,
                causal: false,
                scale: f64::from(scale),
                slopes: None,
            };
            let rows = AttentionRows {
                q_start: &[0],
                kv_begin: &[0],
                kv_len: &[self.last.len()],
                positions: None,
            };
            let side = |data| Heads {
                data: Data::F32(data),
                batch_stride: 0,
                token_stride: hd,
                head_stride: 0,
            };
            let (keys, values) = (side(&self.keys), side(&self.values));
            return ounce_kernels::attention(&shape, &rows, queries, keys, values, out, None, Compute::F32);
        }
        for (query, out) in queries.chunks_exact(hd).zip(out.chunks_exact_mut(hd)) {
            let scores = self.keys.chunks_exact(hd).zip(&self.bias);
            let mut p: Vec<f32> = scores.map(|(k, &bias)| dot(query, k) * scale + bias).collect();
            softmax(&mut p);
            for (&p, value) in p.iter().zip(self.values.chunks_exact(hd)) {
                add_scaled(out, p, value);
            }
        }
    }

    /// Turns full blocks of the buffer into focal tokens and groups, by the newest queries.
    fn compress(&mut self, queries: &[&[f32]], scale: f32, config: &DgaConfig) {
        let Some(block) = config.m_prime else { return };
        let hd = queries[0].len();
        let waits = config.selection == Selection::Global && self.tokens < config.min_len;
        while !waits && self.last.len() - self.kept >= block {
            let (from, to) = (self.kept, self.kept + block);
            // The sink is at the start of the sequence: in the buffer only while nothing was compressed.
            let sink = if from == 0 { config.sink } else { 0 };
            let keys = self.keys[from * hd..to * hd].to_vec();
            let values = self.values[from * hd..to * hd].to_vec();
            let (focal, groups) = split_block(queries, &keys, scale, config, sink);
            let rest_keys = self.keys.split_off(to * hd);
            let rest_values = self.values.split_off(to * hd);
            let rest_last = self.last.split_off(to);
            let block_last = self.last.split_off(from);
            self.keys.truncate(from * hd);
            self.values.truncate(from * hd);
            self.bias.truncate(from);
            let at = |t: &usize| t * hd..(t + 1) * hd;
            for t in &focal {
                self.push(&keys[at(t)], &values[at(t)], 0.0, block_last[*t]);
            }
            for members in &groups {
                let k: Vec<&[f32]> = members.iter().map(|t| &keys[at(t)]).collect();
                let v: Vec<&[f32]> = members.iter().map(|t| &values[at(t)]).collect();
                let pair = aggregate(queries, &k, &v, scale);
                let bias = bias(config.group_bias, pair.entropy, config.group_size);
                self.push(&pair.key, &pair.value, bias, block_last[members[members.len() - 1]]);
            }
            self.kept = self.last.len();
            self.keys.extend(rest_keys);
            self.values.extend(rest_values);
            self.bias.extend(rest_last.iter().map(|_| 0.0));
            self.last.extend(rest_last);
        }
    }
}

impl LayerCache for DgaCache {
    fn len(&self) -> usize {
        self.seen
    }

    fn cannot_truncate(&self, to: usize) -> Option<String> {
        let kept = self.rows.iter().flat_map(|r| &r.last[..r.kept]).max()?;
        (to <= *kept).then(|| {
            format!(
                "cannot go back to {to} tokens: those up to position {kept} are compressed for good; take a snapshot first"
            )
        })
    }

    fn truncate(&mut self, to: usize) {
        for row in &mut self.rows {
            // Positions grow within the buffer.
            let keep = row.kept + row.last[row.kept..].partition_point(|&p| p < to);
            row.tokens -= row.last.len() - keep;
            row.last.truncate(keep);
            row.bias.truncate(keep);
            row.keys.truncate(keep * self.hd);
            row.values.truncate(keep * self.hd);
        }
        self.seen = self.seen.min(to);
    }

    fn snapshot(&self) -> Box<dyn LayerCache> {
        Box::new(self.clone())
    }

    fn bytes(&self) -> usize {
        let row = |r: &Row| (r.keys.capacity() + r.values.capacity() + r.bias.capacity()) * 4 + r.last.capacity() * 8;
        self.rows.iter().map(row).sum()
    }

    fn as_any(&mut self) -> &mut dyn Any {
        self
    }
}
