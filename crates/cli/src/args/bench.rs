//! `ounce bench`: what can be timed.

use clap::{Args, Subcommand};
use std::path::PathBuf;

/// `ounce bench`.
#[derive(Debug, Args)]
pub(crate) struct Bench {
    #[command(subcommand)]
    pub(crate) what: BenchWhat,
    /// Counted runs
    #[arg(long, global = true, default_value_t = 5, value_name = "N")]
    pub(crate) runs: usize,
}

/// What to time.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchWhat {
    /// Matrix products
    Kernels,
    /// Training steps of a small Llama-shaped model, f32 and bf16, or of recipes
    Train {
        /// Time the model and batch of this recipe instead, with random ids; may be given several times
        #[arg(long = "recipe", value_name = "FILE")]
        recipes: Vec<PathBuf>,
    },
    /// Decoding, 128 tokens at batch 1
    Decode {
        /// Checkpoint folder
        model: PathBuf,
        /// Tokens of the prompt before them
        #[arg(long, default_value_t = 1, value_name = "N")]
        context: usize,
    },
    /// Reading a prompt
    Prefill {
        /// Checkpoint folder
        model: PathBuf,
        /// Tokens of the prompt
        #[arg(long, default_value_t = 512, value_name = "N")]
        context: usize,
    },
    /// Attention alone: one layer, over a prompt and token by token, without projections
    Attention {
        /// exact: over all keys; dga: grouped; moh: 100, 75 and 50 % of the heads (prompt only)
        #[arg(long, value_parser = ounce_lab::bench::ATTENTION_METHODS)]
        method: String,
        /// Tokens of the prompt
        #[arg(long, default_value_t = 4096, value_name = "N")]
        context: usize,
        /// Heads; the default is the shape of Llama-2-7B
        #[arg(long, default_value_t = 32, value_name = "N")]
        heads: usize,
        /// Width of a head
        #[arg(long, default_value_t = 128, value_name = "N")]
        head_dim: usize,
        /// Arithmetic of the prompt; dga computes in f32
        #[arg(long, default_value = "f32", value_parser = ["f32", "bf16"])]
        compute: String,
    },
    /// Write a random bf16 checkpoint in the shape of a published model
    Checkpoint {
        /// llama, mixtral or qwen2_moe
        #[arg(long)]
        family: String,
        /// Size in GB; whole layers come nearest to it
        #[arg(long)]
        gb: f64,
        /// Output folder
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Replace an output folder that Ounce made; with =any, whatever is there
        #[arg(long, value_name = "any", num_args = 0..=1, require_equals = true, default_missing_value = "ours", hide_possible_values = true)]
        overwrite: Option<super::Replace>,
    },
}
