//! model
pub mod tokenizer;
