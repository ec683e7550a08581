//! DRT as a whole model: no seams between batch, segments and single tokens; what may influence what; the formulas it must
//! equal in special cases; training; what is refused.

mod configuration;
mod gradients;
mod ragged;

use ounce_model::{Batch, Model, ModelConfig, Noise, weights::FreshWeights, weights::Weights};
use ounce_tensor::{Compute, Gradients, Tensor, no_grad, ops};
use proptest::prelude::*;
use serde_json::{Value, json};

/// S = 5, so that short texts have many chunks.
fn json_of(decoder: &[usize], top_k: usize, null_slot: bool) -> Value {
    json!({
        "model_type": "llama", "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": -1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": -1,
        "tie_word_embeddings": true, "enc_chunk_size": 5, "chunk_topk": top_k, "slide_window": 7, "encoder_layers": 1,
        "decoder_layers": decoder, "chunk_id": 39, "landmark_null_slot": null_slot,
    })
}

fn fresh(config: &Value) -> Model {
    let config = ModelConfig::parse("test", config).unwrap();
    Model::new(config, &mut FreshWeights { seed: 7, std: 0.3 }).unwrap()
}

fn ids(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (i * i * 13 + i * 7 + 5) % 38).collect()
}

fn batch(ids: &[u32], rows: usize) -> Batch<'_> {
    Batch {
        ids,
        batch: rows,
        compute: Compute::F32,
    }
}

fn forward(model: &Model, ids: &[u32], rows: usize) -> Vec<f32> {
    no_grad(|| model.forward(batch(ids, rows))).unwrap().to_f32()
}

/// The context of the next pieces of some sequences, all of one length.
fn with_caches<'a>(
    model: &Model,
    piece: &'a [u32],
    caches: &'a mut [Box<dyn ounce_model::Cache>],
) -> ounce_model::Result<ounce_model::Ctx<'a>> {
    let lengths = vec![piece.len() / caches.len(); caches.len()];
    let caches = caches
        .iter_mut()
        .map(|cache| &mut **cache as &mut dyn ounce_model::Cache)
        .collect();
    model.ragged_context(piece, &lengths, caches, Compute::F32)
}

/// Logits `[rows, T, V]` of pieces of the given lengths, one after the other through a cache.
fn in_pieces(model: &Model, ids: &[u32], rows: usize, lengths: &[usize]) -> Vec<f32> {
    let t = ids.len() / rows;
    let mut caches: Vec<_> = (0..rows).map(|_| model.cache(t)).collect();
    let mut all = vec![Vec::new(); rows];
    let mut from = 0;
    for &length in lengths {
        let piece: Vec<u32> = (0..rows)
            .flat_map(|r| ids[r * t + from..r * t + from + length].to_vec())
            .collect();
        let logits = no_grad(|| {
            let mut ctx = with_caches(model, &piece, &mut caches)?;
            let hidden = model.hidden(&mut ctx)?;
            model.logits(&hidden, Compute::F32)
        });
        let logits = logits.unwrap().to_f32();
        for (row, part) in all.iter_mut().zip(logits.chunks(logits.len() / rows)) {
            row.extend_from_slice(part);
        }
        from += length;
        assert!(caches.iter().all(|cache| cache.len() == from));
    }
    assert_eq!(from, t);
    all.concat()
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    ounce_tensor::largest_difference(a, b) as f32
}

/// Equal pieces and what is left.
fn cut(t: usize, size: usize) -> Vec<usize> {
    (0..t).step_by(size).map(|from| size.min(t - from)).collect()
}

#[test]
fn every_segment_size_and_single_tokens_give_the_same_logits() {
    for (decoder, null_slot) in [(vec![1, 1], true), (vec![2, 1, 2], false)] {
        let model = fresh(&json_of(&decoder, 2, null_slot));
        let (rows, t) = (2, 43);
        let input = ids(rows * t);
        let whole = forward(&model, &input, rows);
        for size in 1..=t {
            let pieces = in_pieces(&model, &input, rows, &cut(t, size));
            assert!(
                worst(&pieces, &whole) <= 1e-4,
                "{decoder:?}, segments of {size}: {}",
                worst(&pieces, &whole)
            );
        }
    }
}

/// Fresh norms all have gains of 1, which would hide that one stands in another's place.
struct UnequalGains(FreshWeights);

impl Weights for UnequalGains {
    fn tensor(&mut self, name: &str, shape: &[usize]) -> ounce_model::Result<Tensor> {
        let made = self.0.tensor(name, shape)?;
        if shape.len() > 1 {
            return Ok(made);
        }
        let place = name
            .bytes()
            .fold(0u32, |sum, b| sum.wrapping_mul(31).wrapping_add(b.into()));
        let gain = |i: usize| 1.0 + 0.5 * (place as f32 + i as f32 * 1.7).sin();
        Ok(Tensor::new((0..shape[0]).map(gain).collect(), shape)?)
    }
}

#[test]
fn every_norm_is_used_in_its_place_by_every_path() {
    let config = ModelConfig::parse("test", &json_of(&[2, 1, 2], 2, false)).unwrap();
    let mut model = Model::new(config, &mut UnequalGains(FreshWeights { seed: 7, std: 0.3 })).unwrap();
    let input = ids(43);
    let whole = forward(&model, &input, 1);
    for size in [1, 4, 5, 6, 17] {
        assert!(
            worst(&in_pieces(&model, &input, 1, &cut(43, size)), &whole) <= 1e-4,
            "pieces of {size}"
        );
    }
    let mut norms = Vec::new();
    model.visit(&mut |p| {
        if p.name.contains("lmk_norms") {
            norms.push(p.tensor.clone());
        }
    });
    assert_eq!(norms.len(), 2);
    model.visit(&mut |p| {
        if p.name.contains("lmk_norms") {
            p.tensor = norms.pop().unwrap();
        }
    });
    assert!(
        worst(&forward(&model, &input, 1), &whole) > 1e-3,
        "the groups' norms differ"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_pieces_of_any_text(lengths in prop::collection::vec(1usize..17, 1..8), seed in 0u32..38, top_k in 1usize..12) {
        let model = fresh(&json_of(&[1, 1, 1], top_k, top_k % 2 == 0));
        let t = lengths.iter().sum();
        let input: Vec<u32> = ids(t).iter().map(|id| (id + seed) % 38).collect();
        let difference = worst(&in_pieces(&model, &input, 1, &lengths), &forward(&model, &input, 1));
        prop_assert!(difference <= 1e-4, "{}", difference);
    }
}

/// Drawn by lot: the same in every run, spread over all chunks, whatever the text; the weights still come from the scores.
#[test]
fn a_random_retriever_chooses_without_looking() {
    let mut json = json_of(&[1, 1], 2, false);
    json["chunk_retriever"] = "random".into();
    let model = fresh(&json);
    let retrieved = |ids: &[u32]| {
        let mut ctx = model.context(batch(ids, 1)).unwrap();
        ctx.sink.want_retrieved = true;
        no_grad(|| model.hidden(&mut ctx)).unwrap();
        ctx.sink.retrieved.remove(0)
    };
    let (a, other): (_, Vec<u32>) = (ids(200), ids(200).into_iter().rev().collect());
    let (first, second) = (retrieved(&a), retrieved(&other));
    assert_eq!(first.chunks, second.chunks);
    assert_ne!(first.weights, second.weights);
    let mut counts = [0; 20];
    first.chunks.iter().flatten().for_each(|&c| counts[c.min(19)] += 1);
    assert!(counts.iter().filter(|&&n| n > 0).count() >= 15, "{counts:?}");
    let input = ids(43);
    assert!(worst(&in_pieces(&model, &input, 1, &cut(43, 6)), &forward(&model, &input, 1)) <= 1e-4);
    json["chunk_retriever"] = "best".into();
    assert!(
        ModelConfig::parse("test", &json)
            .unwrap_err()
            .to_string()
            .contains("chunk_retriever")
    );
}

/// Lazy prefill: of pieces of which only the last outputs are wanted, these are what one forward over everything gives, and so
/// is all that follows.
#[test]
fn outputs_that_are_not_wanted_are_not_needed() {
    for (decoder, null_slot) in [(vec![1, 1], true), (vec![2, 1, 2], false), (vec![1, 3], false)] {
        let model = fresh(&json_of(&decoder, 2, null_slot));
        let (rows, t) = (2, 131);
        let input = ids(rows * t);
        let whole = forward(&model, &input, rows);
        for (size, wanted) in [(131, 1), (64, 1), (50, 9), (33, 1), (29, 2), (7, 1)] {
            let mut caches: Vec<_> = (0..rows).map(|_| model.cache(0)).collect();
            let mut from = 0;
            for length in cut(t, size) {
                let piece: Vec<u32> = (0..rows)
                    .flat_map(|r| input[r * t + from..r * t + from + length].to_vec())
                    .collect();
                from += length;
                let (logits, retrieved) = no_grad(|| {
                    let mut ctx = with_caches(&model, &piece, &mut caches).unwrap();
                    ctx.wanted = Some(wanted);
                    ctx.sink.want_retrieved = true;
                    let hidden = model.hidden(&mut ctx).unwrap();
                    let found = ctx.sink.retrieved.iter().map(|group| group.chunks.len() / 2).max();
                    (
                        model.logits(&hidden, Compute::F32).unwrap().to_f32(),
                        found.unwrap_or(0),
                    )
                });
                // It is lazy: the upper layers leave out most chunks of a long piece.
                assert!(size < 131 || retrieved < 131 / 5 / 2, "{decoder:?}: {retrieved}");
                let n = wanted.min(length) * 40;
                for row in 0..rows {
                    let end = (row * t + from) * 40;
                    let difference = worst(&logits[row * n..(row + 1) * n], &whole[end - n..end]);
                    assert!(
                        difference <= 1e-4,
                        "{decoder:?}, pieces of {size} to {from}: {difference}"
                    );
                }
            }
        }
    }
}

/// A cache that is cut and regrown many times over still holds the whole window.
#[test]
fn long_decoding_stays_exact_and_the_window_stays_bounded() {
    let model = fresh(&json_of(&[1, 1], 3, true));
    let t = 400;
    let input = ids(t);
    let whole = forward(&model, &input, 1);
    assert!(worst(&in_pieces(&model, &input, 1, &vec![1; t]), &whole) <= 1e-4);
    let bytes = |t: usize| {
        let mut cache = model.cache(0);
        for id in ids(t) {
            no_grad(|| model.prefill(&[id], Compute::F32, &mut *cache)).unwrap();
        }
        cache.bytes()
    };
    // Beyond the window grows the memory only: 2·32·4 bytes and a 6-row chunk per 5 tokens, landmarks of 32·4 per 5, twice
    // that where vectors double.
    let (a, b) = (bytes(200), bytes(400));
    assert!(b - a <= 2 * 400 * (2 * 32 * 4 * 6 / 5 + 32 * 4 / 5), "{a} {b}");
}

/// Removes cross-attention: its output map is zeros.
struct WithoutGca(FreshWeights);

impl Weights for WithoutGca {
    fn tensor(&mut self, name: &str, shape: &[usize]) -> ounce_model::Result<Tensor> {
        if name.ends_with("gca.o_proj.weight") {
            return Ok(Tensor::zeros(shape));
        }
        self.0.tensor(name, shape)
    }
}

#[test]
fn two_chunks_are_the_network_without_cross_attention_and_three_are_not() {
    let json = json_of(&[1, 2], 4, false);
    let config = ModelConfig::parse("test", &json).unwrap();
    let without = Model::new(config, &mut WithoutGca(FreshWeights { seed: 7, std: 0.3 })).unwrap();
    let with = fresh(&json);
    let input = ids(15);
    let (a, b) = (forward(&with, &input, 1), forward(&without, &input, 1));
    let two = 10 * 40;
    assert_eq!(a[..two], b[..two]);
    assert!(worst(&a[two..], &b[two..]) > 1e-2);
}

#[test]
fn later_tokens_change_nothing_and_a_chunk_is_first_retrieved_two_chunks_later() {
    // Window 7 over one lower and one upper layer: without retrieval nothing older than 14 positions is seen.
    let model = fresh(&json_of(&[1, 1], 12, true));
    let input = ids(60);
    let base = forward(&model, &input, 1);
    for t in [0, 4, 5, 23, 44, 59] {
        let mut changed = input.clone();
        changed[t] = (changed[t] + 11) % 38;
        let other = forward(&model, &changed, 1);
        assert_eq!(base[..t * 40], other[..t * 40], "token {t} changed what is before it");
        assert!(worst(&base[t * 40..], &other[t * 40..]) > 1e-3);
    }
    // Chunk 0 reaches the last tokens through retrieval, and only through it.
    let config = ModelConfig::parse("test", &json_of(&[1, 1], 12, true)).unwrap();
    let without = Model::new(config, &mut WithoutGca(FreshWeights { seed: 7, std: 0.3 })).unwrap();
    let mut changed = input.clone();
    changed[1] = (changed[1] + 11) % 38;
    let last = 59 * 40;
    assert!(worst(&base[last..], &forward(&model, &changed, 1)[last..]) > 1e-4);
    assert_eq!(
        forward(&without, &input, 1)[last..],
        forward(&without, &changed, 1)[last..]
    );
}

fn retrieved(model: &Model, ids: &[u32], rows: usize, noise: Option<Noise>) -> Vec<ounce_model::Retrieved> {
    let mut ctx = model.context(batch(ids, rows)).unwrap();
    ctx.sink.want_retrieved = true;
    ctx.noise = noise;
    no_grad(|| model.hidden(&mut ctx)).unwrap();
    ctx.sink.retrieved
}

#[test]
fn weights_sum_to_one_or_to_zero_and_rows_keep_to_themselves() {
    let model = fresh(&json_of(&[1, 1, 1], 3, false));
    let (rows, t) = (2, 40);
    let input = ids(rows * t);
    let both = retrieved(&model, &input, rows, None);
    assert_eq!(both.len(), 2);
    let alone: Vec<_> = (0..rows)
        .map(|r| retrieved(&model, &input[r * t..(r + 1) * t], 1, None))
        .collect();
    for (g, group) in both.iter().enumerate() {
        for (i, (chunks, weights)) in group.chunks.chunks(3).zip(group.weights.chunks(3)).enumerate() {
            let (chunk, row) = (i / rows, i % rows);
            let visible = chunks.iter().flatten().count();
            assert_eq!(visible, chunk.min(3));
            assert!(chunks.iter().flatten().all(|&c| c < chunk));
            let sum: f32 = weights.iter().sum();
            assert!((sum - if chunk == 0 { 0.0 } else { 1.0 }).abs() < 1e-5, "{sum}");
            assert_eq!(chunks, &alone[row][g].chunks[chunk * 3..chunk * 3 + 3]);
        }
    }
    let logits = forward(&model, &input, rows);
    assert!(worst(&logits[t * 40..], &forward(&model, &input[t..], 1)) <= 2e-5);
}

/// With k at least the number of chunks nothing is left out, however large k is: the mixture is the softmax over all
/// visible chunks, and noise only reorders it.
#[test]
fn all_chunks_chosen_is_the_dense_softmax() {
    let input = ids(60);
    let small = fresh(&json_of(&[1, 1], 12, true));
    let large = fresh(&json_of(&[1, 1], 40, true));
    assert!(worst(&forward(&small, &input, 1), &forward(&large, &input, 1)) <= 2e-5);
    let noise = Some(Noise {
        seed: 1,
        step: 1,
        part: 0,
    });
    let (plain, noisy) = (retrieved(&large, &input, 1, None), retrieved(&large, &input, 1, noise));
    // By chunk, the weights are those of the softmax of all scores, whose logarithms differ by the scores' differences.
    let of = |r: &ounce_model::Retrieved, t: usize, c: usize| {
        let slots = t * 40..(t + 1) * 40;
        let at = r.chunks[slots.clone()].iter().position(|&x| x == Some(c)).unwrap();
        r.weights[slots][at]
    };
    for t in 1..12 {
        for c in 0..t {
            assert!((of(&plain[0], t, c) - of(&noisy[0], t, c)).abs() < 1e-6);
        }
    }
    assert_ne!(plain[0].chunks, noisy[0].chunks);
}

/// The row of zeros is a one in the denominator: the same softmax with a key row removed and `+ 1` added.
#[test]
fn a_row_of_zeros_is_one_in_the_denominator() {
    let (h, d, rows) = (2, 4, 3);
    let wave = |n: usize, s: f32| (0..n).map(|i| ((i as f32) * s).sin()).collect::<Vec<f32>>();
    let q = Tensor::new(wave(h * d, 1.3), &[1, h, d]).unwrap();
    let (mut k, mut v) = (wave((rows + 1) * h * d, 0.7), wave((rows + 1) * h * d, 2.1));
    k[rows * h * d..].fill(0.0);
    v[rows * h * d..].fill(0.0);
    let memory = |x: &[f32]| Tensor::new(x.to_vec(), &[1, rows + 1, h, d]).unwrap();
    let with = ops::Neighbours {
        runs: std::iter::once(0..1).collect(),
        chunks: vec![Some(0)],
    };
    let (keys, values) = (memory(&k), memory(&v));
    let sides = (ops::KeyValue::Tensor(&keys), ops::KeyValue::Tensor(&values));
    let one = Tensor::new(vec![1f32], &[1, 1]).unwrap();
    let out = ops::gca(&q, sides.0, sides.1, rows + 1, &with, &one, (0.5, Compute::F32))
        .unwrap()
        .to_f32();
    let q = q.to_f32();
    for a in 0..h {
        let weight = |r: usize| (0.5 * (0..d).map(|c| q[a * d + c] * k[(r * h + a) * d + c]).sum::<f32>()).exp();
        let total = 1.0 + (0..rows).map(weight).sum::<f32>();
        for c in 0..d {
            let mixed: f32 = (0..rows).map(|r| weight(r) / total * v[(r * h + a) * d + c]).sum();
            assert!((out[a * d + c] - mixed).abs() < 1e-6);
        }
    }
}

#[test]
fn going_back_within_the_open_chunk_is_exact_and_further_is_refused() {
    let model = fresh(&json_of(&[1, 1], 2, true));
    let input = ids(60);
    let mut cache = model.cache(0);
    no_grad(|| model.prefill(&input[..58], Compute::F32, &mut *cache)).unwrap();
    let snapshot = cache.snapshot();
    let error = cache.truncate(54).unwrap_err().to_string();
    assert!(error.contains("chunks of 5 tokens that are finished"), "{error}");
    assert!(cache.truncate(59).is_err());
    assert_eq!(cache.len(), 58);
    cache.truncate(55).unwrap();
    assert_eq!(cache.len(), 55);
    let again = no_grad(|| model.prefill(&input[55..], Compute::F32, &mut *cache))
        .unwrap()
        .to_f32();
    assert!(worst(&again, &forward(&model, &input, 1)[59 * 40..]) <= 1e-4);
    assert_eq!(snapshot.len(), 58);
}

#[test]
fn half_precision_memory_is_close_and_smaller() {
    let mut json = json_of(&[1, 1], 3, true);
    let exact = fresh(&json);
    json["chunk_memory"] = "f16".into();
    let half = fresh(&json);
    let input = ids(60);
    let whole = forward(&exact, &input, 1);
    let difference = worst(&in_pieces(&half, &input, 1, &cut(60, 7)), &whole);
    assert!(difference > 0.0 && difference < 2e-2, "{difference}");
    let bytes = |model: &Model| {
        let mut cache = model.cache(0);
        no_grad(|| model.prefill(&input, Compute::F32, &mut *cache)).unwrap();
        cache.bytes()
    };
    // 12 chunks of 6 rows, keys and values of 32.
    assert_eq!(bytes(&exact) - bytes(&half), 12 * 6 * 2 * 32 * 2);
}

/// Loss of the noisy forward and its gradients by name.
fn gradients(model: &mut Model, ids: &[u32], rows: usize, noise: Noise) -> (f64, Vec<(String, Vec<f32>)>) {
    model.visit(&mut |p| p.tensor = p.tensor.requires_grad());
    let t = ids.len() / rows;
    let targets: Vec<i64> = (0..ids.len())
        .map(|i| if i % t + 1 == t { -1 } else { i64::from(ids[i + 1]) })
        .collect();
    let mut ctx = model.context(batch(ids, rows)).unwrap();
    ctx.noise = Some(noise);
    let hidden = model.hidden(&mut ctx).unwrap();
    let loss = ops::linear_cross_entropy(&hidden, model.head(), &targets, Compute::F32).unwrap();
    let mut found = Gradients::new();
    loss.backward(&mut found).unwrap();
    let mut all = Vec::new();
    model.visit(&mut |p| all.push((p.name.clone(), found.get(&p.tensor).map_or(Vec::new(), Tensor::to_f32))));
    model.visit(&mut |p| p.tensor = p.tensor.detach());
    (loss.item().unwrap(), all)
}

#[test]
fn training_bits_do_not_depend_on_threads_and_steps_draw_anew() {
    let mut model = fresh(&json_of(&[1, 1], 2, true));
    let input = ids(2 * 40);
    let noise = Noise {
        seed: 5,
        step: 3,
        part: 0,
    };
    let mut run = |threads, noise| ounce_kernels::with_threads(threads, || gradients(&mut model, &input, 2, noise));
    let one = run(1, noise);
    assert_eq!(one, run(2, noise));
    assert_ne!(one.0, run(1, Noise { step: 4, ..noise }).0);
}
