//! Choosing the next token from logits.
//!
//! Order of the steps: repetition penalty, temperature, top-k, top-p, min-p, draw. Randomness is counter-based: the draw
//! of step `i` depends on the seed and `i` only.

use ounce_kernels::Philox;
use std::collections::HashSet;

/// Settings; the default is greedy.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerConfig {
    /// 0 means greedy.
    pub temperature: f32,
    /// Keep the k most likely; 0 means all.
    pub top_k: usize,
    /// Keep the smallest set with at least this probability; 1 means all.
    pub top_p: f32,
    /// Keep tokens with at least this share of the best token's probability; 0 means all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen before; 1 means none.
    pub repetition_penalty: f32,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for SamplerConfig {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }
}

impl SamplerConfig {
    /// The first setting out of range: its name and rule.
    pub fn problem(&self) -> Option<(&'static str, String)> {
        let Self {
            temperature,
            top_p,
            min_p,
            repetition_penalty,
            ..
        } = *self;
        if !(temperature >= 0.0 && temperature.is_finite()) {
            return Some(("temperature", format!("must be 0 or more, is {temperature}")));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Some(("top-p", format!("must be above 0 and at most 1, is {top_p}")));
        }
        if !(0.0..=1.0).contains(&min_p) {
            return Some(("min-p", format!("must be in 0..=1, is {min_p}")));
        }
        if !(repetition_penalty > 0.0 && repetition_penalty.is_finite()) {
            return Some((
                "repetition-penalty",
                format!("must be above 0, is {repetition_penalty}"),
            ));
        }
        None
    }
}

/// Draws tokens of one sequence.
#[derive(Debug, Clone)]
pub struct Sampler {
    config: SamplerConfig,
    seen: HashSet<u32>,
    step: u64,
}

impl Sampler {
    /// A sampler for a sequence that begins with `prompt`.
    pub fn new(config: SamplerConfig, prompt: &[u32]) -> Self {
        Self {
            config,
            seen: prompt.iter().copied().collect(),
            step: 0,
        }
    }

    /// The next token under `logits [V]`. Logits must hold at least one finite value.
    pub fn next(&mut self, logits: &[f32]) -> u32 {
        let id = self.choose(logits);
        self.seen.insert(id);
        self.step += 1;
        id
    }

    fn choose(&self, logits: &[f32]) -> u32 {
        let c = &self.config;
        let penalised = |id: usize| {
            let x = logits[id];
            if c.repetition_penalty == 1.0 || !self.seen.contains(&(id as u32)) {
                x
            } else if x > 0.0 {
                x / c.repetition_penalty
            } else {
                x * c.repetition_penalty
            }
        };
        if c.temperature == 0.0 {
            let better = |best: (usize, f32), (id, x): (usize, f32)| if x > best.1 { (id, x) } else { best };
            return (0..logits.len())
                .map(|id| (id, penalised(id)))
                .fold((0, f32::NEG_INFINITY), better)
                .0 as u32;
        }
        let mut ranked = Ranked::new((0..logits.len()).map(|id| f64::from(penalised(id)) / f64::from(c.temperature)));
        if c.top_k > 0 {
            ranked.truncate(c.top_k);
        }
        let best = ranked.get(0).map_or(0.0, |(_, x)| x);
        let weight = |x: f64| (x - best).exp();
        let total: f64 = ranked.entries.iter().map(|&(_, x)| weight(x)).sum();
        let (top_p, min_p) = (f64::from(c.top_p), f64::from(c.min_p));
        let (mut kept, mut mass) = (ranked.entries.len(), total);
        if top_p < 1.0 || min_p > 0.0 {
            (kept, mass) = (0, 0.0);
            while let Some((_, x)) = ranked.get(kept) {
                let w = weight(x);
                if kept > 0 && (top_p < 1.0 && mass >= top_p * total || w < min_p) {
                    break;
                }
                mass += w;
                kept += 1;
            }
        }
        let mut point = Philox::uniform(c.seed, 0, self.step, 0) * mass;
        let mut last = 0;
        for i in 0..kept {
            let Some((id, x)) = ranked.get(i) else { break };
            last = id;
            if point < weight(x) {
                break;
            }
            point -= weight(x);
        }
        last as u32
    }
}

/// Tokens with their scaled logits, most likely first, ties to the lower id. Sorted only as far as somebody looks: a draw
/// rarely looks beyond the first few of a hundred thousand.
struct Ranked {
    entries: Vec<(usize, f64)>,
    sorted: usize,
}

impl Ranked {
    fn new(logits: impl Iterator<Item = f64>) -> Self {
        Self {
            entries: logits.enumerate().collect(),
            sorted: 0,
        }
    }

    /// The token of rank `i`, if there are so many.
    fn get(&mut self, i: usize) -> Option<(usize, f64)> {
        self.sort_to(i + 1);
        self.entries.get(i).copied()
    }

    /// Keeps the `n` most likely.
    fn truncate(&mut self, n: usize) {
        self.sort_to(n);
        self.entries.truncate(n);
        self.sorted = self.sorted.min(n);
    }

    fn sort_to(&mut self, n: usize) {
        const FIRST: usize = 64;
        let likelier = |a: &(usize, f64), b: &(usize, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        let n = n.min(self.entries.len());
        if n <= self.sorted {
            return;
        }
        let end = n.max(2 * self.sorted).max(FIRST).min(self.entries.len());
        let (rest, count) = (&mut self.entries[self.sorted..], end - self.sorted);
        if count < rest.len() {
            rest.select_nth_unstable_by(count - 1, likelier);
        }
        rest[..count].sort_unstable_by(likelier);
        self.sorted = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn draws(config: &SamplerConfig, logits: &[f32], n: usize) -> Vec<usize> {
        let mut counts = vec![0; logits.len()];
        let mut sampler = Sampler::new(config.clone(), &[]);
        for _ in 0..n {
            // Every draw of one sampler has its own step; the penalty is off, so what was seen has no effect.
            counts[sampler.next(logits) as usize] += 1;
        }
        counts
    }

    #[test]
    fn draws_follow_the_distribution() {
        let logits: Vec<f32> = [0.5f32, 0.3, 0.2].iter().map(|p| p.ln()).collect();
        let counts = draws(
            &SamplerConfig {
                temperature: 1.0,
                seed: 7,
                ..Default::default()
            },
            &logits,
            20_000,
        );
        for (count, p) in counts.iter().zip([0.5, 0.3, 0.2]) {
            // Five standard deviations of a binomial share.
            assert!((*count as f64 / 20_000.0 - p).abs() < 0.018, "{counts:?}");
        }
    }

    #[test]
    fn filters_keep_what_they_say() {
        let logits: Vec<f32> = [0.4f32, 0.3, 0.2, 0.1].iter().map(|p| p.ln()).collect();
        let kept = |config: SamplerConfig| {
            draws(
                &SamplerConfig {
                    temperature: 1.0,
                    ..config
                },
                &logits,
                2000,
            )
            .iter()
            .filter(|&&c| c > 0)
            .count()
        };
        assert_eq!(kept(SamplerConfig::default()), 4);
        assert_eq!(
            kept(SamplerConfig {
                top_k: 2,
                ..Default::default()
            }),
            2
        );
        assert_eq!(
            kept(SamplerConfig {
                top_p: 0.65,
                ..Default::default()
            }),
            2
        );
        assert_eq!(
            kept(SamplerConfig {
                min_p: 0.45,
                ..Default::default()
            }),
            3
        );
    }

    proptest! {
        #[test]
        fn ranks_are_those_of_a_full_sort(
            logits in prop::collection::vec((-20i8..20).prop_map(f64::from), 1..400), looks in prop::collection::vec(0usize..400, 1..6),
            most in 1usize..400,
        ) {
            let mut sorted: Vec<(usize, f64)> = logits.iter().copied().enumerate().collect();
            sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            let mut ranked = Ranked::new(logits.iter().copied());
            for &i in &looks {
                prop_assert_eq!(ranked.get(i), sorted.get(i).copied());
            }
            ranked.truncate(most);
            sorted.truncate(most);
            for i in looks {
                prop_assert_eq!(ranked.get(i), sorted.get(i).copied());
            }
        }

        #[test]
        fn greedy_is_the_first_maximum_and_same_seed_same_draws(logits in prop::collection::vec(-5f32..5.0, 1..30), seed: u64) {
            let best = (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
            prop_assert_eq!(Sampler::new(SamplerConfig::default(), &[]).next(&logits) as usize, best);
            let config = SamplerConfig { temperature: 0.9, top_p: 0.9, seed, ..Default::default() };
            prop_assert_eq!(draws(&config, &logits, 10), draws(&config, &logits, 10));
        }
    }
}
