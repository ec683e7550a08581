//! Any bytes as a config.json: refused, or sizes that later arithmetic can rely on.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ounce_model::config::ModelConfig;

fuzz_target!(|bytes: &[u8]| {
    let Ok(json) = serde_json::from_slice(bytes) else {
        return;
    };
    let Ok(config) = ModelConfig::parse("config.json", &json) else {
        return;
    };
    assert!(!config.layers.is_empty() && config.vocab_size > 0 && config.hidden_size > 0);
    assert!(config.kv_heads > 0 && config.heads % config.kv_heads == 0 && config.head_dim % 2 == 0);
    assert!(config.rms_norm_eps > 0.0 && config.rms_norm_eps.is_finite());
    let _ = config.kv_bytes_per_token(4);
    for (_, moe) in config.moe_layers() {
        assert!((1..=moe.experts).contains(&moe.top_k) && (1..=moe.experts).contains(&moe.stored));
        assert!(moe.map.len() == moe.experts && moe.map.iter().all(|&e| e < moe.stored));
    }
});
