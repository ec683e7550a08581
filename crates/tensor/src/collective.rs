//! The seam between ranks: blocks return partial sums, and only the residual wiring adds them up across ranks.
//!
//! One process is one rank ([`Solo`]). Other implementations live above this crate.

use crate::{error::Result, tensor::Tensor};

/// A sum over ranks that has been started and not awaited.
pub trait Pending: Send {
    /// Waits and returns the sum.
    ///
    /// # Errors
    /// If another rank is gone.
    fn wait(self: Box<Self>) -> Result<Tensor>;
}

/// Communication between the ranks that share one model.
pub trait Collective: Send + Sync {
    /// This process's rank, below [`Collective::size`].
    fn rank(&self) -> usize;
    /// Number of ranks.
    fn size(&self) -> usize;
    /// Starts the sum of `partial` over all ranks. Differentiable: the gradient of the sum is each partial's gradient.
    ///
    /// # Errors
    /// If another rank is gone.
    fn start_sum(&self, partial: Tensor) -> Result<Box<dyn Pending>>;
}

/// One rank: the sum is the partial itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Solo;

struct Ready(Tensor);

impl Pending for Ready {
    fn wait(self: Box<Self>) -> Result<Tensor> {
        Ok(self.0)
    }
}

impl Collective for Solo {
    fn rank(&self) -> usize {
        0
    }
    fn size(&self) -> usize {
        1
    }
    fn start_sum(&self, partial: Tensor) -> Result<Box<dyn Pending>> {
        Ok(Box::new(Ready(partial)))
    }
}
