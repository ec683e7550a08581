//! Any text as a chat template: it is rendered, or refused in one line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ounce_model::{ChatTemplate, Message};
use std::collections::BTreeMap;

fuzz_target!(|source: &str| {
    let tokens = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
    let rendered = ChatTemplate::new("template", source, tokens)
        .and_then(|t| t.render(&[Message::new("user", "Hi"), Message::new("assistant", "Ho")], true));
    if let Err(error) = rendered {
        assert!(!error.to_string().contains('\n'), "{error}");
    }
});
