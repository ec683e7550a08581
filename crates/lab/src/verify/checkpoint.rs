//! `checkpoint` cases: logits of a full forward, greedy ids with a cache and without, and what routers or retrieval chose
//! if the case says it.

use super::{Checks, VerifyError, floats, worst};
use ounce_formats::SafetensorsFile;
use ounce_model::{Batch, GenerateOptions, Model, OpenOptions, SamplerConfig, generate, top_k};
use ounce_tensor::{Compute, no_grad};
use std::path::Path;

/// f32 against a reference in f32 (transformers) or f64 (the method cases).
const LOGITS: f64 = 1e-4;
/// The same for weights of chosen experts, which are at most 1.
const WEIGHTS: f64 = 1e-5;

pub(super) fn run(dir: &Path, checks: &mut Checks) -> Result<(), VerifyError> {
    let expected = SafetensorsFile::open(&dir.join("expected.safetensors"))?;
    let model = Model::open(dir, &OpenOptions::widened())?;
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

    if expected.header().info("selected_experts").is_some() {
        selections(&model, &ids[..ids.len() / batch.max(1)], &expected, checks)?;
    }

    if expected.header().info("retrieved_chunks").is_some() {
        retrievals(&model, (&ids, batch), &expected, checks)?;
    }

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

/// `selected_experts [L,T,K]`, best first, and `selected_weights [L,T,K]` of one row of ids.
fn selections(model: &Model, ids: &[u32], expected: &SafetensorsFile, checks: &mut Checks) -> Result<(), VerifyError> {
    let input = Batch {
        ids,
        batch: 1,
        compute: Compute::F32,
    };
    let mut ctx = model.context(input)?;
    ctx.sink.want_routing = true;
    no_grad(|| model.hidden(&mut ctx))?;
    let chosen: Vec<i64> = ctx
        .sink
        .routing
        .iter()
        .flat_map(|r| &r.experts)
        .map(|&e| e as i64)
        .collect();
    let weights: Vec<f32> = ctx.sink.routing.iter().flat_map(|r| &r.weights).copied().collect();
    let theirs = expected.view("selected_experts")?.to_i64_vec()?;
    checks.equal(
        "selected experts",
        chosen == theirs,
        format!("{chosen:?} where {theirs:?} is expected"),
    );
    let theirs = floats(expected, "selected_weights")?;
    checks.close("selected weights", worst(&weights, &theirs), WEIGHTS);
    Ok(())
}

/// `retrieved_chunks [B,G,chunks,k]`, best first, -1 where nothing is visible, and `retrieval_weights` of the same shape.
fn retrievals(
    model: &Model,
    (ids, batch): (&[u32], usize),
    expected: &SafetensorsFile,
    checks: &mut Checks,
) -> Result<(), VerifyError> {
    let input = Batch {
        ids,
        batch,
        compute: Compute::F32,
    };
    let mut ctx = model.context(input)?;
    ctx.sink.want_retrieved = true;
    no_grad(|| model.hidden(&mut ctx))?;
    let [_, _, chunks, k] = expected.view("retrieved_chunks")?.shape[..] else {
        return Err(VerifyError::Case("retrieved_chunks must be [B, G, chunks, k]".into()));
    };
    let (mut found, mut weights) = (Vec::new(), Vec::new());
    for row in 0..batch {
        for group in &ctx.sink.retrieved {
            for chunk in 0..chunks {
                // Ours are [chunks, B, k] per group.
                let slots = (chunk * batch + row) * k..(chunk * batch + row + 1) * k;
                let ids = group.chunks.get(slots.clone()).unwrap_or_default();
                found.extend(ids.iter().map(|c| c.map_or(-1, |c| c as i64)));
                weights.extend_from_slice(group.weights.get(slots).unwrap_or_default());
            }
        }
    }
    let theirs = expected.view("retrieved_chunks")?.to_i64_vec()?;
    checks.equal(
        "retrieved chunks",
        found == theirs,
        format!("{found:?} where {theirs:?} is expected"),
    );
    let theirs = floats(expected, "retrieval_weights")?;
    checks.close("retrieval weights", worst(&weights, &theirs), WEIGHTS);
    Ok(())
}
