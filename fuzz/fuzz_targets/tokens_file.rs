//! Any bytes as a token cache: refused, or written back to the same bytes. The checksum is repaired first, so that
//! the checks behind it are reached too.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use ounce_data::TokenStream;

fuzz_target!(|bytes: &[u8]| {
    let path = Path::new("fuzz.tokens");
    for content in [bytes.to_vec(), TokenStream::sealed(bytes.to_vec())] {
        if let Ok((key, stream)) = TokenStream::from_bytes(path, &content) {
            assert_eq!(stream.to_bytes(&key), content);
        }
    }
});
