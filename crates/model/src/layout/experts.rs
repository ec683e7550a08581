//! The experts of a mixture: one tensor a matrix, as they were first published, or all experts of a layer in two or three
//! tensors, as newer libraries keep them in memory and some write them. In every layout an expert's matrix is a range of the
//! file, so that reading one as the other costs nothing.

use super::Wanted;
use crate::error::{ModelError, Result};
use ounce_formats::{Checkpoint, checkpoint::Shown, safetensors::TensorInfo};

/// The matrices of an expert, by both spellings.
const GATE: [&str; 2] = ["w1", "gate_proj"];
const UP: [&str; 2] = ["w3", "up_proj"];
const DOWN: [&str; 2] = ["w2", "down_proj"];

/// Mixtral's block had a name of its own before version 5 of the reference library.
const BLOCKS: [&str; 2] = [".mlp.", ".block_sparse_moe."];

/// The tensor `info`, called `name` when what is around it is taken away, as what `wanted` calls it: one tensor if only the
/// spelling differs, one for each expert if they are in one. And what is to be said of it.
///
/// # Errors
/// If all experts of a layer are in one tensor whose shape is not what `wanted` asks for.
pub(super) fn read(
    checkpoint: &Checkpoint,
    info: &TensorInfo,
    name: &str,
    wanted: &Wanted,
) -> Result<Option<(Vec<Shown>, &'static str)>> {
    let shown = |name: String, part| Shown {
        name,
        stored: info.name.clone(),
        part,
    };
    for name in blocks(name) {
        if wanted.contains_key(&name) {
            return Ok(Some((vec![shown(name, None)], SPELLED)));
        }
        // One expert, the other spelling of its matrices.
        if let Some(other) = respelled(&name, wanted) {
            return Ok(Some((vec![shown(other, None)], SPELLED)));
        }
        let Some((base, matrices)) = fused(&name) else {
            continue;
        };
        let targets: Vec<(usize, String)> = matrices
            .iter()
            .enumerate()
            .filter_map(|(at, spellings)| {
                let of = |m: &str| format!("{base}.experts.0.{m}.weight");
                let spelling = spellings.iter().find(|m| wanted.contains_key(&of(m)))?;
                Some((at, (*spelling).to_owned()))
            })
            .collect();
        if targets.len() != matrices.len() {
            continue;
        }
        let shape = &wanted[&format!("{base}.experts.0.{}.weight", targets[0].1)];
        let (rows, columns) = (shape[0], shape[1]);
        let [experts, all_rows, found_columns] = info.shape[..] else {
            return refuse(checkpoint, info, "[experts, rows, columns]");
        };
        if (all_rows, found_columns) != (matrices.len() * rows, columns) {
            let asked = format!("[experts, {}, {columns}]", matrices.len() * rows);
            return refuse(checkpoint, info, &asked);
        }
        let mut parts = Vec::with_capacity(experts * matrices.len());
        for expert in 0..experts {
            for (at, spelling) in &targets {
                let start = (expert * matrices.len() + at) * rows * columns;
                let part = (start..start + rows * columns, vec![rows, columns]);
                parts.push(shown(format!("{base}.experts.{expert}.{spelling}.weight"), Some(part)));
            }
        }
        return Ok(Some((parts, FUSED)));
    }
    Ok(None)
}

const SPELLED: &str = "the experts are named as another version of the reference library names them";
const FUSED: &str = "all experts of a layer are in one tensor, read as one for each expert";

/// The name under each of the two names of a mixture's block.
fn blocks(name: &str) -> Vec<String> {
    let [new, old] = BLOCKS;
    let mut all = vec![name.to_owned()];
    if name.contains(new) {
        all.push(name.replacen(new, old, 1));
    } else if name.contains(old) {
        all.push(name.replacen(old, new, 1));
    }
    all
}

/// `….experts.N.w1.weight` for `….experts.N.gate_proj.weight`, and the like, if that is what is wanted.
fn respelled(name: &str, wanted: &Wanted) -> Option<String> {
    let (base, rest) = name.split_once(".experts.")?;
    let (index, matrix) = rest.split_once('.')?;
    let matrix = matrix.strip_suffix(".weight")?;
    let spellings = [GATE, UP, DOWN].into_iter().find(|s| s.contains(&matrix))?;
    let name = |m: &str| format!("{base}.experts.{index}.{m}.weight");
    spellings.iter().map(|m| name(m)).find(|n| wanted.contains_key(n))
}

/// The block of a tensor that holds all its experts, and which matrices of each: `experts.gate_up_proj` and
/// `experts.down_proj` (transformers), `switch_mlp.gate_proj.weight`, `…up_proj…`, `…down_proj…` (MLX).
fn fused(name: &str) -> Option<(&str, &'static [[&'static str; 2]])> {
    let (base, matrix) = name
        .rsplit_once(".experts.")
        .or_else(|| name.rsplit_once(".switch_mlp."))?;
    let matrices: &[[&str; 2]] = match matrix.strip_suffix(".weight").unwrap_or(matrix) {
        "gate_up_proj" => &[GATE, UP],
        "gate_proj" | "w1" => &[GATE],
        "up_proj" | "w3" => &[UP],
        "down_proj" | "w2" => &[DOWN],
        _ => return None,
    };
    Some((base, matrices))
}

fn refuse<T>(checkpoint: &Checkpoint, info: &TensorInfo, asked: &str) -> Result<T> {
    Err(ModelError::Weight {
        file: checkpoint.path().display().to_string(),
        tensor: info.name.clone(),
        rule: format!("has shape {:?}, the configuration asks for {asked}", info.shape),
        hint: "is config.json of another model, or were the experts stored transposed?".into(),
    })
}
