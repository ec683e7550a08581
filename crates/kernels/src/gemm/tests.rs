//! Every path against the plain loops: shapes, strides, storage types, accumulation, groups, instruction sets, threads.

use super::*;
use crate::isa::{isa, supported, with_isa};
use crate::pool::with_threads;
use proptest::prelude::*;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Type {
    F32,
    Bf16,
    F16,
}

const TYPES: [Type; 3] = [Type::F32, Type::Bf16, Type::F16];

/// A matrix with storage of its own; `transposed` ones lie column by column. `pad` separates rows (or columns).
#[derive(Debug)]
struct Owned {
    f32: Vec<f32>,
    bf16: Vec<bf16>,
    f16: Vec<f16>,
    kind: Type,
    row_stride: usize,
    col_stride: usize,
}

fn noise(seed: u64) -> impl Iterator<Item = f32> {
    (0..).map(move |i: u64| {
        let mut x = (seed << 32 ^ i).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((x >> 40) as f32 / (1 << 23) as f32) - 1.0
    })
}

fn matrix(rows: usize, cols: usize, transposed: bool, pad: usize, kind: Type, seed: u64) -> Owned {
    let (row_stride, col_stride) = if transposed { (1, rows + pad) } else { (cols + pad, 1) };
    // No element more than the shape needs: a read past the end is a read past the allocation.
    let len = if rows == 0 || cols == 0 {
        0
    } else {
        (rows - 1) * row_stride + (cols - 1) * col_stride + 1
    };
    let f32: Vec<f32> = noise(seed).take(len).collect();
    let bf16 = f32.iter().map(|&x| bf16::from_f32(x)).collect();
    let f16 = f32.iter().map(|&x| f16::from_f32(x)).collect();
    Owned {
        f32,
        bf16,
        f16,
        kind,
        row_stride,
        col_stride,
    }
}

impl Owned {
    fn mat(&self) -> Mat<'_> {
        let data = match self.kind {
            Type::F32 => Data::F32(&self.f32),
            Type::Bf16 => Data::Bf16(&self.bf16),
            Type::F16 => Data::F16(&self.f16),
        };
        Mat {
            data,
            row_stride: self.row_stride,
            col_stride: self.col_stride,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Case {
    m: usize,
    n: usize,
    k: usize,
    at: bool,
    bt: bool,
    a_type: Type,
    b_type: Type,
    pad: usize,
    accumulate: bool,
}

impl Case {
    fn plain(m: usize, n: usize, k: usize, at: bool, bt: bool) -> Self {
        Self {
            m,
            n,
            k,
            at,
            bt,
            a_type: Type::F32,
            b_type: Type::F32,
            pad: 0,
            accumulate: false,
        }
    }
}

/// Values of the gaps between the rows of C, which must survive.
const GAP: f32 = 1234.5;

/// Runs all cases as one group and gives all results.
fn compute(cases: &[Case], compute: Compute, path: Option<Path>, oracle: bool) -> Vec<Vec<f32>> {
    let inputs: Vec<_> = cases
        .iter()
        .map(|c| {
            let a = matrix(c.m, c.k, c.at, c.pad, c.a_type, 1);
            (a, matrix(c.k, c.n, c.bt, c.pad, c.b_type, 2))
        })
        .collect();
    let mut results: Vec<Vec<f32>> = cases
        .iter()
        .map(|c| {
            let mut rows = noise(3).take(c.m * (c.n + c.pad)).collect::<Vec<_>>();
            rows.iter_mut()
                .enumerate()
                .filter(|(i, _)| i % (c.n + c.pad) >= c.n)
                .for_each(|(_, x)| *x = GAP);
            rows
        })
        .collect();
    let mut problems: Vec<_> = cases
        .iter()
        .zip(&inputs)
        .zip(&mut results)
        .map(|((c, (a, b)), out)| Gemm {
            m: c.m,
            n: c.n,
            k: c.k,
            a: a.mat(),
            b: b.mat(),
            c: out.as_mut_slice(),
            ldc: c.n + c.pad,
            accumulate: c.accumulate,
        })
        .collect();
    match (oracle, path) {
        (true, _) => problems.iter_mut().for_each(|p| reference::gemm(p, compute)),
        (false, Some(path)) => gemm_as(&mut problems, compute, path),
        (false, None) => gemm(&mut problems, compute),
    }
    results
}

/// All instruction sets, one and two threads, both arithmetics, pairs of bf16 (emulated where the CPU lacks them).
fn check(cases: &[Case]) {
    let modes = [
        (Compute::F32, None),
        (Compute::Bf16, None),
        (Compute::Bf16, Some(Path::Vectors(Form::Pairs))),
    ];
    for (arithmetic, path) in modes {
        let want = compute(cases, arithmetic, path, true);
        for set in supported() {
            let run = |threads| {
                with_isa(set, || {
                    with_threads(threads, || compute(cases, arithmetic, path, false))
                })
            };
            let got = run(1);
            assert_eq!(bits(&got), bits(&run(2)), "threads change bits: {set:?} {cases:?}");
            for ((case, want), got) in cases.iter().zip(&want).zip(&got) {
                // Inputs are below 1: k products and k roundings of partial sums that stay near sqrt(k).
                let bound = 2e-7 * (1.0 + case.k as f32).sqrt() * (8.0 + (case.k as f32).sqrt());
                for (i, (w, g)) in want.iter().zip(got).enumerate() {
                    assert!(
                        (w - g).abs() <= bound,
                        "{set:?} {path:?} {case:?}: [{i}] is {g}, not {w} ± {bound}"
                    );
                }
            }
        }
    }
}

fn bits(x: &[Vec<f32>]) -> Vec<Vec<u32>> {
    x.iter().map(|x| x.iter().map(|x| x.to_bits()).collect()).collect()
}

#[test]
fn all_orientations_of_edge_shapes() {
    for (m, n, k) in [
        (0, 5, 3),
        (5, 0, 3),
        (1, 1, 1),
        (1, 1, 0),
        (13, 33, 0),
        (1, 40, 65),
        (40, 1, 65),
        (6, 16, 8),
        (7, 17, 9),
        (14, 32, 16),
        (29, 63, 31),
        (13, 31, 257),
        (97, 35, 513),
        (50, 520, 20),
    ] {
        for (at, bt) in [(false, false), (false, true), (true, false), (true, true)] {
            let plain = Case::plain(m, n, k, at, bt);
            check(&[
                plain,
                Case {
                    accumulate: true,
                    pad: 3,
                    ..plain
                },
            ]);
        }
    }
}

#[test]
fn all_storage_types() {
    for a_type in TYPES {
        for b_type in TYPES {
            for (at, bt) in [(false, false), (false, true), (true, false), (true, true)] {
                for (m, n, k) in [(3, 37, 70), (60, 37, 41)] {
                    check(&[Case {
                        a_type,
                        b_type,
                        pad: 1,
                        ..Case::plain(m, n, k, at, bt)
                    }]);
                }
            }
        }
    }
}

#[test]
fn few_rows_against_weights() {
    for m in 1..=9 {
        for b_type in TYPES {
            for n in [1, 7, 8, 43, 1003] {
                let case = Case {
                    b_type,
                    accumulate: n == 7,
                    ..Case::plain(m, n, 133, false, true)
                };
                check(&[case]);
            }
        }
    }
}

#[test]
fn rows_do_not_depend_on_the_rows_beside_them() {
    for set in supported() {
        with_isa(set, || {
            let all = compute(&[Case::plain(8, 50, 300, false, true)], Compute::F32, None, false).remove(0);
            for m in 1..8 {
                let few = compute(&[Case::plain(m, 50, 300, false, true)], Compute::F32, None, false).remove(0);
                assert_eq!(few, all[..m * 50]);
            }
        });
    }
}

#[test]
fn large_enough_for_several_tasks() {
    for (at, bt) in [(false, false), (false, true), (true, false), (true, true)] {
        check(&[Case::plain(210, 600, 270, at, bt)]);
    }
    // The shape of a weight's gradient.
    check(&[Case {
        accumulate: true,
        ..Case::plain(150, 70, 1100, true, false)
    }]);
}

#[test]
fn f64_takes_the_plain_path() {
    let a: Vec<f64> = (0..12).map(f64::from).collect();
    let mut c = [1.0; 4];
    let mat = |row_stride, col_stride| Mat {
        data: Data::F64(&a),
        row_stride,
        col_stride,
    };
    let (a, b) = (mat(3, 1), mat(1, 3));
    gemm(
        &mut [Gemm {
            m: 2,
            n: 2,
            k: 3,
            a,
            b,
            c: &mut c,
            ldc: 2,
            accumulate: true,
        }],
        Compute::F32,
    );
    assert_eq!(c, [6.0, 15.0, 15.0, 51.0]);
}

#[test]
fn infinities_and_nans_stay_where_they_are() {
    for set in supported() {
        with_isa(set, || {
            for m in [2, 20] {
                let (n, k) = (21, 19);
                let mut a: Vec<f32> = noise(5).take(m * k).collect();
                let b: Vec<f32> = noise(6).take(n * k).collect();
                a[k] = f32::NAN;
                let mut c = vec![0.0f32; m * n];
                let x = Mat {
                    data: Data::F32(&a),
                    row_stride: k,
                    col_stride: 1,
                };
                let w = Mat {
                    data: Data::F32(&b),
                    row_stride: 1,
                    col_stride: k,
                };
                gemm(
                    &mut [Gemm {
                        m,
                        n,
                        k,
                        a: x,
                        b: w,
                        c: &mut c,
                        ldc: n,
                        accumulate: false,
                    }],
                    Compute::F32,
                );
                assert!(
                    c.iter().enumerate().all(|(i, x)| x.is_nan() == (i / n == 1)),
                    "{}",
                    isa().name()
                );
            }
        });
    }
}

#[test]
#[should_panic(expected = "has only 5 elements")]
fn short_matrices_are_refused() {
    let (a, b, mut c) = ([0.0f32; 5], [0.0f32; 6], [0.0f32; 4]);
    let a = Mat {
        data: Data::F32(&a),
        row_stride: 3,
        col_stride: 1,
    };
    let b = Mat {
        data: Data::F32(&b),
        row_stride: 2,
        col_stride: 1,
    };
    gemm(
        &mut [Gemm {
            m: 2,
            n: 2,
            k: 3,
            a,
            b,
            c: &mut c,
            ldc: 2,
            accumulate: false,
        }],
        Compute::F32,
    );
}

fn any_case() -> impl Strategy<Value = Case> {
    let types = || prop::sample::select(&TYPES[..]);
    let shape = (
        0..70usize,
        0..90usize,
        prop_oneof![0..40usize, 250..300usize, 510..530usize],
    );
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    (shape, flags, types(), types(), 0..4usize).prop_map(|((m, n, k), (at, bt, accumulate), a_type, b_type, pad)| {
        Case {
            m,
            n,
            k,
            at,
            bt,
            a_type,
            b_type,
            pad,
            accumulate,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn groups_of_any_shapes_match_the_plain_loops(cases in prop::collection::vec(any_case(), 1..4)) {
        check(&cases);
    }
}
