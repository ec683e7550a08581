//! Attention alone, one layer, batch 1: exact, grouped (DGA) and by some heads (MoH), over a prompt and token by token.
//!
//! Queries, keys and values are random and given; projections, rotation and routers are not part of it. Keys and values go
//! through the cache of the method as in a model. Each method is a run of its own, so that peak memory is its own.

use super::{BenchRow, rates};
use crate::LabError;
use ounce_kernels::Philox;
use ounce_model::{
    Cache, KvCache, ModelError,
    attention::dga::{DgaCache, DgaConfig, Shape},
    cache::CacheType,
};
use ounce_tensor::{
    Compute, Tensor,
    ops::{self, AttentionConfig, RowSpan},
};

/// Methods that can be timed.
pub const METHODS: [&str; 3] = ["exact", "dga", "moh"];

/// Tokens that one run decodes: two regroupings of DGA's default.
const DECODE: usize = 36;

/// Longest prompt; its scores alone take hours.
const MOST_CONTEXT: usize = 1 << 20;
/// Most heads, and widest head.
const MOST_HEADS: usize = 1024;

/// Of all heads of MoH, the share that is active: name and sixteenths; half of the active ones are shared.
const SHARES: [(&str, usize); 3] = [("100", 16), ("75", 12), ("50", 8)];

/// What to time.
#[derive(Debug, Clone)]
pub struct AttentionBench {
    /// One of [`METHODS`].
    pub method: String,
    /// Tokens of the prompt.
    pub context: usize,
    /// Heads, of queries and of keys alike (32 in Llama-2-7B).
    pub heads: usize,
    /// Width of a head (128 in Llama-2-7B).
    pub head_dim: usize,
    /// Arithmetic of prefill; bf16 keeps keys and values as f16. DGA is f32 only.
    pub compute: Compute,
}

/// Random values in -1..1 `[1, tokens, H, hd]`.
fn random(tokens: usize, heads: usize, head_dim: usize, seed: u64) -> Result<Tensor, LabError> {
    let mut values = vec![0f32; tokens * heads * head_dim];
    // As every tensor that an operation makes.
    ounce_kernels::prefer_large_pages(&mut values);
    ounce_kernels::parallel_chunks_mut(&mut values, 1 << 16, |chunk, out| {
        for (i, x) in out.iter_mut().enumerate() {
            *x = Philox::uniform(seed, 5, chunk as u64, i as u64) as f32 * 2.0 - 1.0;
        }
    });
    Ok(Tensor::new(values, &[1, tokens, heads, head_dim])?)
}

struct Inputs {
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl Inputs {
    fn append_to(&self, cache: &mut KvCache) -> Result<(), ModelError> {
        let flat = |x: &Tensor| ops::reshape(x, &x.shape()[1..]);
        cache.append(0, &flat(&self.k)?, &flat(&self.v)?)
    }

    fn random(tokens: usize, bench: &AttentionBench, seed: u64) -> Result<Self, LabError> {
        let make = |part: u64| random(tokens, bench.heads, bench.head_dim, 3 * seed + part);
        Ok(Self {
            q: make(0)?,
            k: make(1)?,
            v: make(2)?,
        })
    }
}

/// Keys from 0 on, queries from `start` on.
fn span(start: usize, tokens: usize) -> [RowSpan; 1] {
    [RowSpan {
        q_start: start,
        kv_begin: 0,
        kv_len: start + tokens,
    }]
}

impl AttentionBench {
    fn config(&self, compute: Compute) -> AttentionConfig {
        AttentionConfig {
            causal: true,
            window: None,
            scale: 1.0 / (self.head_dim as f64).sqrt(),
            compute,
        }
    }

    /// With memory for the prompt and `more` tokens, as when generating: growing copies all that is cached.
    fn cache(&self, more: usize) -> KvCache {
        let kind = match self.compute {
            Compute::F32 | Compute::F32Rows => CacheType::F32,
            Compute::Bf16 => CacheType::F16,
        };
        KvCache::new(kind, vec![None], self.heads, self.head_dim, self.context + more)
    }

    /// Adds new tokens and attends from them; only `active` pairs of token and head, if given.
    fn exact(
        &self,
        cache: &mut KvCache,
        inputs: &Inputs,
        active: Option<&[bool]>,
        compute: Compute,
    ) -> Result<(), ModelError> {
        let (start, tokens) = (cache.len(), inputs.q.shape()[1]);
        inputs.append_to(cache)?;
        let kept = cache.read(0)?;
        let (spans, config) = (span(start, tokens), self.config(compute));
        match active {
            None => ops::attention(&inputs.q, kept.keys, kept.values, &spans, config)?,
            Some(active) => ops::attention_of(&inputs.q, kept.keys, kept.values, &spans, config, active)?,
        };
        Ok(())
    }

    fn grouped(&self, cache: &mut DgaCache, start: usize, inputs: &Inputs) -> Result<(), ModelError> {
        let tokens = inputs.q.shape()[1];
        let shape = Shape {
            batch: 1,
            len: tokens,
            heads: self.heads,
            kv_heads: self.heads,
            head_dim: self.head_dim,
            scale: 1.0 / (self.head_dim as f64).sqrt(),
        };
        cache.attend(
            &inputs.q,
            &inputs.k,
            &inputs.v,
            &shape,
            &span(start, tokens),
            Compute::F32,
        )?;
        Ok(())
    }

    /// Which pairs of token and head are active, when a share of the heads is: the first half of them for every token, the
    /// others drawn for each.
    fn active(&self, sixteenths: usize) -> Vec<bool> {
        let active = (self.heads * sixteenths / 16).max(1);
        let shared = active / 2;
        let mut flags = vec![false; self.context * self.heads];
        for (t, row) in flags.chunks_exact_mut(self.heads).enumerate() {
            row[..shared].fill(true);
            let mut routed: Vec<usize> = (shared..self.heads).collect();
            routed.sort_by_key(|&head| Philox::at(9, 0, t as u64, head as u64));
            routed[..active - shared].iter().for_each(|&head| row[head] = true);
        }
        flags
    }
}

/// Rows named `attention_METHOD_PHASE_CONTEXT_HxD`: tokens per second of one layer's attention. `prefill` reads the prompt
/// into an empty cache. `decode` adds 36 tokens per run, one after the other, to a cache that holds the prompt and the
/// tokens of earlier runs; regrouping is part of it.
///
/// # Errors
/// If the method is unknown or a size is out of range.
pub fn attention(bench: &AttentionBench, runs: usize) -> Result<Vec<BenchRow>, LabError> {
    let fail = |what: String, rule: &str| {
        Err(LabError::Bench {
            what,
            rule: rule.into(),
            hint: format!("methods: {}", METHODS.join(", ")),
        })
    };
    for (option, value, most, usual) in [
        ("--context", bench.context, MOST_CONTEXT, "4096"),
        ("--heads", bench.heads, MOST_HEADS, "32"),
        ("--head-dim", bench.head_dim, MOST_HEADS, "128"),
    ] {
        if !(1..=most).contains(&value) {
            return Err(LabError::Bench {
                what: format!("{option} {value}"),
                rule: format!("must be in 1..={most}"),
                hint: format!("the default is {usual}"),
            });
        }
    }
    let kind = match (bench.method.as_str(), bench.compute) {
        ("dga", Compute::Bf16) => return fail("--compute bf16".into(), "is not offered by dga, which computes in f32"),
        (_, Compute::F32 | Compute::F32Rows) => "f32",
        (_, Compute::Bf16) => "bf16",
    };
    let name = |method: &str, phase: &str| {
        format!(
            "attention_{method}_{kind}_{phase}_{}_{}x{}",
            bench.context, bench.heads, bench.head_dim
        )
    };
    let prompt = Inputs::random(bench.context, bench, 1)?;
    let steps = (0..DECODE as u64).map(|t| Inputs::random(1, bench, 2 + t));
    let steps: Vec<Inputs> = steps.collect::<Result<_, _>>()?;
    let prefill = |method: &str, rates| BenchRow::new(name(method, "prefill"), "tokens/s", rates);
    let tokens = bench.context as f64;
    match bench.method.as_str() {
        "exact" => {
            let read = rates(runs, tokens, || {
                bench.exact(&mut bench.cache(0), &prompt, None, bench.compute)
            })?;
            let mut rows = vec![prefill("exact", read)];
            let mut cache = bench.cache(DECODE * (runs + 1));
            prompt.append_to(&mut cache)?;
            // As in a model, single tokens are computed in f32 whatever the prompt was.
            let decoded = rates(runs, DECODE as f64, || {
                let mut steps = steps.iter();
                steps.try_for_each(|step| bench.exact(&mut cache, step, None, Compute::F32))
            })?;
            rows.push(BenchRow::new(name("exact", "decode"), "tokens/s", decoded));
            Ok(rows)
        }
        "dga" => {
            let empty = || DgaCache::new(DgaConfig::new(16, 0.1), CacheType::F32, 1, bench.heads, bench.head_dim);
            let read = rates(runs, tokens, || bench.grouped(&mut empty(), 0, &prompt))?;
            let mut rows = vec![prefill("dga", read)];
            let (mut cache, mut len) = (empty(), bench.context);
            bench.grouped(&mut cache, 0, &prompt)?;
            let decoded = rates(runs, DECODE as f64, || {
                steps.iter().try_for_each(|step| {
                    bench.grouped(&mut cache, len, step)?;
                    len += 1;
                    Ok::<(), ModelError>(())
                })
            })?;
            rows.push(BenchRow::new(name("dga", "decode"), "tokens/s", decoded));
            Ok(rows)
        }
        "moh" => SHARES
            .into_iter()
            .map(|(share, sixteenths)| {
                let active = bench.active(sixteenths);
                let read = rates(runs, tokens, || {
                    bench.exact(&mut bench.cache(0), &prompt, Some(&active), bench.compute)
                })?;
                Ok(prefill(&format!("moh{share}"), read))
            })
            .collect(),
        other => fail(format!("method \"{other}\""), "cannot be timed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bench(method: &str) -> AttentionBench {
        AttentionBench {
            method: method.into(),
            context: 40,
            heads: 4,
            head_dim: 8,
            compute: Compute::F32,
        }
    }

    #[test]
    fn rows_say_what_was_timed() {
        let names = |method: &str| -> Vec<String> {
            let rows = attention(&bench(method), 1).unwrap();
            assert!(rows.iter().all(|r| r.median > 0.0));
            rows.into_iter().map(|r| r.name).collect()
        };
        assert_eq!(
            names("exact"),
            [
                "attention_exact_f32_prefill_40_4x8",
                "attention_exact_f32_decode_40_4x8"
            ]
        );
        assert_eq!(
            names("dga"),
            ["attention_dga_f32_prefill_40_4x8", "attention_dga_f32_decode_40_4x8"]
        );
        assert_eq!(names("moh")[2], "attention_moh50_f32_prefill_40_4x8");
    }

    #[test]
    fn the_active_share_is_exact_and_differs_between_tokens() {
        let bench = AttentionBench {
            heads: 32,
            ..bench("moh")
        };
        for (_, sixteenths) in SHARES {
            let active = bench.active(sixteenths);
            let mut rows = active.chunks_exact(32);
            assert!(rows.all(|row| row.iter().filter(|&&on| on).count() == 2 * sixteenths));
        }
        let half = bench.active(8);
        assert!(half.chunks_exact(32).any(|row| row != &half[..32]));
        assert!(half.chunks_exact(32).all(|row| row[..8].iter().all(|&on| on)));
    }

    #[test]
    fn what_cannot_be_timed_is_refused() {
        assert!(
            attention(&bench("best"), 1)
                .unwrap_err()
                .to_string()
                .contains("method \"best\"")
        );
        let half = AttentionBench {
            compute: Compute::Bf16,
            ..bench("dga")
        };
        assert!(attention(&half, 1).unwrap_err().to_string().contains("computes in f32"));
        for context in [0, MOST_CONTEXT + 1] {
            let wrong = AttentionBench {
                context,
                ..bench("exact")
            };
            let error = attention(&wrong, 1).unwrap_err().to_string();
            assert_eq!(error, format!("--context {context}: must be in 1..=1048576"));
        }
    }
}
