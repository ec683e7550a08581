//! What a merged or pruned checkpoint consists of: for every tensor written, where its values come from.
//!
//! *Collapsed* (default): the router keeps its n outputs, experts 0..r carry stock names, and `config.json` says
//! `model_type: "ounce_merged"` with `expert_map`. *Expanded*: n copies under the stock `model_type`; loads anywhere, is
//! no smaller. *Pruned*: a plain stock checkpoint with fewer router rows; or, if layers keep different numbers of experts,
//! `model_type: "ounce_merged"` with `experts_per_layer`.

use crate::hc_smoe::LayerPlan;
use ounce_formats::{Checkpoint, Dtype, TensorSpec};
use ounce_model::{ModelConfig, config::MoeConfig};
use serde_json::{Map, Value, json};

/// One of an expert's three matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Matrix {
    Gate,
    Up,
    Down,
}

/// What a tensor of the output consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// The same bytes.
    Copy,
    /// Rows of the tensor, in this order.
    Rows(Vec<usize>),
    /// A matrix of group `group` of the plan's layer number `index`.
    Merged { index: usize, group: usize, matrix: Matrix },
    /// A matrix of one expert.
    Expert {
        index: usize,
        expert: usize,
        matrix: Matrix,
    },
}

/// A tensor of the output.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) spec: TensorSpec,
    pub(crate) content: Content,
}

/// What becomes of the experts of each mixture layer.
pub(crate) enum Decision<'a> {
    /// Merge; write n copies if expanded.
    Merge { plans: &'a [LayerPlan], expanded: bool },
    /// Keep these ids of each layer, ascending.
    Keep(&'a [Vec<usize>]),
}

/// Everything to write, in checkpoint order.
pub(crate) fn items(checkpoint: &Checkpoint, config: &ModelConfig, decision: &Decision<'_>) -> Vec<Item> {
    let layers: Vec<(usize, &MoeConfig)> = config.moe_layers().collect();
    let mut items = Vec::new();
    let mut done = vec![false; layers.len()];
    for info in checkpoint.tensors() {
        let owner = layers.iter().position(|(layer, moe)| {
            let base = format!("model.layers.{layer}.{}.", moe.names.block());
            info.name
                .strip_prefix(&base)
                .is_some_and(|rest| rest.starts_with("experts.") || rest == "gate.weight")
        });
        let Some(index) = owner else {
            items.push(Item {
                spec: TensorSpec::new(info.name.clone(), info.dtype, info.shape.clone()),
                content: Content::Copy,
            });
            continue;
        };
        if info.name.ends_with(".gate.weight") && !info.name.contains(".experts.") {
            let (shape, content) = match decision {
                Decision::Merge { .. } => (info.shape.clone(), Content::Copy),
                Decision::Keep(kept) => {
                    let mut shape = info.shape.clone();
                    shape[0] = kept[index].len();
                    (shape, Content::Rows(kept[index].clone()))
                }
            };
            items.push(Item {
                spec: TensorSpec::new(info.name.clone(), info.dtype, shape),
                content,
            });
        } else if !done[index] {
            // The first expert tensor of a layer stands for all of them.
            done[index] = true;
            push_experts(&mut items, config, layers[index], index, info.dtype, decision);
        }
    }
    items
}

fn push_experts(
    items: &mut Vec<Item>,
    config: &ModelConfig,
    (layer, moe): (usize, &MoeConfig),
    index: usize,
    dtype: Dtype,
    decision: &Decision<'_>,
) {
    let base = format!("model.layers.{layer}.{}", moe.names.block());
    let written: Vec<usize> = match decision {
        Decision::Merge { plans, expanded: true } => plans[index].grouping.labels().to_vec(),
        Decision::Merge { plans, .. } => (0..plans[index].grouping.count()).collect(),
        Decision::Keep(kept) => kept[index].clone(),
    };
    for (slot, &from) in written.iter().enumerate() {
        let names = moe.names.expert(&base, slot);
        for (matrix, name) in [Matrix::Gate, Matrix::Up, Matrix::Down].into_iter().zip(names) {
            let shape = match matrix {
                Matrix::Down => [config.hidden_size, moe.width],
                _ => [moe.width, config.hidden_size],
            };
            let content = match decision {
                Decision::Merge { .. } => Content::Merged {
                    index,
                    group: from,
                    matrix,
                },
                Decision::Keep(_) => Content::Expert {
                    index,
                    expert: from,
                    matrix,
                },
            };
            items.push(Item {
                spec: TensorSpec::new(name, dtype, shape),
                content,
            });
        }
    }
}

/// The `config.json` of the output.
pub(crate) fn output_config(config: &ModelConfig, decision: &Decision<'_>) -> Map<String, Value> {
    let mut raw = config.raw.clone();
    let ours = |raw: &mut Map<String, Value>, key: &str, value: Value| {
        raw.insert("model_type".into(), "ounce_merged".into());
        raw.insert("base_model_type".into(), config.model_type.clone().into());
        raw.insert("architectures".into(), json!(["OunceMergedForCausalLM"]));
        raw.insert(key.into(), value);
    };
    match decision {
        Decision::Merge { expanded: true, .. } => {}
        Decision::Merge { plans, .. } => {
            let maps: Vec<&[usize]> = plans.iter().map(|p| p.grouping.labels()).collect();
            ours(&mut raw, "expert_map", json!(maps));
        }
        Decision::Keep(kept) => {
            let r = kept.first().map_or(0, Vec::len);
            if kept.iter().any(|k| k.len() != r) {
                let counts: Vec<usize> = kept.iter().map(Vec::len).collect();
                ours(&mut raw, "experts_per_layer", json!(counts));
            } else {
                let key = ["num_experts", "num_local_experts"]
                    .into_iter()
                    .find(|k| raw.contains_key(*k));
                raw.insert(key.unwrap_or("num_experts").into(), r.into());
                let k = config.moe_layers().next().map_or(1, |(_, m)| m.top_k);
                raw.insert("num_experts_per_tok".into(), k.min(r).into());
            }
        }
    }
    raw
}
