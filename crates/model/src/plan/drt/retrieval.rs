//! Retrieval: scores of landmarks, the choice of chunks (noisy in training), and their weights.

use super::{
    DrtPlan,
    layers::{ChunkTensors, Found},
    memory::{Retrieval, state},
    span::Span,
};
use crate::{
    ctx::{Ctx, Noise, Retrieved},
    error::Result,
    top_k,
};
use ounce_kernels::Philox;
use ounce_tensor::{
    Compute, Tensor,
    ops::{self, Neighbours},
};

/// Epsilon of the landmark norms.
const LANDMARK_EPS: f64 = 1e-5;

/// Stream of randomness of the selection.
const STREAM: u64 = 0x6472_745f_6775_6d62;

/// Where the random retriever draws from outside training.
const LOTS: Noise = Noise {
    seed: 0,
    step: 0,
    part: 0,
};

/// A score that no chunk can have: its softmax weight is zero.
const NEVER: f32 = -1e30;

impl DrtPlan {
    /// What group `g` retrieves for the tokens of this call, from `x [B·positions, D]`: what the last chunk before the
    /// call found, and what the chunks find that the call finishes.
    pub(super) fn retrieve(
        &self,
        g: usize,
        x: &Tensor,
        (span, b): (Span, usize),
        memory: Option<&ChunkTensors>,
        ctx: &mut Ctx<'_>,
    ) -> Result<Found> {
        let (k, total) = (self.drt.top_k, span.total());
        let carried = match state(ctx)? {
            Some(state) => state.last[g].clone(),
            None => None,
        };
        let Retrieval {
            mut chunks,
            mut weights,
        } = carried.unwrap_or(Retrieval {
            chunks: vec![None; b * k],
            weights: Tensor::zeros(&[b, k]).cast(x.dtype())?,
        });
        if span.finished() > 0 {
            let new = self.select(g, x, (span, b), memory, ctx)?;
            let last = new.chunks.len() - b * k;
            let kept = Retrieval {
                chunks: new.chunks[last..].to_vec(),
                weights: ops::narrow_rows(&new.weights.detach(), last / k, last / k + b)?,
            };
            if let Some(state) = state(ctx)? {
                state.last[g] = Some(kept);
            }
            chunks.extend(new.chunks);
            weights = ops::concat_rows(&[&weights, &new.weights])?;
        }
        let runs = span
            .chunks()
            .flat_map(|run| (0..b).map(move |row| row * total + run.start..row * total + run.end))
            .collect();
        Ok(Found {
            neighbours: Neighbours { runs, chunks },
            weights,
        })
    }

    /// The retrieval of every chunk that the call finishes: memory rows `[finished, B, k]` and weights `[finished·B, k]`.
    fn select(
        &self,
        g: usize,
        x: &Tensor,
        (span, b): (Span, usize),
        memory: Option<&ChunkTensors>,
        ctx: &mut Ctx<'_>,
    ) -> Result<Retrieval> {
        let (k, d) = (self.drt.top_k, self.shape.hidden);
        let (first, finished, total) = (span.first(), span.finished(), span.total());
        let at: Vec<usize> = (0..b)
            .flat_map(|row| (0..finished).map(move |n| row * total + span.landmark(n)))
            .collect();
        let u = ops::gather_rows(x, &at)?;
        let u = ops::rms_norm(&u, &self.groups[g].norm.tensor, LANDMARK_EPS)?;
        // Scores [B·n, finished] of all n landmarks, later ones included: those are never looked at.
        let n = first + finished;
        let mut scores = Vec::new();
        for row in 0..b {
            let queries = ops::narrow_rows(&u, row * finished, (row + 1) * finished)?;
            let blocks = match (memory, state(ctx)?) {
                (None, Some(state)) => state.landmarks(d)?,
                (Some(chunks), _) => {
                    let own: Vec<usize> = (0..n).map(|c| c * b + row).collect();
                    vec![ops::gather_rows(&chunks.landmarks, &own)?]
                }
                (None, None) => Vec::new(),
            };
            for block in blocks {
                scores.push(ops::linear(&block, &queries, Compute::F32)?);
            }
        }
        let scores = ops::concat_rows(&scores.iter().collect::<Vec<_>>())?;
        let scores = ops::scale(&scores, 1.0 / (d as f64).sqrt())?;
        let place = |row: usize, c: usize, t: usize| (row * n + c) * finished + t;
        let values = scores.to_f32();
        let (mut chunks, mut ids) = (Vec::new(), Vec::new());
        for t in 0..finished {
            for row in 0..b {
                let seen: Vec<f32> = (0..first + t)
                    .map(|c| {
                        let place_of_noise = [g, ctx.rows.first + row, first + t, c];
                        if self.drt.random {
                            return gumbel(ctx.noise.unwrap_or(LOTS), place_of_noise) as f32;
                        }
                        let noise = ctx.noise.map_or(0.0, |noise| gumbel(noise, place_of_noise));
                        (f64::from(values[place(row, c, t)]) + noise) as f32
                    })
                    .collect();
                let best = top_k(&seen, k);
                let slot = |i: usize| best.get(i).copied();
                chunks.extend((0..k).map(|i| slot(i).map(|c| c * b + row)));
                ids.extend((0..k).map(|i| slot(i).map_or(0, |c| place(row, c, t))));
            }
        }
        let chosen = ops::gather_rows(&ops::reshape(&scores, &[b * n * finished, 1])?, &ids)?;
        let weights = weigh(&ops::reshape(&chosen, &[finished * b, k])?, &chunks)?;
        if ctx.sink.want_retrieved {
            let chunks = chunks.iter().map(|c: &Option<usize>| c.map(|c| c / b)).collect();
            ctx.sink.retrieved.push(Retrieved {
                chunks,
                weights: weights.to_f32(),
                per_chunk: b * k,
            });
        }
        Ok(Retrieval { chunks, weights })
    }
}

/// Softmax of the chosen scores `[N,k]` over the slots that are not empty; empty slots get 0.
pub(super) fn weigh(scores: &Tensor, chunks: &[Option<usize>]) -> Result<Tensor> {
    let dims = scores.shape();
    let table = |full: f32, empty: f32| {
        let value = |c: &Option<usize>| if c.is_some() { full } else { empty };
        Tensor::new(chunks.iter().map(value).collect(), dims)?.cast(scores.dtype())
    };
    let masked = ops::add(scores, &table(0.0, NEVER)?)?;
    Ok(ops::mul(&ops::softmax(&masked)?, &table(1.0, 0.0)?)?)
}

/// Standard Gumbel noise of one candidate.
pub(super) fn gumbel(noise: Noise, [group, row, chunk, candidate]: [usize; 4]) -> f64 {
    let index = (group as u64) << 56 | (row as u64) << 44 | (chunk as u64) << 22 | candidate as u64;
    // The forward gets a stream of its own. Half a step away from 0 and 1, so that both logarithms are finite.
    let u = Philox::uniform(noise.seed, STREAM ^ noise.part.rotate_left(32), noise.step, index) + 0.5f64.powi(54);
    -(-u.ln()).ln()
}
