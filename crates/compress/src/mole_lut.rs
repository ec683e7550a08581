//! `ounce convert --to mole-lut`: the routed experts of a trained MoLE model become its lookup table.
//!
//! `table[v, l, j, :] = down(gelu(up(rms_norm(embedding[v]))))` of expert j in layer l: every input an expert can have, so the
//! lookup form computes the same function. Experts and their norms are left out of the output, everything else is copied.
//! The table is made block of ids by block of ids and goes to the disk row by row, so memory holds one block of rows
//! whatever the table's size. Every block has the same number of rows (the last one reaches back over rows that are
//! written already): products may round differently for another number of rows, and a row must not depend on where it
//! stands. Arithmetic is f32, rounded once if f16 rows are asked for.
//!
//! The configuration gets SHA-256 sums of what the table was made from and of the table as it lies on the disk; the model
//! crate refuses a table that does not belong to its model. A run that is stopped continues after the last tensor that is
//! complete; the table itself, the last tensor, is then begun again.

use crate::{
    convert::{Conversion, Options},
    error::CompressError,
    pass::{Card, Plan, Source, Take},
};
use ounce_formats::{Checkpoint, Dtype, TensorSpec, fsx};
use ounce_model::{
    Batch, Model, Opened,
    ffn::{
        MoleFfn,
        mole::{EMBEDDING, RECORD, TABLE, TableRecord, sample_sum},
    },
};
use ounce_tensor::{Compute, DType, Tensor, no_grad};
use serde_json::json;
use std::fmt::Write as _;

pub(crate) const CONVERSION: Conversion = Conversion {
    name: "mole-lut",
    about: "a trained MoLE model with its routed experts as one table on disk",
    options: &[("dtype", "element type of the table, f32 (default) or f16")],
    plan,
};

/// f32 values of one block of rows.
const BLOCK_VALUES: usize = 32 << 20;
/// Rows of a block at most.
const BLOCK_ROWS: usize = 1024;
/// Largest finite f16.
const F16_MAX: f32 = 65504.0;

/// Is this a tensor that the table replaces?
fn replaced(name: &str) -> bool {
    name.starts_with("model.layers.") && (name.contains(".experts.") || name.ends_with(".expert_layernorm.weight"))
}

fn plan(opened: &Opened, options: &Options) -> Result<Plan<'static>, CompressError> {
    let checkpoint = opened.checkpoint();
    let dtype = match options.get("dtype").map(String::as_str) {
        None | Some("f32") => (Dtype::F32, DType::F32),
        Some("f16") => (Dtype::F16, DType::F16),
        Some(other) => {
            let rule = format!("\"{other}\" is no element type of a table");
            return Err(CompressError::input("option \"dtype\"", rule, "f32 or f16"));
        }
    };
    // Weights stay as they are stored: products widen them.
    let model = opened.model()?;
    if model.config.model_type != "mole" {
        let hint = match model.config.model_type.as_str() {
            "mole_lut" => "it has its table already; convert the trained model it was made from",
            _ => "experts that read hidden states have no table; train a model with family = \"mole\"",
        };
        let rule = format!("is no MoLE model in training form, but \"{}\"", model.config.model_type);
        return Err(CompressError::input(
            checkpoint.path().display().to_string(),
            rule,
            hint,
        ));
    }
    let count = model
        .config
        .raw
        .get("num_experts")
        .and_then(serde_json::Value::as_u64)
        .unwrap_or(1) as usize;
    if count == 0 {
        return Err(CompressError::input(
            checkpoint.path().display().to_string(),
            "has no routed experts",
            "\"num_experts\": 0 is a dense model, and smaller than any table",
        ));
    }
    let shape = [
        model.config.vocab_size,
        model.config.layers.len() * count * model.config.hidden_size,
    ];
    let what = format!(
        "The routed experts of a Mixture of Lookup Experts (arXiv 2503.15798) as a table, `{TABLE}`: a row per token, in \
         the order layer, expert, channel. `{RECORD}` in `config.json` holds the sums that tie it to this model."
    );
    let card = Card {
        method: CONVERSION.name,
        what,
        parameters: vec![("dtype", dtype.0.to_string())],
        advice: None,
    };
    let mut plan = Plan::copying(checkpoint, card, |name| !replaced(name));
    plan.computed = true;
    plan.config.insert("model_type".into(), "mole_lut".into());
    let block = (BLOCK_VALUES / shape[1].max(1)).clamp(1, BLOCK_ROWS);
    let make = move |take: Take<'_>| table(&model, count, dtype.1, block, take);
    let spec = TensorSpec::new(TABLE, dtype.0, shape);
    plan.tensors.push((spec, Source::Made(Box::new(make))));
    let source = checkpoint.clone();
    plan.seal = Some(Box::new(move |config, output| {
        config.insert(RECORD.into(), json!(record(&source, output)?));
        Ok(())
    }));
    Ok(plan)
}

/// The rows of the table, `block` ids at a time.
fn table(model: &Model, count: usize, dtype: DType, block: usize, take: Take<'_>) -> Result<(), CompressError> {
    let (vocabulary, d) = (model.config.vocab_size, model.config.hidden_size);
    let blocks = model.plan().blocks();
    let layers: Vec<&MoleFfn> = blocks.iter().filter_map(|b| b.ffn().as_mole()).collect();
    let (block, row) = (block.min(vocabulary), layers.len() * count * d);
    for start in (0..vocabulary).step_by(block) {
        let from = start.min(vocabulary - block);
        let ids: Vec<u32> = (from..from + block).map(|id| id as u32).collect();
        let input = Batch {
            ids: &ids,
            batch: 1,
            compute: Compute::F32,
        };
        let mut rows = vec![0f32; block * row];
        no_grad(|| -> Result<(), CompressError> {
            let e_btd = model.embed(&model.context(input)?)?;
            for (l, layer) in layers.iter().enumerate() {
                let z = layer.outputs(&e_btd, Compute::F32)?;
                let values = z.as_ref().and_then(Tensor::values::<f32>).unwrap_or(&[]);
                // [expert, id, channel] of this layer into [id, layer, expert, channel].
                for (at, values) in values.chunks_exact(d).enumerate() {
                    let (j, i) = (at / block, at % block);
                    rows[i * row + (l * count + j) * d..][..d].copy_from_slice(values);
                }
            }
            Ok(())
        })?;
        let limit = if dtype == DType::F16 { F16_MAX } else { f32::MAX };
        if let Some(at) = rows.iter().position(|v| v.is_nan() || v.abs() > limit) {
            return Err(CompressError::input(
                format!("table row of token {}", from + at / row),
                format!("holds {}, which {dtype:?} cannot", rows[at]),
                if rows[at].is_finite() {
                    "build it with --dtype f32"
                } else {
                    "`ounce inspect --scan` finds weights that are no numbers"
                },
            ));
        }
        let rows = Tensor::new(rows, &[block, row])?.cast(dtype)?;
        take(&rows.bytes()[dtype.bytes_of((start - from) * row)..])?;
    }
    Ok(())
}

/// The sums that tie a finished table to what it was made from.
fn record(source: &Checkpoint, output: &Checkpoint) -> Result<TableRecord, CompressError> {
    let mut parts = String::new();
    for name in source.names().filter(|name| *name == EMBEDDING || replaced(name)) {
        let _ = writeln!(parts, "{name} {}", fsx::sha256_bytes(source.region(name)?.bytes()));
    }
    let made = output.region(TABLE)?;
    Ok(TableRecord {
        built_from: fsx::sha256_bytes(parts.as_bytes()),
        embedding: fsx::sha256_bytes(output.region(EMBEDDING)?.bytes()),
        sample: sample_sum(&made),
        rows: fsx::sha256_bytes(made.bytes()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ounce_model::OpenOptions;
    use std::path::Path;

    /// 128 ids in blocks of 48 (the last reaches back) or as a whole: the same bits; and those of an independent program.
    #[test]
    fn blocks_make_the_bits_of_the_whole_and_the_values_of_pytorch() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lab/tests/fixtures/golden");
        let model = Model::open(&golden.join("mole"), &OpenOptions::default()).unwrap();
        let build = |block: usize, dtype: DType| {
            let mut bytes = Vec::new();
            table(&model, 4, dtype, block, &mut |piece| {
                bytes.extend_from_slice(piece);
                Ok(())
            })
            .unwrap();
            bytes
        };
        let whole = build(1024, DType::F32);
        assert!(build(48, DType::F32) == whole);
        let expected = Checkpoint::open(&golden.join("mole_lut")).unwrap();
        let expected = expected.view(TABLE).unwrap().to_f32_vec().unwrap();
        let ours = Tensor::from_le_bytes(&whole, DType::F32, &[expected.len()]).unwrap();
        let worst = ounce_tensor::largest_difference(&ours.to_f32(), &expected);
        assert!(worst < 2e-6, "{worst}");
        assert_eq!(build(1024, DType::F16), ours.cast(DType::F16).unwrap().bytes());
    }
}
