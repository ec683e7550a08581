//! Which dictionary of a pickle is the state dict. A training checkpoint keeps it under a key, beside an optimiser, numbers
//! and arguments; what is taken and what is passed over is said.

use super::{
    objects::{Objects, TensorRecord, Value},
    refusal::{Refusal, Step},
};

/// Keys under which weights are kept; of these one at most may lead to tensors.
const WEIGHTS: [&str; 6] = [
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "model_state",
    "weights",
];

/// Dictionaries within dictionaries that are looked through.
const DEPTH: usize = 8;

/// The tensors of a state dict.
pub(super) struct Named<'o> {
    pub(super) tensors: Vec<(String, &'o TensorRecord)>,
    pub(super) notes: Vec<String>,
}

/// The tensors of the dictionary `root`, or of the one within it that holds the weights.
pub(super) fn tensors<'o>(objects: &'o Objects<'_>, root: Option<&Value<'_>>) -> Step<Named<'o>> {
    let Some(&Value::Dict(mut dict)) = root else {
        return Err("leaves no dictionary".into());
    };
    let mut notes = Vec::new();
    let mut path: Vec<&str> = Vec::new();
    for _ in 0..DEPTH {
        if objects.items(dict).iter().any(|(_, v)| matches!(v, Value::Tensor(_))) {
            break;
        }
        let Some((key, inner)) = weights_within(objects, dict)? else {
            break;
        };
        path.push(key);
        dict = inner;
    }
    if !path.is_empty() {
        notes.push(format!("the weights are those under {:?}", path.join(".")));
    }
    let mut tensors = Vec::new();
    let mut passed = Vec::new();
    for (key, value) in objects.items(dict) {
        match (key, value) {
            (Value::Str(name), Value::Tensor(t)) => tensors.push(((*name).to_owned(), objects.tensor(*t))),
            (Value::Str(name), _) => passed.push(format!("{name:?}")),
            _ => return Err("a key is no text".into()),
        }
    }
    if tensors.is_empty() && !objects.items(dict).is_empty() {
        return Err(Refusal {
            rule: format!("{} is no tensor, and no dictionary of tensors", passed[0]),
            hint: "save the model's state_dict by itself",
        });
    }
    if !passed.is_empty() {
        notes.push(format!(
            "passed over beside the weights, being no tensor: {}",
            passed.join(", ")
        ));
    }
    Ok(Named { tensors, notes })
}

/// The one dictionary within `dict` that holds weights: under a key that says so, or the only one with tensors.
fn weights_within<'o>(objects: &'o Objects<'_>, dict: usize) -> Step<Option<(&'o str, usize)>> {
    let inner: Vec<(&str, usize)> = objects
        .items(dict)
        .iter()
        .filter_map(|(key, value)| match (key, value) {
            (Value::Str(key), Value::Dict(d)) if leads_to_tensors(objects, *d) => Some((*key, *d)),
            _ => None,
        })
        .collect();
    let called: Vec<(&str, usize)> = inner.iter().copied().filter(|(key, _)| WEIGHTS.contains(key)).collect();
    match (&called[..], &inner[..]) {
        ([one], _) | ([], [one]) => Ok(Some(*one)),
        ([], []) => Ok(None),
        ([first, second, ..], _) | ([], [first, second, ..]) => Err(Refusal {
            rule: format!("holds tensors under {:?} and under {:?}", first.0, second.0),
            hint: "which are the model's cannot be known; save its state_dict by itself",
        }),
    }
}

/// Whether `dict`, or a dictionary under a text key within it, holds a tensor.
fn leads_to_tensors(objects: &Objects<'_>, dict: usize) -> bool {
    let mut level = vec![dict];
    for _ in 0..DEPTH {
        let mut next = Vec::new();
        for (key, value) in level.iter().flat_map(|&d| objects.items(d)) {
            match (key, value) {
                (Value::Str(_), Value::Tensor(_)) => return true,
                (Value::Str(_), Value::Dict(d)) => next.push(*d),
                _ => {}
            }
        }
        // A dictionary may hold itself, or one many times.
        next.sort_unstable();
        next.dedup();
        level = next;
    }
    false
}
