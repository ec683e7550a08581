//! A conversation reads only what is new, and says what it would have said anew.

use ounce_model::{Conversation, GenerateOptions, Model, OpenOptions, SamplerConfig, generate};
use ounce_tensor::Compute;
use std::path::Path;

#[test]
fn later_turns_read_only_what_is_new_and_change_nothing() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lab/tests/fixtures/golden/llama");
    let model = Model::open(&dir, &OpenOptions::widened()).unwrap();
    let options = GenerateOptions {
        max_new_tokens: 6,
        sampler: SamplerConfig::default(),
        eos: Vec::new(),
        compute: Compute::F32,
    };
    let mut talk = Conversation::new(&model, Compute::F32);
    let first = talk.generate(&[1, 2, 3, 4], &options, |_| true).unwrap();
    assert_eq!((first.cached, first.new_ids().len()), (0, 6));
    // All but the last token, which nothing has read yet; then an earlier turn told differently; then the same again.
    let mut longer = first.ids.clone();
    longer.extend([9, 8, 7]);
    let mut other = longer.clone();
    other[5] += 1;
    for (prompt, cached) in [(&longer, 9), (&other, 5), (&other, 12)] {
        let made = talk.generate(prompt, &options, |_| true).unwrap();
        assert_eq!(made.cached, cached);
        assert_eq!(made.ids, generate(&model, prompt, &options, |_| true).unwrap().ids);
    }
    assert!(talk.generate(&[1, 99_999], &options, |_| true).is_err());
    assert_eq!(
        talk.generate(&longer, &options, |_| true).unwrap().ids[..13],
        longer[..]
    );
}
