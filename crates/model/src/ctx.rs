//! What travels through every forward: the sequences and their positions, caches, collective, randomness, and a sink for
//! by-products.
//!
//! Training, prefill and decode call the same forward; they differ only in what is here. The tape needs no place: it is
//! carried by the tensors themselves (see `ounce_tensor`).

use crate::{balance::Balance, cache::Cache, error::Result, rows::Rows};
use ounce_tensor::{Collective, Compute, Tensor, ops};

/// Everything a block may need besides its input.
pub struct Ctx<'a> {
    /// Token ids `[N]`, sequence after sequence.
    pub ids: &'a [u32],
    /// Which of the tokens belong to which sequence, and where they stand in it.
    pub rows: Rows,
    /// Embeddings of the ids `[N,D]`, as they enter the first block; `None` until a whole model has embedded them.
    pub embeddings: Option<Tensor>,
    /// Embedding `[1,D]` of the token that the plan puts between those of the text, if it has one.
    pub inserted: Option<Tensor>,
    /// Set in training: methods that explore draw from here.
    pub noise: Option<Noise>,
    /// Only so many last tokens' outputs of each sequence are wanted; `None`: all. What a plan leaves in a cache is the same
    /// to all later tokens.
    pub wanted: Option<usize>,
    /// Keys and values of earlier tokens, one cache for each sequence; empty while training and in full forwards.
    pub caches: Vec<&'a mut dyn Cache>,
    /// Arithmetic of the matrix products.
    pub compute: Compute,
    /// Sums partial results over ranks.
    pub collective: &'a dyn Collective,
    /// By-products.
    pub sink: Sink,
}

impl Ctx<'_> {
    /// Runs `f` on groups of sequences one after the other, and puts the rows it returns in order: `x [N,D]` to `[M,D]`.
    /// Sequences that stand alike and have no cache make one group; of the others each is a group. For plans whose
    /// arithmetic is written for rows of one length.
    ///
    /// # Errors
    /// What `f` returns.
    pub(crate) fn by_groups(
        &mut self,
        x: &Tensor,
        mut f: impl FnMut(Tensor, &mut Ctx<'_>) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let groups = self.rows.groups(!self.caches.is_empty());
        if let [_] = groups[..] {
            return f(x.clone(), self);
        }
        let mut caches = std::mem::take(&mut self.caches).into_iter();
        let (mut made, mut back) = (Vec::with_capacity(groups.len()), Vec::new());
        for group in groups {
            let rows = self.rows.of(group.clone())?;
            let tokens = self.rows.tokens_of(&group);
            let narrowed = |t: &Tensor| ops::narrow_rows(t, tokens.start, tokens.end);
            let mut part = Ctx {
                ids: &self.ids[tokens.clone()],
                rows,
                embeddings: self.embeddings.as_ref().map(narrowed).transpose()?,
                inserted: self.inserted.clone(),
                noise: self.noise,
                wanted: self.wanted,
                caches: caches.by_ref().take(group.len()).collect(),
                compute: self.compute,
                collective: self.collective,
                sink: std::mem::take(&mut self.sink),
            };
            made.push(f(narrowed(x)?, &mut part)?);
            self.sink = part.sink;
            back.extend(part.caches);
        }
        self.caches = back;
        Ok(ops::concat_rows(&made.iter().collect::<Vec<_>>())?)
    }

    /// Notes the input `x [N, D]` of a feed-forward slot, if it was asked for.
    pub(crate) fn note_ffn_input(&mut self, layer: usize, x_nd: &Tensor) {
        if self.sink.want_ffn_inputs {
            self.sink.ffn_inputs.push((layer, x_nd.detach()));
        }
    }

    /// Notes the gates `[N, H]` of heads, if they were asked for.
    pub(crate) fn note_head_gates(&mut self, layer: usize, gates_nh: &Tensor) {
        if self.sink.want_head_gates {
            self.sink.head_gates.push((layer, gates_nh.detach()));
        }
    }

    /// Notes what a router decided, if it was asked for: logits `[N, E]`, chosen ids `[N·K]` and their weights `[N, K]`.
    pub(crate) fn note_routing(&mut self, layer: usize, logits_ne: &Tensor, chosen: &[usize], weights_nk: &Tensor) {
        if self.sink.want_routing {
            self.sink.routing.push(Routing {
                layer,
                logits: logits_ne.detach(),
                experts: chosen.to_vec(),
                weights: weights_nk.to_f32(),
            });
        }
    }
}

/// Where a training step draws its randomness: every draw is a function of these and of its place in the model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Noise {
    /// Seed of the run.
    pub seed: u64,
    /// The step, counted from 1; 0 outside training.
    pub step: u64,
    /// The forward (the micro-batch) within the step.
    pub part: u64,
}

/// By-products of a forward: side losses always, the rest when asked for.
#[derive(Default)]
pub struct Sink {
    /// Losses to add to the objective (balance), one scalar per layer that has one, already weighted.
    pub side_losses: Vec<Tensor>,
    /// What the balance losses stand on.
    pub balance: Balance,
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
