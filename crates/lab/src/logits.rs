//! `ounce logits`: the reference forward of a checkpoint over given ids, written to a file.
//!
//! It exists for comparisons with other programs, so the arithmetic is always f32 with 16-bit weights widened. Memory
//! stays bounded however long the input is: rows run in groups, and the head is applied to a piece of a group at a time,
//! so that the logits `[B, T, V]` are never in memory as a whole.

use ounce_formats::{Dtype, FormatError, SafetensorsFile, SafetensorsWriter, TensorSpec, as_bytes, check_output_file};
use ounce_model::{Batch, Model, ModelError, Opened};
use ounce_tensor::{Compute, no_grad, ops};
use std::{collections::BTreeMap, path::Path};

/// Tokens whose hidden states are computed together, unless one row is longer.
const GROUP: usize = 1024;
/// Bytes of logits held at a time.
const PIECE_BYTES: usize = 64 << 20;

/// Token ids `[B, T]` of a file.
struct Ids {
    values: Vec<u32>,
    batch: usize,
    len: usize,
}

/// Runs the model that `opened` names over the tensor `input_ids` `[B, T]` (I64 or I32) of the file `ids` and writes `logits` `[B, T, V]` (F32)
/// to `out`, which appears complete or not at all. `progress` hears how many of how many tokens are done and may stop the
/// work by returning false.
///
/// Returns the shape written, or `None` if it was stopped.
///
/// # Errors
/// For anything wrong with the model, the ids or the output file.
pub fn write_logits(
    opened: &Opened,
    ids: &Path,
    out: &Path,
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Option<[usize; 3]>, ModelError> {
    check_output_file(out, &[opened.checkpoint().path(), ids])?;
    let input = read_ids(ids)?;
    let model = opened.model()?;
    check_range(ids, &input, model.config.vocab_size)?;
    let shape = [input.batch, input.len, model.config.vocab_size];
    let specs = vec![TensorSpec::new("logits", Dtype::F32, shape)];
    let writer = SafetensorsWriter::create(out, specs, &BTreeMap::new())?;
    let result = no_grad(|| fill(&model, &input, writer, progress));
    if !matches!(result, Ok(true)) {
        // Best effort: what stopped the work is worth reporting, a leftover file is not.
        let mut partial = out.as_os_str().to_owned();
        partial.push(".partial");
        let _ = std::fs::remove_file(partial);
    }
    Ok(result?.then_some(shape))
}

fn fill(
    model: &Model,
    input: &Ids,
    mut writer: SafetensorsWriter,
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<bool, ModelError> {
    let total = input.values.len();
    let piece = (PIECE_BYTES / (4 * model.config.vocab_size)).max(1);
    let mut done = 0;
    for group in input.values.chunks((GROUP / input.len).max(1) * input.len) {
        let batch = Batch {
            ids: group,
            batch: group.len() / input.len,
            compute: Compute::F32,
        };
        let hidden = model.hidden(&mut model.context(batch)?)?;
        for from in (0..group.len()).step_by(piece) {
            let to = (from + piece).min(group.len());
            let logits = model.logits(&ops::narrow_rows(&hidden, from, to)?, Compute::F32)?;
            writer.write("logits", as_bytes(&logits.to_f32()))?;
            done += to - from;
            if !progress(done, total) {
                return Ok(false);
            }
        }
    }
    writer.finish()?;
    Ok(true)
}

fn read_ids(path: &Path) -> Result<Ids, ModelError> {
    let file = SafetensorsFile::open(path)?;
    let view = file.view("input_ids")?;
    let broken = |rule: String, hint: &str| FormatError::Tensor {
        path: path.to_owned(),
        tensor: "input_ids".into(),
        rule,
        hint: hint.into(),
    };
    let &[batch, len] = view.shape else {
        let rule = format!("has shape {:?}, where [B, T] is needed", view.shape);
        return Err(broken(rule, "a single sequence is [1, T]").into());
    };
    if batch == 0 || len == 0 {
        return Err(broken(format!("is empty: {:?}", view.shape), "give at least one id").into());
    }
    let values = view.to_i64_vec()?.into_iter().enumerate().map(|(i, id)| {
        let at = [i / len, i % len];
        u32::try_from(id).map_err(|_| broken(format!("holds {id} at {at:?}, which is no token id"), "ids start at 0"))
    });
    let values = values.collect::<Result<Vec<u32>, _>>()?;
    Ok(Ids { values, batch, len })
}

/// Before the output file is begun, and with the place of the offender.
fn check_range(path: &Path, input: &Ids, vocabulary: usize) -> Result<(), ModelError> {
    let Some(i) = input.values.iter().position(|&id| id as usize >= vocabulary) else {
        return Ok(());
    };
    Err(ModelError::Input {
        what: format!("{}: tensor \"input_ids\"", path.display()),
        rule: format!(
            "token id {} at {:?} is outside the vocabulary of {vocabulary}",
            input.values[i],
            [i / input.len, i % input.len]
        ),
        hint: "were the ids made by the tokenizer of this model?".into(),
    })
}
