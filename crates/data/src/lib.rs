//! From files to batches of token ids.
//!
//! Owns reading documents, the toy corpora, packing ids into one stream with its cache on disk, choosing training
//! windows, counter-based randomness and the `${data}` of recipes. It exists so that every number a run consumes is
//! a pure function of (files, seed, step, index): a resumed run has no cursor to restore. It must not know models or
//! tokenizers: encoding is a closure.

mod error;
pub mod length;
pub mod packing;
pub mod passkey;
pub mod readers;
pub mod resolve;
pub mod rng;
pub mod sampler;
pub mod toy;

pub use error::{DataError, Result};
pub use packing::TokenStream;
pub use readers::{Document, Sources, read_documents};
pub use resolve::DataDir;
pub use rng::RandomStream;
pub use sampler::{Batch, Sampler};
