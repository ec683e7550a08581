//! Matrix products as the textbook writes them: the path of f64, and the oracle of the tests.

use super::{Compute, Gemm};
use crate::float::Float;
use half::bf16;

/// One product. Sums in f64 and rounds once, so that for f32 it is more exact than what it checks.
pub(crate) fn gemm<T: Float>(p: &mut Gemm<'_, T>, compute: Compute) {
    let round = |x: f64| match compute {
        Compute::F32 | Compute::F32Rows => x,
        // Through f32, as the fast paths do; the direct conversion takes some values near a tie for the tie.
        Compute::Bf16 => bf16::from_f32(x as f32).to_f64(),
    };
    for i in 0..p.m {
        for j in 0..p.n {
            let sum: f64 = (0..p.k).map(|l| round(p.a.at(i, l)) * round(p.b.at(l, j))).sum();
            let c = &mut p.c[i * p.ldc + j];
            *c = T::from_f64(if p.accumulate { c.to_f64() + sum } else { sum });
        }
    }
}
