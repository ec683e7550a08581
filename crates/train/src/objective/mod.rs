//! Objectives: what a step minimises. Each has one file here.

mod next_token;

use crate::error::Result;
use ounce_data::Batch;
use ounce_model::Model;
use ounce_tensor::{Compute, Tensor};
use serde::{Deserialize, Serialize};

pub use next_token::NextToken;

/// A loss and what it is made of.
pub struct LossParts {
    /// What is minimised: a scalar with a tape.
    pub total: Tensor,
    /// Named values for the log.
    pub parts: Vec<(&'static str, f64)>,
}

/// What a step minimises. It may call the forward more than once.
pub trait Objective: Send + Sync {
    /// Tokens a row needs for windows of `length`, targets included.
    fn tokens_needed(&self, length: usize) -> usize;
    /// The loss of one micro-batch.
    ///
    /// # Errors
    /// If shapes do not fit.
    fn loss(&self, model: &Model, batch: &Batch, compute: Compute) -> Result<LossParts>;
}

/// `[objective]` of a recipe. This is the one list to edit when an objective is added.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(
    tag = "kind",
    rename_all = "snake_case",
    deny_unknown_fields,
    expecting = "a table, [objective], with a key `kind`"
)]
pub enum ObjectiveConfig {
    /// Cross-entropy of the next token, plus the balance losses of mixtures.
    #[default]
    NextToken,
}

impl ObjectiveConfig {
    /// The objective.
    pub fn build(&self) -> Box<dyn Objective> {
        match self {
            Self::NextToken => Box::new(NextToken),
        }
    }
}
