//! The decisions of merging and pruning against reference cases made by independent SciPy and PyTorch code.

mod case;
mod clustering;
mod merging;
mod pruning;

/// The cases with a model, statistics and labels of every kind.
const MODELS: [&str; 3] = ["merge_mixtral", "merge_qwen2_moe", "merge_qwen2_moe_norm"];
