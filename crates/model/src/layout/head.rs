//! Whether the embedding is the head: the flag says so, the weights decide, as in the reference library.
//!
//! | flag | embedding and head stored | what is done |
//! |---|---|---|
//! | tied | the same values twice | the copy is passed over |
//! | tied | other values | the head is one of its own, and the flag is corrected |
//! | tied | head only | it is the embedding, too |
//! | not tied | embedding only | refused when the model is built: the reference would make up a head at random |

use crate::{config::ModelConfig, error::Result};
use ounce_formats::{Checkpoint, checkpoint::Shown};
use serde_json::Value;

/// Name of the embedding.
pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
/// Name of the head.
pub(crate) const HEAD: &str = "lm_head.weight";
/// The flag of the configuration.
const FLAG: &str = "tie_word_embeddings";

pub(super) fn settle(checkpoint: &mut Checkpoint, config: &ModelConfig) -> Result<()> {
    if !config.tied || !checkpoint.contains(HEAD) {
        return Ok(());
    }
    if !checkpoint.contains(EMBEDDING) {
        checkpoint.note(format!("{EMBEDDING} is not stored; {FLAG} is true, so it is {HEAD}"));
        let list = listed(checkpoint, |name| if name == HEAD { EMBEDDING } else { name });
        checkpoint.show(&list)?;
    } else if same(checkpoint)? {
        let mut list = listed(checkpoint, |name| name);
        list.retain(|shown| shown.name != HEAD);
        checkpoint.show(&list)?;
    } else {
        checkpoint.note(format!(
            "{FLAG} is true, but {HEAD} holds other values than the embedding: the head is its own"
        ));
        checkpoint.set_config(FLAG, Value::Bool(false));
    }
    Ok(())
}

fn listed(checkpoint: &Checkpoint, rename: impl Fn(&str) -> &str) -> Vec<Shown> {
    let shown = |name: &str| Shown {
        name: rename(name).to_owned(),
        stored: name.to_owned(),
        part: None,
    };
    checkpoint.names().map(shown).collect()
}

/// Whether head and embedding hold the same values; stored in two types, they may round to them.
fn same(checkpoint: &Checkpoint) -> Result<bool> {
    let (a, b) = (checkpoint.view(EMBEDDING)?, checkpoint.view(HEAD)?);
    if a.shape != b.shape {
        return Ok(false);
    }
    if a.dtype == b.dtype {
        return Ok(a.bytes == b.bytes);
    }
    Ok(a.to_f32_vec()? == b.to_f32_vec()?)
}
