//! Rotary positions, from the keys of a configuration.

use super::{RopeConfig, RopeScaling, keys::Keys, refuse};
use crate::error::Result;
use serde_json::Value;

/// Both spellings: `rope_parameters` (new) and flat `rope_theta` + `rope_scaling` (old).
pub(super) fn read(keys: &Keys<'_>, max_positions: usize) -> Result<RopeConfig> {
    let flat_theta = keys.positive("rope_theta", 10000.0)?;
    let whole = |kind: &str| match keys.number("partial_rotary_factor")? {
        // The reference does not read it for plain rotary positions.
        Some(part) if part != 1.0 && kind != "default" => keys.bad(
            "partial_rotary_factor",
            format!("partial rotary positions are not supported, is {part}"),
        ),
        _ => Ok(()),
    };
    let nested_key = if keys.get("rope_parameters").is_some() {
        "rope_parameters"
    } else {
        "rope_scaling"
    };
    let Some(nested) = keys.get(nested_key) else {
        return Ok(RopeConfig {
            theta: flat_theta,
            scaling: RopeScaling::Default,
        });
    };
    let Value::Object(map) = nested else {
        return keys.bad(nested_key, "must be an object");
    };
    let inner = Keys { file: keys.file, map };
    let theta = inner.positive("rope_theta", flat_theta)?;
    let kind = match inner.text("rope_type")? {
        Some(kind) => kind,
        None => inner.text("type")?.unwrap_or("default"),
    };
    whole(kind)?;
    let known: &[&str] = match kind {
        "default" => &[],
        "linear" => &["factor"],
        "llama3" => &[
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        ],
        "yarn" => &[
            "factor",
            "beta_fast",
            "beta_slow",
            "original_max_position_embeddings",
            "attention_factor",
            "mscale",
            "mscale_all_dim",
            "truncate",
        ],
        other => {
            return refuse(
                keys.file,
                nested_key,
                format!("rope type \"{other}\" is not supported"),
                "implemented: default, linear, llama3, yarn",
            );
        }
    };
    for key in map.keys() {
        if !known.contains(&key.as_str()) && !["rope_theta", "rope_type", "type"].contains(&key.as_str()) {
            return keys.bad(nested_key, format!("\"{key}\" is unknown to rope type \"{kind}\""));
        }
    }
    let need = |key: &str| match inner.number(key)? {
        Some(x) if x > 0.0 => Ok(x),
        _ => inner.bad(key, format!("rope type \"{kind}\" needs a number above 0")),
    };
    let scaling = match kind {
        "linear" => RopeScaling::Linear {
            factor: need("factor")?,
        },
        "llama3" => RopeScaling::Llama3 {
            factor: need("factor")?,
            low_freq_factor: need("low_freq_factor")?,
            high_freq_factor: need("high_freq_factor")?,
            original_positions: need("original_max_position_embeddings")?,
        },
        "yarn" => {
            let original = inner.positive("original_max_position_embeddings", max_positions as f64)?;
            let factor = inner.positive("factor", max_positions as f64 / original)?;
            let gain = |mscale: f64| {
                if factor <= 1.0 {
                    1.0
                } else {
                    0.1 * mscale * factor.ln() + 1.0
                }
            };
            let attention_factor = match (
                inner.number("attention_factor")?,
                inner.number("mscale")?,
                inner.number("mscale_all_dim")?,
            ) {
                (Some(stated), _, _) => stated,
                (None, Some(m), Some(all)) if m != 0.0 && all != 0.0 => gain(m) / gain(all),
                _ => gain(1.0),
            };
            RopeScaling::Yarn {
                factor,
                beta_fast: inner.positive("beta_fast", 32.0)?,
                beta_slow: inner.positive("beta_slow", 1.0)?,
                original_positions: original,
                attention_factor,
                truncate: inner.flag("truncate", true)?,
            }
        }
        _ => RopeScaling::Default,
    };
    Ok(RopeConfig { theta, scaling })
}
