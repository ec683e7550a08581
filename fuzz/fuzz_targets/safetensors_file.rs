//! Any bytes as a safetensors file: refused, or every tensor can be read at its declared length.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use ounce_formats::safetensors::Header;

fuzz_target!(|bytes: &[u8]| {
    let Ok(header) = Header::parse(Path::new("fuzz"), bytes) else {
        return;
    };
    for info in header.tensors() {
        let Ok(view) = header.view(bytes, &info.name) else {
            continue;
        };
        assert_eq!(Some(view.bytes.len()), view.dtype.byte_len(view.shape));
        let _ = (view.to_f32_vec(), view.to_i64_vec());
    }
});
