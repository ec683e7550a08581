//! What travels through every forward: positions, masks, cache, collective, randomness, and a sink for by-products.
//!
//! Training, prefill and decode call the same forward; they differ only in what is here. The tape needs no place: it is
//! carried by the tensors themselves (see `ounce_tensor`).

use crate::cache::Cache;
use ounce_tensor::{Collective, Compute, Tensor, ops::RowSpan};

/// Everything a block may need besides its input.
pub struct Ctx<'a> {
    /// Token ids `[B·T]`, row by row.
    pub ids: &'a [u32],
    /// Embeddings of the ids `[B,T,D]`, as they enter the first block; `None` until a whole model has embedded them.
    pub embeddings: Option<Tensor>,
    /// Embedding `[1,D]` of the token that the plan puts between those of the text, if it has one.
    pub inserted: Option<Tensor>,
    /// Set in training: methods that explore draw from here.
    pub noise: Option<Noise>,
    /// Only so many last tokens' outputs are wanted; `None`: all. A plan that need not compute the others returns fewer rows,
    /// with the wanted ones at the end; what it leaves in the cache is the same to all later tokens.
    pub wanted: Option<usize>,
    /// Rows of the batch.
    pub batch: usize,
    /// Tokens per row in this call.
    pub len: usize,
    /// Per row: where its queries start and which keys exist.
    pub spans: Vec<RowSpan>,
    /// Cosines of the rotary angles `[B·T, hd/2]`.
    pub cos: Tensor,
    /// Sines of the rotary angles `[B·T, hd/2]`.
    pub sin: Tensor,
    /// Keys and values of earlier tokens; `None` while training and in full forwards.
    pub cache: Option<&'a mut dyn Cache>,
    /// Arithmetic of the matrix products.
    pub compute: Compute,
    /// Sums partial results over ranks.
    pub collective: &'a dyn Collective,
    /// By-products.
    pub sink: Sink,
}

/// Where a training step draws its randomness: every draw is a function of these and of its place in the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Noise {
    /// Seed of the run.
    pub seed: u64,
    /// The step, counted from 1.
    pub step: u64,
    /// The forward within the step.
    pub part: u64,
}

/// By-products of a forward: side losses always, the rest when asked for.
#[derive(Default)]
pub struct Sink {
    /// Losses to add to the objective (balance), one scalar per layer that has one, already weighted.
    pub side_losses: Vec<Tensor>,
    /// Ask for `routing`.
    pub want_routing: bool,
    /// One entry per mixture-of-experts layer, in order.
    pub routing: Vec<Routing>,
    /// Ask for `ffn_inputs`.
    pub want_ffn_inputs: bool,
    /// `(layer, x [N, D])`: inputs of the feed-forward slots, in order.
    pub ffn_inputs: Vec<(usize, Tensor)>,
    /// Ask for `head_gates`.
    pub want_head_gates: bool,
    /// `(layer, gates [N, H])`: factors on the outputs of the heads, in layers that have them, in order.
    pub head_gates: Vec<(usize, Tensor)>,
    /// Ask for `retrieved`.
    pub want_retrieved: bool,
    /// One entry per retrieval group, in order.
    pub retrieved: Vec<Retrieved>,
}

/// What the chunks that were finished in this call retrieved.
#[derive(Debug, Clone)]
pub struct Retrieved {
    /// Chunks `[chunks, B, k]`, best score first; `None` where fewer than k are visible.
    pub chunks: Vec<Option<usize>>,
    /// Their weights `[chunks, B, k]`.
    pub weights: Vec<f32>,
    /// B·k: the entries of one finished chunk. Where not all outputs are wanted, the first chunks of a call may be missing.
    pub per_chunk: usize,
}

/// What a router decided.
pub struct Routing {
    /// Layer index.
    pub layer: usize,
    /// Router logits `[N, E]`.
    pub logits: Tensor,
    /// Chosen expert ids `[N·K]`, best first.
    pub experts: Vec<usize>,
    /// Weights `[N·K]` of the chosen experts.
    pub weights: Vec<f32>,
}
