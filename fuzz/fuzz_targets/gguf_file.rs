//! Any bytes as a GGUF file: refused, or every tensor and every array lies within the file at its declared length.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use ounce_formats::gguf::{Value, parse};

fuzz_target!(|bytes: &[u8]| {
    let Ok((keys, header)) = parse(Path::new("fuzz"), bytes) else {
        return;
    };
    for info in header.tensors() {
        let view = header.view(bytes, &info.name).expect("a listed tensor is in the file");
        assert_eq!(Some(view.bytes.len()), view.dtype.byte_len(view.shape));
        let _ = (view.to_f32_vec(), view.to_i64_vec());
    }
    for (key, value) in keys.entries() {
        if let Value::Array(array) = value {
            let texts = keys.texts_in(key, bytes);
            let numbers = keys.numbers_in(key, bytes);
            assert!(texts.is_err() || numbers.is_err(), "an array holds one kind");
            if let Ok(Some(numbers)) = numbers {
                assert_eq!(numbers.len(), array.len);
            }
        }
    }
});
