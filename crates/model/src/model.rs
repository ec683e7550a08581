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
    weights::Weights,
};
use ounce_tensor::{Compute, DType, Solo, Tensor, ops, ops::RowSpan};
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

    /// An empty cache for `batch` sequences, half precision if the weights are. Layers whose method keeps something else
    /// than all keys and values get what it wants.
    pub fn cache(&self, batch: usize, reserve: usize) -> Box<dyn Cache> {
        let kind = if self.dtype() == DType::F32 {
            CacheType::F32
        } else {
            CacheType::F16
        };
        if let Some(own) = self.plan.cache(kind, batch, reserve) {
            return own;
        }
        let (kv_heads, head_dim) = (self.config.kv_heads, self.config.head_dim);
        let blocks = self.plan.blocks();
        let own: Vec<_> = blocks.iter().map(|b| b.attention().layer_cache(batch)).collect();
        let plain = self.config.layers.iter().zip(&own).filter(|(_, own)| own.is_none());
        let windows = plain.map(|(layer, _)| layer.window).collect();
        let plain = KvCache::new(kind, windows, batch, kv_heads, head_dim, reserve);
        if own.iter().all(Option::is_none) {
            Box::new(plain)
        } else {
            Box::new(MixedCache::new(own, plain))
        }
    }

    /// A context for `input` after `past` cached tokens.
    ///
    /// # Errors
    /// If the ids do not fill the batch, or one is outside the vocabulary.
    pub fn context<'a>(&self, input: Batch<'a>, cache: Option<&'a mut dyn Cache>) -> Result<Ctx<'a>> {
        static SOLO: Solo = Solo;
        let Batch { ids, batch, compute } = input;
        if batch == 0 || ids.is_empty() || ids.len() % batch != 0 {
            return Err(ModelError::Input {
                what: "input_ids".into(),
                rule: format!("{} ids do not fill {batch} rows of at least one token", ids.len()),
                hint: String::new(),
            });
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.config.vocab_size) {
            return Err(ModelError::Input {
                what: "input_ids".into(),
                rule: format!("token id {id} is outside the vocabulary of {}", self.config.vocab_size),
                hint: "were the ids made by the tokenizer of this model?".into(),
            });
        }
        let len = ids.len() / batch;
        let past = cache.as_ref().map_or(0, |c| c.len());
        let positions: Vec<usize> = (0..batch).flat_map(|_| past..past + len).collect();
        let (cos, sin) = self.rope.tables(&positions)?;
        let spans = vec![
            RowSpan {
                q_start: past,
                kv_begin: 0,
                kv_len: past + len
            };
            batch
        ];
        Ok(Ctx {
            ids,
            embeddings: None,
            inserted: None,
            noise: None,
            wanted: None,
            batch,
            len,
            spans,
            cos,
            sin,
            cache,
            compute,
            collective: &SOLO,
            sink: Sink::default(),
        })
    }

    /// Embeddings `[B,T,D]` of the context's ids.
    ///
    /// # Errors
    /// If an id is outside the vocabulary.
    pub fn embed(&self, ctx: &Ctx<'_>) -> Result<Tensor> {
        let ids: Vec<usize> = ctx.ids.iter().map(|&id| id as usize).collect();
        Ok(ops::embedding(&self.embedding.tensor, &ids, &[ctx.batch, ctx.len])?)
    }

    /// Normalised hidden states `[B,T,D]` before the head; those of the last tokens only where [`Ctx::wanted`] says so and
    /// the plan can.
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
    pub fn finish(&self, x_btd: &Tensor) -> Result<Tensor> {
        Ok(ops::rms_norm(x_btd, &self.norm.tensor, self.config.rms_norm_eps)?)
    }

    /// Logits `[.., V]` of hidden states `[.., D]`.
    ///
    /// # Errors
    /// If the last dimension is not D.
    pub fn logits(&self, hidden: &Tensor, compute: Compute) -> Result<Tensor> {
        Ok(ops::linear(hidden, self.head(), compute)?)
    }

    /// Logits `[B,T,V]` of a whole input, without a cache.
    ///
    /// # Errors
    /// If an id is outside the vocabulary.
    pub fn forward(&self, input: Batch<'_>) -> Result<Tensor> {
        let mut ctx = self.context(input, None)?;
        let hidden = self.hidden(&mut ctx)?;
        self.logits(&hidden, input.compute)
    }

    /// Logits `[1, V]` after a prompt. It is read in pieces of [`PIECE`] tokens where attention allows it, so that the memory
    /// for activations does not grow with it.
    ///
    /// # Errors
    /// If the prompt is empty, an id is outside the vocabulary or the cache refuses.
    pub fn read(&self, prompt: &[u32], compute: Compute, cache: &mut dyn Cache) -> Result<Tensor> {
        let blocks = self.plan.blocks();
        let piece = if blocks.iter().all(|b| b.attention().reads_in_pieces()) {
            PIECE
        } else {
            prompt.len().max(1)
        };
        let last = prompt.len().saturating_sub(1) / piece * piece;
        let batch = |ids| Batch { ids, batch: 1, compute };
        for ids in prompt[..last].chunks(piece) {
            let mut ctx = self.context(batch(ids), Some(&mut *cache))?;
            ctx.wanted = Some(1);
            self.hidden(&mut ctx)?;
        }
        self.next_logits(batch(&prompt[last..]), cache)
    }

    /// Logits `[B, V]` after the last token of each row; earlier tokens come from, and new ones go to, the cache.
    ///
    /// # Errors
    /// If an id is outside the vocabulary or the cache refuses.
    pub fn next_logits(&self, input: Batch<'_>, cache: &mut dyn Cache) -> Result<Tensor> {
        let mut ctx = self.context(input, Some(cache))?;
        ctx.wanted = Some(1);
        let hidden = self.hidden(&mut ctx)?;
        let (b, t, d) = (ctx.batch, hidden.dim(1), hidden.last_dim());
        let last: Vec<usize> = (0..b).map(|row| row * t + t - 1).collect();
        let last = ops::gather_rows(&ops::reshape(&hidden, &[b * t, d])?, &last)?;
        self.logits(&last, input.compute)
    }
}
