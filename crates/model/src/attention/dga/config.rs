//! `dga` of a configuration: keys, defaults, ranges, and what the method costs.

use super::Dga;
use crate::{
    attention::{Attention, Cost, FullAttention, Method},
    config::{Keys, ModelConfig, refuse},
    error::Result,
    weights::Weights,
};
use std::sync::Arc;

/// Which queries score tokens under [`Selection::Global`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScoreMode {
    /// The last r.
    Last,
    /// Half of r from the end, half evenly spaced before them.
    LastStrided,
}

/// When tokens are selected and grouped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selection {
    /// Once for the whole prompt.
    Global,
    /// Block after block, strictly causal.
    CausalBlock,
}

/// What is added to the score of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupBias {
    /// Nothing.
    None,
    /// ln m.
    LogM,
    /// The entropy of the group's weights.
    Entropy,
}

/// `dga` of a configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct DgaConfig {
    /// m.
    pub group_size: usize,
    /// gamma.
    pub focal_ratio: f64,
    /// r.
    pub score_queries: usize,
    /// Which r queries.
    pub score_mode: ScoreMode,
    /// When tokens are selected.
    pub selection: Selection,
    /// Added to a group's score.
    pub group_bias: GroupBias,
    /// Prompts up to this length are attended exactly.
    pub min_len: usize,
    /// m': tokens in the buffer that are compressed together; none = never (gamma = 1).
    pub m_prime: Option<usize>,
    /// The first tokens, always single.
    pub sink: usize,
    /// At least so many of the last tokens are single for every query.
    pub window: usize,
    /// Layers it applies to; all if absent.
    pub layers: Option<Vec<usize>>,
}

impl DgaConfig {
    /// The paper's method with these two settings: whole prompts are grouped at once, nothing is exempt.
    pub fn new(group_size: usize, focal_ratio: f64) -> Self {
        let m_prime = paper_block(group_size, focal_ratio);
        Self {
            group_size,
            focal_ratio,
            score_queries: 64,
            score_mode: ScoreMode::Last,
            selection: Selection::Global,
            group_bias: GroupBias::None,
            min_len: m_prime.unwrap_or(0),
            m_prime,
            sink: 0,
            window: 0,
            layers: None,
        }
    }

    /// Focal tokens among `len` that may be grouped.
    pub fn focal(&self, len: usize) -> usize {
        // The product in f64: this is the published count, and rounding near whole numbers is part of it.
        let n = (self.focal_ratio * len as f64).ceil() as usize;
        n.min(len)
    }

    /// Of `len` tokens, those that are neither among the first nor in the window of the last.
    pub(super) fn between(&self, len: usize) -> (usize, usize) {
        let from = self.sink.min(len);
        (from, len.saturating_sub(self.window).max(from))
    }

    /// Blocks that are compressed when `len` tokens have been seen, under block selection.
    pub(super) fn closed_blocks(&self, len: usize) -> usize {
        let (from, to) = self.between(len);
        self.m_prime.map_or(0, |block| (to - from) / block)
    }

    /// Focal tokens and groups of a block of `block` tokens.
    pub fn block_split(&self, block: usize) -> (usize, usize) {
        let focal = (self.focal_ratio * block as f64).ceil() as usize;
        let groups = (block.saturating_sub(focal) / self.group_size).max(1);
        (block - groups * self.group_size, groups)
    }

    /// Keys that a layer keeps of `len` tokens: single ones and groups. Under global selection, of a prompt.
    pub fn kept(&self, len: usize) -> usize {
        let Some(block) = self.m_prime else { return len };
        let (from, to) = self.between(len);
        let gone = match self.selection {
            Selection::Global if len <= self.min_len => 0,
            Selection::Global => {
                let groups = (to - from - self.focal(to - from)) / self.group_size;
                groups * (self.group_size - 1)
            }
            Selection::CausalBlock => {
                let (single, groups) = self.block_split(block);
                self.closed_blocks(len) * (block - single - groups)
            }
        };
        len - gone
    }
}

impl DgaConfig {
    /// Keys that all queries of a text of `len` tokens see together; under global selection as if each were the last.
    fn seen(&self, len: usize) -> f64 {
        let all = |n: usize| n as f64 * (n as f64 + 1.0) / 2.0;
        let Some(block) = self.m_prime else { return all(len) };
        if self.selection == Selection::Global {
            // Its groups grow evenly with the text; a query sees at most m - 1 more.
            return all(len) * self.kept(len) as f64 / (len as f64).max(1.0);
        }
        let (single, groups) = self.block_split(block);
        let saved = (block - single - groups) as f64;
        // Block c is compressed after this many tokens; later queries save.
        let closes = (1..=self.closed_blocks(len)).map(|c| self.sink.min(len) + self.window + c * block);
        all(len) - closes.map(|at| saved * (len - at) as f64).sum::<f64>()
    }
}

/// ceil(m / (1 - gamma)): so many tokens hold m that are not focal. None if all are focal.
fn paper_block(group_size: usize, focal_ratio: f64) -> Option<usize> {
    (focal_ratio < 1.0).then(|| (group_size as f64 / (1.0 - focal_ratio)).ceil() as usize)
}

const KNOWN: &[&str] = &[
    "group_size",
    "focal_ratio",
    "score_queries",
    "score_mode",
    "selection",
    "group_bias",
    "min_len",
    "m_prime",
    "sink",
    "window",
    "layers",
];

/// Reads the key `dga`.
pub(crate) fn configure(keys: &Keys<'_>, config: &ModelConfig) -> Result<Arc<dyn Method>> {
    let Some(map) = keys.object("dga", KNOWN)? else {
        return keys.bad("dga", "must be an object");
    };
    let inner = Keys { file: keys.file, map };
    let at_least = |key: &str, low: usize, default: usize| match inner.get(key) {
        None => Ok(default),
        Some(value) => match value.as_u64().map(|v| v as usize) {
            Some(v) if (low..=1 << 31).contains(&v) => Ok(v),
            _ => refuse(
                keys.file,
                &format!("dga.{key}"),
                format!("must be a whole number from {low}, is {value}"),
                format!("the default is {default}"),
            ),
        },
    };
    let bad = |key: &str, rule: String, hint: &str| refuse(keys.file, &format!("dga.{key}"), rule, hint);
    let group_size = at_least("group_size", 1, 16)?;
    let focal_ratio = inner.number("focal_ratio")?.unwrap_or(0.1);
    if !(0.0..=1.0).contains(&focal_ratio) {
        return bad(
            "focal_ratio",
            format!("must be in 0..=1, is {focal_ratio}"),
            "it is the share of tokens that stay single; the default is 0.1",
        );
    }
    let mut dga = DgaConfig::new(group_size, focal_ratio);
    dga.score_queries = at_least("score_queries", 1, dga.score_queries)?;
    dga.sink = at_least("sink", 0, dga.sink)?;
    dga.window = at_least("window", 0, dga.window)?;
    dga.score_mode = match inner.text("score_mode")? {
        None | Some("last") => ScoreMode::Last,
        Some("last_strided") => ScoreMode::LastStrided,
        Some(other) => return bad("score_mode", format!("is \"{other}\""), "\"last\" or \"last_strided\""),
    };
    dga.selection = match inner.text("selection")? {
        None | Some("global") => Selection::Global,
        Some("causal_block") => Selection::CausalBlock,
        Some(other) => return bad("selection", format!("is \"{other}\""), "\"global\" or \"causal_block\""),
    };
    dga.group_bias = match inner.text("group_bias")? {
        None | Some("none") => GroupBias::None,
        Some("logm") => GroupBias::LogM,
        Some("entropy") => GroupBias::Entropy,
        Some(other) => {
            return bad(
                "group_bias",
                format!("is \"{other}\""),
                "\"none\", \"logm\" or \"entropy\"",
            );
        }
    };
    if inner.get("m_prime").is_some() {
        let block = at_least("m_prime", group_size, 0)?;
        // Where all tokens are focal there is nothing to compress, whatever the block.
        if focal_ratio < 1.0 {
            dga.m_prime = Some(block);
            dga.min_len = block;
        }
    }
    if inner.get("min_len").is_some() {
        dga.min_len = at_least("min_len", 0, 0)?;
        if dga.selection == Selection::CausalBlock && dga.min_len > 0 {
            return bad(
                "min_len",
                "has no meaning with selection \"causal_block\"".into(),
                "blocks begin at the first token; m_prime sets their length",
            );
        }
    }
    let all = config.layers.len();
    dga.layers = match inner.counts("layers")? {
        Some(list) if list.iter().any(|&l| l >= all) => {
            return bad(
                "layers",
                format!("names a layer beyond the last, {}", all - 1),
                "layers count from 0",
            );
        }
        other => other,
    };
    if let Some(layer) = (0..all).find(|&l| dga.applies(l) && config.layers[l].window.is_some()) {
        return bad(
            "layers",
            format!("layer {layer} sees a sliding window, which groups cannot be cut to"),
            "list the layers with full attention",
        );
    }
    Ok(Arc::new(dga))
}

impl DgaConfig {
    fn applies(&self, layer: usize) -> bool {
        self.layers.as_ref().is_none_or(|list| list.contains(&layer))
    }
}

impl Method for DgaConfig {
    fn key(&self) -> &'static str {
        "dga"
    }

    fn describe(&self) -> String {
        let selection = match self.selection {
            Selection::Global => "global selection: looks ahead in a whole text",
            Selection::CausalBlock => "causal_block selection",
        };
        let exempt = match (self.sink, self.window) {
            (0, 0) => String::new(),
            (sink, window) => format!("first {sink} and last {window} exact, "),
        };
        format!(
            "groups of {}, {} % focal, {exempt}{selection}",
            self.group_size,
            100.0 * self.focal_ratio
        )
    }

    fn build(&self, config: &ModelConfig, layer: usize, weights: &mut dyn Weights) -> Result<Box<dyn Attention>> {
        let base = FullAttention::new(config, layer, weights)?;
        Ok(if self.applies(layer) {
            Box::new(Dga::new(self.clone(), config, layer, base))
        } else {
            Box::new(base)
        })
    }

    fn costs(&self, config: &ModelConfig, context: usize, element: usize) -> Vec<Cost> {
        let s = context as f64;
        let all = config.layers.len();
        let layers = (0..all).filter(|&l| self.applies(l)).count();
        let (on, off) = (layers as f64, (all - layers) as f64);
        let kept = self.kept(context) as f64;
        let seen = self.seen(context);
        let (h, c) = (config.heads as f64, config.head_dim as f64);
        let per_key = 2.0 * (config.kv_heads * config.head_dim) as f64;
        let prefill_full = 2.0 * h * c * s * s * all as f64;
        // A newest query scores each block, and its groups again; under global selection the sampled ones score all.
        let scoring = match self.selection {
            Selection::Global => (self.score_queries as f64).min(s) * s + 2.0 * s,
            Selection::CausalBlock => 2.0 * s,
        };
        let prefill = 2.0 * h * c * ((scoring + 2.0 * seen) * on + s * s * off);
        vec![
            Cost {
                what: "parameters added".into(),
                full: 0.0,
                method: 0.0,
                formula: "none",
            },
            Cost {
                what: format!("keys per query, {context} tokens in context"),
                full: s,
                method: kept,
                formula: "first + focal + groups + recent tokens, those not yet grouped among them",
            },
            Cost {
                what: format!("keys per query, mean over a text of {context} tokens"),
                full: f64::midpoint(s, 1.0),
                method: seen / s.max(1.0),
                formula: "the same, at every token",
            },
            Cost {
                what: format!("KV bytes, {context} tokens in context"),
                full: per_key * s * element as f64 * all as f64,
                method: element as f64 * per_key * (kept * on + s * off),
                formula: "kept keys, as long as those of full attention",
            },
            Cost {
                what: format!("attention FLOPs per token, {context} tokens in context"),
                full: 4.0 * s * h * c * all as f64,
                method: 4.0 * h * c * (kept * on + s * off),
                formula: "layers · 4 · kept keys · H · hd",
            },
            Cost {
                what: format!("attention FLOPs of a prompt of {context} tokens"),
                full: prefill_full,
                method: prefill,
                formula: "4 · H · hd · keys of all queries per layer, and the scores that decide",
            },
        ]
    }

    fn looks_ahead(&self) -> bool {
        self.selection == Selection::Global
    }
}
