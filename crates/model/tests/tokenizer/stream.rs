//! Streams: what is said piece by piece is what the whole says beyond the prompt.

use ounce_model::tokenizer::{StreamDecoder, Tokenizer};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{GPT2, NEOX, PIECES, pieces, trained};

/// Everything a stream says behind `prompt`.
fn streamed(tokenizer: &Tokenizer, prompt: &[u32], ids: &[u32], skip: bool) -> String {
    let mut stream = StreamDecoder::after(tokenizer, prompt, skip);
    let mut text: String = ids.iter().filter_map(|&id| stream.push(id)).collect();
    text.extend(stream.finish());
    text
}

/// [`pieces`] with another decoder.
fn decoder(decoder: &Value) -> Tokenizer {
    let mut value = pieces();
    value["decoder"] = decoder.clone();
    Tokenizer::from_bytes(value.to_string().as_bytes()).unwrap()
}

fn step(name: &str) -> Value {
    match name {
        "Replace" => json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        "Strip" => json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}),
        "Metaspace" => json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}),
        "WordPiece" => json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
        "BPEDecoder" => json!({"type": "BPEDecoder", "suffix": "b"}),
        "ByteLevel" => {
            json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true})
        }
        name => json!({"type": name}),
    }
}

fn steps(names: &[&str]) -> Value {
    let steps: Vec<Value> = names.iter().map(|name| step(name)).collect();
    json!({"type": "Sequence", "decoders": steps})
}

/// Decoders in the wild: Llama 2, Mistral and Gemma, T5, BERT, GPT-2 alone and in a sequence, GPT (1), none.
fn decoders() -> Vec<Tokenizer> {
    let all = [
        steps(&["Replace", "ByteFallback", "Fuse", "Strip"]),
        steps(&["Replace", "ByteFallback", "Fuse"]),
        steps(&["ByteFallback", "Metaspace"]),
        step("Metaspace"),
        step("WordPiece"),
        step("BPEDecoder"),
        steps(&["ByteLevel"]),
        Value::Null,
    ];
    all.iter().map(decoder).collect()
}

#[test]
fn a_stream_holds_back_half_a_character() {
    let ids = GPT2.encode("🦙!", false).unwrap();
    assert!(ids.len() > 2, "the llama must span several tokens: {ids:?}");
    let mut stream = StreamDecoder::new(&GPT2, false);
    let said: Vec<Option<String>> = ids.iter().map(|&id| stream.push(id)).collect();
    assert_eq!(said[0], None);
    assert_eq!(said.iter().flatten().cloned().collect::<Vec<_>>(), ["🦙", "!"]);
    let mut cut = StreamDecoder::new(&GPT2, false);
    assert_eq!(cut.push(ids[0]), None);
    assert_eq!(cut.finish().as_deref(), Some("\u{fffd}"));
}

#[test]
fn the_first_space_of_a_continuation_is_kept() {
    let word = |tokenizer: &Tokenizer, token: &str| tokenizer.id_of(token).unwrap();
    for tokenizer in decoders() {
        let (ab, a) = (word(&tokenizer, "▁ab"), word(&tokenizer, "▁a"));
        let whole = tokenizer.decode(&[1, ab, a], true).unwrap();
        let prompt = tokenizer.decode(&[1, ab], true).unwrap();
        assert_eq!(prompt.clone() + &streamed(&tokenizer, &[1, ab], &[a], true), whole);
    }
    let (ab, a) = (word(&PIECES, "▁ab"), word(&PIECES, "▁a"));
    assert_eq!(streamed(&PIECES, &[1, ab], &[a], true), " a");
    // Without a prompt, or behind nothing but special tokens, the text begins here.
    assert_eq!(streamed(&PIECES, &[], &[a], true), "a");
    assert_eq!(streamed(&PIECES, &[1, 1], &[a], true), "a");
}

#[test]
fn a_character_begun_by_the_prompt_ends_in_the_stream() {
    let ids = GPT2.encode("a🦙!", false).unwrap();
    assert_eq!(streamed(&GPT2, &ids[..2], &ids[2..], false), "🦙!");
    let byte = |byte: u8| PIECES.id_of(&format!("<0x{byte:02X}>")).unwrap();
    let llama: Vec<u32> = "🦙".bytes().map(byte).collect();
    assert_eq!(streamed(&PIECES, &llama[..3], &llama[3..], false), "🦙");
}

#[test]
fn padded_ids_and_endless_invalid_bytes_cost_no_more_than_others() {
    let bad = PIECES.id_of("<0x80>").unwrap();
    let mut stream = StreamDecoder::new(&PIECES, false);
    for _ in 0..20_000 {
        // Every byte is told at once: nothing piles up that each later token would decode again.
        assert_eq!(stream.push(bad).as_deref(), Some("\u{fffd}"));
        assert_eq!(stream.push(70_000), None);
    }
    let open = GPT2.encode("🦙", false).unwrap()[0];
    let mut stream = StreamDecoder::new(&GPT2, false);
    let said: String = (0..20_000).filter_map(|_| stream.push(open)).collect();
    assert!(said.chars().count() >= 19_999, "held back: {}", said.chars().count());
}

/// Ids of [`pieces`], mostly words, some special, some bytes of characters, some beyond the vocabulary.
fn ids() -> impl Strategy<Value = Vec<u32>> {
    let one = prop_oneof![
        4 => (259u32..266).prop_map(|id| vec![id]),
        1 => (0u32..3).prop_map(|id| vec![id]),
        1 => (1000u32..1002).prop_map(|id| vec![id]),
        2 => prop::sample::select(vec!["é", "中", "🦙", "\n"])
            .prop_map(|c| c.bytes().map(|b| u32::from(b) + 3).collect()),
    ];
    prop::collection::vec(one, 0..12).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn byte_level_streams_equal_the_whole(ids in prop::collection::vec(0u32..50_300, 0..40), at in 0usize..40, skip: bool) {
        for tokenizer in [&*GPT2, &*NEOX, &trained(280)] {
            let ids: Vec<u32> = ids.iter().map(|&id| id % (tokenizer.vocab_size() as u32 + 5)).collect();
            let (prompt, new) = ids.split_at(at.min(ids.len()));
            let whole = tokenizer.decode(&ids, skip).unwrap();
            prop_assert_eq!(&streamed(tokenizer, &[], &ids, skip), &whole);
            // What a stream says before its end is decided, and all that the next stream takes as said.
            let mut stream = StreamDecoder::new(tokenizer, skip);
            let before: String = prompt.iter().filter_map(|&id| stream.push(id)).collect();
            prop_assert_eq!(before + &streamed(tokenizer, prompt, new, skip), whole);
        }
    }

    #[test]
    fn piece_streams_equal_the_whole(ids in ids(), new in ids(), skip: bool) {
        for tokenizer in decoders() {
            let prompt = tokenizer.decode(&ids, skip).unwrap();
            let whole = tokenizer.decode(&[ids.as_slice(), &new].concat(), skip).unwrap();
            prop_assert_eq!(&streamed(&tokenizer, &[], &ids, skip), &prompt);
            if whole.starts_with(&prompt) {
                prop_assert_eq!(prompt + &streamed(&tokenizer, &ids, &new, skip), whole);
            }
        }
    }

    #[test]
    fn broken_bytes_are_told_as_the_decoder_tells_them(bytes in prop::collection::vec(0u32..256, 0..8), word in 259u32..266) {
        // A run that is invalid before any of its characters is complete: the exception of the module cannot arise.
        let run: Vec<u32> = std::iter::once(0x80 + 3).chain(bytes.iter().map(|b| b + 3)).chain([word]).collect();
        prop_assert_eq!(streamed(&PIECES, &[], &run, false), PIECES.decode(&run, false).unwrap());
    }

    #[test]
    fn texts_come_back(text in "[abc <s>é中🦙\n]{0,24}", skip: bool, add: bool) {
        let ids = PIECES.encode(&text, add).unwrap();
        prop_assert_eq!(streamed(&PIECES, &[], &ids, skip), PIECES.decode(&ids, skip).unwrap());
    }
}
