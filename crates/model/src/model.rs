//! A whole language model: embedding, plan, final norm, head.

use crate::{
    cache::{Cache, CacheType, KvCache},
    config::ModelConfig,
    ctx::{Ctx, Sink},
    error::{ModelError, Result},
    layer_cache::MixedCache,
    open::{OpenOptions, Opened},
    param::Param,
    plan::{self, Plan},
    rope::RopeTable,
    rows::{self, Rows},
    weights::Weights,
};
use ounce_tensor::{Compute, DType, Solo, Tensor, ops};
use std::path::Path;

/// Tokens of a prompt that are read at once: enough for products to be fast, few enough for their results to be small.
pub const PIECE: usize = 4096;

/// Token ids `[B, T]`, row by row, and how they are to be run.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// Ids `[B·T]`.
    pub ids: &'a [u32],
    /// Rows.
    pub batch: usize,
    /// Arithmetic of the matrix products.
    pub compute: Compute,
}

/// A loaded model.
pub struct Model {
    /// Its configuration.
    pub config: ModelConfig,
    embedding: Param,
    plan: Box<dyn Plan>,
    norm: Param,
    /// `None`: the embedding is the head.
    head: Option<Param>,
    rope: RopeTable,
    notes: Vec<String>,
}

impl Model {
    /// A model from any source of weights.
    ///
    /// # Errors
    /// If a weight is missing or has the wrong shape.
    pub fn new(config: ModelConfig, weights: &mut dyn Weights) -> Result<Self> {
        let shape = [config.vocab_size, config.hidden_size];
        let embedding = weights.param("model.embed_tokens.weight", &shape)?;
        let plan = plan::build(&config, weights)?;
        let norm = weights.param("model.norm.weight", &[config.hidden_size])?;
        let head = if config.tied {
            None
        } else {
            Some(weights.param("lm_head.weight", &shape)?)
        };
        let rope = RopeTable::new(&config.rope, config.head_dim);
        Ok(Self {
            config,
            embedding,
            plan,
            norm,
            head,
            rope,
            notes: Vec::new(),
        })
    }

    /// Opens the checkpoint at `path`; see [`Opened`] for what can be asked before its weights are read.
    ///
    /// # Errors
    /// For anything wrong with the files, the configuration, the tensors or the options.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self> {
        Opened::new(path, options)?.model()
    }

    /// What the user should know of how the checkpoint was understood: one line each; none for a fresh model.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    pub(crate) fn set_notes(&mut self, notes: Vec<String>) {
        self.notes = notes;
    }

    /// Visits every parameter, in checkpoint order.
    pub fn visit(&mut self, f: &mut dyn FnMut(&mut Param)) {
        f(&mut self.embedding);
        self.plan.visit(f);
        f(&mut self.norm);
        if let Some(head) = &mut self.head {
            f(head);
        }
    }

    /// Number of parameters.
    pub fn parameters(&mut self) -> usize {
        let mut n = 0;
        self.visit(&mut |p| n += p.tensor.numel());
        n
    }

    /// Dtype of the embedding: what the checkpoint is stored in.
    pub fn dtype(&self) -> DType {
        self.embedding.tensor.dtype()
    }

    /// The arithmetic that follows the weights: bf16 for bf16 weights on a processor that multiplies bf16, else f32.
    /// (Where bf16 products are emulated they are slower than f32 and less accurate.)
    pub fn compute(&self) -> Compute {
        if self.dtype() == DType::BF16 && ounce_kernels::isa::bf16_dot() {
            Compute::Bf16
        } else {
            Compute::F32
        }
    }

    /// Why the model cannot be trained, if it cannot.
    pub fn frozen(&self) -> Option<&'static str> {
        self.plan.blocks().iter().find_map(|b| b.ffn().frozen())
    }

    /// The plan.
    pub fn plan(&self) -> &dyn Plan {
        &*self.plan
    }

    /// The head `[V, D]`.
    pub fn head(&self) -> &Tensor {
        &self.head.as_ref().unwrap_or(&self.embedding).tensor
    }

    /// An empty cache of one sequence, half precision if the weights are. Layers whose method keeps something else than all
    /// keys and values get what it wants. Memory for `reserve` tokens may be had at once.
    pub fn cache(&self, reserve: usize) -> Box<dyn Cache> {
        let kind = if self.dtype() == DType::F32 {
            CacheType::F32
        } else {
            CacheType::F16
        };
        if let Some(own) = self.plan.cache(kind, reserve) {
            return own;
        }
        let (kv_heads, head_dim) = (self.config.kv_heads, self.config.head_dim);
        let blocks = self.plan.blocks();
        let own: Vec<_> = blocks.iter().map(|b| b.attention().layer_cache(kind)).collect();
        let plain = self.config.layers.iter().zip(&own).filter(|(_, own)| own.is_none());
        let windows = plain.map(|(layer, _)| layer.window).collect();
        let plain = KvCache::new(kind, windows, kv_heads, head_dim, reserve);
        if own.iter().all(Option::is_none) {
            Box::new(plain)
        } else {
            Box::new(MixedCache::new(own, plain))
        }
    }

    /// A context for sequences of one length, without a cache.
    ///
    /// # Errors
    /// If the ids do not fill the batch, or one is outside the vocabulary.
    pub fn context<'a>(&self, input: Batch<'a>) -> Result<Ctx<'a>> {
        let Batch { ids, batch, compute } = input;
        if batch == 0 || ids.len() % batch != 0 {
            return Err(ModelError::Input {
                what: "input_ids".into(),
                rule: format!("{} ids do not fill {batch} rows of at least one token", ids.len()),
                hint: String::new(),
            });
        }
        self.ragged_context(ids, &vec![ids.len() / batch; batch], Vec::new(), compute)
    }

    /// A context for more tokens of one sequence.
    ///
    /// # Errors
    /// If there are no ids, or one is outside the vocabulary.
    pub fn sequence_context<'a>(&self, ids: &'a [u32], cache: &'a mut dyn Cache, compute: Compute) -> Result<Ctx<'a>> {
        self.ragged_context(ids, &[ids.len()], vec![cache], compute)
    }

    /// A context for sequences of any lengths, whose ids follow each other. `caches` holds the earlier tokens of each
    /// sequence and gets the new ones; without caches the sequences begin here.
    ///
    /// # Errors
    /// If a sequence has no token, the lengths do not add up, there are caches but not one for each sequence, or an id is
    /// outside the vocabulary.
    pub fn ragged_context<'a>(
        &self,
        ids: &'a [u32],
        lengths: &[usize],
        caches: Vec<&'a mut dyn Cache>,
        compute: Compute,
    ) -> Result<Ctx<'a>> {
        static SOLO: Solo = Solo;
        let refuse = |rule: String, hint: &str| {
            Err(ModelError::Input {
                what: "input_ids".into(),
                rule,
                hint: hint.into(),
            })
        };
        if lengths.is_empty() || lengths.contains(&0) || lengths.iter().sum::<usize>() != ids.len() {
            return refuse(
                format!(
                    "{} ids do not fill sequences of {lengths:?} tokens, at least one each",
                    ids.len()
                ),
                "",
            );
        }
        if !caches.is_empty() && caches.len() != lengths.len() {
            return refuse(format!("{} sequences have {} caches", lengths.len(), caches.len()), "");
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.config.vocab_size) {
            return refuse(
                format!("token id {id} is outside the vocabulary of {}", self.config.vocab_size),
                "were the ids made by the tokenizer of this model?",
            );
        }
        let past = |i: usize| caches.get(i).map_or(0, |c| c.len());
        let seqs = rows::seqs(lengths.iter().enumerate().map(|(i, &len)| (past(i), len)));
        let tokens = seqs.iter().flat_map(|s| {
            let length = s.past + s.tokens.len();
            (s.past..length).map(move |position| (position, length))
        });
        let (cos, sin) = self.rope.tables(tokens)?;
        Ok(Ctx {
            ids,
            rows: Rows {
                seqs,
                cos,
                sin,
                first: 0,
            },
            embeddings: None,
            inserted: None,
            noise: None,
            wanted: None,
            caches,
            compute,
            collective: &SOLO,
            sink: Sink::default(),
        })
    }

    /// Embeddings `[N,D]` of the context's ids.
    ///
    /// # Errors
    /// If an id is outside the vocabulary.
    pub fn embed(&self, ctx: &Ctx<'_>) -> Result<Tensor> {
        let ids: Vec<usize> = ctx.ids.iter().map(|&id| id as usize).collect();
        Ok(ops::embedding(&self.embedding.tensor, &ids, &[ids.len()])?)
    }

    /// Normalised hidden states `[N,D]` before the head; those of the last tokens of each sequence only where
    /// [`Ctx::wanted`] says so.
    ///
    /// # Errors
    /// If shapes do not fit or the cache refuses.
    pub fn hidden(&self, ctx: &mut Ctx<'_>) -> Result<Tensor> {
        let x = self.embed(ctx)?;
        ctx.embeddings = Some(x.clone());
        if let Some(id) = self.plan.inserted_token() {
            ctx.inserted = Some(ops::embedding(&self.embedding.tensor, &[id as usize], &[1])?);
        }
        let x = self.plan.forward(x, ctx)?;
        self.finish(&x)
    }

    /// The final norm.
    ///
    /// # Errors
    /// If the last dimension is not D.
    pub fn finish(&self, x_nd: &Tensor) -> Result<Tensor> {
        Ok(ops::rms_norm(x_nd, &self.norm.tensor, self.config.rms_norm_eps)?)
    }

    /// Logits `[.., V]` of hidden states `[.., D]`.
    ///
    /// # Errors
    /// If the last dimension is not D.
    pub fn logits(&self, hidden: &Tensor, compute: Compute) -> Result<Tensor> {
        Ok(ops::linear(hidden, self.head(), compute)?)
    }

    /// Logits `[N,V]` of a whole input, without a cache.
    ///
    /// # Errors
    /// If an id is outside the vocabulary.
    pub fn forward(&self, input: Batch<'_>) -> Result<Tensor> {
        let mut ctx = self.context(input)?;
        let hidden = self.hidden(&mut ctx)?;
        self.logits(&hidden, input.compute)
    }

    /// Reads more tokens of a sequence and returns the logits `[1,V]` after the last. They are read in pieces of [`PIECE`]
    /// tokens where attention allows it, so that the memory for activations does not grow with them.
    ///
    /// # Errors
    /// If there are no ids, one is outside the vocabulary, or the cache refuses.
    pub fn prefill(&self, ids: &[u32], compute: Compute, cache: &mut dyn Cache) -> Result<Tensor> {
        let blocks = self.plan.blocks();
        let piece = if !self.rope.follows_length() && blocks.iter().all(|b| b.attention().reads_in_pieces()) {
            PIECE
        } else {
            ids.len().max(1)
        };
        let last = ids.len().saturating_sub(1) / piece * piece;
        for piece in ids[..last].chunks(piece) {
            self.last_hidden(piece, compute, cache)?;
        }
        let hidden = self.last_hidden(&ids[last..], compute, cache)?;
        self.logits(&hidden, compute)
    }

    /// The hidden state `[1,D]` of the last of these tokens, all of which go to the cache.
    fn last_hidden(&self, ids: &[u32], compute: Compute, cache: &mut dyn Cache) -> Result<Tensor> {
        let mut ctx = self.sequence_context(ids, cache, compute)?;
        ctx.wanted = Some(1);
        self.hidden(&mut ctx)
    }
}
