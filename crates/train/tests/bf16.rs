//! Training with bf16 products stays close to training with f32 products, also where small differences choose experts.

use ounce_data::{Batch, DataDir};
use ounce_train::{Recipe, TrainStep};

const VOCABULARY: usize = 48;
const STEPS: u64 = 60;

/// Rows in which a token follows from the one before it, after a first token that differs from row to row and step to step.
fn batch(step: u64) -> Batch {
    const ROWS: usize = 8;
    const LENGTH: usize = 16;
    let row = |r: usize| {
        let first = (7 * step as usize + 5 * r) % VOCABULARY;
        std::iter::successors(Some(first), |t| Some((5 * t + 3) % VOCABULARY)).take(LENGTH + 1)
    };
    let windows: Vec<Vec<u32>> = (0..ROWS).map(|r| row(r).map(|t| t as u32).collect()).collect();
    Batch {
        rows: ROWS,
        length: LENGTH,
        inputs: windows.iter().flat_map(|w| w[..LENGTH].to_vec()).collect(),
        targets: windows.iter().flat_map(|w| w[1..].to_vec()).collect(),
    }
}

/// Cross-entropy of every step.
fn losses(own: &str, compute: &str) -> Vec<f64> {
    let text = format!(
        r#"
[model]
hidden_size = 32
layers = 2
heads = 2
intermediate_size = 48
max_positions = 16
{own}
[tokenizer]
train_vocab = {VOCABULARY}
[data]
train = ["unused"]
[optimizer]
lr = 1e-3
[run]
steps = {STEPS}
batch = 8
length = 16
compute = "{compute}"
"#
    );
    let recipe = Recipe::parse("bf16", &text, &[]).unwrap();
    let mut step = TrainStep::of(&recipe, &DataDir::from_environment(None)).unwrap();
    let one = |s| step.run(&[batch(s)], s, 3e-3).unwrap().loss;
    (1..=STEPS).map(one).collect()
}

#[test]
fn losses_in_bf16_follow_those_in_f32() {
    let experts = "experts = 8\nexperts_per_token = 2\nbalance = 0.01";
    let aoe = format!("family = \"aoe\"\n{experts}\nconfig = {{ aoe_d_low = 8, aoe_d_wide = 60 }}");
    for (name, own) in [("dense", ""), ("router", experts), ("aoe", &aoe)] {
        let (exact, rough) = (losses(own, "f32"), losses(own, "bf16"));
        assert_ne!(exact, rough, "{name}: bf16 products changed nothing");
        let first = (rough[0] - exact[0]).abs();
        let worst = ounce_tensor::largest_difference(&exact, &rough);
        let end = exact[STEPS as usize - 1];
        assert!(first < 0.005, "{name}: {first}");
        assert!(worst < 0.02, "{name}: {worst}");
        assert!(end < 0.5 * exact[0], "{name}: learned nothing, {end}");
    }
}
