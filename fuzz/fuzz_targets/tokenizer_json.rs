//! Any bytes as a tokenizer.json: refused, or a tokenizer that encodes and decodes without a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ounce_model::Tokenizer;

// The `tokenizers` crate panics on some malformed files, and our guard turns that into an error; libFuzzer's own hook
// would end the process at the panic already. A panic that leaves the target is still reported.
fuzz_target!(init: std::panic::set_hook(Box::new(|_| {})), |bytes: &[u8]| {
    let Ok(tokenizer) = Tokenizer::from_bytes(bytes) else { return };
    if let Ok(ids) = tokenizer.encode("Hello, w\u{f6}rld \u{1f600} 12", true) {
        let _ = tokenizer.decode(&ids, true);
        for id in ids {
            let _ = (tokenizer.token_bytes(id), tokenizer.is_special(id));
        }
    }
    let _ = (tokenizer.token_bytes(0), tokenizer.token_bytes(u32::MAX), tokenizer.to_json());
});
