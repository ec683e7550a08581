//! Language models: configurations, tokenizers, blocks in slots, decoder plans, caches and samplers.
//!
//! This crate owns everything between a Hugging Face folder and logits. A decoder is a list of blocks; a block has an
//! attention slot, a feed-forward slot and a residual wiring, and each method that can fill a slot has one file. The
//! same forward serves training, prefill and decode: what differs travels in [`Ctx`]. It must not know corpora,
//! optimisers, compression or servers.
//!
//! Shape suffixes used in this crate: B sequences, T tokens of one, N tokens of all, D model width, H query heads, Hk key/value heads,
//! hd head dimension, V vocabulary, E experts, K experts per token, I expert width.

pub mod attention;
pub mod balance;
mod block;
pub mod cache;
pub mod chat;
pub mod config;
mod ctx;
mod error;
pub mod ffn;
mod generate;
mod gguf;
pub mod layer_cache;
mod layout;
mod model;
mod open;
mod param;
pub mod plan;
pub mod residual;
mod rope;
mod rows;
mod sampler;
mod session;
mod text_stream;
pub mod tokenizer;
mod topk;
pub mod weights;

pub use block::Block;
pub use cache::{Cache, KvCache};
pub use chat::{ChatTemplate, Message};
pub use config::ModelConfig;
pub use ctx::{Ctx, Noise, Retrieved, Routing, Sink};
pub use error::{ModelError, Result};
pub use generate::{Conversation, Finish, GenerateOptions, Generation, generate};
pub use layer_cache::{LayerCache, MixedCache};
pub use layout::DTYPE_KEYS;
pub use model::{Batch, Model, PIECE};
pub use open::{OpenOptions, Opened};
pub use param::{Linear, Param};
pub use residual::{LadderLayers, Residual, Wiring};
pub use rope::RopeTable;
pub use rows::{Even, Rows, Seq};
pub use sampler::{Sampler, SamplerConfig};
pub use session::{Session, SlotId};
pub use text_stream::{StopTexts, TextStream};
pub use tokenizer::{StreamDecoder, Tokenizer, TokenizerError};
pub use topk::top_k;
pub use weights::{model_tensors, parameter_count};
