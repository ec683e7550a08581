//! Makes the bytes of each tensor of the output, a few matrices in memory at a time.

use super::{LayerReport, MergeJob};
use crate::{
    align::{Alignment, Expert},
    error::{CompressError, LayerError},
    merge_rule::{MergeRule, TensorMean},
    output::{Content, Item, Matrix},
    pass::{Source, Take},
    recipe::Method,
};
use ounce_formats::{Checkpoint, Dtype, TensorSpec};
use ounce_model::{Model, ffn::DenseFfn};
use ounce_tensor::{DType, Tensor};
use std::cell::RefCell;

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

    /// The item as the pass takes it.
    pub(super) fn planned(&'a self, item: Item) -> (TensorSpec, Source<'a>) {
        let Item { spec, content } = item;
        let source = match content {
            Content::Copy => Source::Copy,
            content => {
                let spec = spec.clone();
                Source::Made(Box::new(move |take| self.make(&spec, &content, take)))
            }
        };
        (spec, source)
    }

    fn make(&self, spec: &TensorSpec, content: &Content, take: Take<'_>) -> Result<(), CompressError> {
        match content {
            Content::Copy => take(self.checkpoint.region(&spec.name)?.bytes()),
            Content::Rows(rows) => {
                let region = self.checkpoint.region(&spec.name)?;
                let row = region.bytes().len() / region.shape[0].max(1);
                rows.iter()
                    .try_for_each(|r| take(&region.bytes()[r * row..(r + 1) * row]))
            }
            Content::Expert { index, expert, matrix } => take(self.tensor(*index, *expert, *matrix).bytes()),
            Content::Merged { index, group, matrix } => {
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
                    _ => return take(self.tensor(*index, members[0], *matrix).bytes()),
                };
                if merged.iter().any(|v| !v.is_finite()) {
                    return Err(CompressError::input(
                        format!("layer {}, experts {members:?}", layer.layer),
                        format!("their mean, {:?}, is not finite", spec.name),
                        "the weights hold NaN or infinity; see `ounce inspect --scan`",
                    ));
                }
                let dtype = match spec.dtype {
                    Dtype::BF16 => DType::BF16,
                    Dtype::F16 => DType::F16,
                    _ => DType::F32,
                };
                let shape = [merged.len()];
                take(Tensor::new(merged, &shape)?.cast(dtype)?.bytes())
            }
        }
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
