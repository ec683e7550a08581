//! The wirings as recurrences, written out over sub-blocks that are run one by one; with a cache, and in batches.

use crate::{LAYERS, VOCABULARY, fresh, ids, ladder, logits, model, shape, worst};
use ounce_model::{
    Batch, Model, Residual,
    weights::{FreshWeights, Weights},
};
use ounce_tensor::{Compute, Tensor, no_grad, ops};
use proptest::prelude::*;

/// The stream of a plain Llama with the weights of `model`, in which sub-block k reads `s[reads(k)]`; `s[0]` is the
/// embedding and `s[k + 1] = s[k] + y_k`. Keeps every `s`. `model` must be sequential: its blocks give the sub-blocks.
struct Oracle {
    parts: Model,
}

impl Oracle {
    /// Sub-block k on a given stream: what its block adds to it when the other sub-block is silent.
    fn output(&self, k: usize, stream: &Tensor, ids: &[u32]) -> Tensor {
        let mut ctx = self
            .parts
            .context(Batch {
                ids,
                batch: 1,
                compute: Compute::F32,
            })
            .unwrap();
        let silenced = if k.is_multiple_of(2) { "down_proj" } else { "o_proj" };
        let mut weights = Silenced {
            inner: fresh(),
            silenced,
        };
        let alone = ounce_model::Block::new(&self.parts.config, k / 2, &mut weights).unwrap();
        let after = alone.forward(stream, &mut ctx).unwrap();
        ops::sub(&after, stream).unwrap()
    }

    fn logits(&self, reads: impl Fn(usize) -> usize, ids: &[u32]) -> Vec<f32> {
        no_grad(|| {
            let ctx = self
                .parts
                .context(Batch {
                    ids,
                    batch: 1,
                    compute: Compute::F32,
                })
                .unwrap();
            let mut s = vec![self.parts.embed(&ctx).unwrap()];
            for k in 0..2 * LAYERS {
                let y = self.output(k, &s[reads(k)], ids);
                s.push(ops::add(&s[k], &y).unwrap());
            }
            let hidden = self.parts.finish(&s[2 * LAYERS]).unwrap();
            self.parts.logits(&hidden, Compute::F32).unwrap().to_f32()
        })
    }
}

/// Weights with one matrix of every layer zero.
struct Silenced {
    inner: FreshWeights,
    silenced: &'static str,
}

impl Weights for Silenced {
    fn tensor(&mut self, name: &str, shape: &[usize]) -> ounce_model::Result<Tensor> {
        if name.contains(self.silenced) {
            return Ok(Tensor::zeros(shape));
        }
        self.inner.tensor(name, shape)
    }
}

/// Which stream sub-block k reads when these layers are ladder: the two-stream recurrence, written out.
fn two_streams(k: usize, ladder: &[usize]) -> usize {
    if ladder.contains(&(k / 2)) {
        k.saturating_sub(1)
    } else {
        k
    }
}

#[test]
fn all_layers_read_the_stream_of_two_outputs_ago() {
    let oracle = Oracle {
        parts: model(&Residual::default()),
    };
    let ids = ids(11, 1);
    let ours = logits(&model(&Residual::Ladder { layers: None }), &ids, 1);
    let theirs = oracle.logits(|k| k.saturating_sub(1), &ids);
    assert!(worst(&ours, &theirs) < 1e-4);
    // The oracle can tell wirings apart.
    let sequential = logits(&model(&Residual::default()), &ids, 1);
    assert!(worst(&sequential, &oracle.logits(|k| k, &ids)) < 1e-4);
    assert!(worst(&ours, &sequential) > 0.1);
}

#[test]
fn mixed_layers_follow_the_two_stream_recurrence() {
    let oracle = Oracle {
        parts: model(&Residual::default()),
    };
    let ids = ids(9, 2);
    for list in [
        vec![],
        vec![0],
        vec![3],
        vec![0, 3],
        vec![1, 2],
        vec![0, 2],
        vec![1, 3],
        vec![0, 1, 2, 3],
    ] {
        let ours = logits(&model(&ladder(&list)), &ids, 1);
        let theirs = oracle.logits(|k| two_streams(k, &list), &ids);
        assert!(worst(&ours, &theirs) < 1e-4, "{list:?}");
    }
}

#[test]
fn parallel_layers_read_one_stream() {
    let oracle = Oracle {
        parts: model(&Residual::default()),
    };
    let ids = ids(9, 3);
    let ours = logits(&model(&Residual::Parallel {}), &ids, 1);
    assert!(worst(&ours, &oracle.logits(|k| k - k % 2, &ids)) < 1e-4);
}

#[test]
fn without_attention_or_without_feed_forward_the_wirings_agree() {
    for silenced in ["o_proj", "down_proj"] {
        let run = |residual: Residual| {
            let config = shape(&residual).to_config(VOCABULARY, None, None).unwrap();
            let weights = &mut Silenced {
                inner: fresh(),
                silenced,
            };
            logits(&Model::new(config, weights).unwrap(), &ids(8, 4), 1)
        };
        let sequential = run(Residual::default());
        assert_eq!(run(Residual::Ladder { layers: None }), sequential);
        assert_eq!(run(Residual::Parallel {}), sequential);
        assert_eq!(run(ladder(&[1])), sequential);
    }
}

fn chosen() -> impl Strategy<Value = Residual> {
    prop_oneof![
        Just(Residual::Parallel {}),
        prop::sample::subsequence(vec![0, 1, 2, 3], 0..=4).prop_map(|list| ladder(&list)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Any way of cutting a sequence into cached pieces gives the logits of a full forward, and a batch those of its rows.
    #[test]
    fn pieces_equal_the_whole_and_batches_their_rows(residual in chosen(), cuts in prop::collection::vec(1usize..5, 1..6)) {
        let model = model(&residual);
        let n: usize = cuts.iter().sum();
        let (a, b) = (ids(n, 6), ids(n, 7));
        let whole = logits(&model, &a, 1);
        let mut cache = model.cache(0);
        let mut at = 0;
        for len in cuts {
            let last = no_grad(|| model.prefill(&a[at..at + len], Compute::F32, &mut *cache)).unwrap().to_f32();
            at += len;
            prop_assert!(worst(&last, &whole[(at - 1) * VOCABULARY..at * VOCABULARY]) < 1e-4);
        }
        let both = logits(&model, &[a, b.clone()].concat(), 2);
        prop_assert!(worst(&both[..whole.len()], &whole) < 1e-5);
        prop_assert!(worst(&both[whole.len()..], &logits(&model, &b, 1)) < 1e-5);
    }
}
