//! Residual wiring: what each sub-block reads of the residual stream, and the only place where partial sums meet the
//! collective. One loop serves all wirings; they differ in data.
//!
//! # Papers and idea
//! *Sequential*: pre-norm Transformers (Xiong et al. 2020). *Parallel*: attention and feed-forward read the same stream
//! (GPT-J 2021; `PaLM`, Chowdhery et al. 2022). *Ladder*: Zhang et al., "Ladder-Residual: Parallelism-Aware
//! Architecture for Accelerating Large Model Inference with Communication Overlapping", ICML 2025, arXiv 2501.06589.
//!
//! When ranks share a model, each sub-block ends in a sum over ranks, and the next one cannot start before it has
//! arrived. Ladder lets sub-block k read the stream without the output of sub-block k-1, so that it computes while that
//! output's sum is under way. The stream still accumulates every output; shapes and parameters stay. The function
//! changes, so weights must be trained, or trained on, for the wiring.
//!
//! # Symbols
//! N tokens, D width, L layers. Sub-blocks k = 0..2L: even k is the attention of layer k/2, odd k its
//! feed-forward. `p_k [N,D]` partial sum of sub-block k on this rank, `y_k` its sum over ranks, `e` the embedding,
//! `s_k = s_(k-1) + y_k` the stream with `s_(-1) = e`.
//!
//! | wiring | sub-block k reads | sums per layer |
//! |---|---|---|
//! | sequential | `s_(k-1)` | 2, both waited for |
//! | parallel | the stream before the layer, for both | 1 (of the added partials), waited for |
//! | ladder | `s_(k-2)`, with `s_(-2) = e` | 2, each hidden behind the next sub-block |
//!
//! All of them follow from one number per sub-block: how many of the newest outputs it does *not* read (`Reads`). A
//! model may mix wirings: the first ladder layer after a standard one reads the stream without that layer's
//! feed-forward, whose sum is then hidden too; a standard layer after a ladder one waits for both pending sums.
//!
//! # What the paper leaves open, and what we chose
//! - An integer `ladder_layers` n means the *last* n layers; a list names layers from 0. Both are accepted, the list is
//!   written (the authors' own configuration becomes a list when it is saved).
//! - The authors' checkpoints call their architecture `LlamaForCausalLM`, which other programs load as a plain Llama
//!   and run wrongly. We key on `model_type`, refuse `ladder_layers` under any other, and write an architecture name of
//!   its own, so that nobody loads our checkpoints by mistake.
//! - Parallel: the paper's baseline. `PaLM` shares one norm between both sub-blocks; here each keeps its own, so that
//!   the three wirings have the same parameters. Its layout is ours: `model_type` `ounce_parallel`, Llama's tensors.
//! - Outputs join the stream in the order of their sub-blocks, whatever the wiring: the bits do not depend on when a sum
//!   arrives.
//! - Desync (dropping sums instead of hiding them), an earlier variant of the authors, is not implemented.
//!
//! # Configuration
//! `config.json`: `model_type: "llamaLadder"` with `ladder_layers` (integer or list; 0, an empty list or no key is a
//! standard model). Recipes: `[model.residual]` with `wiring = "sequential" | "parallel" | "ladder"`, and for ladder
//! `layers` (integer or list; all layers if absent).
//!
//! # Decode
//! Keys and values come from what attention reads, so a cache belongs to its wiring; nothing else changes.

use crate::{Block, attention::Attention, ctx::Ctx, error::Result, ffn::FeedForward, param::Param};
use ounce_tensor::{Pending, Tensor, ops};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::VecDeque;

/// How attention and feed-forward of one layer are wired around the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wiring {
    /// `a = x + attn(norm1(x))`, `y = a + ffn(norm2(a))`.
    #[default]
    Sequential,
    /// `y = x + attn(norm1(x)) + ffn(norm2(x))`.
    Parallel,
    /// Each sub-block reads the stream without the newest output.
    Ladder,
}

/// A wiring as data.
struct Reads {
    /// Newest outputs that attention does not read.
    attention_skips: usize,
    /// Newest outputs that the feed-forward does not read.
    ffn_skips: usize,
    /// Both partials are added on this rank and make one output.
    joined: bool,
}

impl Wiring {
    const fn reads(self) -> Reads {
        match self {
            Self::Sequential => Reads {
                attention_skips: 0,
                ffn_skips: 0,
                joined: false,
            },
            Self::Parallel => Reads {
                attention_skips: 0,
                ffn_skips: 0,
                joined: true,
            },
            Self::Ladder => Reads {
                attention_skips: 1,
                ffn_skips: 1,
                joined: false,
            },
        }
    }
}

/// Layers that are wired as a ladder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LadderLayers {
    /// The last n layers.
    Last(usize),
    /// These layers, counted from 0.
    List(Vec<usize>),
}

impl LadderLayers {
    /// The wiring of each of `layers` layers.
    ///
    /// # Errors
    /// The broken rule, if a layer is beyond the model or named twice.
    pub fn wirings(&self, layers: usize) -> std::result::Result<Vec<Wiring>, String> {
        let mut wirings = vec![Wiring::Sequential; layers];
        let chosen: Vec<usize> = match self {
            Self::Last(n) if *n > layers => {
                return Err(format!("the last {n} layers of a model that has {layers}"));
            }
            Self::Last(n) => (layers - n..layers).collect(),
            Self::List(list) => list.clone(),
        };
        for layer in chosen {
            match wirings.get_mut(layer) {
                None => {
                    return Err(format!(
                        "layer {layer} is beyond the model, whose layers are 0..={}",
                        layers.saturating_sub(1)
                    ));
                }
                Some(Wiring::Ladder) => return Err(format!("layer {layer} is listed twice")),
                Some(wiring) => *wiring = Wiring::Ladder,
            }
        }
        Ok(wirings)
    }
}

/// `model_type` of ladder checkpoints, as the authors write it.
pub const LADDER: &str = "llamaLadder";
/// `model_type` of parallel checkpoints.
pub const PARALLEL: &str = "ounce_parallel";

/// The wiring of each layer of a `config.json`: `model_type`, the value of `ladder_layers`, and the number of layers.
///
/// # Errors
/// The rule that `ladder_layers` breaks.
pub(crate) fn wirings(
    model_type: &str,
    ladder_layers: Option<&Value>,
    layers: usize,
) -> std::result::Result<Vec<Wiring>, String> {
    match (model_type, ladder_layers) {
        (PARALLEL, _) => Ok(vec![Wiring::Parallel; layers]),
        (LADDER, Some(value)) => serde_json::from_value::<LadderLayers>(value.clone())
            .map_err(|_| format!("must be a whole number or a list of layers, is {value}"))?
            .wirings(layers),
        _ => Ok(vec![Wiring::Sequential; layers]),
    }
}

/// `[model.residual]` of a training recipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "wiring", rename_all = "snake_case", deny_unknown_fields)]
pub enum Residual {
    /// One sub-block after the other.
    Sequential {},
    /// Both sub-blocks of a layer side by side, in every layer.
    Parallel {},
    /// Ladder.
    Ladder {
        /// Which layers; all if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        layers: Option<LadderLayers>,
    },
}

impl Default for Residual {
    fn default() -> Self {
        Self::Sequential {}
    }
}

impl Residual {
    /// Is it what every stock model has?
    pub fn is_sequential(&self) -> bool {
        matches!(self, Self::Sequential {})
    }

    /// Turns the `config.json` of a plain Llama with `layers` layers into this wiring's. A list beyond the model is
    /// written as it is: reading the configuration refuses it.
    pub fn write(&self, config: &mut Map<String, Value>, layers: usize) {
        let (model_type, architecture) = match self {
            Self::Sequential {} => return,
            Self::Parallel {} => (PARALLEL, "OunceParallelForCausalLM"),
            Self::Ladder { .. } => (LADDER, "LlamaLadderForCausalLM"),
        };
        config.insert("model_type".into(), model_type.into());
        config.insert("architectures".into(), vec![architecture].into());
        if let Self::Ladder { layers: chosen } = self {
            let list: Value = match chosen {
                None => (0..layers).collect(),
                Some(LadderLayers::Last(n)) if *n <= layers => (layers - n..layers).collect(),
                Some(LadderLayers::Last(n)) => (*n).into(),
                Some(LadderLayers::List(list)) => list.clone().into(),
            };
            config.insert("ladder_layers".into(), list);
        }
    }
}

/// The residual stream between sub-blocks: what has arrived, and the outputs whose sums are still under way.
struct Stream {
    /// The embedding plus all outputs that have arrived `[N,D]`.
    arrived: Tensor,
    /// Outputs under way, oldest first: at most two.
    pending: VecDeque<Box<dyn Pending>>,
}

impl Stream {
    /// The stream without its newest `skips` outputs; waits for all others.
    fn read(&mut self, skips: usize) -> Result<&Tensor> {
        while self.pending.len() > skips {
            if let Some(sum) = self.pending.pop_front() {
                self.arrived = ops::add(&self.arrived, &sum.wait()?)?;
            }
        }
        Ok(&self.arrived)
    }

    /// Starts the sum of an output over all ranks.
    fn start(&mut self, partial: Tensor, ctx: &Ctx<'_>) -> Result<()> {
        self.pending.push_back(ctx.collective.start_sum(partial)?);
        Ok(())
    }
}

/// The two sub-blocks, their norms and their wiring, borrowed from a block.
pub(crate) struct SubBlocks<'a> {
    pub(crate) norm1: &'a Param,
    pub(crate) attention: &'a dyn Attention,
    pub(crate) norm2: &'a Param,
    pub(crate) ffn: &'a dyn FeedForward,
    pub(crate) wiring: Wiring,
    pub(crate) eps: f64,
}

/// Runs blocks in a row on the embedding `x [N,D]` and returns the stream with every output in it.
///
/// # Errors
/// If shapes do not fit, the cache refuses, or another rank is gone.
pub fn run<'b>(blocks: impl IntoIterator<Item = &'b Block>, x: Tensor, ctx: &mut Ctx<'_>) -> Result<Tensor> {
    let mut stream = Stream {
        arrived: x,
        pending: VecDeque::new(),
    };
    for block in blocks {
        let SubBlocks {
            norm1,
            attention,
            norm2,
            ffn,
            wiring,
            eps,
        } = block.sub_blocks();
        let reads = wiring.reads();
        let x = ops::rms_norm(stream.read(reads.attention_skips)?, &norm1.tensor, eps)?;
        let attended = attention.forward(&x, ctx)?;
        let joined = if reads.joined {
            Some(attended)
        } else {
            stream.start(attended, ctx)?;
            None
        };
        let x = ops::rms_norm(stream.read(reads.ffn_skips)?, &norm2.tensor, eps)?;
        let mut partial = ffn.forward(&x, ctx)?;
        if let Some(attended) = joined {
            partial = ops::add(&attended, &partial)?;
        }
        stream.start(partial, ctx)?;
    }
    stream.read(0)?;
    Ok(stream.arrived)
}

/// One sequential block with a bypass: `a = x + attn(norm1(x))`, `y = a + ffn(norm2(a + bypass(a)))`. The bypass reaches the
/// output through the feed-forward only. It returns a partial sum, or nothing where it has nothing to say.
///
/// # Errors
/// If shapes do not fit, the cache refuses, or another rank is gone.
pub(crate) fn run_bypassed(
    block: &Block,
    x: &Tensor,
    ctx: &mut Ctx<'_>,
    bypass: impl FnOnce(&Tensor, &mut Ctx<'_>) -> Result<Option<Tensor>>,
) -> Result<Tensor> {
    let parts = block.sub_blocks();
    let attended = parts
        .attention
        .forward(&ops::rms_norm(x, &parts.norm1.tensor, parts.eps)?, ctx)?;
    let stream = ops::add(x, &ctx.collective.start_sum(attended)?.wait()?)?;
    let read = match bypass(&stream, ctx)? {
        Some(partial) => ops::add(&stream, &ctx.collective.start_sum(partial)?.wait()?)?,
        None => stream.clone(),
    };
    let partial = parts
        .ffn
        .forward(&ops::rms_norm(&read, &parts.norm2.tensor, parts.eps)?, ctx)?;
    Ok(ops::add(&stream, &ctx.collective.start_sum(partial)?.wait()?)?)
}

/// Sums over ranks that one forward needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Sums {
    /// All of them; each moves D values per token.
    pub total: usize,
    /// Those that are under way while a sub-block computes.
    pub hidden: usize,
}

/// Counts the sums of a model whose layers are wired like this.
pub fn sums(wirings: impl IntoIterator<Item = Wiring>) -> Sums {
    let mut sums = Sums::default();
    let mut under_way = 0;
    for wiring in wirings {
        let reads = wiring.reads();
        // A sub-block that skips an output under way hides that output's sum.
        let hides = |under_way: &mut usize, skips: usize| {
            *under_way = skips.min(*under_way);
            usize::from(*under_way > 0)
        };
        sums.hidden += hides(&mut under_way, reads.attention_skips);
        if !reads.joined {
            sums.total += 1;
            under_way += 1;
            sums.hidden += hides(&mut under_way, reads.ffn_skips);
        }
        sums.total += 1;
        under_way += 1;
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn layers_are_the_last_n_or_a_list() {
        use Wiring::{Ladder as L, Sequential as S};
        assert_eq!(LadderLayers::Last(2).wirings(4).unwrap(), [S, S, L, L]);
        assert_eq!(LadderLayers::List(vec![2, 0]).wirings(4).unwrap(), [L, S, L, S]);
        for nothing in [LadderLayers::Last(0), LadderLayers::List(vec![])] {
            assert_eq!(nothing.wirings(3).unwrap(), [S; 3]);
        }
        assert_eq!(wirings(LADDER, Some(&json!(1)), 2).unwrap(), [S, L]);
        assert_eq!(wirings(LADDER, None, 2).unwrap(), [S, S]);
    }

    #[test]
    fn lists_beyond_the_model_or_with_a_layer_twice_are_refused() {
        let rule = |value: Value| wirings(LADDER, Some(&value), 4).unwrap_err();
        assert_eq!(rule(json!(5)), "the last 5 layers of a model that has 4");
        assert_eq!(
            rule(json!([1, 4])),
            "layer 4 is beyond the model, whose layers are 0..=3"
        );
        assert_eq!(rule(json!([1, 2, 1])), "layer 1 is listed twice");
        for no_list in [json!(-1), json!("all"), json!([0.5]), json!(true)] {
            assert!(rule(no_list).starts_with("must be a whole number or a list of layers"));
        }
    }

    #[test]
    fn sums_that_are_hidden_are_counted() {
        use Wiring::{Ladder as L, Parallel as P, Sequential as S};
        let count = |wirings: &[Wiring]| {
            let s = sums(wirings.iter().copied());
            (s.total, s.hidden)
        };
        assert_eq!(count(&[S, S, S]), (6, 0));
        assert_eq!(count(&[P, P, P]), (3, 0));
        // All but the last one, which nothing follows.
        assert_eq!(count(&[L, L, L]), (6, 5));
        // The standard layer's feed-forward is hidden behind the ladder layer's attention; then both wait.
        assert_eq!(count(&[S, L, S]), (6, 2));
        assert_eq!(count(&[S, S, L]), (6, 2));
    }
}
