//! Every kernel but products and attention: each instruction set against the plain loops in f64, one thread against
//! two bit by bit, at sizes around vectors, tasks and nothing.

use crate::{test_support::noise, *};
use half::{bf16, f16};

/// Sizes of flat buffers: nothing, tails, several tasks.
const SIZES: [usize; 7] = [0, 1, 7, 16, 37, 1000, 40_003];
/// (rows, row length): nothing, tails, several tasks, long rows.
const MATRICES: [(usize, usize); 8] = [
    (0, 5),
    (3, 1),
    (5, 7),
    (4, 64),
    (700, 50),
    (1300, 33),
    (2, 20_001),
    (9, 4096),
];

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// Inputs in `T`: the same numbers for f32 and f64.
fn cast<T: Float>(x: &[f32]) -> Vec<T> {
    x.iter().map(|&x| T::from_f64(f64::from(x))).collect()
}

/// Runs f32 code on every instruction set, with one thread and with two, against `want`.
fn check(name: &str, tolerance: f64, want: &[Vec<f64>], run: impl Fn() -> Vec<Vec<f32>>) {
    for isa in supported() {
        let [one, two] = [1, 2].map(|threads| with_threads(threads, || with_isa(isa, &run)));
        assert_eq!(one.len(), want.len(), "{name}");
        for (got, want) in one.iter().zip(want) {
            assert_eq!(got.len(), want.len(), "{name}");
            for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
                let near = (f64::from(got) - want).abs() <= tolerance * (1.0 + want.abs());
                assert!(near, "{name}[{i}] of {} on {isa:?}: {got} is not {want}", one[0].len());
            }
        }
        let bits = |x: &[Vec<f32>]| x.iter().flatten().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert!(
            bits(&one) == bits(&two),
            "{name}: two threads change the bits on {isa:?}"
        );
    }
}

/// `compare!(name, tolerance, |a, b, …: inputs| [lengths] => f(a, b, …, out…))`: f in f64 against f in f32.
macro_rules! compare {
    ($name:expr, $tolerance:expr, [$($x:ident = $value:expr),*], [$($y:ident = $start:expr),*], $call:expr) => {{
        fn run<T: Float>($($x: &[f32]),*, $($y: &[f32]),*) -> Vec<Vec<T>> {
            $(let $x = &cast::<T>($x)[..];)*
            $(let mut $y = cast::<T>($y);)*
            #[allow(clippy::redundant_closure_call)]
            ($call)($($x),*, $(&mut $y[..]),*);
            vec![$($y),*]
        }
        let want: Vec<Vec<f64>> = run::<f64>($(&$value),*, $(&$start),*);
        check($name, $tolerance, &want, || run::<f32>($(&$value),*, $(&$start),*));
    }};
}

/// What a kernel must overwrite.
fn stale(n: usize) -> Vec<f32> {
    vec![777.0; n]
}

fn spread(n: usize, seed: u64, factor: f32) -> Vec<f32> {
    noise(n, seed).iter().map(|x| x * factor).collect()
}

#[test]
fn activations() {
    for n in SIZES {
        let (x, dy, u) = (spread(n, 1, 9.0), noise(n, 2), noise(n, 3));
        compare!("sigmoid", 4e-7, [a = x], [y = stale(n)], |a, y| sigmoid(a, y));
        compare!("sigmoid'", 4e-7, [a = u, d = dy], [y = stale(n)], |a, d, y| {
            sigmoid_backward(a, d, y)
        });
        compare!("silu", 4e-7, [a = x], [y = stale(n)], |a, y| silu(a, y));
        compare!("silu'", 1e-6, [a = x, d = dy], [y = stale(n)], |a, d, y| silu_backward(
            a, d, y
        ));
        compare!("gelu", 1e-6, [a = x], [y = stale(n)], |a, y| gelu_erf(a, y));
        compare!("gelu'", 1e-6, [a = x, d = dy], [y = stale(n)], |a, d, y| {
            gelu_erf_backward(a, d, y)
        });
        compare!("swiglu", 1e-6, [a = x, b = u], [y = stale(n)], |a, b, y| swiglu(
            a, b, y
        ));
        compare!(
            "swiglu'",
            1e-6,
            [a = x, b = u, d = dy],
            [y = stale(n), z = stale(n)],
            |a, b, d, y, z| {
                swiglu_backward(a, b, d, Some(y), Some(z));
            }
        );
        compare!(
            "swiglu' up only",
            1e-6,
            [a = x, b = u, d = dy],
            [z = stale(n)],
            |a, b, d, z| {
                swiglu_backward(a, b, d, None, Some(z));
            }
        );
    }
}

#[test]
fn activations_keep_their_limits() {
    let x = [-200.0, -88.0, -0.0, 88.0, 200.0, f32::NAN];
    for isa in supported() {
        with_isa(isa, || {
            let mut y = [0.0; 6];
            sigmoid(&x, &mut y);
            assert_eq!((y[0], y[2], y[4]), (0.0, 0.5, 1.0));
            assert!(y[1] > 0.0 && y[5].is_nan());
            silu(&x, &mut y);
            assert_eq!((y[0], y[4]), (-0.0, 200.0));
            assert!(y[5].is_nan());
            gelu_erf(&x, &mut y);
            assert_eq!((y[0], y[4]), (-0.0, 200.0));
            assert!(y[5].is_nan());
        });
    }
}

#[test]
fn arithmetic() {
    for n in SIZES {
        let (x, z) = (noise(n, 1), noise(n, 2));
        compare!("add", 1e-7, [a = x, b = z], [y = stale(n)], |a, b, y| add(a, b, y));
        compare!("sub", 1e-7, [a = x, b = z], [y = stale(n)], |a, b, y| sub(a, b, y));
        compare!("mul", 1e-7, [a = x, b = z], [y = stale(n)], |a, b, y| mul(a, b, y));
        compare!("scale", 1e-7, [a = x], [y = stale(n)], |a, y| scale(a, 0.75, y));
        compare!("add_assign", 1e-7, [a = x], [y = z], |a, y| add_assign(y, a));
        compare!("axpy", 2e-7, [a = x], [y = z], |a, y| axpy(y, -1.5, a));
        for isa in supported() {
            with_isa(isa, || {
                let (s, squares) = (
                    wide(&x).iter().sum::<f64>(),
                    wide(&x).iter().map(|x| x * x).sum::<f64>(),
                );
                let near = |a: f64, b: f64| (a - b).abs() < 1e-12 * (1.0 + squares);
                assert!(near(sum(&x), s) && near(sum_squares(&x), squares));
                assert_eq!(
                    with_threads(1, || sum(&x)).to_bits(),
                    with_threads(2, || sum(&x)).to_bits()
                );
            });
        }
    }
    for (rows, n) in MATRICES {
        let (x, bias) = (noise(rows * n, 3), noise(n, 4));
        compare!("add_bias", 1e-7, [b = bias], [y = x], |b, y| add_bias(y, b));
        compare!(
            "column_sum",
            2e-5,
            [a = x, w = vec![0.0; n]],
            [y = stale(n)],
            |a, w: &[T], y| {
                column_sum(a, w.len(), y);
            }
        );
    }
}

#[test]
fn probabilities() {
    for (rows, n) in MATRICES {
        let (x, z, w) = (spread(rows * n, 1, 20.0), noise(rows * n, 2), vec![0.0; n]);
        let (len, start) = (rows * n, stale(rows * n));
        compare!("softmax", 1e-6, [a = x, w = w], [y = start], |a, w: &[T], y| softmax(
            a,
            w.len(),
            y
        ));
        compare!("log_softmax", 1e-6, [a = x, w = w], [y = start], |a, w: &[T], y| {
            log_softmax(a, w.len(), y)
        });
        let mut p = vec![0.0; len];
        softmax(&x, n, &mut p);
        compare!(
            "softmax'",
            1e-5,
            [a = p, d = z, w = w],
            [y = start],
            |a, d, w: &[T], y| {
                softmax_backward(a, d, w.len(), y);
            }
        );
        log_softmax(&x, n, &mut p);
        compare!(
            "log_softmax'",
            1e-4,
            [a = p, d = z, w = w],
            [y = start],
            |a, d, w: &[T], y| {
                log_softmax_backward(a, d, w.len(), y);
            }
        );
    }
    let mut y = stale(3);
    softmax(&[f32::NEG_INFINITY; 3], 3, &mut y);
    assert_eq!(y, [0.0; 3]);
}

#[test]
fn cross_entropy() {
    // 200 003 classes are more than 64 blocks of 1024.
    for (rows, v) in [(0, 5), (1, 1), (6, 7), (700, 50), (3, 5000), (3, 200_003)] {
        let logits = spread(rows * v, 1, 15.0);
        let targets: Vec<i64> = (0..rows)
            .map(|r| if r % 3 == 1 { -1 } else { (r * 31 % v) as i64 })
            .collect();
        for grad in [Some(0.5), None] {
            let run_as = |x: Vec<f64>| {
                let (mut x, mut loss) = (x, vec![777.0; rows]);
                cross_entropy_rows(&mut x, v, &targets, &mut loss, grad);
                vec![x, loss]
            };
            check("cross entropy", 1e-6, &run_as(wide(&logits)), || {
                let (mut x, mut loss) = (logits.clone(), stale(rows));
                cross_entropy_rows(&mut x, v, &targets, &mut loss, grad);
                vec![x, loss]
            });
        }
    }
}

#[test]
fn cross_entropy_of_masked_and_broken_logits() {
    for isa in supported() {
        with_isa(isa, || {
            // The first blocks are masked out entirely; they must weigh nothing and hide nothing.
            let mut x = vec![f32::NEG_INFINITY; 5000];
            (x[4998], x[4999]) = (1.0, 1.0);
            let mut loss = [0.0];
            cross_entropy_rows(&mut x, 5000, &[4999], &mut loss, Some(1.0));
            assert!((loss[0] - 2.0f32.ln()).abs() < 1e-6);
            assert_eq!((x[0], x[4998], x[4999]), (0.0, 0.5, -0.5));
            let mut x = [1.0, f32::NAN, 2.0];
            cross_entropy_rows(&mut x, 3, &[0], &mut loss, None);
            assert!(loss[0].is_nan(), "a NaN must reach the loss");
        });
    }
}

#[test]
fn normalisation() {
    for (rows, d) in MATRICES {
        let (x, w, dy) = (noise(rows * d, 1), noise(d, 2), noise(rows * d, 3));
        let mut rstd = vec![0.0; rows];
        compare!(
            "norm",
            1e-6,
            [a = x, w = w],
            [y = stale(rows * d), s = stale(rows)],
            |a, w, y, s| {
                rms_norm(a, w, 1e-5, y, Some(s));
            }
        );
        rms_norm(&x, &w, 1e-5, &mut stale(rows * d), Some(&mut rstd));
        compare!(
            "norm'",
            2e-5,
            [a = x, w = w, s = rstd, d = dy],
            [dx = stale(rows * d), dw = stale(w.len())],
            |a, w, s, d, dx, dw| rms_norm_backward(a, w, s, d, Some(dx), Some(dw))
        );
        compare!(
            "norm' x only",
            2e-5,
            [a = x, w = w, s = rstd, d = dy],
            [dx = stale(rows * d)],
            |a, w, s, d, dx| {
                rms_norm_backward(a, w, s, d, Some(dx), None);
            }
        );
    }
}

#[test]
fn rotation() {
    for (tokens, heads, hd) in [(0, 2, 4), (1, 1, 2), (5, 3, 10), (300, 4, 64), (17, 2, 48)] {
        let (cos, sin): (Vec<f32>, Vec<f32>) = noise(tokens * hd / 2, 1).iter().map(|a| (a.cos(), a.sin())).unzip();
        let x = noise(tokens * heads * hd, 2);
        for inverse in [false, true] {
            let mut want = wide(&x);
            rope(&mut want, heads, hd, &wide(&cos), &wide(&sin), inverse);
            check("rope", 3e-7, &[want], || {
                let mut x = x.clone();
                rope(&mut x, heads, hd, &cos, &sin, inverse);
                vec![x]
            });
        }
    }
}

#[test]
fn rows_by_index() {
    for (n, d) in [(1, 1), (9, 7), (50, 64), (400, 130)] {
        let ids: Vec<usize> = (0..3 * n).map(|i| i * i % n).collect();
        let (x, src, s) = (noise(n * d, 1), noise(3 * n * d, 2), noise(3 * n, 3));
        let mut want = [stale(3 * n * d), x.clone()].map(|x| wide(&x));
        gather_rows(&wide(&x), d, &ids, &mut want[0]);
        scatter_add_rows(&wide(&src), d, &ids, &mut want[1]);
        check("gather and scatter", 1e-6, &want, || {
            let mut got = vec![stale(3 * n * d), x.clone()];
            gather_rows(&x, d, &ids, &mut got[0]);
            scatter_add_rows(&src, d, &ids, &mut got[1]);
            got
        });
        let mut want = [3 * n * d, 3 * n].map(|n| wide(&stale(n)));
        scale_rows(&wide(&src), d, &wide(&s), &mut want[0]);
        row_dots(&wide(&src), &wide(&src), d, &mut want[1]);
        check("scale_rows and row_dots", 2e-6, &want, || {
            let mut got = vec![stale(3 * n * d), stale(3 * n)];
            scale_rows(&src, d, &s, &mut got[0]);
            row_dots(&src, &src, d, &mut got[1]);
            got
        });
    }
    gather_rows::<f32>(&[], 0, &[], &mut []);
}

#[test]
fn conversions() {
    for n in SIZES {
        let x = spread(n, 1, 1000.0);
        let (b, h): (Vec<bf16>, Vec<f16>) = x.iter().map(|&x| (bf16::from_f32(x), f16::from_f32(x))).unzip();
        for isa in supported() {
            with_isa(isa, || {
                let (mut b2, mut h2, mut back) = (vec![bf16::ZERO; n], vec![f16::ZERO; n], stale(n));
                to_bf16(&x, &mut b2);
                to_f16(&x, &mut h2);
                assert!(b == b2 && h == h2, "{isa:?}");
                widen(Data::Bf16(&b), &mut back);
                assert!(back.iter().zip(&b).all(|(x, b)| *x == b.to_f32()));
                widen(Data::F16(&h), &mut back);
                assert!(back.iter().zip(&h).all(|(x, h)| *x == h.to_f32()));
                widen(Data::F32(&x), &mut back);
                assert_eq!(back, x);
                widen(Data::F64(&wide(&x)), &mut back);
                assert_eq!(back, x);
            });
        }
    }
}

#[test]
fn adamw_follows_the_formula() {
    for n in SIZES {
        let hyper = |step| AdamW {
            lr: 1e-2,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            step,
            grad_scale: 0.5,
        };
        let (p, g) = (noise(n, 1), noise(n, 2));
        let mut want = [wide(&p), vec![0.0; n], vec![0.0; n]];
        for step in 1..4 {
            for i in 0..n {
                let [p, m, v] = &mut want;
                (p[i], m[i], v[i]) = reference::optim::adamw(p[i], f64::from(g[i]), m[i], v[i], &hyper(step));
            }
        }
        check("adamw", 1e-6, &want, || {
            let (mut p, mut m, mut v) = (p.clone(), vec![0.0; n], vec![0.0; n]);
            for step in 1..4 {
                adamw(&mut p, &g, &mut m, &mut v, &hyper(step));
            }
            vec![p, m, v]
        });
    }
}
