//! The f32 outputs of a whole prompt under global selection, by the vector kernel: what a query sees of finished things is a
//! prefix of one list. (Under block selection the cache itself walks over a text, see `cache.rs`.)
//!
//! Focal tokens, tail and groups, sorted by the first query that sees them for good, are keys of ordinary causal attention
//! in which query i stands at the place of the last of them that it sees. What is still undecided at i (members of an
//! unfinished group, or of groups within the window) are a few keys, added by plain loops. The two softmaxes are joined by their denominators. A bias is one more dimension of queries and keys.

use super::{
    Layout, Shape,
    grouped::Head,
    layout::{add_scaled, dot},
};
use ounce_kernels::{AttentionRows, AttentionShape, Compute, Data, Heads, parallel_chunks_mut};
use ounce_tensor::ops::RowSpan;

/// What each query sees, as a prefix of a list and a few more.
struct Order {
    /// Tokens, and `len + j` for group j, by the first query that sees them for good.
    settled: Vec<usize>,
    /// How many of them each query sees.
    seen: Vec<usize>,
    /// For each query, the undecided tokens it sees: a range of `open_tokens`.
    open: Vec<std::ops::Range<usize>>,
    open_tokens: Vec<usize>,
}

impl Order {
    fn new(layout: &Layout) -> Self {
        let len = layout.len;
        let singles = layout.focal.iter().chain(&layout.tail).map(|&t| (t, t));
        let groups = layout.groups.iter().enumerate().map(|(j, g)| (g.close, len + j));
        let mut settled: Vec<(usize, usize)> = singles.chain(groups).filter(|&(from, _)| from < len).collect();
        settled.sort_unstable();
        let seen = (0..len)
            .map(|i| settled.partition_point(|&(from, _)| from <= i))
            .collect();
        // Members of all groups in order; groups are finished one after the other.
        let (mut open, mut open_tokens) = (Vec::with_capacity(len), Vec::new());
        let mut starts = Vec::with_capacity(layout.groups.len());
        for group in &layout.groups {
            starts.push(open_tokens.len());
            open_tokens.extend(&group.members);
        }
        for i in 0..len {
            let to = open_tokens.partition_point(|&t| t <= i);
            let finished = layout.groups.partition_point(|g| g.close <= i);
            let from = starts.get(finished).copied().unwrap_or(to);
            open.push(from.min(to)..to);
        }
        Self {
            settled: settled.into_iter().map(|(_, unit)| unit).collect(),
            seen,
            open,
            open_tokens,
        }
    }
}

/// Outputs `[B,T,H,hd]` of prepared heads.
pub(super) fn outputs(heads: &[Head<f32>], shape: &Shape, spans: &[RowSpan]) -> Vec<f32> {
    let (rep, hd, hk) = (shape.rep(), shape.head_dim, shape.kv_heads);
    let mut out = vec![0f32; shape.batch * shape.len * shape.heads * hd];
    for (n, head) in heads.iter().enumerate() {
        let real = shape.real(spans, n / hk);
        let made = one(head, shape);
        for (i, t) in real.enumerate() {
            let at = ((n / hk * shape.len + t) * shape.heads + n % hk * rep) * hd;
            out[at..at + rep * hd].copy_from_slice(&made[i * rep * hd..(i + 1) * rep * hd]);
        }
    }
    out
}

/// `[len, rep, hd]`.
fn one(head: &Head<f32>, shape: &Shape) -> Vec<f32> {
    /// Tokens per task of the plain part.
    const TOKENS: usize = 16;
    let (len, rep, hd, scale) = (head.layout.len, shape.rep(), shape.head_dim, shape.scale as f32);
    if len == 0 {
        return Vec::new();
    }
    let order = Order::new(&head.layout);
    let biased = head.bias.iter().any(|&b| b != 0.0);
    let width = hd + usize::from(biased);
    // Key 0 is nobody's: a query that sees no settled key stands there.
    let units = order.settled.len() + 1;
    let (mut keys, mut values) = (vec![0f32; units * width], vec![0f32; units * width]);
    for (place, &unit) in order.settled.iter().enumerate() {
        let (to, from) = ((place + 1) * width, unit * hd);
        keys[to..to + hd].copy_from_slice(&head.keys[from..from + hd]);
        values[to..to + hd].copy_from_slice(&head.values[from..from + hd]);
        if biased {
            keys[to + hd] = head.bias[unit];
        }
    }
    let mut queries = vec![0f32; len * rep * width];
    for i in 0..len {
        for a in 0..rep {
            let to = (i * rep + a) * width;
            queries[to..to + hd].copy_from_slice(head.query(a, i));
            if biased {
                queries[to + hd] = 1.0 / scale;
            }
        }
    }
    let kernel = AttentionShape {
        batch: 1,
        q_len: len,
        q_heads: rep,
        kv_heads: 1,
        head_dim: width,
        window: None,
        causal: true,
        scale: shape.scale,
        slopes: None,
    };
    let rows = AttentionRows {
        q_start: &[0],
        kv_begin: &[1],
        kv_len: &[units],
        positions: Some(&order.seen),
    };
    let side = |data| Heads {
        data: Data::F32(data),
        batch_stride: 0,
        token_stride: width,
        head_stride: 0,
    };
    let (mut settled, mut lse) = (vec![0f32; queries.len()], vec![0f32; rep * len]);
    let (k, v) = (side(&keys), side(&values));
    ounce_kernels::attention(
        &kernel,
        &rows,
        &queries,
        k,
        v,
        &mut settled,
        Some(&mut lse),
        Compute::F32,
    );

    let mut out = vec![0f32; len * rep * hd];
    parallel_chunks_mut(&mut out, TOKENS * rep * hd, |task, out| {
        let mut scores = Vec::new();
        for (x, out) in out.chunks_exact_mut(hd).enumerate() {
            let (i, a) = (task * TOKENS + x / rep, x % rep);
            let open = &order.open_tokens[order.open[i].clone()];
            let query = head.query(a, i);
            scores.clear();
            scores.extend(
                open.iter()
                    .map(|t| dot(query, &head.keys[t * hd..(t + 1) * hd]) * scale),
            );
            // lse is [Hq, Tq]; minus infinity where nothing settled is seen.
            let base = lse[a * len + i];
            let max = scores.iter().fold(base, |m, &s| m.max(s));
            let share = (base - max).exp();
            let total = scores.iter().fold(share, |sum, &s| sum + (s - max).exp());
            let from = (i * rep + a) * width;
            add_scaled(out, share / total, &settled[from..from + hd]);
            for (&t, &s) in open.iter().zip(&scores) {
                add_scaled(out, (s - max).exp() / total, &head.values[t * hd..(t + 1) * hd]);
            }
        }
    });
    out
}
