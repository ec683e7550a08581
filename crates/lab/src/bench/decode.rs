//! Decoding and prefill of a checkpoint, batch 1.

use super::{BenchRow, rates};
use crate::LabError;
use ounce_kernels::Philox;
use ounce_model::{GenerateOptions, Model, SamplerConfig, generate};
use ounce_tensor::no_grad;

/// Tokens made by one run of [`decode`].
const DECODE: usize = 128;

/// Tokens of a prompt, in the range the model allows.
fn prompt(model: &Model, context: usize, new: usize) -> Result<Vec<u32>, LabError> {
    let most = model.config.max_positions.saturating_sub(new);
    if (1..=most).contains(&context) {
        return Ok(ids(model, context));
    }
    Err(LabError::Bench {
        what: format!("--context {context}"),
        rule: format!("must be in 1..={most}"),
        hint: format!("the model has {} positions", model.config.max_positions),
    })
}

fn ids(model: &Model, n: usize) -> Vec<u32> {
    (0..n)
        .map(|i| (Philox::at(7, 0, 0, i as u64) % model.config.vocab_size as u64) as u32)
        .collect()
}

/// `decode`, or `decode_after_CONTEXT`: tokens per second after a prompt of `context` tokens; 128 are made, and the time of
/// the first, which is that of the prompt, is left out.
///
/// # Errors
/// If the model has not so many positions, or fails.
pub fn decode(model: &Model, context: usize, runs: usize) -> Result<BenchRow, LabError> {
    let options = GenerateOptions {
        max_new_tokens: DECODE,
        sampler: SamplerConfig::default(),
        eos: Vec::new(),
        compute: model.compute(),
    };
    let prompt = prompt(model, context, DECODE)?;
    let run = || generate(model, &prompt, &options, |_| true).map(|made| made.tokens_per_second());
    run()?;
    let rates = (0..runs).map(|_| run()).collect::<Result<_, _>>()?;
    let name = match context {
        1 => "decode".into(),
        _ => format!("decode_after_{context}"),
    };
    Ok(BenchRow::new(name, "tokens/s", rates))
}

/// `prefill_CONTEXT`: tokens per second of a prompt of `context` tokens into an empty cache.
///
/// # Errors
/// If the model has not so many positions, or fails.
pub fn prefill(model: &Model, context: usize, runs: usize) -> Result<BenchRow, LabError> {
    let prompt = prompt(model, context, 0)?;
    let rates = rates(runs, context as f64, || {
        let mut cache = model.cache(context);
        no_grad(|| model.prefill(&prompt, model.compute(), &mut *cache)).map(drop)
    })?;
    Ok(BenchRow::new(format!("prefill_{context}"), "tokens/s", rates))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ounce_model::{config::ModelShape, weights::FreshWeights};

    #[test]
    fn contexts_are_what_was_asked_for_and_fit_the_model() {
        let shape: ModelShape = serde_json::from_value(serde_json::json!({
            "hidden_size": 8, "layers": 1, "heads": 2, "intermediate_size": 8, "max_positions": 150
        }))
        .unwrap();
        let config = shape.to_config(30, None, None).unwrap();
        let model = Model::new(config, &mut FreshWeights { seed: 1, std: 0.1 }).unwrap();
        let row = decode(&model, 1, 2).unwrap();
        assert_eq!((row.name.as_str(), row.runs), ("decode", 2));
        assert_eq!(decode(&model, 22, 1).unwrap().name, "decode_after_22");
        let row = prefill(&model, 150, 1).unwrap();
        assert!(row.name == "prefill_150" && row.min > 0.0);
        let said = [decode(&model, 23, 1), prefill(&model, 0, 1), prefill(&model, 151, 1)];
        for (result, most) in said.into_iter().zip([22, 150, 150]) {
            let error = result.unwrap_err();
            assert!(
                error.to_string().ends_with(&format!("must be in 1..={most}")),
                "{error}"
            );
        }
    }
}
