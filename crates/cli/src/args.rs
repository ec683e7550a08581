//! The command line.

mod bench;
mod text;

use clap::{Args, Parser, Subcommand};
use std::{fmt::Write as _, path::PathBuf};

pub(crate) use bench::{Bench, BenchWhat};
pub(crate) use text::{Chat, Generate, Sampling, Seed};

/// More model per ounce of compute: make language models cheaper.
#[derive(Debug, Parser)]
#[command(name = "ounce", version, max_term_width = 100, arg_required_else_help = true)]
#[command(
    after_help = "Start with `ounce demo`. Data goes to stdout, everything else to stderr.\n\
    Exit codes: 0 good, 1 your input, 2 our failure, 130 interrupted."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every command.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Threads; all cores if left out. Results do not depend on it.
    #[arg(long, global = true, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// No progress on stderr.
    #[arg(long, global = true)]
    pub(crate) no_progress: bool,
    /// JSON on stdout.
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Measure, merge experts, measure again: the whole story on the model that ships with ounce
    Demo(Demo),
    /// Say what a checkpoint is, what it costs and which methods apply
    Inspect(Inspect),
    /// Continue a text
    Generate(Generate),
    /// Talk with a model, by its chat template
    Chat(Chat),
    /// Train a model from a recipe
    Train(Train),
    /// Merge or prune the experts of a mixture-of-experts checkpoint
    Merge(Merge),
    /// Write another form of a checkpoint
    Convert(Convert),
    /// Measure the quality of a model: perplexity, bits per byte, multiple choice
    Eval(Eval),
    /// Write the logits of given ids
    Logits(Logits),
    /// Compare with golden cases made by independent programs
    Verify(Verify),
    /// Time kernels, training steps, decoding; write random checkpoints of real shapes
    Bench(Bench),
    /// Run the experiment of a method: paired seeds, intervals, the paper's figures beside ours, a verdict
    Reproduce(Reproduce),
    /// Make small corpora
    Data(Data),
    /// Check that this machine and this build are fit to run ounce
    Doctor(Doctor),
    /// Measure one model for `demo`
    #[command(hide = true)]
    Measure(Measure),
}

/// `ounce demo`.
#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Where report and merged models go
    #[arg(long, default_value = "out", value_name = "DIR")]
    pub(crate) out: PathBuf,
}

/// `ounce inspect`.
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// Checkpoint folder
    pub(crate) model: PathBuf,
    /// Look for NaN and infinity in every tensor
    #[arg(long)]
    pub(crate) scan: bool,
    /// Attention method in place of the checkpoint's own: `dga`, `dga:group_size=8,selection=causal_block`, `full`
    #[arg(long, value_name = "METHOD")]
    pub(crate) attention: Option<String>,
    /// Tokens in the context for which the attention method's costs are given; else the longest sequence
    #[arg(long, value_name = "N")]
    pub(crate) context: Option<usize>,
}

/// `ounce train`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  ounce train models/demo.toml --out run --data DIR\n  \
    ounce train models/demo.toml --out run --data DIR --resume\n  \
    ounce train recipe.toml --out run --set run.steps=100 --set optimizer.lr=1e-3\n\n\
    OUT/step-N/ are checkpoints (Hugging Face layout), OUT/final/ is the result, OUT/metrics.jsonl has every step.")]
pub(crate) struct Train {
    /// Recipe (TOML)
    pub(crate) recipe: PathBuf,
    /// Folder for checkpoints, metrics and the final model
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Continue what is in the folder; the result is the same to the bit
    #[arg(long)]
    pub(crate) resume: bool,
    /// Resume although recipe, data or instruction set differ
    #[arg(long, requires = "resume")]
    pub(crate) force: bool,
    /// Change a key of the recipe
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// What ${data} stands for; else the environment variable OUNCE_DATA
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Say what the run will cost, and stop
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// What `--overwrite` may replace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Replace {
    /// A folder that Ounce made, with nothing of anybody else's in it.
    Ours,
    /// Any folder that is not read.
    Any,
}

/// What is to become of an output folder that exists.
pub(crate) fn overwrite(asked: Option<Replace>) -> ounce_formats::Overwrite {
    match asked {
        None => ounce_formats::Overwrite::Refuse,
        Some(Replace::Ours) => ounce_formats::Overwrite::Replace,
        Some(Replace::Any) => ounce_formats::Overwrite::Any,
    }
}

/// `ounce merge`.
#[derive(Debug, Args)]
#[command(
    after_help = "A recipe, as small as it can be:\n  budget = { percent = 50 }\n  calibration = { text = \"book.txt\" }\n\n\
    docs/formats.md has all keys and the layout of the result."
)]
pub(crate) struct Merge {
    /// Checkpoint folder
    pub(crate) model: PathBuf,
    /// Merge recipe (TOML)
    #[arg(long, value_name = "FILE")]
    pub(crate) recipe: PathBuf,
    /// Output folder
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Say what it will cost, and stop
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Write a copy of the merged expert for every router output: loads anywhere, is no smaller
    #[arg(long)]
    pub(crate) expanded: bool,
    /// Replace an output folder that Ounce made; with =any, whatever is there
    #[arg(long, value_name = "any", num_args = 0..=1, require_equals = true, default_missing_value = "ours", hide_possible_values = true)]
    pub(crate) overwrite: Option<Replace>,
    /// Continue a run that was killed
    #[arg(long)]
    pub(crate) resume: bool,
}

/// `ounce convert`.
#[derive(Debug, Args)]
#[command(after_help = conversions())]
pub(crate) struct Convert {
    /// Checkpoint folder
    pub(crate) model: PathBuf,
    /// The form to write
    #[arg(long, value_name = "NAME")]
    pub(crate) to: String,
    /// Output folder
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Element type of what is made: f32 or f16
    #[arg(long, value_name = "TYPE")]
    pub(crate) dtype: Option<String>,
    /// Any option of the conversion, see below
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Say what it will write, and stop
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Replace an output folder that Ounce made; with =any, whatever is there
    #[arg(long, value_name = "any", num_args = 0..=1, require_equals = true, default_missing_value = "ours", hide_possible_values = true)]
    pub(crate) overwrite: Option<Replace>,
    /// Continue a run that was killed
    #[arg(long)]
    pub(crate) resume: bool,
}

/// The list of conversions, for the help.
fn conversions() -> String {
    let mut text = String::from("Forms:");
    for conversion in ounce_compress::CONVERSIONS {
        let _ = write!(text, "\n  {}: {}", conversion.name, conversion.about);
        for (key, meaning) in conversion.options {
            let _ = write!(text, "\n      --set {key}=…  {meaning}");
        }
    }
    text
}

/// `ounce eval`.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("what").required(true).multiple(true).args(["text", "suite", "passkey"])))]
#[command(group(clap::ArgGroup::new("counted").multiple(true).args(["suite", "passkey"])))]
#[command(after_help = "Example:\n  ounce eval models/demo --text models/texts/evaluation.txt")]
pub(crate) struct Eval {
    /// Checkpoint folder
    pub(crate) model: PathBuf,
    /// Texts for perplexity and bits per byte: a text file is one document, a JSONL file has one a line, a folder stands
    /// for the files below it. Documents are scored apart
    #[arg(long, num_args = 1.., value_name = "FILE")]
    pub(crate) text: Vec<PathBuf>,
    /// Field of JSONL lines that holds the text
    #[arg(long, default_value = ounce_data::readers::FIELD, value_name = "NAME", requires = "text")]
    pub(crate) field: String,
    /// Tokens of a window, at most the model's positions; else those, and at most 2048
    #[arg(long, value_name = "TOKENS", requires = "text")]
    pub(crate) window: Option<usize>,
    /// Tokens from the start of a window to the start of the next; else half a window
    #[arg(long, value_name = "TOKENS", requires = "text")]
    pub(crate) stride: Option<usize>,
    /// Score only the first so many bytes of each text
    #[arg(long, value_name = "BYTES", requires = "text")]
    pub(crate) limit: Option<usize>,
    /// How much predictions on the texts depend on the length of the context, for contexts of half to all of so many
    /// tokens (the model's training length; all its positions if left out), beside a probe of long-range use
    #[arg(long, value_name = "TOKENS", requires = "text", num_args = 0..=1, default_missing_value = "0")]
    pub(crate) misalignment: Option<usize>,
    /// Multiple-choice suite: piqa or blimp
    #[arg(long, value_name = "NAME")]
    pub(crate) suite: Option<String>,
    /// File of the suite; else it is looked for below the data folder
    #[arg(long, value_name = "FILE", requires = "suite")]
    pub(crate) file: Option<PathBuf>,
    /// Use this many items of the suite, spread evenly; or so many keys (100 if left out)
    #[arg(long, value_name = "N", requires = "counted")]
    pub(crate) items: Option<usize>,
    /// Find keys hidden in so many tokens (those of `ounce data passkey`, held out)
    #[arg(long, value_name = "TOKENS")]
    pub(crate) passkey: Option<usize>,
    /// Digits of a key
    #[arg(long, default_value_t = 5, value_name = "N", requires = "passkey")]
    pub(crate) digits: usize,
    /// What keys are hidden in: stories, or sentences (four of them, over and over)
    #[arg(long, default_value = "stories", value_name = "NAME", requires = "passkey")]
    pub(crate) haystack: ounce_data::passkey::Haystack,
    /// Seed of the keys
    #[arg(long, default_value_t = 0, value_name = "N", requires = "passkey")]
    pub(crate) seed: u64,
    /// The data folder; else the environment variable OUNCE_DATA
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Attention method in place of the checkpoint's own: `dga`, `dga:group_size=8,selection=causal_block`, `full`
    #[arg(long, value_name = "METHOD")]
    pub(crate) attention: Option<String>,
}

/// `ounce logits`.
#[derive(Debug, Args)]
pub(crate) struct Logits {
    /// Checkpoint folder
    pub(crate) model: PathBuf,
    /// Safetensors file with `input_ids` [B, T]
    #[arg(long, value_name = "FILE")]
    pub(crate) ids: PathBuf,
    /// Safetensors file to write: `logits` [B, T, V], f32
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Attention method in place of the checkpoint's own: `dga`, `dga:group_size=8,selection=causal_block`, `full`
    #[arg(long, value_name = "METHOD")]
    pub(crate) attention: Option<String>,
}

/// `ounce verify`.
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Folders of golden cases
    #[arg(required = true, value_name = "DIR")]
    pub(crate) cases: Vec<PathBuf>,
    /// Only cases whose name contains this
    #[arg(long, value_name = "PATTERN")]
    pub(crate) only: Option<String>,
}

/// `ounce reproduce`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  ounce reproduce ladder --out out/ladder\n\nDIR/result.json and DIR/report.html are the \
    result. Finished runs are reused; --resume continues after a stop, a crash or kill -9."
)]
pub(crate) struct Reproduce {
    /// The method
    #[arg(value_parser = ounce_lab::reproduce::REPRODUCTIONS.iter().map(|r| r.name()).collect::<Vec<_>>())]
    pub(crate) method: String,
    /// quick: 5 to 8 minutes on two quiet cores; standard: 40 minutes; full: hours
    #[arg(long, default_value = "quick", value_parser = ["quick", "standard", "full"])]
    pub(crate) budget: String,
    /// Seeds, instead of the experiment's own
    #[arg(long, value_name = "1,2,3", value_delimiter = ',')]
    pub(crate) seeds: Vec<u64>,
    /// Folder for runs, report and result
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Continue what is in the folder
    #[arg(long)]
    pub(crate) resume: bool,
}

/// `ounce data`.
#[derive(Debug, Args)]
pub(crate) struct Data {
    #[command(subcommand)]
    pub(crate) what: DataWhat,
}

/// What to make.
#[derive(Debug, Subcommand)]
pub(crate) enum DataWhat {
    /// Small seeded corpora: text of a toy grammar, sums, retrieval, notes that recur
    Toy {
        /// Output folder
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Bytes per corpus
        #[arg(long, default_value_t = ounce_data::toy::BYTES, value_name = "N")]
        bytes: usize,
        /// Seed
        #[arg(long, default_value_t = 0, value_name = "N")]
        seed: u64,
    },
    /// Tasks over bits whose answers do or do not grow with length (mean, length, sum), each with a long-range probe
    Length {
        /// Output folder
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Bytes of the training file
        #[arg(long, default_value_t = ounce_data::toy::BYTES, value_name = "N")]
        bytes: usize,
        /// Seed
        #[arg(long, default_value_t = 0, value_name = "N")]
        seed: u64,
    },
    /// Stories in which a key is hidden and asked for at the end, one item per training window
    Passkey {
        /// Output folder
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Bytes of the training file
        #[arg(long, default_value_t = ounce_data::toy::BYTES, value_name = "N")]
        bytes: usize,
        /// Bytes of an item, its end included: the window length of the recipe
        #[arg(long, default_value_t = 1024, value_name = "N")]
        length: usize,
        /// Bytes of a chunk; the question ends at a chunk's end
        #[arg(long, default_value_t = 64, value_name = "N")]
        chunk: usize,
        /// Digits of a key
        #[arg(long, default_value_t = 1, value_name = "N")]
        digits: usize,
        /// What the key is hidden in: stories, or sentences (four of them, over and over)
        #[arg(long, default_value = "stories", value_name = "NAME")]
        haystack: ounce_data::passkey::Haystack,
        /// Hide the key 1 to N times (once in held-out items): copies teach reading, which finding builds on
        #[arg(long, default_value_t = 1, value_name = "N")]
        copies: usize,
        /// Seed
        #[arg(long, default_value_t = 0, value_name = "N")]
        seed: u64,
    },
}

/// `ounce doctor`.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// The data folder to check; else the environment variable OUNCE_DATA
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
}

/// `ounce measure`.
#[derive(Debug, Args)]
pub(crate) struct Measure {
    pub(crate) model: PathBuf,
    #[arg(long)]
    pub(crate) text: PathBuf,
    #[arg(long)]
    pub(crate) prompt: Vec<String>,
    #[arg(long)]
    pub(crate) sample_tokens: usize,
}
