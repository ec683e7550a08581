//! The ordinary decoder: all blocks, one after the other.

use super::Plan;
use crate::{Block, config::ModelConfig, ctx::Ctx, error::Result, param::Param, residual, weights::Weights};
use ounce_tensor::Tensor;

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
        residual::run(&self.blocks, x, ctx)
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
