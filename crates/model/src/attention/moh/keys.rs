//! The key `moh` of a configuration: read, and checked against the heads there are.

use super::{Method, MohConfig, Router, Scaling};
use crate::{
    config::{Keys, ModelConfig, QkNorm, refuse},
    error::Result,
};
use std::sync::Arc;

/// The method that `moh` asks for. `config` is complete but for it.
pub(in crate::attention) fn configure(keys: &Keys<'_>, config: &ModelConfig) -> Result<Arc<dyn Method>> {
    const KNOWN: &[&str] = &[
        "router",
        "shared_heads",
        "active_routed_heads",
        "scaling",
        "straight_through",
        "balance",
    ];
    let Some(map) = keys.object("moh", KNOWN)? else {
        return keys.bad("moh", "must be an object");
    };
    let inner = Keys { file: keys.file, map };
    let bad = |key: &str, rule: String, hint: &str| refuse(keys.file, &format!("moh.{key}"), rule, hint);
    let heads = config.heads;
    let router = match inner.text("router")? {
        Some("query_norm") => Router::QueryNorm,
        Some("two_stage") => Router::TwoStage,
        other => {
            return bad(
                "router",
                format!("knows \"query_norm\" and \"two_stage\", is {other:?}"),
                "query_norm needs no weights of its own",
            );
        }
    };
    let counted = |key: &str| match inner.count(key, 0..=1 << 20)? {
        Some(n) => Ok(n),
        None => refuse(
            keys.file,
            &format!("moh.{key}"),
            "is missing",
            "a whole number of heads",
        ),
    };
    let (shared, active) = (counted("shared_heads")?, counted("active_routed_heads")?);
    if shared > heads {
        return bad(
            "shared_heads",
            format!("must be at most num_attention_heads = {heads}, is {shared}"),
            "shared heads are the first of all heads",
        );
    }
    if active > heads - shared {
        return bad(
            "active_routed_heads",
            format!("must be at most the {} routed heads, is {active}", heads - shared),
            "routed heads are those that are not shared",
        );
    }
    if active == 0 && shared < heads {
        return bad(
            "active_routed_heads",
            format!("is 0, so that {} heads would never be used", heads - shared),
            "share all heads, or let each token pick at least one",
        );
    }
    if router == Router::QueryNorm && config.qk_norm != QkNorm::None {
        return bad(
            "router",
            "\"query_norm\" needs queries whose norms differ, and this family normalises them".into(),
            "use \"two_stage\"",
        );
    }
    let balance = inner.number("balance")?.unwrap_or(0.01);
    if balance < 0.0 {
        return bad(
            "balance",
            format!("must not be negative, is {balance}"),
            "0 turns it off",
        );
    }
    Ok(Arc::new(MohConfig {
        router,
        shared_heads: shared,
        active_routed_heads: active,
        scaling: match inner.text("scaling")? {
            None | Some("implemented") => Scaling::Implemented,
            Some("paper") => Scaling::Paper,
            Some(other) => {
                return bad("scaling", format!("is \"{other}\""), "\"implemented\" or \"paper\"");
            }
        },
        straight_through_all: match inner.text("straight_through")? {
            None | Some("selected") => false,
            Some("all") => true,
            Some(other) => {
                return bad("straight_through", format!("is \"{other}\""), "\"selected\" or \"all\"");
            }
        },
        balance,
    }))
}
