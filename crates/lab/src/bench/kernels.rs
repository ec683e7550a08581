//! Matrix products at the sizes other programs are quoted at.

use super::{BenchRow, rates};
use half::bf16;
use ounce_kernels::{Data, Gemm, Mat, Philox, gemm};
use ounce_tensor::{Compute, Result, Tensor, ops};

fn matrix(rows: usize, cols: usize, seed: u64) -> Result<Tensor> {
    let values = (0..rows * cols)
        .map(|i| Philox::uniform(seed, 0, 0, i as u64) as f32 - 0.5)
        .collect();
    Tensor::new(values, &[rows, cols])
}

fn half_matrix(rows: usize, cols: usize, seed: u64) -> Result<Tensor> {
    let values: Vec<bf16> = matrix(rows, cols, seed)?
        .to_f32()
        .into_iter()
        .map(bf16::from_f32)
        .collect();
    Tensor::new(values, &[rows, cols])
}

/// x Wᵀ of two bf16 matrices `[n, n]`, by the kernel itself: activations of models are f32, so no operation takes bf16.
fn bf16_product(n: usize) -> Result<impl FnMut() -> Result<()>> {
    let values =
        |seed| -> Result<Vec<bf16>> { Ok(matrix(n, n, seed)?.to_f32().into_iter().map(bf16::from_f32).collect()) };
    let (x, w) = (values(1)?, values(2)?);
    let mut y = vec![0.0f32; n * n];
    Ok(move || {
        let a = Mat {
            data: Data::Bf16(&x),
            row_stride: n,
            col_stride: 1,
        };
        let b = Mat {
            data: Data::Bf16(&w),
            row_stride: 1,
            col_stride: n,
        };
        gemm(
            &mut [Gemm {
                m: n,
                n,
                k: n,
                a,
                b,
                c: &mut y,
                ldc: n,
                accumulate: false,
            }],
            Compute::Bf16,
        );
        Ok(())
    })
}

/// `gemm_f32_2048`, `gemm_bf16_2048` and `gemm_bf16_from_f32_2048` (x Wᵀ, GFLOP/s; in the last two W is bf16, x bf16 or f32,
/// the result f32), and `gemv_bf16_4096x11008` (GB/s of weights).
///
/// # Errors
/// Never in practice; shapes are fixed.
pub fn kernels(runs: usize) -> Result<Vec<BenchRow>> {
    const N: usize = 2048;
    let flops = 2.0 * (N as f64).powi(3) / 1e9;
    let x = matrix(N, N, 1)?;
    let w = matrix(N, N, 2)?;
    let w16 = half_matrix(N, N, 2)?;
    let v = matrix(1, 4096, 3)?;
    let tall = half_matrix(11008, 4096, 4)?;
    let gigabytes = (tall.numel() * 2) as f64 / 1e9;
    Ok(vec![
        BenchRow::new(
            "gemm_f32_2048",
            "GFLOP/s",
            rates(runs, flops, || ops::linear(&x, &w, Compute::F32).map(drop))?,
        ),
        BenchRow::new("gemm_bf16_2048", "GFLOP/s", rates(runs, flops, bf16_product(N)?)?),
        BenchRow::new(
            "gemm_bf16_from_f32_2048",
            "GFLOP/s",
            rates(runs, flops, || ops::linear(&x, &w16, Compute::Bf16).map(drop))?,
        ),
        BenchRow::new(
            "gemv_bf16_4096x11008",
            "GB/s",
            rates(runs.max(15), gigabytes, || {
                ops::linear(&v, &tall, Compute::F32).map(drop)
            })?,
        ),
    ])
}
