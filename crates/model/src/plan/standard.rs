//! The ordinary decoder: all blocks, one after the other.

use super::Plan;
use crate::{Block, config::ModelConfig, ctx::Ctx, error::Result, param::Param, residual, rows::Seq, weights::Weights};
use ounce_tensor::{Tensor, ops};

/// Blocks in a row.
pub struct StandardPlan {
    blocks: Vec<Block>,
}

impl StandardPlan {
    /// All layers of a configuration.
    ///
    /// # Errors
    /// If a weight is missing or has the wrong shape.
    pub fn new(config: &ModelConfig, weights: &mut dyn Weights) -> Result<Self> {
        let blocks = (0..config.layers.len())
            .map(|l| Block::new(config, l, weights))
            .collect::<Result<_>>()?;
        Ok(Self { blocks })
    }
}

impl Plan for StandardPlan {
    fn forward(&self, x: Tensor, ctx: &mut Ctx<'_>) -> Result<Tensor> {
        let x = residual::run(&self.blocks, x, ctx)?;
        let Some(wanted) = ctx.wanted else { return Ok(x) };
        let last = |seq: &Seq| seq.tokens.end - wanted.min(seq.tokens.len())..seq.tokens.end;
        let rows: Vec<usize> = ctx.rows.seqs.iter().flat_map(last).collect();
        Ok(ops::gather_rows(&x, &rows)?)
    }
    fn visit(&mut self, f: &mut dyn FnMut(&mut Param)) {
        for block in &mut self.blocks {
            block.visit(f);
        }
    }
    fn blocks(&self) -> Vec<&Block> {
        self.blocks.iter().collect()
    }
}
