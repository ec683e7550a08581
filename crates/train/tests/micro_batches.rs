//! A step is the same step, however it is cut into micro-batches, balance losses included.

use ounce_data::{Batch, DataDir};
use ounce_train::{Recipe, StepResult, TrainStep};

const VOCABULARY: usize = 48;
const LENGTH: usize = 12;

/// Row r of the step: rows differ, so that experts are chosen unevenly among them.
fn rows(range: std::ops::Range<usize>) -> Batch {
    let row = |r: usize| (0..=LENGTH).map(move |i| ((r * r * 7 + (r + 1) * i) % VOCABULARY) as u32);
    let windows: Vec<Vec<u32>> = range.map(|r| row(r).collect()).collect();
    Batch {
        rows: windows.len(),
        length: LENGTH,
        inputs: windows.iter().flat_map(|w| w[..LENGTH].to_vec()).collect(),
        targets: windows.iter().flat_map(|w| w[1..].to_vec()).collect(),
    }
}

/// Three steps over eight rows, `size` at a time.
fn steps(own: &str, size: usize) -> Vec<StepResult> {
    let text = format!(
        "[model]\nhidden_size = 32\nlayers = 2\nheads = 4\nintermediate_size = 24\nmax_positions = 16\n\
         initializer_range = 0.3\n{own}\n[tokenizer]\ntrain_vocab = {VOCABULARY}\n[data]\ntrain = [\"unused\"]\n\
         [optimizer]\nlr = 1e-4\n[run]\nsteps = 3\nbatch = 8\nmicro_batch = {size}\nlength = {LENGTH}\n"
    );
    let recipe = Recipe::parse("micro", &text, &[]).unwrap();
    let mut trainer = TrainStep::of(&recipe, &DataDir::from_environment(None)).unwrap();
    let batches: Vec<Batch> = (0..8 / size).map(|m| rows(m * size..(m + 1) * size)).collect();
    (1..=3).map(|step| trainer.run(&batches, step, 1e-4).unwrap()).collect()
}

#[test]
fn loss_and_gradient_do_not_depend_on_the_micro_batch() {
    let router = "experts = 4\nexperts_per_token = 2\nbalance = 2.0";
    let aoe = format!("family = \"aoe\"\n{router}\nconfig = {{ aoe_d_low = 8, aoe_d_wide = 60 }}");
    let moh = "moh = { router = \"two_stage\", shared_heads = 1, active_routed_heads = 1, balance = 2.0 }";
    for (name, own) in [("dense", ""), ("router", router), ("aoe", &aoe), ("moh", moh)] {
        let whole = steps(own, 8);
        for size in [4, 1] {
            for (step, (a, b)) in whole.iter().zip(steps(own, size)).enumerate() {
                let near = |x: f64, y: f64| (x - y).abs() <= 2e-4 * x.abs().max(1e-3);
                let at = format!("{name}, {size} rows at a time, step {step}: {a:?} {b:?}");
                assert!(near(a.loss, b.loss) && near(a.grad_norm, b.grad_norm), "{at}");
                assert_eq!(a.parts.len(), if own.is_empty() { 1 } else { 2 }, "{at}");
                assert!(a.parts.iter().zip(&b.parts).all(|(a, b)| near(a.1, b.1)), "{at}");
            }
        }
    }
}
