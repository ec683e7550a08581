//! Parts that only this module sees: the layout of a call, the weights, the noise, the slopes.

use super::{
    layers,
    retrieval::{gumbel, weigh},
    span::Span,
};
use crate::{ctx::Noise, top_k};
use ounce_tensor::Tensor;
use proptest::prelude::*;

/// Positions written out: a landmark after every `chunk` real tokens.
fn written_out(span: Span) -> Vec<Option<usize>> {
    let mut all = Vec::new();
    for i in 0..span.len {
        all.push(Some(i));
        if (span.past + i + 1).is_multiple_of(span.chunk) {
            all.push(None);
        }
    }
    all
}

proptest! {
    #[test]
    fn spans_are_what_is_written_out(chunk in 1usize..9, past in 0usize..40, len in 1usize..40) {
        let span = Span { chunk, past, len };
        let all = written_out(span);
        prop_assert_eq!(span.total(), all.len());
        for (p, token) in all.iter().enumerate() {
            if let Some(i) = token {
                prop_assert_eq!(span.position(*i), p);
            }
        }
        let landmarks: Vec<usize> = (0..all.len()).filter(|&p| all[p].is_none()).collect();
        let ours: Vec<usize> = (0..span.finished()).map(|n| span.landmark(n)).collect();
        prop_assert_eq!(ours, landmarks);
        let mut end = 0;
        for (n, run) in span.chunks().enumerate() {
            prop_assert_eq!(run.start, end);
            prop_assert!(n == span.finished() || all[run.end - 1].is_none());
            end = run.end;
        }
        prop_assert_eq!(end, all.len());
        for p in 0..all.len() {
            let before = span.chunks_before(p);
            prop_assert_eq!(before, all[..p].iter().filter(|token| token.is_none()).count());
            let (rest, begin) = span.after(before);
            prop_assert!(begin <= p);
            prop_assert_eq!(&written_out(rest)[..], &all[begin..].iter().map(|t| t.map(|i| i - (span.len - rest.len))).collect::<Vec<_>>()[..]);
        }
    }

    #[test]
    fn weights_are_the_softmax_over_what_is_there(scores in prop::collection::vec(-30f32..30.0, 12), filled in prop::collection::vec(0usize..4, 4)) {
        let chunks: Vec<Option<usize>> = (0..12).map(|i| (i % 3 < filled[i / 3]).then_some(i)).collect();
        let weights = weigh(&Tensor::new(scores.clone(), &[4, 3]).unwrap(), &chunks).unwrap().to_f32();
        for ((row, scores), &filled) in weights.chunks(3).zip(scores.chunks(3)).zip(&filled) {
            let there = &scores[..filled.min(3)];
            let largest = there.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let total: f32 = there.iter().map(|s| (s - largest).exp()).sum();
            for (weight, score) in row.iter().zip(there) {
                prop_assert!((weight - (score - largest).exp() / total).abs() < 1e-5);
            }
            prop_assert!(row[filled.min(3)..].iter().all(|&w| w == 0.0));
        }
    }
}

#[test]
fn slopes_of_the_authors() {
    assert_eq!(layers::slopes(4), [0.25, 0.0625, 0.015_625, 0.003_906_25]);
    assert!((layers::slopes(12)[0] - 0.629_960_54).abs() < 1e-7);
}

/// Top-2 of scores plus Gumbel noise draws without replacement, with probabilities softmax(scores). Chi-square over the 12
/// ordered pairs of 4 candidates; 11 degrees of freedom, 0.999 quantile 31.26. The draws are seeded: the outcome is fixed.
#[test]
fn noisy_choices_are_draws_without_replacement() {
    let scores = [0.3f64, -0.8, 1.1, 0.0];
    let total: f64 = scores.iter().map(|s| s.exp()).sum();
    let p: Vec<f64> = scores.iter().map(|s| s.exp() / total).collect();
    let draws = 20_000;
    let mut counts = [[0f64; 4]; 4];
    for i in 0..draws {
        let noise = Noise {
            seed: 3,
            step: 1 + i as u64,
            part: 0,
        };
        let noisy: Vec<f32> = (0..4)
            .map(|c| (scores[c] + gumbel(noise, [1, 2, 9, c])) as f32)
            .collect();
        let best = top_k(&noisy, 2);
        counts[best[0]][best[1]] += 1.0;
    }
    let mut chi = 0.0;
    for a in 0..4 {
        for b in (0..4).filter(|&b| b != a) {
            let expected = f64::from(draws) * p[a] * p[b] / (1.0 - p[a]);
            chi += (counts[a][b] - expected).powi(2) / expected;
        }
    }
    assert!(chi < 31.26, "{chi}");
}

#[test]
fn noise_depends_on_everything_it_is_drawn_for() {
    let base = Noise {
        seed: 1,
        step: 2,
        part: 0,
    };
    let place = [0, 1, 5, 3];
    let draw = gumbel(base, place);
    assert_eq!(draw, gumbel(base, place));
    for other in [
        Noise { seed: 2, ..base },
        Noise { step: 3, ..base },
        Noise { part: 1, ..base },
    ] {
        assert_ne!(draw, gumbel(other, place));
    }
    for i in 0..4 {
        let mut moved = place;
        moved[i] += 1;
        assert_ne!(draw, gumbel(base, moved));
    }
}
