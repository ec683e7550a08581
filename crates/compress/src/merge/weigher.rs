//! Makes the bytes of each tensor of the output, a few matrices in memory at a time.

use super::{LayerReport, MergeJob};
use crate::{
    align::{Alignment, Expert},
    error::{CompressError, LayerError},
    merge_rule::{MergeRule, TensorMean},
    output::{Item, Matrix, Source},
    recipe::Method,
};
use ounce_formats::{Checkpoint, Dtype, ShardedWriter};
use ounce_model::{Model, ffn::DenseFfn};
use ounce_tensor::{DType, Tensor};
use std::cell::RefCell;

/// Bytes copied at one time.
const PIECE: usize = 16 << 20;

/// The alignments of one group: `(layer number, group)`, and one for each member but the first.
type Aligned = Option<((usize, usize), Vec<Alignment>)>;

pub(super) struct Weigher<'a> {
    job: &'a MergeJob,
    model: &'a Model,
    checkpoint: &'a Checkpoint,
    layers: &'a [LayerReport],
    /// Of the last group: a group's three matrices are written one after the other.
    aligned: RefCell<Aligned>,
}

impl<'a> Weigher<'a> {
    pub(super) fn new(
        job: &'a MergeJob,
        model: &'a Model,
        checkpoint: &'a Checkpoint,
        layers: &'a [LayerReport],
    ) -> Self {
        Self {
            job,
            model,
            checkpoint,
            layers,
            aligned: RefCell::default(),
        }
    }

    pub(super) fn write(&self, item: &Item, writer: &mut ShardedWriter) -> Result<(), CompressError> {
        let name = &item.spec.name;
        match &item.source {
            Source::Copy => {
                let region = self.checkpoint.region(name)?;
                if region.bytes().is_empty() {
                    writer.write(name, &[])?;
                }
                for piece in region.bytes().chunks(PIECE) {
                    writer.write(name, piece)?;
                }
            }
            Source::Rows(rows) => {
                let region = self.checkpoint.region(name)?;
                let row = region.bytes().len() / region.shape[0].max(1);
                for &r in rows {
                    writer.write(name, &region.bytes()[r * row..(r + 1) * row])?;
                }
            }
            Source::Expert { index, expert, matrix } => {
                let weight = self.tensor(*index, *expert, *matrix);
                writer.write(name, weight.bytes())?;
            }
            Source::Merged { index, group, matrix } => {
                let layer = &self.layers[*index];
                let members: Vec<usize> = (0..layer.labels.len())
                    .filter(|&e| layer.labels[e] == Some(*group))
                    .collect();
                let merged = match self.job.recipe.method {
                    Method::HcSmoe { merge: rule, .. } if members.len() > 1 => {
                        let merged = self.merged(rule, *index, *group, &members, *matrix);
                        merged.map_err(|e| e.at(layer.layer))?
                    }
                    // A group of one: the expert itself, bit for bit.
                    _ => {
                        writer.write(name, self.tensor(*index, members[0], *matrix).bytes())?;
                        return Ok(());
                    }
                };
                if merged.iter().any(|v| !v.is_finite()) {
                    return Err(CompressError::input(
                        format!("layer {}, experts {members:?}", layer.layer),
                        format!("their mean, {name:?}, is not finite"),
                        "the weights hold NaN or infinity; see `ounce inspect --scan`",
                    ));
                }
                let dtype = match item.spec.dtype {
                    Dtype::BF16 => DType::BF16,
                    Dtype::F16 => DType::F16,
                    _ => DType::F32,
                };
                let shape = [merged.len()];
                writer.write(name, Tensor::new(merged, &shape)?.cast(dtype)?.bytes())?;
            }
        }
        Ok(())
    }

    fn expert(&self, index: usize, expert: usize) -> &DenseFfn {
        let blocks = self.model.plan().blocks();
        let moe = blocks[self.layers[index].layer]
            .ffn()
            .as_moe()
            .expect("invariant: planned layers are mixtures");
        &moe.experts[expert]
    }

    fn tensor(&self, index: usize, expert: usize, matrix: Matrix) -> &Tensor {
        let expert = self.expert(index, expert);
        match matrix {
            Matrix::Gate => &expert.gate.weight.tensor,
            Matrix::Up => &expert.up.weight.tensor,
            Matrix::Down => &expert.down.weight.tensor,
        }
    }

    /// The mean of a group's matrices.
    fn merged(
        &self,
        rule: MergeRule,
        index: usize,
        group: usize,
        members: &[usize],
        matrix: Matrix,
    ) -> Result<Vec<f32>, LayerError> {
        if rule.align {
            self.align(index, group, members)?;
        }
        let aligned = self.aligned.borrow();
        let weights = rule.weights(members, &self.layers[index].usage)?;
        let mut mean = TensorMean::new(self.tensor(index, members[0], matrix).numel());
        for (i, (&expert, weight)) in members.iter().zip(weights).enumerate() {
            let mut values = self.tensor(index, expert, matrix).to_f32();
            if let (Some((_, alignments)), true) = (&*aligned, rule.align && i > 0) {
                values = match matrix {
                    Matrix::Down => alignments[i - 1].columns(&values),
                    _ => alignments[i - 1].rows(&values),
                };
            }
            mean.add(expert, &values, weight)?;
        }
        Ok(mean.finish()?)
    }

    /// Makes sure that the alignments of this group are at hand.
    fn align(&self, index: usize, group: usize, members: &[usize]) -> Result<(), LayerError> {
        if self
            .aligned
            .borrow()
            .as_ref()
            .is_some_and(|(of, _)| *of == (index, group))
        {
            return Ok(());
        }
        let whole = |e: usize| {
            let expert = self.expert(index, e);
            Expert {
                gate: &expert.gate.weight.tensor,
                up: &expert.up.weight.tensor,
                down: &expert.down.weight.tensor,
            }
        };
        let found: Result<Vec<_>, _> = members[1..]
            .iter()
            .map(|&e| Alignment::find(whole(members[0]), whole(e)))
            .collect();
        self.aligned.replace(Some(((index, group), found?)));
        Ok(())
    }
}
