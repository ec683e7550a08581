//! Where weights come from: a checkpoint on disk (file-backed) or a seed.

use crate::{
    config::ModelConfig,
    error::{ModelError, Result},
    layout::{self, Wanted},
    param::{Linear, Param},
};
use ounce_formats::{Checkpoint, Dtype, Region};
use ounce_kernels::Philox;
use ounce_tensor::{DType, Tensor};
use std::{collections::HashSet, sync::Arc};

/// A source of named weights.
pub trait Weights {
    /// The tensor `name`, which must have this shape.
    ///
    /// # Errors
    /// If it is missing, has another shape, or a dtype that is no weight.
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor>;

    /// The tensor `name` if this source has files and they hold it: for copies of what is computed anyway.
    ///
    /// # Errors
    /// If it is there and has another shape, or a dtype that is no weight.
    fn stored_copy(&mut self, name: &str, shape: &[usize]) -> Result<Option<Tensor>> {
        let _ = (name, shape);
        Ok(None)
    }

    /// A table that is read row by row: as [`Weights::tensor`], but never widened and cheap to ask for again.
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    fn rows(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.tensor(name, shape)
    }

    /// The bytes of a tensor as stored, if this source has files: for checks of what a table was made from.
    ///
    /// # Errors
    /// If the source has files and they do not hold the tensor.
    fn stored(&self, name: &str) -> Result<Option<Region>> {
        let _ = name;
        Ok(None)
    }

    /// The same as a named parameter.
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    fn param(&mut self, name: &str, shape: &[usize]) -> Result<Param> {
        Ok(Param {
            name: name.to_owned(),
            tensor: self.tensor(name, shape)?,
        })
    }

    /// `prefix.weight [out, inner]` and, if asked for, `prefix.bias [out]`.
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    fn linear(&mut self, prefix: &str, out: usize, inner: usize, bias: bool) -> Result<Linear> {
        Ok(Linear {
            weight: self.param(&format!("{prefix}.weight"), &[out, inner])?,
            bias: if bias {
                Some(self.param(&format!("{prefix}.bias"), &[out])?)
            } else {
                None
            },
        })
    }
}

/// Weights of a checkpoint, mapped from its files.
pub struct CheckpointWeights {
    checkpoint: Arc<Checkpoint>,
    /// Widen 16-bit weights to f32 in memory.
    widen: bool,
    /// Whether what is loaded will be read row by row, and not whole.
    by_row: bool,
    /// Tensors that were asked for.
    used: HashSet<String>,
}

impl CheckpointWeights {
    /// Reads from `checkpoint`; with `widen`, 16-bit weights become f32 copies.
    pub fn new(checkpoint: Arc<Checkpoint>, widen: bool) -> Self {
        Self {
            checkpoint,
            widen,
            by_row: false,
            used: HashSet::new(),
        }
    }

    fn fail<T>(&self, name: &str, rule: String, hint: &str) -> Result<T> {
        Err(ModelError::Weight {
            file: self.checkpoint.path().display().to_string(),
            tensor: name.into(),
            rule,
            hint: hint.into(),
        })
    }

    /// Refuses tensors that the model did not ask for: a bias, norm or expert that is there and not used would change the
    /// function. What is known to make no difference was taken out of the checkpoint when it was opened.
    ///
    /// # Errors
    /// If such a tensor is found.
    pub fn check_all_used(&self, config: &ModelConfig) -> Result<()> {
        match self.unused() {
            None => Ok(()),
            Some(name) => {
                let (rule, hint) = layout::unused(name, config);
                self.fail(name, rule, &hint)
            }
        }
    }

    fn unused(&self) -> Option<&str> {
        self.checkpoint.names().find(|name| !self.used.contains(*name))
    }

    fn load(&self, name: &str) -> Result<Tensor> {
        let region = self.checkpoint.region(name)?;
        let dtype = match region.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            // No arithmetic here is wider than f32.
            Dtype::F64 => return Ok(Tensor::new(region.view().to_f32_vec()?, &region.shape)?),
            Dtype::Blocks(kind) => DType::Blocks(kind),
            other => {
                return self.fail(
                    name,
                    format!("dtype {other:?} is no weight"),
                    "weights are F64, F32, F16 or BF16",
                );
            }
        };
        let Region { file, range, shape, .. } = region;
        if !self.by_row {
            file.expect_whole_reads(range.clone());
        }
        let tensor = match Tensor::from_mapped(file.clone(), range.clone(), dtype, &shape) {
            Some(mapped) => mapped,
            // Unaligned in the file: copied once.
            None => Tensor::from_le_bytes(&file[range], dtype, &shape)?,
        };
        Ok(if self.widen { tensor.cast(DType::F32)? } else { tensor })
    }
}

impl Weights for CheckpointWeights {
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        if !self.checkpoint.contains(name) {
            let (rule, hint) = layout::missing(name, &self.checkpoint);
            return self.fail(name, rule, &hint);
        }
        self.used.insert(name.to_owned());
        let tensor = self.load(name)?;
        if tensor.shape() != shape {
            return self.fail(
                name,
                format!("has shape {:?}, the configuration asks for {shape:?}", tensor.shape()),
                "is config.json of another model?",
            );
        }
        Ok(tensor)
    }

    fn stored_copy(&mut self, name: &str, shape: &[usize]) -> Result<Option<Tensor>> {
        if self.checkpoint.contains(name) {
            self.tensor(name, shape).map(Some)
        } else {
            Ok(None)
        }
    }

    fn rows(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let widen = std::mem::replace(&mut self.widen, false);
        self.by_row = true;
        let rows = self.tensor(name, shape);
        (self.widen, self.by_row) = (widen, false);
        rows
    }

    fn stored(&self, name: &str) -> Result<Option<Region>> {
        Ok(Some(self.checkpoint.region(name)?))
    }
}

/// Fresh weights: norms are one, biases zero, matrices normal with the given standard deviation. The values of a tensor
/// depend on the seed and its name only.
pub struct FreshWeights {
    /// Seed.
    pub seed: u64,
    /// Standard deviation of matrices.
    pub std: f64,
}

impl Weights for FreshWeights {
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let n = shape.iter().product();
        let values = match (shape.len(), name.rsplit('.').next() == Some("bias")) {
            (1, false) => vec![1.0; n],
            (_, true) => vec![0.0; n],
            _ => {
                // FNV-1a of the name: a stream of its own for every tensor.
                let stream = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
                    (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
                });
                (0..n)
                    .map(|i| (Philox::normal(self.seed, stream, 0, i as u64) * self.std) as f32)
                    .collect()
            }
        };
        Ok(Tensor::new(values, shape)?)
    }
}

/// Tells a callback what a model asks for, and hands out nothing: blocks keep their weights and look at them only in a
/// forward.
struct Listing<'a> {
    f: &'a mut dyn FnMut(&str, &[usize]) -> Result<()>,
    /// Also tell what a model only looks at if it is there.
    copies: bool,
    /// Tables already told: every layer asks for the same ones.
    tables: Vec<String>,
}

impl Weights for Listing<'_> {
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        (self.f)(name, shape)?;
        Ok(Tensor::zeros(&[0]))
    }

    fn stored_copy(&mut self, name: &str, shape: &[usize]) -> Result<Option<Tensor>> {
        if self.copies {
            (self.f)(name, shape)?;
        }
        Ok(None)
    }

    fn rows(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        if self.tables.iter().any(|known| known == name) {
            return Ok(Tensor::zeros(&[0]));
        }
        self.tables.push(name.to_owned());
        self.tensor(name, shape)
    }
}

/// Calls `f` with name and shape of every tensor of a configuration, in checkpoint order, one layer in memory at a time.
fn visit_tensors(config: &ModelConfig, copies: bool, f: &mut dyn FnMut(&str, &[usize]) -> Result<()>) -> Result<()> {
    let table = [config.vocab_size, config.hidden_size];
    let mut listing = Listing {
        f,
        copies,
        tables: vec!["model.embed_tokens.weight".to_owned()],
    };
    listing.tensor("model.embed_tokens.weight", &table)?;
    if let Some(plan) = &config.plan {
        plan.build(config, &mut listing)?;
    } else {
        for layer in 0..config.layers.len() {
            crate::Block::new(config, layer, &mut listing)?;
        }
    }
    f("model.norm.weight", &[config.hidden_size])?;
    if !config.tied {
        f("lm_head.weight", &table)?;
    }
    Ok(())
}

/// Names and shapes of all tensors of a configuration, in checkpoint order.
///
/// # Errors
/// If the configuration cannot be built.
pub fn model_tensors(config: &ModelConfig) -> Result<Vec<(String, Vec<usize>)>> {
    let mut list = Vec::new();
    visit_tensors(config, false, &mut |name, shape| {
        list.push((name.to_owned(), shape.to_vec()));
        Ok(())
    })?;
    Ok(list)
}

/// Every tensor a checkpoint of the configuration may hold: what it asks for, what it only looks at, and the head where it
/// is the embedding.
pub(crate) fn wanted(config: &ModelConfig) -> Result<Wanted> {
    let mut all = Wanted::new();
    visit_tensors(config, true, &mut |name, shape| {
        all.insert(name.to_owned(), shape.to_vec());
        Ok(())
    })?;
    let table = vec![config.vocab_size, config.hidden_size];
    all.entry(layout::HEAD.to_owned()).or_insert(table);
    Ok(all)
}

/// Most parameters anyone can mean; more overflows sizes in bytes.
const MOST_PARAMETERS: u64 = 1 << 48;

/// Number of parameters of a configuration.
///
/// # Errors
/// If the configuration cannot be built, or has more than 2^48 parameters.
pub fn parameter_count(config: &ModelConfig) -> Result<u64> {
    let mut total = 0_u64;
    visit_tensors(config, false, &mut |name, shape| {
        let size = shape.iter().try_fold(1_u64, |n, &d| n.checked_mul(d as u64));
        match size
            .and_then(|n| total.checked_add(n))
            .filter(|&n| n <= MOST_PARAMETERS)
        {
            Some(sum) => total = sum,
            None => {
                return Err(ModelError::Weight {
                    file: "configuration".into(),
                    tensor: name.to_owned(),
                    rule: format!("with shape {shape:?} takes the model beyond 2^48 parameters"),
                    hint: "check the sizes of the configuration".into(),
                });
            }
        }
        Ok(())
    })?;
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(hidden_size: u64) -> ModelConfig {
        let json = json!({
            "model_type": "mixtral", "vocab_size": 11, "hidden_size": hidden_size, "intermediate_size": 12,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 3, "num_experts_per_tok": 1,
        });
        ModelConfig::parse("config.json", &json).unwrap()
    }

    #[test]
    fn parameters_are_counted_without_holding_them() {
        let config_8 = config(8);
        let listed: usize = model_tensors(&config_8)
            .unwrap()
            .iter()
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum();
        // Embedding and head; per layer two norms, four square maps, router, experts; the last norm.
        let expected = 2 * 11 * 8 + 2 * (2 * 8 + 4 * 8 * 8 + 3 * 8 + 3 * 3 * 8 * 12) + 8;
        assert_eq!(
            (listed, parameter_count(&config_8).unwrap()),
            (expected, expected as u64)
        );
        // 2^52 parameters of one map: more than any memory, and yet only a number here.
        let error = parameter_count(&config(1 << 26)).unwrap_err().to_string();
        assert!(error.contains("beyond 2^48 parameters"), "{error}");
    }
}
