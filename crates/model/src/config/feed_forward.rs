//! What fills the feed-forward slot of each layer, from a family's keys: dense layers, mixtures of experts (merged or
//! pruned ones too), or a method.

use super::{FfnConfig, MoeConfig, MoeNames, keys::Keys};
use crate::{error::Result, ffn};
use serde_json::Value;
use std::sync::Arc;

/// One entry per layer.
pub(super) fn read(keys: &Keys<'_>, base: &str, merged: bool, layers: usize) -> Result<Vec<FfnConfig>> {
    if let Some(method) = ffn::FAMILIES.iter().find(|f| f.model_type == base) {
        if merged {
            return keys.bad(
                "base_model_type",
                format!("\"{base}\" has no experts that can be merged"),
            );
        }
        return Ok(vec![FfnConfig::Method((method.read)(keys)?); layers]);
    }
    let dense = FfnConfig::Dense {
        width: keys.size("intermediate_size")?,
    };
    let (names, width, norm_topk) = match base {
        "mixtral" => (MoeNames::Mixtral, keys.size("intermediate_size")?, true),
        "olmoe" => (
            MoeNames::Qwen,
            keys.size("intermediate_size")?,
            keys.flag("norm_topk_prob", false)?,
        ),
        "qwen2_moe" | "qwen3_moe" => (
            MoeNames::Qwen,
            keys.size("moe_intermediate_size")?,
            keys.flag("norm_topk_prob", false)?,
        ),
        _ => {
            if merged {
                return keys.bad("base_model_type", format!("\"{base}\" has no experts to merge"));
            }
            return Ok(vec![dense; layers]);
        }
    };
    let expert_key = if keys.get("num_experts").is_some() {
        "num_experts"
    } else {
        "num_local_experts"
    };
    let experts = match keys.count(expert_key, 0..=1 << 16)? {
        Some(0) => return keys.bad(expert_key, "a mixture of experts needs at least 1 expert, has 0"),
        Some(v) => v,
        None => return keys.bad(expert_key, "is missing"),
    };
    let top_k = keys.size("num_experts_per_tok")?;
    if top_k > experts {
        return keys.bad(
            "num_experts_per_tok",
            format!("must be at most {expert_key} = {experts}, is {top_k}"),
        );
    }
    let shared_width = match base {
        "qwen2_moe" => Some(keys.size("shared_expert_intermediate_size")?),
        _ => None,
    };
    let balance = keys.number("router_aux_loss_coef")?.unwrap_or(0.0);
    if balance < 0.0 {
        return keys.bad("router_aux_loss_coef", format!("must not be negative, is {balance}"));
    }
    let step = keys.count("decoder_sparse_step", 1..=1 << 20)?.unwrap_or(1);
    let dense_layers = keys.counts("mlp_only_layers")?.unwrap_or_default();
    let is_moe = |i: usize| !dense_layers.contains(&i) && (i + 1).is_multiple_of(step);
    let maps = if merged {
        expert_maps(keys, experts, (0..layers).filter(|&i| is_moe(i)).count())?
    } else {
        Vec::new()
    };
    let identity: Arc<[usize]> = (0..experts).collect();
    let mut maps = maps.into_iter();
    Ok((0..layers)
        .map(|i| {
            if !is_moe(i) {
                return dense.clone();
            }
            let map = maps.next().unwrap_or_else(|| identity.clone());
            let stored = map.iter().max().map_or(0, |m| m + 1);
            let experts = map.len();
            FfnConfig::Moe(MoeConfig {
                experts,
                stored,
                map,
                top_k: top_k.min(experts),
                width,
                norm_topk,
                shared_width,
                balance,
                names,
            })
        })
        .collect())
}

/// For each mixture layer, the stored expert of each router output: `expert_map`; or the identity, where pruning left
/// `experts_per_layer` outputs and experts.
fn expert_maps(keys: &Keys<'_>, experts: usize, moe_layers: usize) -> Result<Vec<Arc<[usize]>>> {
    if let Some(counts) = keys.counts("experts_per_layer")? {
        if keys.get("expert_map").is_some() {
            return keys.bad("experts_per_layer", "excludes expert_map");
        }
        if counts.len() != moe_layers || counts.iter().any(|&c| c == 0 || c > experts) {
            return keys.bad(
                "experts_per_layer",
                format!("must hold {moe_layers} counts from 1 to {experts}"),
            );
        }
        return Ok(counts.into_iter().map(|c| (0..c).collect()).collect());
    }
    let rule = format!("must hold {moe_layers} lists of {experts} stored-expert ids, without gaps from 0");
    let Some(lists) = keys
        .get("expert_map")
        .and_then(Value::as_array)
        .filter(|l| l.len() == moe_layers)
    else {
        return keys.bad("expert_map", rule);
    };
    lists
        .iter()
        .map(|list| {
            let ids: Option<Vec<usize>> = list
                .as_array()
                .and_then(|l| l.iter().map(|v| v.as_u64().map(|v| v as usize)).collect());
            let valid = |ids: &Vec<usize>| {
                let stored = ids.iter().max().map_or(0, |m| m.saturating_add(1));
                ids.len() == experts && stored <= experts && (0..stored).all(|e| ids.contains(&e))
            };
            match ids.filter(valid) {
                Some(ids) => Ok(ids.into()),
                None => keys.bad("expert_map", rule.clone()),
            }
        })
        .collect()
}
