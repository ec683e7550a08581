//! Rotary positions, from the keys of a configuration, as the reference resolves them: `rope_scaling` (old) goes before
//! `rope_parameters` (new) as a whole, and a base within either before the flat `rope_theta`.

use super::{RopeConfig, RopeScaling, keys::Keys, refuse};
use crate::error::Result;
use serde_json::Value;

/// What the keys say for heads of `head_dim`. Keys that a rope type does not read are added to `ignored`.
pub(super) fn read(
    keys: &Keys<'_>,
    max_positions: usize,
    head_dim: usize,
    ignored: &mut Vec<String>,
) -> Result<RopeConfig> {
    let flat_theta = keys.positive("rope_theta", 10000.0)?;
    let empty = |v: &Value| v.as_object().is_some_and(serde_json::Map::is_empty);
    let nested_key = match keys.get("rope_scaling") {
        Some(scaling) if !empty(scaling) => {
            if keys.get("rope_parameters").is_some_and(|p| p != scaling) {
                ignored.push("rope_parameters (rope_scaling goes before it)".into());
            }
            "rope_scaling"
        }
        _ => "rope_parameters",
    };
    let none = serde_json::Map::new();
    let map = match keys.get(nested_key) {
        None => &none,
        Some(Value::Object(map)) => map,
        Some(_) => return keys.bad(nested_key, "must be an object"),
    };
    if let Some((layer, _)) = map.iter().find(|(_, v)| v.is_object()) {
        return keys.bad(
            nested_key,
            format!("rotary positions of their own for some layers (\"{layer}\") are not what this family has"),
        );
    }
    let inner = Keys { file: keys.file, map };
    let theta = inner.positive("rope_theta", flat_theta)?;
    let kind = match (map.get("rope_type"), map.get("type")) {
        (None, None) => "default",
        (Some(kind), other) => {
            if other.is_some_and(|other| other != kind) {
                ignored.push(format!("{nested_key}.type"));
            }
            kind.as_str().unwrap_or("null")
        }
        (None, Some(kind)) => kind.as_str().unwrap_or("null"),
    };
    let original_at = if keys.get("original_max_position_embeddings").is_some() {
        keys
    } else {
        &inner
    };
    let max = max_positions as f64;
    let original = || original_at.positive("original_max_position_embeddings", max);
    let need = |key: &str| match inner.number(key)? {
        Some(x) if x > 0.0 => Ok(x),
        _ => inner.bad(key, format!("rope type \"{kind}\" needs a number above 0")),
    };
    let mut read: Vec<&str> = vec!["rope_theta", "rope_type", "type"];
    let scaling = match kind {
        "default" => RopeScaling::Default,
        "linear" => {
            read.push("factor");
            RopeScaling::Linear {
                factor: need("factor")?,
            }
        }
        "dynamic" => {
            read.push("factor");
            if head_dim <= 2 {
                return keys.bad(nested_key, "rope type \"dynamic\" needs heads wider than 2");
            }
            RopeScaling::Dynamic {
                factor: need("factor")?,
                max_positions: max,
            }
        }
        "llama3" => {
            read.extend([
                "factor",
                "low_freq_factor",
                "high_freq_factor",
                "original_max_position_embeddings",
            ]);
            RopeScaling::Llama3 {
                factor: need("factor")?,
                low_freq_factor: need("low_freq_factor")?,
                high_freq_factor: need("high_freq_factor")?,
                original_positions: original()?,
            }
        }
        "longrope" => {
            read.extend(["factor", "attention_factor", "short_factor", "long_factor"]);
            read.push("original_max_position_embeddings");
            let original = original()?;
            let factor = inner.positive("factor", max / original)?;
            let attention_factor = match inner.number("attention_factor")? {
                Some(stated) => stated,
                None if factor <= 1.0 => 1.0,
                None if original <= 1.0 => {
                    return inner.bad(
                        "original_max_position_embeddings",
                        "must be above 1 for rope type \"longrope\"",
                    );
                }
                None => (1.0 + factor.ln() / original.ln()).sqrt(),
            };
            RopeScaling::LongRope {
                short: factors(&inner, "short_factor", head_dim / 2)?,
                long: factors(&inner, "long_factor", head_dim / 2)?,
                original_positions: original,
                attention_factor,
            }
        }
        "yarn" => {
            read.extend(["factor", "beta_fast", "beta_slow", "original_max_position_embeddings"]);
            read.extend(["attention_factor", "mscale", "mscale_all_dim", "truncate"]);
            yarn(&inner, theta, max, original()?)?
        }
        "proportional" => {
            read.extend(["factor", "partial_rotary_factor"]);
            let part = inner
                .number("partial_rotary_factor")?
                .or(keys.number("partial_rotary_factor")?)
                .unwrap_or(1.0);
            if !(0.0..=1.0).contains(&part) {
                return keys.bad(
                    nested_key,
                    format!("\"partial_rotary_factor\" must be in 0..=1, is {part}"),
                );
            }
            RopeScaling::Proportional {
                factor: inner.positive("factor", 1.0)?,
                rotated: (part * head_dim as f64 / 2.0).floor() as usize,
            }
        }
        other => {
            return refuse(
                keys.file,
                nested_key,
                format!("rope type \"{other}\" is not supported"),
                "implemented: default, linear, dynamic, llama3, longrope, yarn, proportional",
            );
        }
    };
    if !["default", "proportional"].contains(&kind) {
        whole_heads(keys, &inner, head_dim)?;
        read.push("partial_rotary_factor");
    }
    let unread = |key: &str| !read.contains(&key);
    ignored.extend(map.keys().filter(|k| unread(k)).map(|k| format!("{nested_key}.{k}")));
    for key in ["partial_rotary_factor", "original_max_position_embeddings"] {
        if keys.get(key).is_some() && unread(key) {
            ignored.push(key.into());
        }
    }
    Ok(RopeConfig { theta, scaling })
}

/// The reference's function for these types rotates part of a head only where the family can, and these families cannot.
fn whole_heads(keys: &Keys<'_>, inner: &Keys<'_>, head_dim: usize) -> Result<()> {
    let at = if inner.get("partial_rotary_factor").is_some() {
        inner
    } else {
        keys
    };
    match at.number("partial_rotary_factor")? {
        Some(part) if (part * head_dim as f64).floor() != head_dim as f64 => at.bad(
            "partial_rotary_factor",
            format!("partial rotary positions are not supported, is {part}"),
        ),
        _ => Ok(()),
    }
}

/// A divisor for each frequency.
fn factors(inner: &Keys<'_>, key: &str, count: usize) -> Result<Vec<f64>> {
    let list = inner.get(key).and_then(Value::as_array);
    let list: Option<Vec<f64>> = list.and_then(|l| l.iter().map(Value::as_f64).collect());
    match list {
        Some(list) if list.len() == count && list.iter().all(|&x| x > 0.0 && x.is_finite()) => Ok(list),
        _ => inner.bad(
            key,
            format!("must hold {count} numbers above 0, one for each frequency"),
        ),
    }
}

fn yarn(inner: &Keys<'_>, theta: f64, max: f64, original: f64) -> Result<RopeScaling> {
    if theta == 1.0 {
        return inner.bad("rope_theta", "must not be 1 for rope type \"yarn\"");
    }
    // Null is derived from the lengths; the reference refuses a file that leaves it out.
    if !inner.map.contains_key("factor") {
        return inner.bad(
            "factor",
            "rope type \"yarn\" needs it; null derives it from the lengths",
        );
    }
    let factor = inner.positive("factor", max / original)?;
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
    // 0 is the same as nothing to the reference.
    let beta = |key: &str, default: f64| match inner.number(key)? {
        None | Some(0.0) => Ok(default),
        Some(_) => inner.positive(key, default),
    };
    Ok(RopeScaling::Yarn {
        factor,
        beta_fast: beta("beta_fast", 32.0)?,
        beta_slow: beta("beta_slow", 1.0)?,
        original_positions: original,
        attention_factor,
        // A null that stands there is no "left out".
        truncate: inner.flag("truncate", !inner.map.contains_key("truncate"))?,
    })
}
