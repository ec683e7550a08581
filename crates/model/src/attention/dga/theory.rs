//! What the paper proves of grouping, as properties of the groups that are made here.
//!
//! It reads attention as coding: an output is a combination of value vectors, and grouping ties the coefficients of a
//! group's members. So (a) noise on scores moves a member's coefficient m times less than that of a token on its own, its
//! variance m² times less; (b) the least-squares problem of the coefficients is not worse conditioned than before.

use super::{
    DgaConfig, Shape,
    grouped::{Head, heads, outputs},
};
use ounce_kernels::Philox;
use ounce_tensor::{Tensor, ops::RowSpan};
use proptest::prelude::*;

fn normal(n: usize, seed: u64) -> Vec<f64> {
    (0..n).map(|i| Philox::normal(seed, 12, 0, i as u64)).collect()
}

/// One head over tokens with the given queries, keys and values `[len, hd]`.
fn head(qkv: [Vec<f64>; 3], len: usize, dga: &DgaConfig) -> (Vec<Head<f64>>, Shape, [RowSpan; 1]) {
    let hd = qkv[0].len() / len;
    let shape = Shape {
        batch: 1,
        len,
        heads: 1,
        kv_heads: 1,
        head_dim: hd,
        scale: 0.7,
    };
    let span = [RowSpan {
        q_start: 0,
        kv_begin: 0,
        kv_len: len,
    }];
    let [q, k, v] = qkv.map(|values| Tensor::new(values, &[1, len, 1, hd]).unwrap());
    (heads(&q, &k, &v, &shape, &span, dga).unwrap(), shape, span)
}

fn dga(group_size: usize, focal_ratio: f64) -> DgaConfig {
    DgaConfig {
        min_len: 0,
        ..DgaConfig::new(group_size, focal_ratio)
    }
}

/// Coefficients of all tokens in the last query's output, with `noise` on the scores of what it sees: groups, or tokens if
/// there is no group. Keys are equal and values are the unit vectors, so that the output is the coefficients.
fn coefficients(len: usize, config: &DgaConfig, noise: &[f64]) -> Vec<f64> {
    let mut units = vec![0.0; len * len];
    for t in 0..len {
        units[t * len + t] = 1.0;
    }
    let (mut made, shape, span) = head([normal(len * len, 1), vec![0.0; len * len], units], len, config);
    let groups = made[0].layout.groups.len();
    let first = if groups > 0 { len } else { 0 };
    assert_eq!(if groups > 0 { groups } else { len }, noise.len());
    for (bias, noise) in made[0].bias[first..].iter_mut().zip(noise) {
        *bias += noise;
    }
    outputs(&made, &shape, &span)[(len - 1) * len..].to_vec()
}

/// Eigenvalues of a symmetric matrix `[n, n]`, ascending, by Jacobi's rotations.
fn eigenvalues(mut a: Vec<f64>, n: usize) -> Vec<f64> {
    for _ in 0..60 {
        for p in 0..n {
            for q in p + 1..n {
                if a[p * n + q].abs() < 1e-300 {
                    continue;
                }
                let theta = (a[q * n + q] - a[p * n + p]) / (2.0 * a[p * n + q]);
                let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
                let c = 1.0 / (t * t + 1.0).sqrt();
                let s = t * c;
                for k in 0..n {
                    let (x, y) = (a[k * n + p], a[k * n + q]);
                    (a[k * n + p], a[k * n + q]) = (c * x - s * y, s * x + c * y);
                }
                for k in 0..n {
                    let (x, y) = (a[p * n + k], a[q * n + k]);
                    (a[p * n + k], a[q * n + k]) = (c * x - s * y, s * x + c * y);
                }
            }
        }
    }
    let mut values: Vec<f64> = (0..n).map(|i| a[i * n + i]).collect();
    values.sort_by(f64::total_cmp);
    values
}

/// `X Xᵀ` of rows `[n, d]`.
fn gram(rows: &[Vec<f64>]) -> Vec<f64> {
    let products = rows.iter().flat_map(|a| rows.iter().map(move |b| (a, b)));
    products
        .map(|(a, b)| a.iter().zip(b).map(|(x, y)| x * y).sum())
        .collect()
}

#[test]
fn the_eigenvalues_of_the_test_are_eigenvalues() {
    let found = eigenvalues(vec![2.0, 1.0, 0.0, 1.0, 2.0, 0.0, 0.0, 0.0, 5.0], 3);
    for (a, b) in found.iter().zip([1.0, 3.0, 5.0]) {
        assert!((a - b).abs() < 1e-12, "{found:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// (a): as many units under the same noise, single tokens against groups of m.
    #[test]
    fn noise_on_scores_moves_a_member_m_squared_times_less(units in 2usize..7, m in 2usize..9, sigma in 0.01f64..0.5,
        seed in 0u64..1000) {
        const DRAWS: u64 = 40;
        let variance = |len: usize, config: &DgaConfig| {
            let calm = coefficients(len, config, &vec![0.0; units]);
            let moved = (0..DRAWS).map(|draw| {
                let noise: Vec<f64> = normal(units, seed * DRAWS + draw).iter().map(|x| sigma * x).collect();
                let noisy = coefficients(len, config, &noise);
                noisy.iter().zip(&calm).map(|(a, b)| (a - b) * (a - b)).sum::<f64>() / len as f64
            });
            moved.sum::<f64>() / DRAWS as f64
        };
        let single = variance(units, &dga(1, 1.0));
        let grouped = variance(units * m, &dga(m, 0.0));
        prop_assert!(single > 1e-9);
        let ratio = single / grouped;
        prop_assert!((ratio / (m * m) as f64 - 1.0).abs() < 1e-9, "{} for m = {}", ratio, m);
    }

    /// (b): rows of the grouping, scaled to length 1, are orthonormal because no token is in two units; so by Cauchy's
    /// interlacing the spectrum of the smaller problem lies within that of the larger one.
    #[test]
    fn grouping_never_worsens_the_condition(len in 4usize..15, m in 2usize..5, gamma in 0.0f64..0.6, seed in 0u64..1000) {
        let hd = 20;
        let qkv = [1, 2, 3].map(|part| normal(len * hd, 10 * seed + part));
        let values = qkv[2].clone();
        let (made, ..) = head(qkv, len, &dga(m, gamma));
        let row = |t: usize| values[t * hd..(t + 1) * hd].to_vec();
        let mut seen = Vec::new();
        made[0].layout.visible(len - 1, &mut seen);
        let mut members = 0;
        let units: Vec<Vec<f64>> = seen.iter().map(|&unit| {
            let Some(j) = unit.checked_sub(len) else {
                members += 1;
                return row(unit);
            };
            members += made[0].layout.groups[j].members.len();
            // The pair's value is w V; w scaled to length 1 is a row of the grouping.
            let length = made[0].pairs[j].weights.iter().map(|w| w * w).sum::<f64>().sqrt();
            made[0].group_values()[j * hd..(j + 1) * hd].iter().map(|x| x / length).collect()
        }).collect();
        prop_assert_eq!(members, len);
        let all: Vec<Vec<f64>> = (0..len).map(row).collect();
        let (before, after) = (eigenvalues(gram(&all), len), eigenvalues(gram(&units), units.len()));
        let condition = |e: &[f64]| e[e.len() - 1] / e[0];
        prop_assert!(before[0] > 1e-6, "independent values");
        prop_assert!(condition(&after) <= condition(&before) * (1.0 + 1e-9));
        prop_assert!(after[0] >= before[0] * (1.0 - 1e-9) && after[after.len() - 1] <= before[len - 1] * (1.0 + 1e-9));
        if units.len() < len {
            prop_assert!(condition(&after) < condition(&before), "a smaller problem, strictly inside");
        }
    }
}
