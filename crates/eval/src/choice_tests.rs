//! Tests of multiple choice.

use super::*;
use crate::{
    score::silent,
    testing::{tiny, uniform},
};
use ounce_model::Batch;
use ounce_tensor::{Compute, ops};

const F32: ScoreOptions = ScoreOptions {
    compute: Compute::F32,
    batch_tokens: None,
};
const START: u32 = 300;

/// One id per byte, but `": "`, `" y"` and `"ab"` are tokens of their own (leftmost first), so that boundaries can merge.
fn pieces(text: &str) -> Vec<u32> {
    let (mut ids, mut rest) = (Vec::new(), text);
    while let Some(&byte) = rest.as_bytes().first() {
        let merged = [(": ", 256), (" y", 257), ("ab", 258)]
            .into_iter()
            .find(|(piece, _)| rest.starts_with(piece));
        let (len, id) = merged.map_or((1, u32::from(byte)), |(_, id)| (2, id));
        ids.push(id);
        rest = &rest[len..];
    }
    ids
}

fn encoder() -> Encoder<'static> {
    Encoder {
        encode: &|text| Ok(pieces(text)),
        start: Some(START),
    }
}

fn pair(context: &str, choice: &str, positions: usize) -> Result<(Vec<u32>, usize)> {
    encode_pair(encoder(), context, choice, positions, "choice").map(|e| (e.ids, e.from))
}

fn item(context: &str, choices: &[&str], answer: usize) -> ChoiceItem {
    let choices = choices.iter().map(ToString::to_string).collect();
    ChoiceItem {
        context: context.into(),
        choices,
        answer,
        groups: Vec::new(),
    }
}

/// -nll of `ids[from..]` by plain cross-entropy over a full forward.
fn direct(model: &Model, ids: &[u32], from: usize) -> f64 {
    let logits = model
        .forward(Batch {
            ids,
            batch: 1,
            compute: Compute::F32,
        })
        .unwrap();
    let targets: Vec<i64> = (1..=ids.len())
        .map(|t| {
            if t >= from && t < ids.len() {
                i64::from(ids[t])
            } else {
                -1
            }
        })
        .collect();
    -ops::cross_entropy(&logits, &targets).unwrap().item().unwrap() * (ids.len() - from) as f64
}

#[test]
fn the_boundary_lies_where_the_choice_begins() {
    let b = u32::from;
    // A clean boundary: the space belongs to the choice, wherever it is written.
    assert_eq!(pair("q", " yz", 16).unwrap(), (vec![b(b'q'), 257, b(b'z')], 1));
    assert_eq!(pair("q ", "yz", 16).unwrap(), (vec![b(b'q'), 257, b(b'z')], 1));
    // ": " spans it: the merged token is scored, nothing of the choice is lost.
    assert_eq!(
        pair("q:", " yz", 16).unwrap(),
        (vec![b(b'q'), 256, b(b'y'), b(b'z')], 1)
    );
    // Nothing shared: one token must remain as context.
    assert_eq!(pair("a", "bc", 16).unwrap(), (vec![258, b(b'c')], 1));
    // Without context, the start token is it, once.
    assert_eq!(pair("", "zy", 16).unwrap(), (vec![START, b(b'z'), b(b'y')], 1));
    let with_start = |text: &str| Ok([vec![START], pieces(text)].concat());
    let twice = Encoder {
        encode: &with_start,
        start: Some(START),
    };
    assert_eq!(encode_pair(twice, "", "z", 16, "").unwrap().ids, [START, b(b'z')]);
    assert_eq!(encode_pair(twice, "q", "z", 16, "").unwrap().from, 2);
}

#[test]
fn long_contexts_lose_their_beginning_and_long_choices_are_refused() {
    let b = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
    assert_eq!(pair("123456", "789", 4).unwrap(), (b("56789"), 2));
    assert_eq!(pair("123456", "7890", 4).unwrap(), (b("67890"), 1));
    assert!(pair("123456", "78901", 4).unwrap_err().to_string().contains("5 tokens"));
    assert!(pair("q", "", 4).unwrap_err().to_string().contains("no token"));
    let without_start = Encoder {
        start: None,
        ..encoder()
    };
    assert!(encode_pair(without_start, "", "z", 4, "choice").is_err_and(|e| e.to_string().contains("no token")));
}

#[test]
fn likelihoods_equal_a_direct_computation() {
    let model = tiny(301, 32);
    let items = [
        item("why:", &[" yes", " no, ab"], 1),
        item("", &["abc", "acb", "x"], 0),
        item("why? ", &["ye", "no"], 0),
    ];
    let scores = score_choices(&model, &items, encoder(), &F32, &mut silent).unwrap();
    for (item, score) in items.iter().zip(&scores) {
        for (c, choice) in item.choices.iter().enumerate() {
            let (ids, from) = pair(&item.context, choice, 32).unwrap();
            let expected = direct(&model, &ids, from);
            assert!(
                (score.log_likelihoods[c] - expected).abs() < 1e-4,
                "{choice}: {score:?} {expected}"
            );
            let bytes = choice.trim_start().len() as f64;
            assert_eq!(score.per_byte[c], score.log_likelihoods[c] / bytes);
        }
        let best =
            (0..item.choices.len()).max_by(|&a, &b| score.log_likelihoods[a].total_cmp(&score.log_likelihoods[b]));
        assert_eq!(score.correct, best == Some(item.answer));
    }
    // Batched or not.
    let alone = ScoreOptions {
        batch_tokens: Some(1),
        ..F32
    };
    let single = score_choices(&model, &items, encoder(), &alone, &mut silent).unwrap();
    for (a, b) in scores.iter().zip(&single) {
        assert!(
            a.log_likelihoods
                .iter()
                .zip(&b.log_likelihoods)
                .all(|(a, b)| (a - b).abs() < 1e-4),
            "{a:?} {b:?}"
        );
    }
}

#[test]
fn the_right_choice_is_found_whatever_its_place() {
    // The model's own preference, then the same item with the other answer and with the choices exchanged.
    let model = tiny(301, 32);
    let verdict = |choices: [&str; 2], answer| {
        score_choices(&model, &[item("q", &choices, answer)], encoder(), &F32, &mut silent).unwrap()[0].correct
    };
    let first = verdict(["abc", "xyz"], 0);
    assert_ne!(first, verdict(["abc", "xyz"], 1));
    assert_eq!(first, verdict(["xyz", "abc"], 1));
}

#[test]
fn a_uniform_model_gets_ties_wrong_and_prefers_what_is_short() {
    let model = uniform(301, 32);
    let items = [
        item("", &["good", "evil"], 0),
        item("", &["evil", "good"], 1),
        item("", &["yz", "yzz"], 0),
    ];
    let report = choice_report(&model, &items, encoder(), &F32, &mut silent).unwrap();
    assert_eq!((report.accuracy.correct, report.accuracy.items), (1, 3));
    // Per byte all three are ties, up to the rounding of the division.
    let scores = score_choices(&model, &items, encoder(), &F32, &mut silent).unwrap();
    assert!((scores[2].per_byte[0] - scores[2].per_byte[1]).abs() < 1e-12);
    assert!(
        (scores[2].log_likelihoods[0] + 2.0 * 301f64.ln()).abs() < 1e-12,
        "{scores:?}"
    );
}

#[test]
fn equal_choices_are_never_told_apart() {
    let model = tiny(301, 32);
    // Fillers of the same length, so that the pairs stand in different rows of one batch.
    let items: Vec<ChoiceItem> = (0..40)
        .map(|i| match i % 2 {
            0 => item("", &["xyz", "xyz"], i / 2 % 2),
            _ => item("", &["xzz", "zzy"], 0),
        })
        .collect();
    let scores = score_choices(&model, &items, encoder(), &F32, &mut silent).unwrap();
    for score in scores.iter().step_by(2) {
        assert_eq!(score.log_likelihoods[0], score.log_likelihoods[1]);
        assert!(!score.correct && !score.correct_norm, "{score:?}");
    }
}

#[test]
fn groups_are_counted_apart() {
    let model = uniform(301, 32);
    let grouped = |choices: [&str; 2], uid: &str| ChoiceItem {
        groups: vec![("uid".into(), uid.into()), ("field".into(), "syntax".into())],
        ..item("", &choices, 0)
    };
    let items = [
        grouped(["a", "bb"], "right"),
        grouped(["aa", "b"], "wrong"),
        grouped(["c", "dd"], "right"),
    ];
    let report = choice_report(&model, &items, encoder(), &F32, &mut silent).unwrap();
    assert_eq!(report.groups["uid"]["right"], Accuracy::new(2, 2).unwrap());
    assert_eq!(report.groups["uid"]["wrong"], Accuracy::new(0, 1).unwrap());
    assert_eq!(report.groups["field"]["syntax"], report.accuracy);
}

#[test]
fn impossible_items_are_named() {
    let model = tiny(301, 8);
    let run = |items: &[ChoiceItem]| {
        choice_report(&model, items, encoder(), &F32, &mut silent)
            .map(|_| ())
            .map_err(|e| e.to_string())
            .unwrap_err()
    };
    assert_eq!(run(&[]), "suite: has no items");
    assert!(run(&[item("", &["a", "b"], 0), item("q", &["a", "b"], 2)]).starts_with("item 2: 2 choices"));
    assert!(run(&[item("q", &["a"], 0)]).starts_with("item 1: 1 choices"));
    assert!(run(&[item("q", &["a", "123456789"], 0)]).starts_with("choice 2 of item 1: has 9 tokens"));
}
