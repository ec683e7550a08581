//! Attention of some pairs only equals attention of all, masked afterwards: windows, padding, groups, f64.

use ounce_tensor::{
    Compute, DType, Tensor,
    ops::{self, AttentionConfig, KeyValue, RowSpan},
};
use proptest::prelude::*;

fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / 8_388_608.0) - 1.0
    };
    (0..n).map(next).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn masked_afterwards(q_len in 1usize..70, past in 0usize..80, kv_heads in 1usize..4, group in 1usize..5,
        window in proptest::option::of(1usize..40), begin in 0usize..10, share in 0u64..10, wide: bool,
        narrow: bool, seed in 0u64..1000) {
        let (heads, hd, keys) = (kv_heads * group, 6, past + q_len);
        let make = |n: usize, h: usize, seed: u64| {
            let t = Tensor::new(noise(2 * n * h * hd, seed), &[2, n, h, hd]).unwrap();
            if wide { t.cast(DType::F64).unwrap() } else { t }
        };
        let (q, k, v) = (make(q_len, heads, seed), make(keys, kv_heads, seed + 1), make(keys, kv_heads, seed + 2));
        let spans = [0, begin].map(|kv_begin| RowSpan { q_start: past, kv_begin, kv_len: keys });
        let config = AttentionConfig { causal: true, window, scale: 0.7, compute: Compute::F32 };
        let (kt, vt) = (KeyValue::Tensor(&k), KeyValue::Tensor(&v));
        let active: Vec<bool> = noise(2 * q_len * heads, seed + 3).iter()
            .map(|x| (x + 1.0) * 5.0 < share as f32)
            .collect();
        let all = ops::attention(&q, kt, vt, &spans, config).unwrap().to_f32();
        // In bf16 enough pairs of a head run on tile registers, where the processor has them.
        let compute = if narrow { Compute::Bf16 } else { Compute::F32 };
        let of_some = AttentionConfig { compute, ..config };
        let some = ops::attention_of(&q, kt, vt, &spans, of_some, &active).unwrap().to_f32();
        let bound = if narrow { 1e-2 } else { 1e-5 };
        for (pair, on) in active.iter().enumerate() {
            for i in pair * hd..(pair + 1) * hd {
                let expected = if *on { all[i] } else { 0.0 };
                prop_assert!((some[i] - expected).abs() < bound, "{} {}", some[i], expected);
            }
        }
    }
}

#[test]
fn it_is_for_inference_and_needs_one_flag_per_pair() {
    let x = Tensor::new(noise(2 * 4, 1), &[1, 2, 1, 4]).unwrap();
    let spans = [RowSpan {
        q_start: 0,
        kv_begin: 0,
        kv_len: 2,
    }];
    let config = AttentionConfig {
        causal: true,
        window: None,
        scale: 0.5,
        compute: Compute::F32,
    };
    let kv = KeyValue::Tensor(&x);
    let error = ops::attention_of(&x, kv, kv, &spans, config, &[true])
        .unwrap_err()
        .to_string();
    assert!(error.contains("one flag per token and head"), "{error}");
    let leaf = x.requires_grad();
    let error = ops::attention_of(&leaf, kv, kv, &spans, config, &[true; 2])
        .unwrap_err()
        .to_string();
    assert!(error.contains("inference"), "{error}");
}
