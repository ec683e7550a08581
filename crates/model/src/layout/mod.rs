//! What the tensors of a checkpoint are called. One model is saved under many names: from within data-parallel or compiled
//! training, through an adapter, without its head, with its experts in one tensor. Here every stored tensor gets the name
//! the configuration asks for, so that nothing above knows that there are others: not the model, and not the commands that
//! copy tensors from file to file.
//!
//! A name is changed only where that is unambiguous: the new one is one the configuration asks for, and no other tensor
//! claims it. What was changed, and what was passed over because it is recomputed anyway, is said in the checkpoint's
//! notes. A tensor without a use keeps its name and is refused when the model is built.

mod dtype;
mod experts;
mod head;
mod prefix;
mod reasons;

use crate::{config::ModelConfig, error::Result, weights};
use ounce_formats::{Checkpoint, Dtype, checkpoint::Shown, safetensors::TensorInfo};
use std::collections::{BTreeMap, HashMap};

pub use dtype::DTYPE_KEYS;
pub(crate) use head::HEAD;
pub(crate) use reasons::{missing, unused};

/// Names and shapes a configuration asks for, those it only looks at included.
pub(crate) type Wanted = HashMap<String, Vec<usize>>;

/// Gives every tensor of `checkpoint` the name that `config` asks for, and settles whether the embedding is the head.
///
/// # Errors
/// If two tensors claim one name, fused experts have another shape than the configuration asks for, or the configuration
/// cannot be built.
pub(crate) fn settle(checkpoint: &mut Checkpoint, config: &ModelConfig) -> Result<()> {
    let wanted = weights::wanted(config)?;
    let mut found = Found::default();
    let names: Vec<&str> = checkpoint.names().collect();
    let around = prefix::around_all(&names, &wanted);
    for info in checkpoint.tensors() {
        found.add(checkpoint, info, &wanted, around.as_deref())?;
    }
    if found.changed {
        checkpoint.show(&found.list)?;
    }
    for (note, count) in found.notes {
        checkpoint.note(match count {
            0 | 1 => note,
            n => format!("{note} ({n} tensors)"),
        });
    }
    head::settle(checkpoint, config)?;
    dtype::settle(checkpoint);
    Ok(())
}

/// What the stored tensors turned out to be.
#[derive(Default)]
struct Found {
    list: Vec<Shown>,
    /// Each kind of change once, with the number of tensors.
    notes: BTreeMap<String, usize>,
    changed: bool,
}

impl Found {
    fn note(&mut self, text: String) {
        self.changed = true;
        *self.notes.entry(text).or_default() += 1;
    }

    fn add(&mut self, checkpoint: &Checkpoint, info: &TensorInfo, wanted: &Wanted, around: Option<&str>) -> Result<()> {
        let whole = |name: &str| Shown {
            name: name.to_owned(),
            stored: info.name.clone(),
            part: None,
        };
        if wanted.contains_key(&info.name) {
            self.list.push(whole(&info.name));
            return Ok(());
        }
        if let Some(kind) = recomputed(info) {
            self.note(format!("passed over: {kind}, which the model computes itself"));
            return Ok(());
        }
        for (name, taken) in prefix::candidates(&info.name, around) {
            if wanted.contains_key(&name) {
                self.list.push(whole(&name));
                self.note(taken);
                return Ok(());
            }
            if let Some((parts, said)) = experts::read(checkpoint, info, &name, wanted)? {
                self.list.extend(parts);
                self.note(said.to_owned());
                if name != info.name {
                    self.note(taken);
                }
                return Ok(());
            }
        }
        self.list.push(whole(&info.name));
        Ok(())
    }
}

/// Tables that the model computes itself, and that old or patched libraries saved beside the weights.
fn recomputed(info: &TensorInfo) -> Option<&'static str> {
    let ends = |part: &str| {
        let before = info.name.strip_suffix(part);
        before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
    };
    // Causal masks are boolean squares; a bias of attention has one dimension.
    let mask = info.shape.len() >= 2 && matches!(info.dtype, Dtype::Bool | Dtype::U8);
    let rotary = ["inv_freq", "original_inv_freq", "cos_cached", "sin_cached"];
    if rotary.into_iter().any(|table| ends(&format!("rotary_emb.{table}"))) {
        Some("tables of rotary positions")
    } else if ends("attn.masked_bias") || ends("masked_bias") || (mask && (ends("attn.bias") || ends("self_attn.bias")))
    {
        Some("masks of attention")
    } else if ends("position_ids") {
        Some("lists of positions")
    } else if ends("_extra_state") {
        Some("states of 8-bit training")
    } else {
        None
    }
}
