//! Any bytes as a shard index: refused, or every file it names lies within the folder.
#![no_main]

use std::path::{Component, Path};

use libfuzzer_sys::fuzz_target;
use ounce_formats::checkpoint::ShardIndex;

fuzz_target!(|bytes: &[u8]| {
    let Ok(index) = ShardIndex::parse(Path::new("fuzz"), bytes) else {
        return;
    };
    for file in index.weight_map.values() {
        assert!(
            Path::new(file)
                .components()
                .all(|part| matches!(part, Component::Normal(_)))
        );
    }
});
