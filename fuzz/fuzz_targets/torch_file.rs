//! Any bytes as a weights-only PyTorch file: refused, or every tensor lies within the file at its declared length.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use ounce_formats::{Dtype, torch::parse};

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = parse(Path::new("fuzz"), bytes) else {
        return;
    };
    let memory = file.gathered.as_ref().map_or(0, |gathered| gathered.len());
    for info in file.header.tensors() {
        // A tensor that steps over its storage lies in memory, counted from the end of the file.
        if info.range.start >= bytes.len() && info.range.end <= bytes.len() + memory {
            assert_eq!(Some(info.range.len()), info.dtype.byte_len(&info.shape));
            continue;
        }
        let header = &file.header;
        assert!(bytes.get(info.range.clone()).is_some(), "{}", info.name);
        // Integers of 8 and 16 bits are listed and cannot be read.
        if let Dtype::Foreign(_) = info.dtype {
            assert!(header.view(bytes, &info.name).is_err());
            continue;
        }
        let view = header.view(bytes, &info.name).expect("a listed tensor is in the file");
        assert_eq!(Some(view.bytes.len()), view.dtype.byte_len(view.shape));
        let _ = (view.to_f32_vec(), view.to_i64_vec());
    }
});
