//! Rotary position tables: default, linear, dynamic, llama3, longrope, yarn and proportional frequencies.
//!
//! Sources: RoFormer (Su et al. 2021) for the default, the Llama 3.1 release for `llama3`, YaRN (Peng et al. 2023,
//! sections 3.2 and 3.4) for `yarn`, LongRoPE (Ding et al. 2024) for `longrope`, transformers for what the keys mean.
//! Frequencies and angles are computed in f64; the tables hold f32.
//!
//! Those of `dynamic` and `longrope` depend on how long the sequence is when a token is computed, and keys in a cache stay
//! as they were rotated, as in the reference. The reference takes the longest sequence of a call and remembers it; here
//! each sequence counts for itself.

use crate::{
    config::{RopeConfig, RopeScaling},
    error::Result,
};
use ounce_tensor::Tensor;
use std::f64::consts::PI;

/// Inverse frequencies `[hd/2]` and the factor on cosines and sines.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeTable {
    frequencies: Frequencies,
    attention_factor: f64,
}

#[derive(Debug, Clone, PartialEq)]
enum Frequencies {
    Fixed(Vec<f64>),
    /// Base, factor, trained length and width of a head.
    Dynamic(f64, f64, f64, usize),
    /// Up to a length, and beyond it.
    Switched(Vec<f64>, Vec<f64>, f64),
}

impl RopeTable {
    /// The frequencies of a configuration for heads of `head_dim`.
    pub fn new(config: &RopeConfig, head_dim: usize) -> Self {
        let theta = config.theta;
        let plain = plain(theta, head_dim);
        let fixed = |frequencies: Vec<f64>| (Frequencies::Fixed(frequencies), 1.0);
        let (frequencies, attention_factor) = match &config.scaling {
            RopeScaling::Default => fixed(plain),
            RopeScaling::Linear { factor } => fixed(plain.iter().map(|f| f / factor).collect()),
            RopeScaling::Dynamic { factor, max_positions } => {
                (Frequencies::Dynamic(theta, *factor, *max_positions, head_dim), 1.0)
            }
            RopeScaling::Proportional { factor, rotated } => {
                let part = |(i, f): (usize, &f64)| if i < *rotated { f / factor } else { 0.0 };
                fixed(plain.iter().enumerate().map(part).collect())
            }
            RopeScaling::LongRope {
                short,
                long,
                original_positions,
                attention_factor,
            } => {
                let over = |factors: &[f64]| plain.iter().zip(factors).map(|(f, by)| f / by).collect();
                let switched = Frequencies::Switched(over(short), over(long), *original_positions);
                (switched, *attention_factor)
            }
            RopeScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_positions: original,
            } => {
                // In the reference's order: it counts where the two bounds cross.
                let scaled = |f: &f64| {
                    let wavelength = 2.0 * PI / f;
                    if wavelength > original / low {
                        f / factor
                    } else if wavelength < original / high {
                        *f
                    } else {
                        let smooth = (original / wavelength - low) / (high - low);
                        (1.0 - smooth) * f / factor + smooth * f
                    }
                };
                fixed(plain.iter().map(scaled).collect())
            }
            RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                original_positions,
                attention_factor,
                truncate,
            } => {
                let dim = head_dim as f64;
                let correction =
                    |rotations: f64| dim * (original_positions / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln());
                let (mut low, mut high) = (correction(*beta_fast), correction(*beta_slow));
                if *truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(dim - 1.0));
                if low == high {
                    high += 0.001;
                }
                let blend = |(i, f): (usize, &f64)| {
                    let extrapolate = 1.0 - ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    f / factor * (1.0 - extrapolate) + f * extrapolate
                };
                let blended = plain.iter().enumerate().map(blend).collect();
                (Frequencies::Fixed(blended), *attention_factor)
            }
        };
        Self {
            frequencies,
            attention_factor,
        }
    }

    /// Do the tables depend on the length of the sequence? Then a prompt is not the same read in pieces.
    pub fn follows_length(&self) -> bool {
        !matches!(self.frequencies, Frequencies::Fixed(_))
    }

    /// Inverse frequencies `[hd/2]` in a sequence of `length` tokens.
    pub fn frequencies(&self, length: usize) -> Vec<f64> {
        match &self.frequencies {
            Frequencies::Fixed(frequencies) => frequencies.clone(),
            Frequencies::Dynamic(theta, factor, max, head_dim) => {
                let (length, dim) = ((length as f64).max(*max), *head_dim as f64);
                let stretch = factor * length / max - (factor - 1.0);
                plain(theta * stretch.powf(dim / (dim - 2.0)), *head_dim)
            }
            Frequencies::Switched(short, _, original) if length as f64 <= *original => short.clone(),
            Frequencies::Switched(_, long, _) => long.clone(),
        }
    }

    /// The factor on cosines and sines.
    pub fn attention_factor(&self) -> f64 {
        self.attention_factor
    }

    /// Cosines and sines `[N, hd/2]` of tokens, each with its position and the length that its sequence has with all tokens
    /// of the call.
    ///
    /// # Errors
    /// If there is no memory for them.
    pub fn tables(&self, tokens: impl IntoIterator<Item = (usize, usize)>) -> Result<(Tensor, Tensor)> {
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        let mut of: Option<(usize, Vec<f64>)> = None;
        let (mut count, mut half) = (0, self.frequencies(0).len());
        for (position, length) in tokens {
            let fits = of.as_ref().is_some_and(|(l, _)| *l == length || !self.follows_length());
            if !fits {
                of = Some((length, self.frequencies(length)));
            }
            let frequencies = of.as_ref().map_or(&[][..], |(_, f)| f);
            half = frequencies.len();
            count += 1;
            for &f in frequencies {
                let (s, c) = (position as f64 * f).sin_cos();
                cos.push((c * self.attention_factor) as f32);
                sin.push((s * self.attention_factor) as f32);
            }
        }
        let dims = [count, half];
        Ok((Tensor::new(cos, &dims)?, Tensor::new(sin, &dims)?))
    }
}

fn plain(theta: f64, head_dim: usize) -> Vec<f64> {
    let dim = head_dim as f64;
    (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / dim)).collect()
}
