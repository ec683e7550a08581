//! Decoding through the cache: what comes out equals the whole at once, with the groups that decoding comes to.

use super::{
    super::{
        DgaCache, Group, GroupBias, Selection, Shape,
        grouped::attention_with,
        layout::{logits, split_block},
    },
    config, grouped, layouts, qkv, shape, spans, worst,
};
use crate::{cache::CacheType, layer_cache::LayerCache};
use ounce_kernels::Compute;
use ounce_tensor::{
    Tensor,
    ops::{self, RowSpan},
};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn decoding_with_causal_blocks_equals_the_whole_at_once(len in 2usize..50, m in 1usize..7, gamma in 0.0f64..0.9,
        prompt in 1usize..50, chunk in 1usize..5, sink in 0usize..4, window in 0usize..12, biased: bool,
        seed in 0u64..1000) {
        let s = shape(1, len, 4, 2);
        let mut dga = config(m, gamma, Selection::CausalBlock);
        dga.group_bias = if biased { GroupBias::Entropy } else { GroupBias::None };
        (dga.sink, dga.window) = (sink, window);
        let inputs = qkv(&s, seed);
        let whole = grouped(&inputs, &s, &dga);
        let mut cache = DgaCache::new(dga, CacheType::F32, 1, 2, s.head_dim);
        let mut from = 0;
        let mut got = Vec::new();
        while from < len {
            let n = if from == 0 { prompt.min(len) } else { chunk.min(len - from) };
            got.extend(part(&inputs, &s, &mut cache, from, n));
            from += n;
        }
        prop_assert!(worst(&got, &whole) < 1e-5, "{}", worst(&got, &whole));
    }
}

/// Tokens `from..from + n` through the cache.
fn part(inputs: &[Tensor; 3], s: &Shape, cache: &mut DgaCache, from: usize, n: usize) -> Vec<f32> {
    let [q, k, v] = [0, 1, 2].map(|i| {
        let t = &inputs[i];
        let flat = ops::reshape(t, &[s.len, t.numel() / s.len]).unwrap();
        let rows = ops::narrow_rows(&flat, from, from + n).unwrap();
        ops::reshape(&rows, &[1, n, t.shape()[2], s.head_dim]).unwrap()
    });
    let span = RowSpan {
        q_start: from,
        kv_begin: 0,
        kv_len: from + n,
    };
    let shape = Shape { len: n, ..*s };
    cache
        .attend(&q, &k, &v, &shape, &[span], Compute::F32)
        .unwrap()
        .to_f32()
}

#[test]
fn decoding_after_a_global_prompt_equals_the_same_groups_at_once() {
    let s = shape(1, 90, 4, 2);
    let mut dga = config(4, 0.2, Selection::Global);
    dga.group_bias = GroupBias::Entropy;
    let inputs = qkv(&s, 5);
    let (prompt, block) = (33, dga.m_prime.unwrap());
    // The layout that decoding must come to: the prompt's, then one compression whenever the buffer is full.
    let short = [0, 1, 2].map(|i| {
        let t = &inputs[i];
        let flat = ops::reshape(t, &[90, t.numel() / 90]).unwrap();
        let rows = ops::narrow_rows(&flat, 0, prompt).unwrap();
        ops::reshape(&rows, &[1, prompt, t.shape()[2], s.head_dim]).unwrap()
    });
    let prompt_shape = Shape { len: prompt, ..s };
    let mut expected = layouts(&short, &prompt_shape, &dga);
    let (qs, ks) = (inputs[0].to_f32(), inputs[1].to_f32());
    let hd = s.head_dim;
    let mut compressions = 0;
    for (g, layout) in expected.iter_mut().enumerate() {
        layout.len = 90;
        for t in prompt..90 {
            layout.tail.push(t);
            if layout.tail.len() == block {
                let queries: Vec<&[f32]> = (0..2).map(|a| &qs[(t * 4 + g * 2 + a) * hd..][..hd]).collect();
                let keys: Vec<f32> = layout
                    .tail
                    .iter()
                    .flat_map(|t| &ks[(t * 2 + g) * hd..][..hd])
                    .copied()
                    .collect();
                let (focal, groups) = split_block(&logits(&queries, &keys, 0.5), block, &dga);
                layout.focal.extend(focal.iter().map(|&f| layout.tail[f]));
                for members in groups {
                    layout.groups.push(Group {
                        members: members.iter().map(|&m| layout.tail[m]).collect(),
                        query: t,
                        close: t + 1,
                    });
                }
                layout.tail.clear();
                compressions += 1;
            }
        }
        layout.focal.sort_unstable();
    }
    let tail = layouts(&short, &prompt_shape, &dga)[0].tail.len();
    assert_eq!(
        compressions,
        2 * ((tail + 90 - prompt) / block),
        "floor((tail + new) / m') per key head"
    );
    let [q, k, v] = &inputs;
    let whole = attention_with(q, k, v, &s, &spans(&s), &dga, &expected)
        .unwrap()
        .to_f32();
    let mut cache = DgaCache::new(dga.clone(), CacheType::F32, 1, 2, hd);
    let first = part(&inputs, &s, &mut cache, 0, prompt);
    let width = s.heads * hd;
    assert!(worst(&first, &grouped(&short, &prompt_shape, &dga)) < 1e-6);
    for t in prompt..90 {
        let got = part(&inputs, &s, &mut cache, t, 1);
        assert!(worst(&got, &whole[t * width..(t + 1) * width]) < 1e-5, "token {t}");
    }
    for g in 0..2 {
        let layout = &expected[g];
        assert_eq!(
            cache.entries(0, g),
            (layout.focal.len() + layout.groups.len(), layout.tail.len())
        );
    }
}

#[test]
fn the_cache_shrinks_and_goes_back_only_within_its_buffer() {
    let s = shape(1, 64, 2, 1);
    let inputs = qkv(&s, 6);
    let mut cache = DgaCache::new(config(8, 0.1, Selection::CausalBlock), CacheType::F32, 1, 1, s.head_dim);
    part(&inputs, &s, &mut cache, 0, 31);
    // Blocks of 9: 3 closed ones of 1 focal and 1 group each, 4 tokens in the buffer.
    assert_eq!((cache.entries(0, 0), LayerCache::len(&cache)), ((6, 4), 31));
    assert!(cache.cannot_truncate(26).unwrap().contains("compressed for good"));
    assert!(cache.cannot_truncate(27).is_none());
    let kept = cache.snapshot();
    let once = part(&inputs, &s, &mut cache, 31, 1);
    cache.truncate(29);
    assert_eq!((cache.entries(0, 0), LayerCache::len(&cache)), ((6, 2), 29));
    part(&inputs, &s, &mut cache, 29, 2);
    assert_eq!(part(&inputs, &s, &mut cache, 31, 1), once);
    assert_eq!(kept.len(), 31);
}
