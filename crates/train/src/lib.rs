//! Training: from a recipe to a checkpoint, resumable to the bit.
//!
//! This crate owns recipes, objectives, the optimiser, the schedule, training checkpoints and the loop. Everything a
//! step consumes (tokens, learning rate, randomness) is a function of the recipe and the step number, and everything it
//! produces depends on the instruction set but not on the number of threads; so a run that was killed continues as if it
//! had not been. It must not know compression or serving, and it draws no progress bars: it reports to a callback.

mod checkpoint;
mod corpus;
mod error;
mod estimate;
mod export;
mod metrics;
pub mod objective;
mod optimizer;
mod recipe;
mod resume;
mod schedule;
mod start;
mod step;
mod trainer;

pub use error::{Result, TrainError};
pub use estimate::{Estimate, estimate};
pub use optimizer::{Optimizer, OptimizerConfig};
pub use recipe::{Recipe, Run};
pub use schedule::Schedule;
pub use step::{StepResult, TrainStep};
pub use trainer::{Evaluation, Event, StepReport, TrainJob, train};
