//! The recipe of a run, as written by a user in TOML.
//!
//! Owns the keys, their defaults and their ranges. Unknown keys are errors, because a silently ignored key changes a
//! published number.

use crate::{
    error::{Result, TrainError},
    objective::{ObjectiveConfig, Problem},
    optimizer::OptimizerConfig,
    schedule::Schedule,
};
use ounce_formats::fsx;
use ounce_model::config::ModelShape;
use ounce_tensor::Compute;
use serde::{Deserialize, Serialize};
use std::path::Path;
use toml::Value;

/// A complete, checked recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a recipe")]
pub struct Recipe {
    /// Continue from this checkpoint's weights (and tokenizer) instead of fresh ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<String>,
    /// Attention method in place of that of `init`, such as `dga` or `moh:router=query_norm,…`; a fresh model names its
    /// own in `[model]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention: Option<String>,
    /// Shape of a fresh model; needed unless `init` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelShape>,
    /// Where the tokenizer comes from; needed unless `init` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<TokenizerConfig>,
    /// The corpus.
    pub data: DataConfig,
    /// What is minimised.
    #[serde(default)]
    pub objective: ObjectiveConfig,
    /// AdamW.
    pub optimizer: OptimizerConfig,
    /// Learning rate over time.
    #[serde(default)]
    pub schedule: Schedule,
    /// Lengths, sizes, intervals.
    pub run: Run,
}

/// `[tokenizer]`: exactly one of the two.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields, expecting = "a table, [tokenizer]")]
pub enum TokenizerConfig {
    /// Train a byte-level BPE with this many tokens on the training files.
    TrainVocab(usize),
    /// Use the tokenizer of this folder.
    Reuse(String),
}

/// `[data]`. Paths may begin with `${data}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table, [data]")]
pub struct DataConfig {
    /// Files or folders to train on.
    pub train: Vec<String>,
    /// Files or folders to evaluate on; never trained on.
    #[serde(default)]
    pub validation: Vec<String>,
    /// Field of JSONL lines that holds the text.
    #[serde(default = "text")]
    pub field: String,
}

fn text() -> String {
    "text".into()
}

/// Element type of an exported checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Export {
    /// Half the size.
    #[default]
    Bf16,
    /// The masters themselves.
    F32,
}

/// Arithmetic of the matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arithmetic {
    /// The reference.
    #[default]
    F32,
    /// Inputs of products rounded to bf16; faster where the processor has bf16 instructions.
    Bf16,
}

impl From<Arithmetic> for Compute {
    fn from(a: Arithmetic) -> Self {
        match a {
            Arithmetic::F32 => Compute::F32,
            Arithmetic::Bf16 => Compute::Bf16,
        }
    }
}

/// `[run]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table, [run]")]
pub struct Run {
    /// Optimiser steps.
    pub steps: u64,
    /// Windows per step.
    pub batch: usize,
    /// Windows per forward; the batch is a multiple of it. The whole batch if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_batch: Option<usize>,
    /// Tokens per window.
    pub length: usize,
    /// Seed of weights and order.
    #[serde(default)]
    pub seed: u64,
    /// Arithmetic.
    #[serde(default)]
    pub compute: Arithmetic,
    /// Evaluate every so many steps; 0 means at the end only.
    #[serde(default)]
    pub eval_every: u64,
    /// Validation tokens per evaluation.
    #[serde(default = "eval_tokens")]
    pub eval_tokens: usize,
    /// Training windows start at multiples of `length`: for corpora whose items are one window long.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub aligned: bool,
    /// Write a checkpoint every so many steps; 0 means at the end only.
    #[serde(default)]
    pub checkpoint_every: u64,
    /// Checkpoints kept.
    #[serde(default = "two")]
    pub keep: usize,
    /// Element type of exported weights.
    #[serde(default)]
    pub export: Export,
}

fn eval_tokens() -> usize {
    65_536
}
fn two() -> usize {
    2
}

/// Where to read on.
const KEYS: &str = "docs/training.md lists all keys and their ranges";

/// Tokens of one step; more overflows sizes computed from it, and fits no machine.
const MOST_TOKENS: usize = 1 << 40;

impl Run {
    /// Windows per forward.
    pub fn micro_batch(&self) -> usize {
        self.micro_batch.unwrap_or(self.batch)
    }
}

impl Recipe {
    /// Reads a recipe file; `overrides` are `dotted.key=value` pairs with TOML values (bare words are strings).
    ///
    /// # Errors
    /// If the file cannot be read, is not TOML, or a key is unknown, missing or out of range.
    pub fn read(path: &Path, overrides: &[String]) -> Result<Self> {
        Self::parse(&path.display().to_string(), &fsx::read_to_string(path)?, overrides)
    }

    /// Like [`Recipe::read`], from text; `file` names it in errors.
    ///
    /// # Errors
    /// As [`Recipe::read`].
    pub fn parse(file: &str, text: &str, overrides: &[String]) -> Result<Self> {
        let fail = |key: &str, rule: String, hint: &str| TrainError::Recipe {
            file: file.into(),
            key: key.into(),
            rule,
            hint: hint.into(),
        };
        let mut table: toml::Table = toml::from_str(text).map_err(|e| {
            let line = 1 + text[..e.span().map_or(0, |s| s.start)].matches('\n').count();
            fail("", format!("line {line} is not TOML: {}", e.message()), KEYS)
        })?;
        for pair in overrides {
            let Some((key, value)) = pair.split_once('=') else {
                return Err(fail(
                    pair,
                    "an override is key=value".into(),
                    "for example --set run.steps=100",
                ));
            };
            set(&mut table, key.trim(), value.trim())
                .map_err(|rule| fail(key, rule, "for example --set run.steps=100"))?;
        }
        let recipe: Self = Value::Table(table)
            .try_into()
            .map_err(|e: toml::de::Error| fail(&place(&e), e.message().to_owned(), KEYS))?;
        if let Some(Problem { key, rule, hint }) = recipe.problem() {
            return Err(fail(key, rule, if hint.is_empty() { KEYS } else { hint }));
        }
        if let Some(shape) = &recipe.model {
            shape.check().map_err(|(key, rule, hint)| fail(&key, rule, &hint))?;
        }
        Ok(recipe)
    }

    /// The first key out of range.
    fn problem(&self) -> Option<Problem> {
        let (run, opt) = (&self.run, &self.optimizer);
        let per_step = run.batch.checked_mul(run.length);
        let checks: &[(&str, bool, &str)] = &[
            (
                "model",
                self.model.is_some() != self.init.is_some(),
                "give either [model] or init",
            ),
            (
                "tokenizer",
                self.tokenizer.is_some() || self.init.is_some(),
                "is missing",
            ),
            (
                "attention",
                self.attention.is_none() || self.init.is_some(),
                "replaces the method of init; a fresh model names its own in [model.moh] or [model.dga]",
            ),
            ("data.train", !self.data.train.is_empty(), "needs at least one file"),
            ("run.steps", run.steps > 0, "must be at least 1"),
            ("run.batch", run.batch > 0, "must be at least 1"),
            ("run.length", run.length > 0, "must be at least 1"),
            (
                "run.micro_batch",
                run.micro_batch() > 0 && run.batch % run.micro_batch().max(1) == 0,
                "must divide run.batch",
            ),
            (
                "run.batch",
                per_step.is_some_and(|n| n <= MOST_TOKENS),
                "times run.length must be at most 2^40 tokens per step",
            ),
            (
                "run.steps",
                per_step.is_some_and(|n| run.steps.checked_mul(n as u64).is_some_and(|n| n < 1 << 63)),
                "times run.batch times run.length must be below 2^63 tokens",
            ),
            ("run.keep", run.keep > 0, "must be at least 1"),
            (
                "optimizer.lr",
                opt.lr > 0.0 && opt.lr.is_finite(),
                "must be above 0 and finite",
            ),
            ("optimizer.beta1", (0.0..1.0).contains(&opt.beta1), "must be in 0..1"),
            ("optimizer.beta2", (0.0..1.0).contains(&opt.beta2), "must be in 0..1"),
            (
                "optimizer.eps",
                opt.eps > 0.0 && opt.eps.is_finite(),
                "must be above 0 and finite",
            ),
            (
                "optimizer.weight_decay",
                opt.weight_decay >= 0.0 && opt.weight_decay.is_finite(),
                "must be at least 0 and finite",
            ),
            (
                "optimizer.clip",
                opt.clip >= 0.0 && opt.clip.is_finite(),
                "must be at least 0 (which turns it off) and finite",
            ),
            (
                "schedule.floor",
                (0.0..=1.0).contains(&self.schedule.floor),
                "must be in 0..=1",
            ),
            (
                "schedule.warmup",
                self.schedule.warmup <= run.steps,
                "must be at most run.steps",
            ),
        ];
        if let Some((key, _, rule)) = checks.iter().find(|(_, holds, _)| !holds) {
            return Some(Problem {
                key,
                rule: (*rule).into(),
                hint: "",
            });
        }
        if let Some(problem) = self.objective.problem(run.length) {
            return Some(problem);
        }
        let positions = self.model.as_ref()?.max_positions;
        (run.length > positions).then(|| Problem {
            key: "run.length",
            rule: format!("must be at most model.max_positions = {positions}, is {}", run.length),
            hint: "",
        })
    }

    /// SHA-256 over everything that decides the weights: all keys but those that only decide what is written when.
    pub fn hash(&self) -> String {
        let mut canonical = self.clone();
        canonical.run.eval_every = 0;
        canonical.run.eval_tokens = 0;
        canonical.run.checkpoint_every = 0;
        canonical.run.keep = 1;
        canonical.run.export = Export::F32;
        fsx::sha256_bytes(canonical.to_toml().as_bytes())
    }

    /// The recipe as TOML, defaults filled in.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("invariant: a recipe has only TOML types")
    }
}

/// The dotted key an error is about, as far as the parser tells: it names the table of an unknown key.
fn place(error: &toml::de::Error) -> String {
    let text = error.to_string();
    let key = text
        .rsplit_once("\nin `")
        .map(|(_, key)| key.trim_end().trim_end_matches('`'));
    key.unwrap_or_default().to_owned()
}

/// Sets a dotted key; the value is TOML, or a bare string.
fn set(table: &mut toml::Table, key: &str, value: &str) -> std::result::Result<(), String> {
    let parsed: toml::Table = toml::from_str(&format!("value = {value}"))
        .or_else(|_| toml::from_str(&format!("value = {value:?}")))
        .map_err(|e| e.message().to_owned())?;
    let mut parts: Vec<&str> = key.split('.').collect();
    let Some(last) = parts.pop().filter(|l| !l.is_empty()) else {
        return Err("an override needs a key".into());
    };
    let mut at = table;
    for part in parts {
        at = at
            .entry(part)
            .or_insert_with(|| Value::Table(toml::Table::new()))
            .as_table_mut()
            .ok_or_else(|| format!("\"{part}\" is not a table"))?;
    }
    at.insert(last.into(), parsed["value"].clone());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"
[model]
hidden_size = 16
layers = 1
heads = 2
intermediate_size = 32
[tokenizer]
train_vocab = 300
[data]
train = ["a.txt"]
[optimizer]
lr = 1e-3
[run]
steps = 10
batch = 4
length = 8
"#;

    fn error(overrides: &[&str]) -> String {
        let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
        Recipe::parse("r.toml", MINIMAL, &overrides).unwrap_err().to_string()
    }

    #[test]
    fn overrides_change_values_and_the_hash_follows_what_matters() {
        let plain = Recipe::parse("r.toml", MINIMAL, &[]).unwrap();
        let more = Recipe::parse("r.toml", MINIMAL, &["run.steps=20".into()]).unwrap();
        let often = Recipe::parse("r.toml", MINIMAL, &["run.checkpoint_every=3".into()]).unwrap();
        assert_eq!(more.run.steps, 20);
        assert_ne!(plain.hash(), more.hash());
        assert_eq!(plain.hash(), often.hash());
        assert_eq!(Recipe::parse("again", &plain.to_toml(), &[]).unwrap(), plain);
    }

    #[test]
    fn refusals_name_file_key_and_rule() {
        assert_eq!(error(&["run.steps=0"]), "r.toml: key \"run.steps\": must be at least 1");
        assert_eq!(
            error(&["run.micro_batch=3"]),
            "r.toml: key \"run.micro_batch\": must divide run.batch"
        );
        assert_eq!(
            error(&["optimizer.lr=-1"]),
            "r.toml: key \"optimizer.lr\": must be above 0 and finite"
        );
        assert!(error(&["run.length=1000"]).contains("must be at most model.max_positions = 512, is 1000"));
        assert!(error(&["run.stepz=1"]).starts_with("r.toml: key \"run\": unknown field `stepz`"));
        assert_eq!(
            error(&["model.heads=3"]),
            "r.toml: key \"model.heads\": must divide model.hidden_size = 16, is 3"
        );
        assert_eq!(
            error(&["model.balance=nan"]),
            "r.toml: key \"model.balance\": must be a finite number, is NaN"
        );
        let syntax = Recipe::parse("r.toml", "[run]\nsteps = 1\nsteps = 2\n", &[]).unwrap_err();
        assert_eq!(syntax.to_string(), "r.toml: line 3 is not TOML: duplicate key");
        assert!(error(&["nonsense"]).contains("an override is key=value"));
        assert!(error(&["init=somewhere"]).contains("give either [model] or init"));
    }
}
