//! Next-token prediction: mean cross-entropy (nats) over all positions, plus the side losses the blocks left in the
//! sink (the balance of mixtures of experts).

use super::{LossParts, Objective};
use crate::error::Result;
use ounce_data::Batch;
use ounce_model::{Batch as ModelBatch, Model};
use ounce_tensor::{Compute, Tensor, ops};

/// See the module.
pub struct NextToken;

impl Objective for NextToken {
    fn tokens_needed(&self, length: usize) -> usize {
        length + 1
    }

    fn loss(&self, model: &Model, batch: &Batch, compute: Compute) -> Result<LossParts> {
        let input = ModelBatch {
            ids: &batch.inputs,
            batch: batch.rows,
            compute,
        };
        let mut ctx = model.context(input, None)?;
        let hidden = model.hidden(&mut ctx)?;
        let targets: Vec<i64> = batch.targets.iter().map(|&t| i64::from(t)).collect();
        let mut total = ops::linear_cross_entropy(&hidden, model.head(), &targets, compute)?;
        let mut parts = vec![("cross_entropy", total.item()?)];
        let side: Vec<Tensor> = std::mem::take(&mut ctx.sink.side_losses);
        if !side.is_empty() {
            let mut balance = 0.0;
            for loss in side {
                balance += loss.item()?;
                total = ops::add(&total, &loss)?;
            }
            parts.push(("balance", balance));
        }
        Ok(LossParts { total, parts })
    }
}
