//! The tiled code against the plain loops in f64, on every instruction set.

use super::{AttentionRows, AttentionShape, Heads, attention, attention_backward};
use crate::{Compute, Data, supported, test_support::noise, with_isa, with_threads};
use half::{bf16, f16};
use proptest::prelude::*;

/// A shape with its rows and the tokens its buffers hold.
#[derive(Debug, Clone)]
pub(super) struct Case {
    pub(super) s: AttentionShape,
    pub(super) q_start: Vec<usize>,
    pub(super) kv_begin: Vec<usize>,
    pub(super) kv_len: Vec<usize>,
    pub(super) capacity: usize,
}

impl Case {
    /// Self-attention over `len` tokens.
    pub(super) fn square(batch: usize, len: usize, q_heads: usize, kv_heads: usize, head_dim: usize) -> Self {
        let scale = (head_dim as f64).powf(-0.5);
        let s = AttentionShape {
            batch,
            q_len: len,
            q_heads,
            kv_heads,
            head_dim,
            window: None,
            causal: true,
            scale,
            slopes: None,
        };
        Self {
            s,
            q_start: vec![0; batch],
            kv_begin: vec![0; batch],
            kv_len: vec![len; batch],
            capacity: len,
        }
    }

    pub(super) fn rows(&self) -> AttentionRows<'_> {
        AttentionRows {
            q_start: &self.q_start,
            positions: None,
            kv_begin: &self.kv_begin,
            kv_len: &self.kv_len,
        }
    }

    pub(super) fn heads<'a>(&self, data: Data<'a>) -> Heads<'a> {
        let token_stride = self.s.kv_heads * self.s.head_dim;
        Heads {
            data,
            batch_stride: self.capacity * token_stride,
            token_stride,
            head_stride: self.s.head_dim,
        }
    }

    pub(super) fn q_len(&self) -> usize {
        self.s.batch * self.s.q_len * self.s.q_heads * self.s.head_dim
    }

    pub(super) fn kv_len(&self) -> usize {
        self.s.batch * self.capacity * self.s.kv_heads * self.s.head_dim
    }

    fn lse_len(&self) -> usize {
        self.s.batch * self.s.q_heads * self.s.q_len
    }
}

/// out, lse, dq, dk, dv.
type Results<T> = [Vec<T>; 5];

fn run<T: crate::Float>(case: &Case, q: &[T], k: Data<'_>, v: Data<'_>, dout: &[T]) -> Results<T> {
    // What the kernels do not overwrite shows up as a difference.
    let fresh = |n| vec![T::from_f64(f64::NAN); n];
    let (mut out, mut lse, mut dq) = (fresh(case.q_len()), fresh(case.lse_len()), fresh(case.q_len()));
    let (mut dk, mut dv) = (fresh(case.kv_len()), fresh(case.kv_len()));
    let (k, v, rows) = (case.heads(k), case.heads(v), case.rows());
    attention(&case.s, &rows, q, k, v, &mut out, Some(&mut lse), Compute::F32);
    attention_backward(
        &case.s,
        &rows,
        q,
        k,
        v,
        &out,
        &lse,
        dout,
        &mut dq,
        &mut dk,
        &mut dv,
        Compute::F32,
    );
    [out, lse, dq, dk, dv]
}

pub(super) fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// Every instruction set against the plain loops, and one thread against two, bit by bit.
fn check(case: &Case) {
    let (q, dout) = (noise(case.q_len(), 1), noise(case.q_len(), 2));
    let (k, v) = (noise(case.kv_len(), 3), noise(case.kv_len(), 4));
    let want = run(
        case,
        &wide(&q),
        Data::F64(&wide(&k)),
        Data::F64(&wide(&v)),
        &wide(&dout),
    );
    for isa in supported() {
        let go = |threads| {
            with_threads(threads, || {
                with_isa(isa, || run(case, &q, Data::F32(&k), Data::F32(&v), &dout))
            })
        };
        let got = go(1);
        for (name, (got, want)) in ["out", "lse", "dq", "dk", "dv"].iter().zip(got.iter().zip(&want)) {
            for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
                let near = (f64::from(got) - want).abs() < 2e-5 * (1.0 + want.abs());
                assert!(
                    near || f64::from(got) == want,
                    "{name}[{i}] on {isa:?}: {got} is not {want}, {case:?}"
                );
            }
        }
        let bits = |r: &Results<f32>| r.iter().flatten().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert!(
            bits(&got) == bits(&go(2)),
            "two threads change the bits on {isa:?}: {case:?}"
        );
    }
}

#[test]
fn training_shapes() {
    check(&Case::square(2, 150, 2, 2, 32));
    check(&Case::square(1, 70, 4, 2, 64));
    check(&Case::square(1, 300, 2, 1, 16));
}

#[test]
fn windows_padding_and_unequal_rows() {
    let mut case = Case::square(3, 140, 2, 1, 24);
    case.s.window = Some(50);
    case.kv_begin = vec![0, 77, 139];
    case.kv_len = vec![140, 131, 140];
    check(&case);
    case.s.causal = false;
    check(&case);
}

#[test]
fn linear_biases() {
    let slopes = |heads: usize| (1..=heads).map(|i| (-8.0 * i as f32 / heads as f32).exp2()).collect();
    for (q_len, q_heads, kv_heads, window) in [
        (150, 4, 2, None),
        (150, 3, 1, Some(40)),
        (1, 4, 2, Some(70)),
        (3, 2, 2, None),
    ] {
        let mut case = Case::square(2, q_len, q_heads, kv_heads, 20);
        (case.s.window, case.s.slopes) = (window, Some(slopes(q_heads)));
        case.capacity = q_len + 700;
        (case.q_start, case.kv_len) = (vec![700, 30], vec![q_len + 700, q_len + 30]);
        check(&case);
    }
    // Hand-computed: equal queries and keys leave the biases alone. Position 1, slope 1: weights 1/(1+e) and e/(1+e).
    let mut case = Case::square(1, 2, 1, 1, 1);
    case.s.slopes = Some(vec![1.0]);
    let out = &run(
        &case,
        &[0.0; 2],
        Data::F32(&[0.0; 2]),
        Data::F32(&[1.0, 0.0]),
        &[0.0; 2],
    )[0];
    assert!((out[1] - 1.0 / (1.0 + std::f32::consts::E)).abs() < 1e-6, "{out:?}");
}

#[test]
fn decoding_against_a_long_cache_is_split_and_joined() {
    for (q_len, q_heads, kv_heads) in [(1, 4, 2), (1, 1, 1), (5, 2, 2), (8, 2, 1), (3, 6, 1)] {
        let mut case = Case::square(2, q_len, q_heads, kv_heads, 40);
        case.capacity = 1200;
        case.kv_len = vec![1100, 600];
        case.q_start = vec![1100 - q_len, 600 - q_len];
        case.kv_begin = vec![3, 520];
        check(&case);
        case.s.window = Some(64);
        check(&case);
    }
}

#[test]
fn queries_that_see_nothing_and_empty_inputs() {
    let mut case = Case::square(2, 9, 2, 2, 8);
    case.kv_len = vec![0, 4];
    case.kv_begin = vec![0, 4];
    check(&case);
    let n = case.q_len();
    let [out, lse, ..] = run(
        &case,
        &noise(n, 1),
        Data::F32(&noise(n, 2)),
        Data::F32(&noise(n, 3)),
        &noise(n, 4),
    );
    assert!(out.iter().all(|&x| x == 0.0));
    assert!(lse.iter().all(|&x| x == f32::NEG_INFINITY));
    check(&Case::square(0, 9, 2, 2, 8));
    check(&Case::square(2, 0, 2, 2, 8));
}

#[test]
fn large_scores_do_not_overflow() {
    let mut case = Case::square(1, 90, 1, 1, 16);
    case.s.scale = 40.0;
    let n = case.q_len();
    let (q, k, v) = (noise(n, 1), noise(n, 2), noise(n, 3));
    let exact = run(
        &case,
        &wide(&q),
        Data::F64(&wide(&k)),
        Data::F64(&wide(&v)),
        &vec![1.0; n],
    );
    let fast = run(&case, &q, Data::F32(&k), Data::F32(&v), &vec![1.0; n]);
    // Scores of about 200 carry an absolute error of about 1e-5, which the exponential turns into a relative one.
    for (got, want) in fast[0].iter().zip(&exact[0]) {
        assert!((f64::from(*got) - want).abs() < 2e-4, "{got} is not {want}");
    }
}

#[test]
fn half_precision_caches_are_widened_exactly() {
    for q_len in [1, 20] {
        let mut case = Case::square(1, q_len, 4, 2, 20);
        (case.capacity, case.kv_len, case.q_start) = (100, vec![100], vec![100 - q_len]);
        let (q, dout) = (noise(case.q_len(), 1), noise(case.q_len(), 2));
        let (k, v) = (noise(case.kv_len(), 3), noise(case.kv_len(), 4));
        let (k16, v16): (Vec<_>, Vec<_>) = (
            k.iter().map(|&x| bf16::from_f32(x)).collect(),
            v.iter().map(|&x| f16::from_f32(x)).collect(),
        );
        let (k, v): (Vec<_>, Vec<_>) = (
            k16.iter().map(|x| x.to_f32()).collect(),
            v16.iter().map(|x| x.to_f32()).collect(),
        );
        for isa in supported() {
            with_isa(isa, || {
                let half = run(&case, &q, Data::Bf16(&k16), Data::F16(&v16), &dout);
                assert_eq!(half, run(&case, &q, Data::F32(&k), Data::F32(&v), &dout), "{isa:?}");
            });
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_shape(
        (batch, q_len, group, kv_heads) in (1usize..3, 1usize..80, 1usize..4, 1usize..3),
        head_dim in 1usize..36,
        (extra, causal) in (0usize..90, any::<bool>()),
        window in proptest::option::of(1usize..100),
        begins in proptest::collection::vec(0usize..60, 3),
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

/// Keys or values of `case` (heads of 32), stored token by token or head by head.
fn stored<'a>(case: &Case, data: Data<'a>, by_head: bool) -> Heads<'a> {
    if !by_head {
        return case.heads(data);
    }
    Heads {
        data,
        batch_stride: case.capacity * case.s.kv_heads * 32,
        token_stride: 32,
        head_stride: case.capacity * 32,
    }
}

/// Decoding reads whole vectors of a cache where they lie; the last, cut tile is copied. Both layouts of a cache, all types.
#[test]
fn decoding_reads_keys_in_place() {
    for (group, window) in [(1, None), (2, Some(90)), (4, None)] {
        let len = 200;
        let mut case = Case::square(2, 1, 2 * group, 2, 32);
        case.s.window = window;
        (case.q_start, case.kv_len, case.capacity) = (vec![len - 1, 149], vec![len, 150], len);
        let row = case.s.kv_heads * case.s.head_dim;
        // Keys that do not exist yet, as a cache reserves them, must not be seen.
        let cache = |seed| {
            let mut x = noise(case.kv_len(), seed);
            x[(len + 150) * row..].fill(f32::NAN);
            x
        };
        let (q, k, v) = (noise(case.q_len(), 1), cache(3), cache(4));
        let run = |[k, v]: [Data<'_>; 2], by_head| {
            let (k, v) = (stored(&case, k, by_head), stored(&case, v, by_head));
            let mut out = vec![f32::NAN; case.q_len()];
            attention(&case.s, &case.rows(), &q, k, v, &mut out, None, Compute::F32);
            out
        };
        let swapped = |x: &[f32]| -> Vec<f32> {
            let index = |i: usize| {
                let (b, head, token, c) = (i / (row * len), i / (32 * len) % 2, i / 32 % len, i % 32);
                (b * len + token) * row + head * 32 + c
            };
            (0..x.len()).map(|i| x[index(i)]).collect()
        };
        let (k_by_head, v_by_head) = (swapped(&k), swapped(&v));
        let [k16, v16] = [&k, &v].map(|x| x.iter().map(|&x| f16::from_f32(x)).collect::<Vec<_>>());
        let [kb, vb] = [&k, &v].map(|x| x.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>());
        let [k16_wide, v16_wide] = [&k16, &v16].map(|x| x.iter().map(|x| x.to_f32()).collect::<Vec<_>>());
        let [kb_wide, vb_wide] = [&kb, &vb].map(|x| x.iter().map(|x| x.to_f32()).collect::<Vec<_>>());
        let (q64, k64, v64) = (wide(&q), wide(&k), wide(&v));
        let mut want = vec![0f64; case.q_len()];
        let (k_of, v_of) = (case.heads(Data::F64(&k64)), case.heads(Data::F64(&v64)));
        attention(&case.s, &case.rows(), &q64, k_of, v_of, &mut want, None, Compute::F32);
        for isa in supported() {
            with_isa(isa, || {
                let plain = run([Data::F32(&k), Data::F32(&v)], false);
                for (i, (&got, &want)) in plain.iter().zip(&want).enumerate() {
                    assert!(
                        (f64::from(got) - want).abs() < 1e-5,
                        "[{i}] on {isa:?}: {got} is not {want}"
                    );
                }
                assert_eq!(
                    plain,
                    run([Data::F32(&k_by_head), Data::F32(&v_by_head)], true),
                    "{isa:?}"
                );
                let half = run([Data::F16(&k16), Data::F16(&v16)], false);
                assert_eq!(
                    half,
                    run([Data::F32(&k16_wide), Data::F32(&v16_wide)], false),
                    "{isa:?}"
                );
                let brain = run([Data::Bf16(&kb), Data::Bf16(&vb)], false);
                assert_eq!(brain, run([Data::F32(&kb_wide), Data::F32(&vb_wide)], false), "{isa:?}");
            });
        }
    }
}
