//! What stands before or within a name because of how the model was saved, and not because of what the tensor is.

use super::Wanted;

/// Wrappers that put a component into the name wherever they were applied: `torch.compile`, FSDP, activation checkpointing.
const WITHIN: [&str; 4] = [
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
];

/// What stands before the whole name: data-parallel training and DeepSpeed; adapters that were merged.
const BEFORE: [&str; 2] = ["module.", "base_model.model."];

/// The body of a causal language model, in families whose head stands beside it.
const BODY: &str = "model.";

/// Names that the tensor `stored` could be meant by, plain ones first, each with what was done to get there. `around` is
/// what stands before all names of the file.
pub(super) fn candidates(stored: &str, around: Option<&str>) -> Vec<(String, String)> {
    let mut all = Vec::new();
    variants(stored, Vec::new(), &mut all);
    if let Some(rest) = around.and_then(|around| stored.strip_prefix(around)) {
        let taken = around.unwrap_or_default();
        variants(rest, vec![taken.to_owned()], &mut all);
    }
    all
}

fn variants(name: &str, mut taken: Vec<String>, all: &mut Vec<(String, String)>) {
    let mut inner: Vec<&str> = Vec::new();
    for component in name.split('.') {
        if WITHIN.contains(&component) {
            taken.push(format!("{component}."));
        } else {
            inner.push(component);
        }
    }
    let mut name = inner.join(".");
    while let Some((before, rest)) = BEFORE.iter().find_map(|b| Some((*b, name.strip_prefix(b)?.to_owned()))) {
        taken.push(before.to_owned());
        name = rest;
    }
    taken.sort();
    taken.dedup();
    let said = |more: Option<&str>| {
        let list: Vec<String> = taken
            .iter()
            .map(String::as_str)
            .chain(more)
            .map(|t| format!("{t:?}"))
            .collect();
        format!("taken away from the names: {}", list.join(", "))
    };
    all.push((name.clone(), said(None)));
    if let Some(rest) = name.strip_prefix(BODY) {
        all.push((rest.to_owned(), said(Some(BODY))));
    }
    let added = format!("the model was saved without its head: {BODY:?} put before the names");
    let added = if taken.is_empty() {
        added
    } else {
        format!("{added}, {}", said(None))
    };
    all.push((format!("{BODY}{name}"), added));
}

/// What stands before every name of a file of which no tensor is known otherwise: the attribute of whatever trained it
/// (`net.`, `llm.model.`, …).
pub(super) fn around_all(names: &[&str], wanted: &Wanted) -> Option<String> {
    let known = |name: &str| candidates(name, None).iter().any(|(name, _)| wanted.contains_key(name));
    let (first, rest) = names.split_first()?;
    if names.iter().any(|name| known(name)) {
        return None;
    }
    let mut common = first.rfind('.').map(|end| &first[..=end])?;
    for name in rest {
        while !name.starts_with(common) {
            common = common[..common.len() - 1].rfind('.').map(|end| &common[..=end])?;
        }
    }
    // The body's own name is not around it: where there is no head, all names share it.
    Some(common.strip_suffix(BODY).unwrap_or(common).to_owned())
}
