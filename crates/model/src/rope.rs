//! Rotary position tables: default, linear, llama3 and yarn frequencies.
//!
//! Sources: RoFormer (Su et al. 2021) for the default, the Llama 3.1 release for `llama3`, YaRN (Peng et al. 2023,
//! sections 3.2 and 3.4) for `yarn`. Frequencies and angles are computed in f64; the tables hold f32.

use crate::{config::RopeConfig, error::Result};
use ounce_tensor::Tensor;
use std::f64::consts::PI;

/// Inverse frequencies `[hd/2]` and the factor on cosines and sines.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeTable {
    inv_freq: Vec<f64>,
    attention_factor: f64,
}

impl RopeTable {
    /// The frequencies of a configuration for heads of `head_dim`.
    pub fn new(config: &RopeConfig, head_dim: usize) -> Self {
        let theta = config.theta;
        let dim = head_dim as f64;
        let plain: Vec<f64> = (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / dim)).collect();
        match config.scaling {
            crate::config::RopeScaling::Default => Self {
                inv_freq: plain,
                attention_factor: 1.0,
            },
            crate::config::RopeScaling::Linear { factor } => Self {
                inv_freq: plain.iter().map(|f| f / factor).collect(),
                attention_factor: 1.0,
            },
            crate::config::RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_positions,
            } => {
                let scaled = |f: &f64| {
                    let wavelength = 2.0 * PI / f;
                    if wavelength < original_positions / high_freq_factor {
                        *f
                    } else if wavelength > original_positions / low_freq_factor {
                        f / factor
                    } else {
                        let smooth =
                            (original_positions / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        (1.0 - smooth) * f / factor + smooth * f
                    }
                };
                Self {
                    inv_freq: plain.iter().map(scaled).collect(),
                    attention_factor: 1.0,
                }
            }
            crate::config::RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                original_positions,
                attention_factor,
                truncate,
            } => {
                let correction =
                    |rotations: f64| dim * (original_positions / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln());
                let (mut low, mut high) = (correction(beta_fast), correction(beta_slow));
                if truncate {
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
                Self {
                    inv_freq: plain.iter().enumerate().map(blend).collect(),
                    attention_factor,
                }
            }
        }
    }

    /// Cosines and sines `[positions, hd/2]` of the given positions.
    ///
    /// # Errors
    /// Never in practice; the shapes are right by construction.
    pub fn tables(&self, positions: &[usize]) -> Result<(Tensor, Tensor)> {
        let half = self.inv_freq.len();
        let mut cos = Vec::with_capacity(positions.len() * half);
        let mut sin = Vec::with_capacity(positions.len() * half);
        for &p in positions {
            for &f in &self.inv_freq {
                let (s, c) = (p as f64 * f).sin_cos();
                cos.push((c * self.attention_factor) as f32);
                sin.push((s * self.attention_factor) as f32);
            }
        }
        let dims = [positions.len(), half];
        Ok((Tensor::new(cos, &dims)?, Tensor::new(sin, &dims)?))
    }
}
