//! What travels through every forward: positions, masks, cache, collective, randomness, and a sink for by-products.
//!
//! Training, prefill and decode call the same forward; they differ only in what is here. The tape needs no place: it is
//! carried by the tensors themselves (see `ounce_tensor`).

use crate::{cache::Cache, error::Result};
use ounce_tensor::{Collective, Compute, Tensor, no_grad, ops, ops::RowSpan};

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
    /// Per row: where its queries start and which keys exist. A token outside of its own row's keys is padding: it is
    /// computed, and changes nothing else.
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

impl Ctx<'_> {
    /// The tokens of `[B·T]` that are no padding; `None` where there is no padding.
    pub fn real_tokens(&self) -> Option<Vec<usize>> {
        let real = |span: &RowSpan| {
            let of_row = |key: usize| key.saturating_sub(span.q_start).min(self.len);
            of_row(span.kv_begin)..of_row(span.kv_len)
        };
        if self.spans.iter().all(|span| real(span) == (0..self.len)) {
            return None;
        }
        let rows = self.spans.iter().enumerate();
        Some(
            rows.flat_map(|(row, span)| real(span).map(move |t| row * self.len + t))
                .collect(),
        )
    }

    /// The rows `[N, ..]` of tokens that are no padding, outside the tape.
    fn real_rows(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match self.real_tokens() {
            None => x.detach(),
            Some(real) => no_grad(|| ops::gather_rows(x, &real))?,
        })
    }

    /// Notes the input `x [N, D]` of a feed-forward slot, if it was asked for.
    pub(crate) fn note_ffn_input(&mut self, layer: usize, x_nd: &Tensor) -> Result<()> {
        if self.sink.want_ffn_inputs {
            let real = self.real_rows(x_nd)?;
            self.sink.ffn_inputs.push((layer, real));
        }
        Ok(())
    }

    /// Notes the gates `[N, H]` of heads, if they were asked for.
    pub(crate) fn note_head_gates(&mut self, layer: usize, gates_nh: &Tensor) -> Result<()> {
        if self.sink.want_head_gates {
            let real = self.real_rows(gates_nh)?;
            self.sink.head_gates.push((layer, real));
        }
        Ok(())
    }

    /// Notes what a router decided, if it was asked for: logits `[N, E]`, chosen ids `[N·K]` and their weights `[N, K]`.
    pub(crate) fn note_routing(
        &mut self,
        layer: usize,
        logits_ne: &Tensor,
        chosen: &[usize],
        weights_nk: &Tensor,
    ) -> Result<()> {
        if self.sink.want_routing {
            let k = weights_nk.last_dim();
            let experts = match self.real_tokens() {
                None => chosen.to_vec(),
                Some(real) => real.iter().flat_map(|t| &chosen[t * k..(t + 1) * k]).copied().collect(),
            };
            let routing = Routing {
                layer,
                logits: self.real_rows(logits_ne)?,
                experts,
                weights: self.real_rows(weights_nk)?.to_f32(),
            };
            self.sink.routing.push(routing);
        }
        Ok(())
    }
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

/// By-products of a forward: side losses always, the rest when asked for. N counts the tokens that are no padding.
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
