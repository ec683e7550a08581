//! Heads of a trained model switched off, without training afterwards: the baselines of the mixture.

use super::{
    super::{Measured, Trained},
    HEADS, SHARES, Scale,
};
use crate::LabError;
use ounce_kernels::Philox;
use ounce_tensor::Tensor;

/// The columns of the output maps `[D, H·hd]` that belong to switched-off heads become zero, so those heads say nothing.
struct Switch {
    outputs: Vec<Tensor>,
}

impl Switch {
    fn is_output(name: &str) -> bool {
        name.ends_with(".self_attn.o_proj.weight")
    }

    fn new(trained: &mut Trained) -> Self {
        let mut outputs = Vec::new();
        trained.model.visit(&mut |p| {
            if Self::is_output(&p.name) {
                outputs.push(p.tensor.clone());
            }
        });
        Self { outputs }
    }

    /// Switches off the heads named by `off`, one flag per layer and head; all others are on again.
    fn set(&self, trained: &mut Trained, off: &[[bool; HEADS]]) -> Result<(), LabError> {
        let mut made = Vec::with_capacity(off.len());
        for (whole, off) in self.outputs.iter().zip(off) {
            let width = whole.last_dim();
            let mut values = whole.to_f32();
            for (i, x) in values.iter_mut().enumerate() {
                if off[i % width / (width / HEADS)] {
                    *x = 0.0;
                }
            }
            made.push(Tensor::new(values, whole.shape())?);
        }
        let mut made = made.into_iter();
        trained.model.visit(&mut |p| {
            if Self::is_output(&p.name)
                && let Some(tensor) = made.next()
            {
                p.tensor = tensor;
            }
        });
        Ok(())
    }
}

/// Loss of the trained model of all heads with `HEADS - kept` of each layer off: by importance (rise of the loss on
/// training text when the head alone is off) and at random (mean of three draws).
pub(super) fn pruned(
    trained: &mut Trained,
    scale: &Scale,
    train: &[u32],
    valid: &[u32],
    seed: u64,
) -> Result<Measured, LabError> {
    const DRAWS: u64 = 3;
    let switch = Switch::new(trained);
    let layers = switch.outputs.len();
    let none = vec![[false; HEADS]; layers];
    let mut rise = vec![[0.0; HEADS]; layers];
    for layer in 0..layers {
        for head in 0..HEADS {
            let mut off = none.clone();
            off[layer][head] = true;
            switch.set(trained, &off)?;
            rise[layer][head] = trained.loss_at(train, scale.length, scale.tokens / 8)?;
        }
    }
    // Off are those of each layer that come first in `rank`.
    let off = |kept: usize, rank: &dyn Fn(usize, usize) -> f64| -> Vec<[bool; HEADS]> {
        let of_layer = |layer: usize| {
            let mut order: Vec<usize> = (0..HEADS).collect();
            order.sort_by(|&a, &b| rank(layer, a).total_cmp(&rank(layer, b)));
            let mut off = [false; HEADS];
            order[..HEADS - kept].iter().for_each(|&head| off[head] = true);
            off
        };
        (0..layers).map(of_layer).collect()
    };
    let mut measured = Measured::default();
    for (share, kept) in SHARES {
        switch.set(trained, &off(kept, &|layer, head| rise[layer][head]))?;
        let loss = trained.loss_at(valid, scale.length, scale.tokens)?;
        measured.values.insert(format!("pruned {share}"), loss);
        let mut sum = 0.0;
        for draw in 0..DRAWS {
            let rank = |layer: usize, head: usize| Philox::uniform(seed, draw, layer as u64, head as u64);
            switch.set(trained, &off(kept, &rank))?;
            sum += trained.loss_at(valid, scale.length, scale.tokens)?;
        }
        measured.values.insert(format!("random {share}"), sum / DRAWS as f64);
    }
    switch.set(trained, &none)?;
    Ok(measured)
}
