//! `checkpoint` cases: logits of a full forward, and greedy ids with a cache and without.

use super::{Checks, VerifyError, floats, worst};
use ounce_formats::SafetensorsFile;
use ounce_model::{Batch, GenerateOptions, Model, SamplerConfig, generate, top_k};
use ounce_tensor::{Compute, no_grad};
use std::path::Path;

/// f32 against a reference in f32 (transformers) or f64 (the method cases).
const LOGITS: f64 = 1e-4;

pub(super) fn run(dir: &Path, checks: &mut Checks) -> Result<(), VerifyError> {
    let expected = SafetensorsFile::open(&dir.join("expected.safetensors"))?;
    let model = Model::open(dir, true)?;
    let ids_view = expected.view("input_ids")?;
    let ids: Vec<u32> = ids_view.to_i64_vec()?.into_iter().map(|id| id as u32).collect();
    let batch = ids_view.shape.first().copied().unwrap_or(1);
    let logits = no_grad(|| {
        model.forward(Batch {
            ids: &ids,
            batch,
            compute: Compute::F32,
        })
    })?;
    checks.close("logits", worst(&logits.to_f32(), &floats(&expected, "logits")?), LOGITS);

    let ids_of = |name: &str| -> Result<Vec<u32>, VerifyError> {
        Ok(expected
            .view(name)?
            .to_i64_vec()?
            .into_iter()
            .map(|id| id as u32)
            .collect())
    };
    let (prompt, greedy) = (ids_of("greedy_prompt")?, ids_of("greedy_ids")?);
    if prompt.is_empty() || greedy.len() <= prompt.len() {
        return Err(VerifyError::Case("greedy_ids must continue greedy_prompt".into()));
    }
    let options = GenerateOptions {
        max_new_tokens: greedy.len() - prompt.len(),
        sampler: SamplerConfig::default(),
        eos: Vec::new(),
        compute: Compute::F32,
    };
    let cached = generate(&model, &prompt, &options, |_| true)?.ids;
    checks.equal(
        "greedy ids with cache",
        cached == greedy,
        format!("{cached:?} where {greedy:?} is expected"),
    );

    let mut ids = prompt;
    while ids.len() < greedy.len() {
        let logits = no_grad(|| {
            model.forward(Batch {
                ids: &ids,
                batch: 1,
                compute: Compute::F32,
            })
        })?
        .to_f32();
        let last = &logits[logits.len() - model.config.vocab_size..];
        ids.push(top_k(last, 1)[0] as u32);
    }
    checks.equal(
        "greedy ids without cache",
        ids == greedy,
        format!("{ids:?} where {greedy:?} is expected"),
    );
    Ok(())
}
