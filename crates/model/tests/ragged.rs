//! Sequences of unequal length in one call give what each gives alone, in every attention and feed-forward method: trained,
//! inferred and through caches. Steps of a session give the same bits, whatever the neighbours.

mod methods;

use methods::{VOCABULARY, attentions, feed_forwards, ids, model};
use ounce_model::{Cache, Model, Session};
use ounce_tensor::{Compute, Gradients, Tensor, no_grad, ops};
use serde_json::Value;

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    ounce_tensor::largest_difference(a, b) as f32
}

fn close(what: &str, a: &[f32], b: &[f32]) {
    let (scale, worst) = (a.iter().fold(1.0f32, |m, x| m.max(x.abs())), worst(a, b));
    assert!(worst < 1e-4 * scale, "{what}: {worst} of {scale}");
}

/// The logits of each sequence.
fn split(logits: &Tensor, texts: &[&[u32]]) -> Vec<Vec<f32>> {
    let logits = logits.to_f32();
    let mut rest = &logits[..];
    let row = |text: &&[u32]| {
        let (row, after) = rest.split_at(text.len() * VOCABULARY);
        rest = after;
        row.to_vec()
    };
    texts.iter().map(row).collect()
}

/// What a model says of some sequences in one call.
struct Said {
    /// Logits of each sequence: in training, in inference, and through caches.
    logits: [Vec<Vec<f32>>; 3],
    /// Gradients of the mean cross-entropy; empty for what cannot be trained.
    gradients: Vec<f32>,
}

fn run(model: &mut Model, texts: &[&[u32]]) -> Said {
    let all = texts.concat();
    let lengths: Vec<usize> = texts.iter().map(|text| text.len()).collect();
    let trains = model.frozen().is_none();
    if trains {
        model.visit(&mut |p| p.tensor = p.tensor.requires_grad());
    }
    let mut ctx = model.ragged_context(&all, &lengths, Vec::new(), Compute::F32).unwrap();
    let hidden = model.hidden(&mut ctx).unwrap();
    let targets: Vec<i64> = all.iter().map(|id| i64::from(id * 7 % 40)).collect();
    let loss = ops::linear_cross_entropy(&hidden, model.head(), &targets, Compute::F32).unwrap();
    let mut gradients = Vec::new();
    if trains {
        let mut found = Gradients::new();
        loss.backward(&mut found).unwrap();
        model.visit(&mut |p| gradients.extend(found.get(&p.tensor).map_or(Vec::new(), Tensor::to_f32)));
        model.visit(&mut |p| p.tensor = p.tensor.detach());
    }
    let mut caches: Vec<Box<dyn Cache>> = texts.iter().map(|text| model.cache(text.len())).collect();
    let [inferred, cached] = no_grad(|| {
        let mut plain = model.ragged_context(&all, &lengths, Vec::new(), Compute::F32).unwrap();
        let caches = caches.iter_mut().map(|cache| &mut **cache as &mut dyn Cache).collect();
        let mut kept = model.ragged_context(&all, &lengths, caches, Compute::F32).unwrap();
        [model.hidden(&mut plain).unwrap(), model.hidden(&mut kept).unwrap()]
    });
    for (cache, text) in caches.iter().zip(texts) {
        assert_eq!(cache.len(), text.len());
    }
    let logits = |hidden: &Tensor| split(&no_grad(|| model.logits(hidden, Compute::F32)).unwrap(), texts);
    Said {
        logits: [logits(&hidden), logits(&inferred), logits(&cached)],
        gradients,
    }
}

fn check(name: &str, own: &Value) {
    let mut model = model(own);
    let texts = [ids(30, 1), ids(17, 2), ids(17, 3), ids(1, 4), ids(39, 5)];
    let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    let together = run(&mut model, &texts);
    let tokens: usize = texts.iter().map(|text| text.len()).sum();
    let mut mean = vec![0.0; together.gradients.len()];
    for (i, text) in texts.iter().enumerate() {
        let alone = run(&mut model, &[text]);
        for (form, (a, b)) in ["training", "inference", "caches"]
            .iter()
            .zip(together.logits.iter().zip(&alone.logits))
        {
            close(&format!("{name}, {form}, sequence {i}"), &a[i], &b[0]);
        }
        let share = text.len() as f32 / tokens as f32;
        mean.iter_mut().zip(alone.gradients).for_each(|(m, g)| *m += share * g);
    }
    close(&format!("{name}, gradients"), &together.gradients, &mean);
    // Nor is the test deaf: joined to one sequence they would hear each other.
    let joined = run(&mut model, &[&texts.concat()]);
    let second = &joined.logits[1][0][30 * VOCABULARY..47 * VOCABULARY];
    assert!(worst(second, &together.logits[1][1]) > 1e-2, "{name}");
}

#[test]
fn every_attention_method_keeps_sequences_apart() {
    for key in ounce_model::attention::method_keys() {
        assert!(attentions().iter().any(|(_, own)| own.get(key).is_some()), "{key}");
    }
    for (name, own) in attentions() {
        check(name, &own);
    }
}

#[test]
fn every_feed_forward_method_keeps_sequences_apart() {
    for (name, own) in feed_forwards() {
        check(name, &own);
    }
}

/// A sequence that is read, stepped and rolled back among 32 others that come, go and step at will has the bits it has alone.
#[test]
fn a_sequence_has_the_same_bits_alone_and_among_32_others() {
    for (name, own) in attentions().into_iter().chain(feed_forwards()) {
        let model = model(&own);
        let text = ids(40, 7);
        let rollback = own.get("dga").is_none();
        let alone = {
            let mut session = Session::new(&model, Compute::F32);
            let slot = session.open(0);
            let mut said = vec![session.prefill(slot, &text[..19]).unwrap().to_f32()];
            for &id in &text[19..] {
                said.push(session.step(&[(slot, id)]).unwrap().to_f32());
            }
            said
        };
        let mut session = Session::new(&model, Compute::F32);
        let mut others: Vec<_> = (0..32).map(|_| session.open(0)).collect();
        for (i, &other) in others.iter().enumerate() {
            session.prefill(other, &ids(1 + i * 7 % 23, i)).unwrap();
        }
        let slot = session.open(0);
        assert_eq!(session.prefill(slot, &text[..19]).unwrap().to_f32(), alone[0], "{name}");
        for (t, &id) in text[19..].iter().enumerate() {
            if t == 5 {
                session.close(others.remove(3)).unwrap();
                let fork = session.fork(others[8]).unwrap();
                others.push(fork);
            }
            // Each neighbour takes part now and then, before or behind.
            let part = |i: &usize| !(i * 5 + t).is_multiple_of(3);
            let mut step: Vec<_> = (0..others.len())
                .filter(part)
                .map(|i| (others[i], ids(1, i + t)[0]))
                .collect();
            let place = (t * 7) % (step.len() + 1);
            step.insert(place, (slot, id));
            let said = session.step(&step).unwrap().to_f32();
            let ours = &said[place * VOCABULARY..(place + 1) * VOCABULARY];
            assert!(ours == alone[t + 1], "{name}, step {t}");
            if t == 9 && rollback {
                // Read ahead, beside another that does so too, and think better of it.
                let before = session.tokens(slot).unwrap();
                let (ours, theirs) = (ids(4, 2), ids(2, 3));
                let drafted = [(others[0], &theirs[..]), (slot, &ours[..])];
                assert_eq!(session.verify(&drafted).unwrap().rows(), 6);
                session.rollback(slot, before).unwrap();
            }
        }
        assert_eq!(session.tokens(slot).unwrap(), 40);
        let bytes = session.bytes();
        session.close(slot).unwrap();
        assert!(session.bytes() < bytes && session.step(&[(slot, 0)]).is_err());
    }
}

#[test]
fn a_draft_is_verified_as_steps_would() {
    for (name, own) in attentions() {
        let model = model(&own);
        let text = ids(30, 3);
        let mut session = Session::new(&model, Compute::F32);
        let slot = session.open(0);
        session.prefill(slot, &text[..20]).unwrap();
        let other = session.fork(slot).unwrap();
        let at_once = session.verify(&[(slot, &text[20..26])]).unwrap().to_f32();
        for (t, said) in text[20..26].iter().zip(at_once.chunks(VOCABULARY)) {
            close(name, &session.step(&[(other, *t)]).unwrap().to_f32(), said);
        }
        let twice = [(slot, &text[..1]), (slot, &text[..1])];
        assert!(session.verify(&twice).unwrap_err().to_string().contains("twice"));
    }
}
