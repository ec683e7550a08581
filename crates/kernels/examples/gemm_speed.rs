//! Prints the speed of matrix products on this machine: `cargo run --release --example gemm_speed [runs]`.
//!
//! The shapes are those of a small language model in training (tokens x width) and in decoding. Each figure is the best
//! of `runs` (default 5), on one thread and on two.

use half::bf16;
use ounce_kernels::{Compute, Data, Gemm, Mat, gemm, isa, with_threads};
use std::time::Instant;

/// Row-major, or column by column (`x Wᵀ` and gradients).
#[derive(Clone, Copy)]
enum Order {
    Rows,
    Cols,
}
use Order::{Cols, Rows};

struct Shape {
    name: &'static str,
    m: usize,
    n: usize,
    k: usize,
    a: Order,
    b: Order,
    bf16_b: bool,
    groups: usize,
}

fn shape(name: &'static str, m: usize, n: usize, k: usize, a: Order, b: Order) -> Shape {
    Shape {
        name,
        m,
        n,
        k,
        a,
        b,
        bf16_b: false,
        groups: 1,
    }
}

fn noise(len: usize) -> Vec<f32> {
    (0..len as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0)
        .collect()
}

fn mat(data: Data<'_>, rows: usize, cols: usize, order: Order) -> Mat<'_> {
    let (row_stride, col_stride) = match order {
        Rows => (cols, 1),
        Cols => (1, rows),
    };
    Mat {
        data,
        row_stride,
        col_stride,
    }
}

/// Best seconds of `runs`.
fn best(s: &Shape, compute: Compute, threads: usize, runs: usize) -> f64 {
    let (a, b) = (noise(s.m * s.k), noise(s.k * s.n));
    let narrow: Vec<bf16> = b.iter().map(|&x| bf16::from_f32(x)).collect();
    let mut c = vec![vec![0.0f32; s.m * s.n]; s.groups];
    let mut least = f64::INFINITY;
    for _ in 0..=runs {
        let start = Instant::now();
        let mut problems: Vec<_> = c
            .iter_mut()
            .map(|c| Gemm {
                m: s.m,
                n: s.n,
                k: s.k,
                a: mat(Data::F32(&a), s.m, s.k, s.a),
                b: mat(
                    if s.bf16_b { Data::Bf16(&narrow) } else { Data::F32(&b) },
                    s.k,
                    s.n,
                    s.b,
                ),
                c: c.as_mut_slice(),
                ldc: s.n,
                accumulate: false,
            })
            .collect();
        with_threads(threads, || gemm(&mut problems, compute));
        least = least.min(start.elapsed().as_secs_f64());
    }
    least
}

#[allow(clippy::print_stdout)]
fn main() {
    let runs = std::env::args().nth(1).and_then(|x| x.parse().ok()).unwrap_or(5);
    let shapes = [
        shape("forward 4096 x 256 x 256", 4096, 256, 256, Rows, Cols),
        shape("forward 4096 x 1024 x 256", 4096, 1024, 256, Rows, Cols),
        shape("forward 4096 x 256 x 1024", 4096, 256, 1024, Rows, Cols),
        shape("forward 4096 x 4096 x 256", 4096, 4096, 256, Rows, Cols),
        shape("input gradient 4096 x 256 x 256", 4096, 256, 256, Rows, Rows),
        shape("input gradient 4096 x 256 x 1024", 4096, 256, 1024, Rows, Rows),
        shape("input gradient 4096 x 1024 x 256", 4096, 1024, 256, Rows, Rows),
        shape("weight gradient 256 x 256 x 4096", 256, 256, 4096, Cols, Rows),
        shape("weight gradient 1024 x 256 x 4096", 1024, 256, 4096, Cols, Rows),
        shape("weight gradient 256 x 1024 x 4096", 256, 1024, 4096, Cols, Rows),
        Shape {
            groups: 8,
            ..shape("8 experts 100 x 512 x 256", 100, 512, 256, Rows, Cols)
        },
        Shape {
            groups: 8,
            ..shape("8 experts 1000 x 256 x 512", 1000, 256, 512, Rows, Cols)
        },
        shape("square 2048", 2048, 2048, 2048, Rows, Cols),
        shape("square 2048, no transpose", 2048, 2048, 2048, Rows, Rows),
        Shape {
            bf16_b: true,
            ..shape("prefill 512 x 4096 x 1024, bf16 W", 512, 4096, 1024, Rows, Cols)
        },
        Shape {
            bf16_b: true,
            ..shape("16 x 4096 x 1024, bf16 W", 16, 4096, 1024, Rows, Cols)
        },
        Shape {
            bf16_b: true,
            ..shape("32 x 4096 x 1024, bf16 W", 32, 4096, 1024, Rows, Cols)
        },
    ];
    println!("{}, best of {runs}, GFLOP/s", isa().name());
    println!(
        "{:36} {:>8} {:>8} {:>9} {:>9}",
        "", "f32 x1", "f32 x2", "bf16 x1", "bf16 x2"
    );
    for s in &shapes {
        let flops = 2e-9 * (s.groups * s.m * s.n * s.k) as f64;
        let [a, b] = [1, 2].map(|t| flops / best(s, Compute::F32, t, runs));
        let [c, d] = [1, 2].map(|t| flops / best(s, Compute::Bf16, t, runs));
        println!("{:36} {a:8.1} {b:8.1} {c:9.1} {d:9.1}", s.name);
    }
    println!("\nfew rows, GB/s of weights");
    println!(
        "{:36} {:>8} {:>8} {:>9} {:>9}",
        "", "f32 x1", "f32 x2", "bf16 x1", "bf16 x2"
    );
    for (m, n, k) in [
        (1, 4096, 11008),
        (4, 4096, 11008),
        (8, 4096, 11008),
        (1, 1024, 256),
        (1, 256, 1024),
    ] {
        let mut s = shape("", m, n, k, Rows, Cols);
        let bytes = 4e-9 * (n * k) as f64;
        let [a, b] = [1, 2].map(|t| bytes / best(&s, Compute::F32, t, runs));
        s.bf16_b = true;
        let [c, d] = [1, 2].map(|t| bytes / 2.0 / best(&s, Compute::Bf16, t, runs));
        println!("{:36} {a:8.1} {b:8.1} {c:9.1} {d:9.1}", format!("{m} x {n} x {k}"));
    }
}
