//! What the configuration says of the element type. Weights are used as they are stored, so a key that says otherwise is
//! stale: it is corrected, or it would be copied into whatever is made from this checkpoint.

use ounce_formats::{Checkpoint, Dtype};
use serde_json::Value;

/// Keys that name the element type of the weights: of newer programs, and of older ones.
pub const DTYPE_KEYS: [&str; 2] = ["dtype", "torch_dtype"];

pub(super) fn settle(checkpoint: &mut Checkpoint) {
    let Some(stored) = stored(checkpoint) else { return };
    for key in DTYPE_KEYS {
        let Some(Value::String(said)) = checkpoint.config().get(key) else {
            continue;
        };
        if said.trim_start_matches("torch.") == stored {
            continue;
        }
        checkpoint.note(format!(
            "config.json: \"{key}\" is {said}, the weights are {stored} and are used as stored"
        ));
        checkpoint.set_config(key, stored.into());
    }
}

/// The type that most bytes of the weights have, as configurations call it.
fn stored(checkpoint: &Checkpoint) -> Option<&'static str> {
    let types = [
        (Dtype::F32, "float32"),
        (Dtype::BF16, "bfloat16"),
        (Dtype::F16, "float16"),
        (Dtype::F64, "float64"),
    ];
    let bytes = |dtype: Dtype| -> usize {
        let of = checkpoint.tensors().filter(|t| t.dtype == dtype);
        of.map(|t| t.range.len()).sum()
    };
    let (most, name) = types
        .into_iter()
        .map(|(d, name)| (bytes(d), name))
        .max_by_key(|(n, _)| *n)?;
    (2 * most as u64 > checkpoint.total_bytes()).then_some(name)
}
