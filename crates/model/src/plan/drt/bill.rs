//! What a DRT costs, from its configuration.

use super::config::DrtConfig;
use crate::{cache::CacheType, config::ModelConfig, plan::PlanBill};

/// See [`crate::plan::PlanMethod::bill`].
pub(super) fn bill(drt: &DrtConfig, config: &ModelConfig, element: usize) -> PlanBill {
    let (s, d, k) = (drt.chunk as f64, config.hidden_size as f64, drt.top_k as f64);
    let kv = (config.kv_heads * config.head_dim) as f64;
    let width = config.layers.first().map_or(0, |l| l.ffn.width()) as f64;
    let (layers, upper) = (config.layers.len() as f64, drt.groups.iter().sum::<usize>() as f64);
    // A landmark is a position of its own: C positions are computed per S tokens.
    let stretch = drt.positions() as f64 / s;
    let memory = match drt.memory {
        Some(CacheType::F32) => 4,
        Some(CacheType::F16) => 2,
        None => element,
    };
    let chunks = drt.rows() as f64 / s * 2.0 * d * memory as f64;
    let landmarks = 4.0 * d / s;
    // Cut when it has twice what must stay: see `memory`.
    let kept = 2 * (drt.window + drt.positions());
    let fixed = (2 * config.layers.len() * config.kv_heads * config.head_dim * kept * element) as u64;
    let ffn = 3.0 * d * width;
    let decoder = layers * (2.0 * d * d + 2.0 * d * kv + ffn) + upper * 2.0 * d * d;
    let encoder = drt.encoder_layers as f64 * (4.0 * d * d + ffn) + 2.0 * d * d;
    let products = 2.0 * (stretch * (decoder + encoder) + config.vocab_size as f64 * d);
    let windowed = layers * (drt.window + 1) as f64 * d;
    let cross = upper * k * drt.rows() as f64 * d;
    let inside = drt.encoder_layers as f64 * drt.positions() as f64 * d;
    let attention = 4.0 * stretch * (windowed + cross + inside);
    let groups = drt.groups.len();
    PlanBill {
        memory_bytes_per_token: chunks + landmarks,
        fixed_bytes: fixed,
        flops_per_token: products,
        attention_flops_per_token: attention,
        explained: vec![
            format!(
                "{} lower layers, then {} in {groups} group(s), each retrieving {} chunks of {} tokens; {} encoder layers",
                drt.lower_layers, upper, drt.top_k, drt.chunk, drt.encoder_layers
            ),
            format!(
                "memory {:.0} bytes per token, for all layers together: chunk keys and values {chunks:.0} (2 D element rows/S), \
                 landmarks {landmarks:.0} (4 D/S)",
                chunks + landmarks
            ),
            format!(
                "window of {} positions in every layer: at most {fixed} bytes while decoding, whatever the length",
                drt.window
            ),
            format!(
                "attention per token, whatever the length: window {:.0}, chunks {:.0}, encoder {:.0} FLOPs (4 C/S times \
                 layers (W+1) D, upper layers k rows D, encoder layers C D)",
                4.0 * stretch * windowed,
                4.0 * stretch * cross,
                4.0 * stretch * inside
            ),
            format!(
                "scoring landmarks: {:.1} FLOPs per token and chunk in memory (2 G D/S)",
                2.0 * groups as f64 * d / s
            ),
        ],
    }
}
