//! The function by itself: exact limits, the audit of what is seen, gradients, padding, decoding.

mod decoding;

use super::{
    DgaCache, DgaConfig, GroupBias, Layout, Selection, Shape,
    grouped::{attention, attention_with, heads},
};
use crate::cache::CacheType;
use ounce_kernels::{Compute, Philox};
use ounce_tensor::{
    Tensor, gradcheck,
    ops::{self, AttentionConfig, KeyValue, RowSpan},
};
use proptest::prelude::*;

fn normal(n: usize, seed: u64) -> Vec<f64> {
    (0..n).map(|i| Philox::normal(seed, 11, 0, i as u64)).collect()
}

fn f32s(n: usize, seed: u64) -> Vec<f32> {
    normal(n, seed).into_iter().map(|x| x as f32).collect()
}

fn shape(batch: usize, len: usize, heads: usize, kv_heads: usize) -> Shape {
    Shape {
        batch,
        len,
        heads,
        kv_heads,
        head_dim: 6,
        scale: 0.5,
    }
}

fn qkv(s: &Shape, seed: u64) -> [Tensor; 3] {
    let make = |heads: usize, seed: u64| {
        let n = s.batch * s.len * heads * s.head_dim;
        Tensor::new(f32s(n, seed), &[s.batch, s.len, heads, s.head_dim]).unwrap()
    };
    [
        make(s.heads, seed),
        make(s.kv_heads, seed + 1),
        make(s.kv_heads, seed + 2),
    ]
}

fn spans(s: &Shape) -> Vec<RowSpan> {
    vec![
        RowSpan {
            q_start: 0,
            kv_begin: 0,
            kv_len: s.len
        };
        s.batch
    ]
}

fn exact([q, k, v]: &[Tensor; 3], s: &Shape) -> Vec<f32> {
    let config = AttentionConfig {
        causal: true,
        window: None,
        scale: s.scale,
        compute: Compute::F32,
    };
    ops::attention(q, KeyValue::Tensor(k), KeyValue::Tensor(v), &spans(s), config)
        .unwrap()
        .to_f32()
}

fn grouped([q, k, v]: &[Tensor; 3], s: &Shape, config: &DgaConfig) -> Vec<f32> {
    attention(q, k, v, s, &spans(s), config, Compute::F32).unwrap().to_f32()
}

fn config(group_size: usize, focal_ratio: f64, selection: Selection) -> DgaConfig {
    DgaConfig {
        selection,
        min_len: 0,
        score_queries: 8,
        ..DgaConfig::new(group_size, focal_ratio)
    }
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    ounce_tensor::largest_difference(a, b) as f32
}

const BOTH: [Selection; 2] = [Selection::Global, Selection::CausalBlock];

#[test]
fn the_limits_are_exact_attention() {
    for (heads, kv_heads) in [(4, 4), (4, 2), (3, 1)] {
        let s = shape(2, 37, heads, kv_heads);
        let inputs = qkv(&s, 1);
        let reference = exact(&inputs, &s);
        for selection in BOTH {
            for (name, m, gamma) in [("gamma = 1", 4, 1.0), ("m = 1", 1, 0.2), ("m > L", 38, 0.1)] {
                let got = grouped(&inputs, &s, &config(m, gamma, selection));
                assert!(worst(&got, &reference) < 2e-6, "{name}, {selection:?}");
            }
            for (sink, window) in [(0, 37), (40, 0), (30, 7)] {
                let mut dga = config(4, 0.1, selection);
                (dga.sink, dga.window) = (sink, window);
                let got = grouped(&inputs, &s, &dga);
                assert!(
                    worst(&got, &reference) < 2e-6,
                    "sink {sink}, window {window}, {selection:?}"
                );
            }
            let got = grouped(&inputs, &s, &config(4, 0.1, selection));
            assert!(
                worst(&got, &reference) > 1e-3,
                "{selection:?}: groups change the function"
            );
        }
        let short = DgaConfig {
            min_len: 37,
            ..config(4, 0.1, Selection::Global)
        };
        assert!(worst(&grouped(&inputs, &s, &short), &reference) < 2e-6, "L <= min_len");
    }
}

/// Equal keys: every token has the same weight, and a group that counts as many times as it has members keeps it so.
#[test]
fn with_the_logarithm_of_sizes_equal_keys_are_exact() {
    let s = shape(1, 37, 4, 2);
    let mut inputs = qkv(&s, 5);
    let key = f32s(s.head_dim, 9);
    let n = s.len * s.kv_heads;
    inputs[1] = Tensor::new(key.repeat(n), &[1, s.len, s.kv_heads, s.head_dim]).unwrap();
    let reference = exact(&inputs, &s);
    for selection in BOTH {
        let mut dga = config(4, 0.2, selection);
        assert!(worst(&grouped(&inputs, &s, &dga), &reference) > 1e-3, "{selection:?}");
        dga.group_bias = GroupBias::LogM;
        assert!(worst(&grouped(&inputs, &s, &dga), &reference) < 2e-6, "{selection:?}");
    }
}

#[test]
fn with_the_entropy_bias_the_weighting_query_is_exact() {
    // One group, nothing focal: the last query sees its group only, by its own weights.
    let s = shape(1, 8, 2, 2);
    let inputs = qkv(&s, 3);
    let mut dga = config(8, 0.0, Selection::Global);
    let width = 2 * s.head_dim;
    let last = 7 * width..8 * width;
    let reference = exact(&inputs, &s);
    assert!(worst(&grouped(&inputs, &s, &dga)[last.clone()], &reference[last.clone()]) < 1e-6);
    // With focal tokens the masses matter: only the bias makes them right.
    dga.focal_ratio = 0.2;
    dga.group_size = 6;
    let plain = worst(&grouped(&inputs, &s, &dga), &reference);
    dga.group_bias = GroupBias::Entropy;
    let layout = &heads::<f32>(&inputs[0], &inputs[1], &inputs[2], &s, &spans(&s), &dga).unwrap()[0].layout;
    let at = layout.groups[0].query * width;
    let corrected = grouped(&inputs, &s, &dga);
    assert!(worst(&corrected[at..at + s.head_dim], &reference[at..at + s.head_dim]) < 1e-6);
    assert!(plain > 1e-3);
}

fn layouts([q, k, v]: &[Tensor; 3], s: &Shape, dga: &DgaConfig) -> Vec<Layout> {
    let made = heads::<f32>(q, k, v, s, &spans(s), dga).unwrap();
    made.into_iter().map(|h| h.layout).collect()
}

/// `inputs` with token `at` of row 0 replaced.
fn disturbed(inputs: &[Tensor; 3], s: &Shape, at: usize) -> [Tensor; 3] {
    [0, 1, 2].map(|i| {
        let width = inputs[i].numel() / (s.batch * s.len);
        let mut values = inputs[i].to_f32();
        values[at * width..(at + 1) * width].copy_from_slice(&f32s(width, 99 + i as u64));
        Tensor::new(values, inputs[i].shape()).unwrap()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_query_sees_every_earlier_token_once(len in 1usize..60, m in 1usize..9, gamma in 0.0f64..1.0,
        block: bool, sink in 0usize..4, window in 0usize..12, seed in 0u64..1000) {
        let s = shape(1, len, 2, 1);
        let mut dga = config(m, gamma, BOTH[usize::from(block)]);
        (dga.sink, dga.window) = (sink, window);
        let inputs = qkv(&s, seed);
        let mut seen = Vec::new();
        for layout in layouts(&inputs, &s, &dga) {
            for i in 0..len {
                layout.visible(i, &mut seen);
                let mut tokens: Vec<usize> = seen.iter().flat_map(|&x| match x.checked_sub(len) {
                    None => vec![x],
                    Some(j) => layout.groups[j].members.clone(),
                }).collect();
                tokens.sort_unstable();
                prop_assert_eq!(tokens, (0..=i).collect::<Vec<_>>(), "query {}", i);
            }
            if !block {
                let free = len.saturating_sub(sink + window);
                let focal = ((gamma * free as f64).ceil() as usize).min(free);
                prop_assert_eq!(layout.focal.len(), focal + sink.min(len));
                prop_assert_eq!(layout.groups.len(), (free - focal) / m);
            }
            let single = |t: &usize| layout.groups.iter().all(|g| !g.members.contains(t));
            prop_assert!((0..sink.min(len)).all(|t| single(&t)));
            for i in 0..len {
                layout.visible(i, &mut seen);
                prop_assert!(((i + 1).saturating_sub(window)..=i).all(|t| seen.contains(&t)), "query {}", i);
            }
            prop_assert_eq!(layout.focal.len() + layout.groups.len() + layout.tail.len(), dga.kept(len));
        }
    }

    #[test]
    fn the_kernel_equals_the_plain_loops(len in 1usize..90, m in 1usize..9, gamma in 0.0f64..1.0, block: bool,
        bias in 0usize..3, group in 0usize..3, left in 0usize..5, right in 0usize..5, sink in 0usize..3,
        window in 0usize..20, seed in 0u64..1000) {
        let (heads_q, kv_heads) = [(4, 4), (4, 2), (3, 1)][group];
        let s = shape(1, len + left + right, heads_q, kv_heads);
        let mut dga = config(m, gamma, BOTH[usize::from(block)]);
        dga.group_bias = [GroupBias::None, GroupBias::LogM, GroupBias::Entropy][bias];
        (dga.sink, dga.window) = (sink, window);
        let [q, k, v] = &qkv(&s, seed);
        let span = [RowSpan { q_start: 0, kv_begin: left, kv_len: left + len }];
        let made = heads::<f32>(q, k, v, &s, &span, &dga).unwrap();
        let plain = super::grouped::outputs(&made, &s, &span);
        let fast = attention(q, k, v, &s, &span, &dga, Compute::F32).unwrap().to_f32();
        prop_assert!(worst(&fast, &plain) < 5e-6, "{}", worst(&fast, &plain));
    }

    #[test]
    fn causal_block_never_looks_ahead(len in 2usize..60, m in 1usize..7, gamma in 0.0f64..0.9, at in 0usize..60,
        entropy: bool, sink in 0usize..4, window in 0usize..12, seed in 0u64..1000) {
        let at = at % len;
        let s = shape(1, len, 4, 2);
        let mut dga = config(m, gamma, Selection::CausalBlock);
        (dga.sink, dga.window) = (sink, window);
        dga.group_bias = if entropy { GroupBias::Entropy } else { GroupBias::None };
        let inputs = qkv(&s, seed);
        let before = grouped(&inputs, &s, &dga);
        let after = grouped(&disturbed(&inputs, &s, at), &s, &dga);
        let width = s.heads * s.head_dim;
        // Not close: the same bits.
        prop_assert_eq!(&before[..at * width], &after[..at * width]);
        prop_assert_ne!(&before[at * width..(at + 1) * width], &after[at * width..(at + 1) * width]);
    }

    #[test]
    fn frozen_global_layouts_are_causal(len in 12usize..50, at in 0usize..50, sink in 0usize..4, window in 0usize..9,
        seed in 0u64..1000) {
        let at = at % len;
        let s = shape(1, len, 4, 2);
        let mut dga = config(4, 0.15, Selection::Global);
        (dga.sink, dga.window) = (sink, window);
        let inputs = qkv(&s, seed);
        let frozen = layouts(&inputs, &s, &dga);
        let run = |[q, k, v]: &[Tensor; 3]| {
            attention_with(q, k, v, &s, &spans(&s), &dga, &frozen).unwrap().to_f32()
        };
        let (before, after) = (run(&inputs), run(&disturbed(&inputs, &s, at)));
        let width = s.heads * s.head_dim;
        prop_assert_eq!(&before[..at * width], &after[..at * width]);
    }

}

#[test]
fn padding_changes_no_real_token() {
    for selection in BOTH {
        let dga = config(4, 0.2, selection);
        let single = shape(1, 30, 4, 2);
        let inputs = qkv(&single, 8);
        let alone = grouped(&inputs, &single, &dga);
        // 5 pads on the left, 3 on the right, and a second row that is all real.
        let s = shape(2, 38, 4, 2);
        let padded = [0, 1, 2].map(|i| {
            let width = inputs[i].numel() / 30;
            let mut values = f32s(5 * width, 50);
            values.extend(inputs[i].to_f32());
            values.extend(f32s((3 + 38) * width, 60 + i as u64));
            Tensor::new(values, &[2, 38, inputs[i].shape()[2], s.head_dim]).unwrap()
        });
        let mut spans = spans(&s);
        spans[0] = RowSpan {
            q_start: 0,
            kv_begin: 5,
            kv_len: 35,
        };
        let width = s.heads * s.head_dim;
        let [q, k, v] = &padded;
        let out = attention(q, k, v, &s, &spans, &dga, Compute::F32).unwrap().to_f32();
        assert_eq!(&out[5 * width..35 * width], &alone[..], "{selection:?}");
        assert!(
            out[..5 * width]
                .iter()
                .chain(&out[35 * width..38 * width])
                .all(|&x| x == 0.0)
        );
        let mut cache = DgaCache::new(dga, CacheType::F32, 2, 2, s.head_dim);
        assert_eq!(cache.attend(q, k, v, &s, &spans, Compute::F32).unwrap().to_f32(), out);
    }
}

#[test]
fn gradients_match_finite_differences() {
    for selection in BOTH {
        for (heads_q, kv_heads) in [(2, 2), (4, 2)] {
            for group_bias in [GroupBias::None, GroupBias::LogM, GroupBias::Entropy] {
                let s = Shape {
                    head_dim: 3,
                    ..shape(1, 14, heads_q, kv_heads)
                };
                let dga = DgaConfig {
                    group_bias,
                    sink: 1,
                    window: 2,
                    ..config(3, 0.2, selection)
                };
                let make =
                    |heads: usize, seed: u64| Tensor::new(normal(14 * heads * 3, seed), &[1, 14, heads, 3]).unwrap();
                let inputs = [make(heads_q, 21), make(kv_heads, 22), make(kv_heads, 23)];
                let made = heads::<f64>(&inputs[0], &inputs[1], &inputs[2], &s, &spans(&s), &dga).unwrap();
                let frozen: Vec<Layout> = made.into_iter().map(|h| h.layout).collect();
                assert!(frozen.iter().all(|l| l.groups.len() >= 2));
                let weights = Tensor::new(normal(14 * heads_q * 3, 24), &[1, 14, heads_q, 3]).unwrap();
                let worst = gradcheck(&inputs, |x| {
                    let y = attention_with(&x[0], &x[1], &x[2], &s, &spans(&s), &dga, &frozen).unwrap();
                    ops::sum(&ops::mul(&y, &weights)?)
                })
                .unwrap();
                assert!(
                    worst < 1e-7,
                    "{selection:?} {heads_q}/{kv_heads} {group_bias:?}: {worst}"
                );
            }
        }
    }
}
