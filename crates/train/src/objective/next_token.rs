//! Next-token prediction: mean cross-entropy (nats) over all positions, plus the side losses the blocks left in the
//! sink (the balance of mixtures of experts).

use super::{How, LossParts, Objective, add_side_losses, hidden};
use crate::error::Result;
use ounce_data::Batch;
use ounce_model::Model;
use ounce_tensor::ops;

/// See the module.
pub struct NextToken;

impl Objective for NextToken {
    fn tokens_needed(&self, length: usize) -> usize {
        length + 1
    }

    fn loss(&self, model: &Model, batch: &Batch, how: &How) -> Result<LossParts> {
        let (hidden, mut ctx) = hidden(model, batch, how)?;
        let targets: Vec<i64> = batch.targets.iter().map(|&t| i64::from(t)).collect();
        let total = ops::linear_cross_entropy(&hidden, model.head(), &targets, how.compute)?;
        let parts = vec![("cross_entropy", total.item()?)];
        add_side_losses(total, parts, &mut ctx)
    }
}
