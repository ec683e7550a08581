//! Every vector operation on every instruction set against plain Rust.

use super::*;
use crate::isa::{supported, with_isa};

/// Values that rounding, ordering and conversion treat specially, and ordinary ones.
const INPUT: [f32; 16] = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.333_333_34,
    1.003_906_3,
    1.011_718_8,
    -2.5,
    3.5,
    65504.0,
    1e-8,
    -1e-40,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
    3.0e38,
];

fn each_isa(f: impl Fn()) {
    supported().into_iter().for_each(|isa| with_isa(isa, &f));
}

/// Runs a unary operation over a slice whose length is a multiple of every LANES.
macro_rules! unary {
    ($name:ident, |$x:ident| $e:expr) => {
        fn $name(x: &[f32], y: &mut [f32]) {
            #[inline(always)]
            fn body<V: Vf32>(x: &[f32], y: &mut [f32]) {
                for (x, y) in x.chunks_exact(V::LANES).zip(y.chunks_exact_mut(V::LANES)) {
                    let $x = V::load(x);
                    $e.store(y);
                }
            }
            kernel! { fn run(x: &[f32], y: &mut [f32]) = body; }
            run(x, y);
        }
    };
}
unary!(v_exp, |x| x.exp());
unary!(v_round_bf16, |x| x.round_bf16());
unary!(v_round, |x| x.round());
unary!(v_abs, |x| x.abs());
unary!(v_sqrt, |x| x.sqrt());
unary!(v_scale_up, |x| x.scale2(V::splat(100.0)));
unary!(v_scale_down, |x| x.scale2(V::splat(-140.0)));
unary!(v_select, |x| x.select_lt(V::splat(1.0), V::splat(2.0), x));
unary!(v_pair, |x| x.pair_bf16(V::splat(1.5)));
unary!(v_max_one, |x| V::splat(1.0).max(x));
unary!(v_arith, |x| x
    .fma(V::splat(2.0), V::splat(1.0))
    .sub(x)
    .div(V::splat(4.0))
    .add(x.mul(x))
    .min(V::splat(9.0)));

fn same(a: f32, b: f32) -> bool {
    a == b || (a.is_nan() && b.is_nan())
}

#[test]
fn lane_operations_match_scalars() {
    type Case = (fn(&[f32], &mut [f32]), fn(f32) -> f32);
    let cases: [Case; 8] = [
        (v_round_bf16, |x| bf16::from_f32(x).to_f32()),
        (v_abs, f32::abs),
        (v_sqrt, f32::sqrt),
        (v_scale_up, |x| (f64::from(x) * 2f64.powi(100)) as f32),
        (v_scale_down, |x| (f64::from(x) * 2f64.powi(-140)) as f32),
        (v_select, |x| if x < 1.0 { 2.0 } else { x }),
        (v_max_one, |x| if 1.0 > x { 1.0 } else { x }),
        (v_arith, |x| {
            let y = (x * 2.0 + 1.0 - x) / 4.0 + x * x;
            if y < 9.0 { y } else { 9.0 }
        }),
    ];
    each_isa(|| {
        for (i, (run, oracle)) in cases.iter().enumerate() {
            let mut y = [0.0; 16];
            run(&INPUT, &mut y);
            for (x, y) in INPUT.into_iter().zip(y) {
                let want = oracle(x);
                // The last case may or may not be fused; the others are exact.
                let close = i == 7 && (y - want).abs() <= 1e-6 * want.abs();
                assert!(same(y, want) || close, "case {i}: {x} gave {y}, not {want}");
            }
        }
        let mut y = [0.0; 16];
        v_round(&INPUT[..8].repeat(2), &mut y);
        assert!(INPUT[..8].iter().zip(y).all(|(x, y)| x.round_ties_even() == y));
        v_pair(&INPUT, &mut y);
        for (x, y) in INPUT.into_iter().zip(y) {
            assert_eq!(y.to_bits() & 0xffff, u32::from(bf16::from_f32(x).to_bits()));
            assert_eq!(y.to_bits() >> 16, u32::from(bf16::from_f32(1.5).to_bits()));
        }
    });
}

#[test]
fn exp_is_accurate_and_keeps_its_limits() {
    let x: Vec<f32> = (-1_040_000..=887_183).step_by(13).map(|i| i as f32 * 1e-4).collect();
    let x = &x[..x.len() / 16 * 16];
    each_isa(|| {
        let mut y = vec![0.0; x.len()];
        v_exp(x, &mut y);
        for (&x, &y) in x.iter().zip(&y) {
            let want = f64::from(x).exp();
            let tolerance = (want * 2.5e-7).max(1.5e-45);
            assert!(
                (f64::from(y) - want).abs() <= tolerance,
                "exp({x}) gave {y}, not {want}"
            );
        }
        let special = [
            f32::NEG_INFINITY,
            f32::INFINITY,
            f32::NAN,
            0.0,
            89.5,
            -110.0,
            -1e30,
            1e30,
        ]
        .repeat(2);
        let want = [
            0.0,
            f32::INFINITY,
            f32::NAN,
            1.0,
            f32::INFINITY,
            0.0,
            0.0,
            f32::INFINITY,
        ]
        .repeat(2);
        let mut y = [0.0; 16];
        v_exp(&special, &mut y);
        assert!(want.iter().zip(y).all(|(&a, b)| same(a, b)), "{y:?}");
    });
}

#[inline(always)]
fn convert_body<V: Vf32>(x: &[f32], wide: &mut [f32; 4], half: &mut [f32]) {
    let n = V::LANES;
    let (mut b, mut h) = ([bf16::ZERO; 16], [f16::ZERO; 16]);
    for (x, y) in x.chunks_exact(n).zip(half.chunks_exact_mut(2 * n)) {
        V::load(x).store_bf16(&mut b);
        V::load(x).store_f16(&mut h);
        V::load_bf16(&b).store(&mut y[..n]);
        V::load_f16(&h).store(&mut y[n..]);
    }
    let part = V::load_partial(&x[2..5], -7.0);
    *wide = [
        part.sum(),
        part.hmax(),
        V::load_bf16_partial(&b[..2]).sum(),
        V::load_f16_partial(&h[..3]).hmax(),
    ];
    part.store_partial(&mut wide[..1]);
    part.store_bf16_partial(&mut b[..1]);
    part.store_f16_partial(&mut h[..1]);
    wide[2] += f32::from(b[0]) + f32::from(h[0]);
}
kernel! { fn convert(x: &[f32], wide: &mut [f32; 4], half: &mut [f32]) = convert_body; }

#[test]
fn conversions_round_to_nearest_even() {
    each_isa(|| {
        let (mut wide, mut half) = ([0.0; 4], vec![0.0; 32]);
        convert(&INPUT, &mut wide, &mut half);
        let n = if crate::isa::isa() >= crate::isa::Isa::Avx512 {
            16
        } else {
            8
        };
        for (i, x) in INPUT.into_iter().enumerate() {
            let at = i / n * 2 * n + i % n;
            assert!(same(half[at], bf16::from_f32(x).to_f32()), "bf16 of {x}");
            assert!(same(half[at + n], f16::from_f32(x).to_f32()), "f16 of {x}");
        }
        assert_eq!(wide[0], 1.0);
        assert_eq!(wide[1], 1.0);
    });
}

#[inline(always)]
fn reduce_body<V: Vf32>(x: &[f32], out: &mut [f32; 2]) {
    *out = [V::load(x).sum(), V::load(x).hmax()];
}
kernel! { fn reduce(x: &[f32], out: &mut [f32; 2]) = reduce_body; }

#[inline(always)]
unsafe fn transpose_body<V: Vf32>(src: *const f32, dst: *mut f32) {
    // SAFETY: the test hands over 8 rows of 10 and 8 rows of 9.
    unsafe { V::transpose8(src, 10, dst, 9) }
}
kernel! { unsafe fn transpose(src: *const f32, dst: *mut f32) = transpose_body; }

#[test]
fn reductions_see_every_lane_and_transposes_move_every_element() {
    each_isa(|| {
        let n = if crate::isa::isa() >= crate::isa::Isa::Avx512 {
            16
        } else {
            8
        };
        for lane in 0..n {
            let mut x = [-3.0; 16];
            x[lane] = 5.0;
            let mut out = [0.0; 2];
            reduce(&x, &mut out);
            assert_eq!(out, [5.0 - 3.0 * (n - 1) as f32, 5.0], "lane {lane}");
        }
        let src: Vec<f32> = (0..80).map(|i| i as f32).collect();
        let mut dst = vec![0.0; 72];
        // SAFETY: the sizes that `transpose_body` states.
        unsafe { transpose(src.as_ptr(), dst.as_mut_ptr()) };
        for r in 0..8 {
            for c in 0..8 {
                assert_eq!(dst[c * 9 + r], src[r * 10 + c]);
            }
        }
    });
}
