//! Prompts on tile registers against the plain loops in f64, which get what was rounded.

use super::tests::{Case, wide};
use super::{Heads, attention};
use crate::{Compute, Data, Isa, supported, test_support::noise, with_isa, with_threads};
use half::{bf16, f16};
use proptest::prelude::*;

fn run(case: &Case, q: &[f32], k: Heads<'_>, v: Heads<'_>) -> Vec<f32> {
    // What the kernel does not overwrite shows up as a difference.
    let mut out = vec![f32::NAN; q.len()];
    attention(&case.s, &case.rows(), q, k, v, &mut out, None, Compute::Bf16);
    out
}

fn rounded(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| bf16::from_f32(x).to_f64()).collect()
}

/// Queries that make some weights much larger than others.
fn queries(case: &Case) -> Vec<f32> {
    noise(case.q_len(), 1).iter().map(|x| 8.0 * x).collect()
}

/// Does this machine have tile registers? Elsewhere prompts take the path that the other tests check.
fn tiles() -> bool {
    supported().contains(&Isa::Amx)
}

fn check(case: &Case) {
    if !tiles() {
        return;
    }
    let (q, k, v) = (queries(case), noise(case.kv_len(), 3), noise(case.kv_len(), 4));
    let mut scaled = case.clone();
    scaled.s.scale = 1.0;
    let q_scaled: Vec<f32> = q.iter().map(|x| x * case.s.scale as f32).collect();
    let (k64, v64) = (rounded(&k), rounded(&v));
    let mut want = vec![0.0; q.len()];
    let (k_of, v_of) = (case.heads(Data::F64(&k64)), case.heads(Data::F64(&v64)));
    attention(
        &scaled.s,
        &case.rows(),
        &rounded(&q_scaled),
        k_of,
        v_of,
        &mut want,
        None,
        Compute::F32,
    );
    let go = |threads| {
        let (k, v) = (case.heads(Data::F32(&k)), case.heads(Data::F32(&v)));
        with_threads(threads, || with_isa(Isa::Amx, || run(case, &q, k, v)))
    };
    let got = go(1);
    for (i, (&got, &want)) in got.iter().zip(&want).enumerate() {
        // Weights are rounded by 2^-9 of themselves at most, and values are below 1.
        assert!(
            (f64::from(got) - want).abs() < 2.5e-3,
            "out[{i}]: {got} is not {want}, {case:?}"
        );
    }
    assert!(
        got.iter().map(|x| x.to_bits()).eq(go(2).iter().map(|x| x.to_bits())),
        "{case:?}"
    );
}

#[test]
fn blocks_of_queries_and_keys() {
    check(&Case::square(1, 1300, 2, 1, 40));
    check(&Case::square(2, 600, 2, 2, 128));
    let mut case = Case::square(1, 530, 1, 1, 64);
    case.s.causal = false;
    (case.capacity, case.kv_len, case.q_start) = (1100, vec![1090], vec![560]);
    check(&case);
    case.s.window = Some(100);
    check(&case);
}

#[test]
fn linear_biases() {
    let mut case = Case::square(2, 150, 4, 2, 20);
    case.s.slopes = Some(vec![0.5, 0.25, 0.125, 0.0625]);
    (case.capacity, case.q_start, case.kv_len) = (850, vec![700, 30], vec![850, 180]);
    check(&case);
}

/// One visible key has a weight of exactly one.
#[test]
fn a_single_key_gives_its_value_rounded() {
    if !tiles() {
        return;
    }
    let mut case = Case::square(1, 100, 2, 1, 48);
    case.s.window = Some(1);
    let (q, k, v) = (queries(&case), noise(case.kv_len(), 3), noise(case.kv_len(), 4));
    let got = with_isa(Isa::Amx, || {
        run(&case, &q, case.heads(Data::F32(&k)), case.heads(Data::F32(&v)))
    });
    for (pair, row) in wide(&got).chunks(48).enumerate() {
        assert_eq!(row, &rounded(&v)[pair / 2 * 48..][..48]);
    }
}

/// What a row sees decides its bits, not which rows are computed with it.
#[test]
fn a_row_does_not_depend_on_its_neighbours() {
    if !tiles() {
        return;
    }
    let case = Case::square(1, 700, 1, 1, 32);
    let (q, k, v) = (queries(&case), noise(case.kv_len(), 3), noise(case.kv_len(), 4));
    let of = |case: &Case, q: &[f32]| {
        with_isa(Isa::Amx, || {
            run(case, q, case.heads(Data::F32(&k)), case.heads(Data::F32(&v)))
        })
    };
    let whole = of(&case, &q);
    for (from, to) in [(0, 41), (41, 600), (600, 700)] {
        let mut part = case.clone();
        (part.s.q_len, part.q_start, part.kv_len) = (to - from, vec![from], vec![to]);
        let rows = from * 32..to * 32;
        assert_eq!(of(&part, &q[rows.clone()]), whole[rows]);
    }
}

/// Padding and memory beyond the keys may hold anything; rows that see nothing are zeros.
#[test]
fn what_is_no_key_is_not_read() {
    if !tiles() {
        return;
    }
    for begin in [0, 5, 36, 80] {
        let mut case = Case::square(1, 80, 2, 1, 24);
        (case.capacity, case.kv_begin) = (130, vec![begin]);
        let (q, mut k, mut v) = (queries(&case), noise(case.kv_len(), 3), noise(case.kv_len(), 4));
        let go = |k: &[f32], v: &[f32]| {
            with_isa(Isa::Amx, || {
                run(&case, &q, case.heads(Data::F32(k)), case.heads(Data::F32(v)))
            })
        };
        let clean = go(&k, &v);
        for outside in [0..begin * 24, 80 * 24..130 * 24] {
            k[outside.clone()].fill(f32::NAN);
            v[outside].fill(f32::NAN);
        }
        assert_eq!(go(&k, &v), clean, "{begin}");
        assert!(clean[..begin * 48].iter().all(|&x| x == 0.0));
        assert!(begin == 80 || clean[begin * 48..].iter().any(|&x| x != 0.0));
        // A key that is one must not hide that it is broken.
        v[79 * 24] = f32::NAN;
        assert!(begin == 80 || go(&k, &v).iter().any(|x| x.is_nan()));
    }
}

#[test]
fn caches_of_half_precision_by_token_and_by_head() {
    if !tiles() {
        return;
    }
    let mut case = Case::square(1, 70, 4, 2, 40);
    (case.capacity, case.kv_len, case.q_start) = (90, vec![85], vec![15]);
    let (q, k, v) = (queries(&case), noise(case.kv_len(), 3), noise(case.kv_len(), 4));
    let (k16, v16): (Vec<_>, Vec<_>) = (
        k.iter().map(|&x| bf16::from_f32(x)).collect(),
        v.iter().map(|&x| f16::from_f32(x)).collect(),
    );
    let (k, v): (Vec<_>, Vec<_>) = (
        k16.iter().map(|x| x.to_f32()).collect(),
        v16.iter().map(|x| x.to_f32()).collect(),
    );
    let by_head = |heads: Heads<'static>| Heads {
        token_stride: 40,
        head_stride: 90 * 40,
        ..heads
    };
    with_isa(Isa::Amx, || {
        let narrow = run(&case, &q, case.heads(Data::Bf16(&k16)), case.heads(Data::F16(&v16)));
        assert_eq!(
            narrow,
            run(&case, &q, case.heads(Data::F32(&k)), case.heads(Data::F32(&v)))
        );
        let turned = |x: &[f32]| -> &'static [f32] {
            let value = |i: usize| x[(i / 40 % 90 * 2 + i / 3600) * 40 + i % 40];
            (0..x.len()).map(value).collect::<Vec<f32>>().leak()
        };
        let (k, v) = (Data::F32(turned(&k)), Data::F32(turned(&v)));
        assert_eq!(narrow, run(&case, &q, by_head(case.heads(k)), by_head(case.heads(v))));
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_prompt(
        (batch, q_len, group, kv_heads) in (1usize..3, 32usize..120, 1usize..4, 1usize..3),
        head_dim in 1usize..70,
        (extra, causal) in (0usize..600, any::<bool>()),
        window in proptest::option::of(1usize..600),
        begins in proptest::collection::vec(0usize..600, 3),
        cut in proptest::collection::vec(0usize..40, 3),
    ) {
        let mut case = Case::square(batch, q_len, group * kv_heads, kv_heads, head_dim);
        (case.s.causal, case.s.window, case.capacity) = (causal, window, q_len + extra);
        case.kv_begin = begins[..batch].to_vec();
        case.kv_len = cut[..batch].iter().map(|cut| case.capacity.saturating_sub(*cut)).collect();
        case.q_start = vec![extra; batch];
        check(&case);
    }
}
