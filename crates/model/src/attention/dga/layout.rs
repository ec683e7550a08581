//! Which tokens of a row stay single and which are grouped, as a plain list; and the two rules that decide it.

use super::{DgaConfig, GroupBias, ScoreMode, Selection};
use ounce_kernels::Float;

/// Tokens that become one key/value pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Their indices, ascending.
    pub members: Vec<usize>,
    /// The token whose query weights them.
    pub query: usize,
    /// The first query that sees the pair instead of the members.
    pub close: usize,
}

/// What becomes of the tokens `0..len` of one row and one key head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Tokens.
    pub len: usize,
    /// Tokens that stay single for good, ascending.
    pub focal: Vec<usize>,
    /// Groups, ascending; none overlap.
    pub groups: Vec<Group>,
    /// Tokens not decided on yet: single, ascending.
    pub tail: Vec<usize>,
}

impl Layout {
    /// All tokens single and undecided.
    pub fn exact(len: usize) -> Self {
        Self {
            len,
            focal: Vec::new(),
            groups: Vec::new(),
            tail: (0..len).collect(),
        }
    }

    /// What query `i` sees, as indices of tokens, and `len + j` for group j: finished groups first, then single tokens and
    /// the earlier members of unfinished groups. Tokens of an unfinished group stand among the others in order, so that
    /// even the rounding of a sum does not tell what later queries will decide.
    pub fn visible(&self, i: usize, out: &mut Vec<usize>) {
        out.clear();
        let finished = self.groups.partition_point(|g| g.close <= i);
        out.extend((0..finished).map(|j| self.len + j));
        let focal = &self.focal[..self.focal.partition_point(|&t| t <= i)];
        out.extend_from_slice(focal);
        out.extend_from_slice(&self.tail[..self.tail.partition_point(|&t| t <= i)]);
        let Some(first) = self.groups.get(finished).map(|g| g.members[0]).filter(|&t| t <= i) else {
            return;
        };
        for group in &self.groups[finished..] {
            out.extend(group.members.iter().take_while(|&&t| t <= i));
        }
        out[finished + focal.partition_point(|&t| t < first)..].sort_unstable();
    }
}

/// Queries `[rep, len, hd]` and keys `[len, hd]` of one row and one key head.
pub(super) struct Rows<'a, T> {
    pub(super) q: &'a [T],
    pub(super) keys: &'a [T],
    pub(super) rep: usize,
    pub(super) len: usize,
    pub(super) hd: usize,
    pub(super) scale: T,
}

impl<'a, T: Float> Rows<'a, T> {
    /// Query of head `a` at token `t`.
    pub(super) fn query(&self, a: usize, t: usize) -> &'a [T] {
        &self.q[(a * self.len + t) * self.hd..][..self.hd]
    }
}

/// The layout of a row, and the scores it was decided by (empty where nothing was scored over the whole row).
pub(super) fn decide<T: Float>(rows: &Rows<'_, T>, dga: &DgaConfig) -> (Layout, Vec<f64>) {
    match dga.selection {
        Selection::Global if rows.len <= dga.min_len => (Layout::exact(rows.len), Vec::new()),
        Selection::Global => global(rows, dga),
        Selection::CausalBlock => (blocks(rows, dga), Vec::new()),
    }
}

fn global<T: Float>(rows: &Rows<'_, T>, dga: &DgaConfig) -> (Layout, Vec<f64>) {
    let (len, m) = (rows.len, dga.group_size);
    let mut score = vec![T::ZERO; len];
    let mut row = Vec::new();
    for i in scoring_queries(len, dga) {
        for a in 0..rows.rep {
            softmax_scores(rows.query(a, i), &rows.keys[..(i + 1) * rows.hd], rows.scale, &mut row);
            for (s, &p) in score.iter_mut().zip(&row) {
                *s += p;
            }
        }
    }
    let score: Vec<f64> = score.into_iter().map(Float::to_f64).collect();
    // Between the first tokens and the recent ones.
    let (from, to) = dga.between(len);
    let chosen = largest(&score[from..to], dga.focal(to - from));
    let focal: Vec<usize> = (0..from).chain(chosen.into_iter().map(|t| from + t)).collect();
    let mut is_focal = vec![false; len];
    for &t in &focal {
        is_focal[t] = true;
    }
    let rest: Vec<usize> = (from..to).filter(|&t| !is_focal[t]).collect();
    let groups: Vec<Group> = rest
        .chunks_exact(m)
        .map(|members| {
            let end = members[m - 1];
            Group {
                members: members.to_vec(),
                query: end,
                close: end + dga.window,
            }
        })
        .collect();
    let tail = rest[groups.len() * m..].iter().copied().chain(to..len).collect();
    let layout = Layout {
        len,
        focal,
        groups,
        tail,
    };
    (layout, score)
}

/// The sampled queries.
fn scoring_queries(len: usize, dga: &DgaConfig) -> Vec<usize> {
    let r = dga.score_queries.min(len);
    let last = match dga.score_mode {
        ScoreMode::Last => r,
        ScoreMode::LastStrided => r.div_ceil(2),
    };
    let strided = r - last;
    (0..strided)
        .map(|j| (2 * j + 1) * (len - last) / (2 * strided))
        .chain(len - last..len)
        .collect()
}

fn blocks<T: Float>(rows: &Rows<'_, T>, dga: &DgaConfig) -> Layout {
    let mut layout = Layout::exact(rows.len);
    let Some(block) = dga.m_prime else { return layout };
    let from = dga.sink.min(rows.len);
    layout.focal.extend(0..from);
    let closed = dga.closed_blocks(rows.len);
    for start in (0..closed).map(|c| from + c * block) {
        let newest = start + block + dga.window - 1;
        let queries: Vec<&[T]> = (0..rows.rep).map(|a| rows.query(a, newest)).collect();
        let keys = &rows.keys[start * rows.hd..(start + block) * rows.hd];
        let (focal, groups) = split_block(&logits(&queries, keys, rows.scale), block, dga);
        layout.focal.extend(focal.iter().map(|t| start + t));
        layout.groups.extend(groups.iter().map(|members| Group {
            members: members.iter().map(|t| start + t).collect(),
            query: newest,
            close: newest + 1,
        }));
    }
    layout.tail = (from + closed * block..rows.len).collect();
    layout
}

/// Scores of all queries with all keys `[n, hd]`, query by query.
pub(super) fn logits<T: Float>(queries: &[&[T]], keys: &[T], scale: T) -> Vec<T> {
    let of = |q: &&'_ [T]| {
        let q = *q;
        keys.chunks_exact(q.len())
            .map(move |k| dot(q, k) * scale)
            .collect::<Vec<T>>()
    };
    queries.iter().flat_map(of).collect()
}

/// The scores with some of the keys, a list per query.
pub(super) fn picked<T: Float>(logits: &[T], keys: usize, members: &[usize]) -> Vec<Vec<T>> {
    let of = |row: &[T]| members.iter().map(|&t| row[t]).collect();
    logits.chunks_exact(keys).map(of).collect()
}

/// Focal tokens and groups of one block, decided by the scores of its judges, `block` of them per query.
pub(super) fn split_block<T: Float>(logits: &[T], block: usize, dga: &DgaConfig) -> (Vec<usize>, Vec<Vec<usize>>) {
    let mut score = vec![T::ZERO; block];
    for row in logits.chunks_exact(block) {
        let mut row = row.to_vec();
        softmax(&mut row);
        for (s, &p) in score.iter_mut().zip(&row) {
            *s += p;
        }
    }
    let score: Vec<f64> = score.into_iter().map(Float::to_f64).collect();
    let focal = largest(&score, dga.block_split(block).0);
    let mut rest = (0..block).collect::<Vec<usize>>();
    rest.retain(|t| focal.binary_search(t).is_err());
    let groups = rest.chunks_exact(dga.group_size).map(<[usize]>::to_vec).collect();
    (focal, groups)
}

/// Indices of the `count` largest scores, ascending; ties go to the lower index.
fn largest(score: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..score.len()).collect();
    order.sort_by(|&a, &b| score[b].total_cmp(&score[a]).then(a.cmp(&b)));
    order.truncate(count);
    order.sort_unstable();
    order
}

/// `softmax(q Kᵀ scale)` over keys `[n, hd]`.
pub(super) fn softmax_scores<T: Float>(q: &[T], keys: &[T], scale: T, out: &mut Vec<T>) {
    out.clear();
    out.extend(keys.chunks_exact(q.len()).map(|k| dot(q, k) * scale));
    softmax(out);
}

pub(super) fn softmax<T: Float>(row: &mut [T]) {
    let max = row.iter().fold(T::NEG_INFINITY, |m, &x| m.max(x));
    let mut sum = T::ZERO;
    for x in row.iter_mut() {
        *x = (*x - max).exp();
        sum += *x;
    }
    for x in row {
        *x /= sum;
    }
}

/// Eight interleaved sums, so that the compiler can use vectors.
pub(super) fn dot<T: Float>(a: &[T], b: &[T]) -> T {
    let mut sums = [T::ZERO; 8];
    let (a8, b8) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest = a8.remainder().iter().zip(b8.remainder());
    let rest = rest.fold(T::ZERO, |s, (&x, &y)| s + x * y);
    for (a, b) in a8.zip(b8) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().fold(rest, |s, &x| s + x)
}

/// `y += s x`.
pub(super) fn add_scaled<T: Float>(y: &mut [T], s: T, x: &[T]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y += s * x;
    }
}

/// One aggregated pair.
pub(super) struct Pair<T> {
    /// Softmax of each query head over the members `[rep][m]`.
    pub(super) per_head: Vec<Vec<T>>,
    /// Their mean `[m]`.
    pub(super) weights: Vec<T>,
    /// `[hd]`.
    pub(super) key: Vec<T>,
    /// `[hd]`.
    pub(super) value: Vec<T>,
    /// H(w), natural logarithm.
    pub(super) entropy: T,
}

/// Aggregates members by the scores `[queries][m]` that the queries of all heads of their key head have with them.
pub(super) fn aggregate<T: Float>(mut logits: Vec<Vec<T>>, keys: &[&[T]], values: &[&[T]]) -> Pair<T> {
    let hd = keys[0].len();
    for row in &mut logits {
        softmax(row);
    }
    let per_head = logits;
    let share = T::ONE / T::from_f64(per_head.len() as f64);
    let (mut key, mut value, mut entropy) = (vec![T::ZERO; hd], vec![T::ZERO; hd], T::ZERO);
    let mut weights = vec![T::ZERO; keys.len()];
    for (i, w) in weights.iter_mut().enumerate() {
        *w = per_head.iter().fold(T::ZERO, |s, row| s + row[i]) * share;
        add_scaled(&mut key, *w, keys[i]);
        add_scaled(&mut value, *w, values[i]);
        if *w > T::ZERO {
            entropy -= *w * w.ln();
        }
    }
    Pair {
        per_head,
        weights,
        key,
        value,
        entropy,
    }
}

/// What is added to the score of a group with weights of entropy `entropy`.
pub(super) fn bias<T: Float>(kind: GroupBias, entropy: T, group_size: usize) -> T {
    match kind {
        GroupBias::None => T::ZERO,
        GroupBias::LogM => T::from_f64((group_size as f64).ln()),
        GroupBias::Entropy => entropy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scoring_queries_are_the_last_or_half_of_them_spread() {
        let mut dga = DgaConfig::new(4, 0.1);
        dga.score_queries = 6;
        assert_eq!(scoring_queries(20, &dga), [14, 15, 16, 17, 18, 19]);
        dga.score_mode = ScoreMode::LastStrided;
        assert_eq!(scoring_queries(20, &dga), [2, 8, 14, 17, 18, 19]);
        assert_eq!(scoring_queries(4, &dga), [0, 1, 2, 3], "no more than there are");
    }
}
