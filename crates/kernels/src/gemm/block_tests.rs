//! Products with weights in blocks: the bits of the same product with the weights widened before.

use super::{Compute, Data, Gemm, Mat, gemm};
use crate::{BlockKind, Blocks, blocks::widen_blocks, supported, test_support::noise, with_isa, with_threads};

/// Blocks of any bytes whose scales are small numbers.
fn blocks(kind: BlockKind, values: usize, seed: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..kind.byte_len(values).unwrap())
        .map(|i| (i * 131 + seed * 29 + i / 7) as u8)
        .collect();
    for block in bytes.chunks_exact_mut(kind.bytes()) {
        let scales: &[usize] = match kind {
            BlockKind::Q6K => &[208],
            BlockKind::Q4_0 | BlockKind::Q5_0 | BlockKind::Q8_0 => &[0],
            _ => &[0, 2],
        };
        for &at in scales {
            block[at + 1] = 0x24 | block[at + 1] & 0x80;
        }
    }
    bytes
}

fn product(w: Data<'_>, x: &[f32], [m, n, k]: [usize; 3], back: bool, compute: Compute) -> Vec<f32> {
    let mut c = vec![0.0; m * n];
    let a = Mat {
        data: Data::F32(x),
        row_stride: k,
        col_stride: 1,
    };
    // Forwards W is [n, k], and b its transpose; backwards (a gradient) it is [k, n], and b as it lies.
    let (row_stride, col_stride) = if back { (n, 1) } else { (1, k) };
    let b = Mat {
        data: w,
        row_stride,
        col_stride,
    };
    gemm(
        &mut [Gemm {
            m,
            n,
            k,
            a,
            b,
            c: &mut c,
            ldc: n,
            accumulate: false,
        }],
        compute,
    );
    c
}

#[test]
fn blocks_multiply_as_their_widened_copy() {
    for kind in BlockKind::ALL {
        for (i, [m, n, k]) in [[1, 37, 768], [3, 100, 256], [20, 70, 512], [70, 40, 768]]
            .into_iter()
            .enumerate()
        {
            for back in [false, true] {
                let [n, k] = if back { [k, n] } else { [n, k] };
                let bytes = blocks(kind, n * k, i);
                let mut wide = vec![0.0; n * k];
                widen_blocks(kind, &bytes, &mut wide);
                let x = noise(m * k, 3);
                for isa in supported() {
                    for compute in [Compute::F32, Compute::Bf16] {
                        for threads in [1, 2] {
                            let run = |w| {
                                with_isa(isa, || {
                                    with_threads(threads, || product(w, &x, [m, n, k], back, compute))
                                })
                            };
                            let (ours, wanted) = (run(Data::Blocks(Blocks::new(kind, &bytes))), run(Data::F32(&wide)));
                            assert!(
                                ours == wanted,
                                "{kind:?} {:?} {back} {isa:?} {compute:?} {threads}",
                                [m, n, k]
                            );
                            assert!(ours.iter().any(|&y| y != 0.0) && ours.iter().all(|y| y.is_finite()));
                        }
                    }
                }
            }
        }
    }
}
