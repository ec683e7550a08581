//! `ounce generate` and `ounce chat`: what they are told, and how tokens are chosen.

use clap::Args;
use std::path::PathBuf;

/// `ounce generate`.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("input").required(true).args(["prompt", "prompt_file", "ids"])))]
#[command(
    after_help = "Examples:\n  ounce generate models/demo --prompt \"It was a cold evening\" --max-new-tokens 60 --temperature 0.8\n  \
    ounce generate MODEL --ids 1,15,27 --max-new-tokens 24 --json\n\n\
    In a pipe stdout has the continuation only, and the prompt goes to stderr; --echo puts it on stdout."
)]
pub(crate) struct Generate {
    /// Checkpoint folder
    pub(crate) model: PathBuf,
    /// Text to continue; `-` reads it from stdin
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) prompt: Option<String>,
    /// File with the text to continue
    #[arg(long, value_name = "FILE")]
    pub(crate) prompt_file: Option<PathBuf>,
    /// Token ids to continue; eos does not stop
    #[arg(long, value_name = "1,2,3")]
    pub(crate) ids: Option<String>,
    /// Put the prompt into the model's chat template, as what a user says
    #[arg(long, conflicts_with = "ids")]
    pub(crate) chat: bool,
    /// What the model is told first, with --chat
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub(crate) system: Option<String>,
    /// The prompt on stdout, in front of its continuation, also where stdout is no terminal
    #[arg(long)]
    pub(crate) echo: bool,
    #[command(flatten)]
    pub(crate) sampling: Sampling,
    /// Attention method in place of the checkpoint's own: `dga`, `dga:group_size=8,selection=causal_block`, `full`
    #[arg(long, value_name = "METHOD")]
    pub(crate) attention: Option<String>,
}

/// `ounce chat`.
#[derive(Debug, Args)]
#[command(
    after_help = "Each line of stdin is what the user says. /reset begins anew, /exit or Ctrl-D ends.\n\
    Tokens are chosen as the model's generation_config.json says, unless you say otherwise.\n\n\
    Examples:\n  ounce chat MODEL\n  ounce chat MODEL --prompt \"What is gravity?\" --json"
)]
pub(crate) struct Chat {
    /// Checkpoint folder
    pub(crate) model: PathBuf,
    /// One turn: say this, print the answer and end
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) prompt: Option<String>,
    /// What the model is told first
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    #[command(flatten)]
    pub(crate) sampling: Sampling,
    /// Attention method in place of the checkpoint's own: `dga`, `dga:group_size=8,selection=causal_block`, `full`
    #[arg(long, value_name = "METHOD")]
    pub(crate) attention: Option<String>,
}

/// How tokens are chosen, and when it ends.
#[derive(Debug, Args)]
pub(crate) struct Sampling {
    /// Tokens to make at most: 128, in a chat 1024
    #[arg(long, value_name = "N")]
    pub(crate) max_new_tokens: Option<usize>,
    /// 0 is greedy
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub(crate) temperature: Option<f32>,
    /// Keep the K most likely tokens; 0 or less keeps all
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    pub(crate) top_k: Option<i64>,
    /// Keep the smallest set of tokens with this probability; 0 keeps the best alone
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) top_p: Option<f32>,
    /// Keep tokens with this share of the best token's probability
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) min_p: Option<f32>,
    /// Make tokens seen before less likely; 1 is off
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    pub(crate) repetition_penalty: Option<f32>,
    /// Seed of the draws; -1 draws one, and says which
    #[arg(long, default_value = "0", value_name = "N", allow_negative_numbers = true)]
    pub(crate) seed: Seed,
    /// Stop before this text; may be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) stop: Vec<String>,
    /// Do not stop at the end-of-text token
    #[arg(long)]
    pub(crate) ignore_eos: bool,
}

/// A seed, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seed {
    Given(u64),
    Drawn,
}

impl std::str::FromStr for Seed {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "-1" => Ok(Self::Drawn),
            _ => text
                .parse()
                .map(Self::Given)
                .map_err(|_| "a seed is a whole number from 0 on, or -1 for any".into()),
        }
    }
}
