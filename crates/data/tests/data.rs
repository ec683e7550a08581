//! Readers, packing, sampling and expansion as a training run uses them.

use std::cell::Cell;
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use ounce_data::packing::{cache_key, cache_path};
use ounce_data::readers::{parse_jsonl, parse_text};
use ounce_data::sampler::permute;
use ounce_data::{DataDir, DataError, Document, Sampler, Sources, TokenStream, read_documents};
use proptest::prelude::*;

fn write(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn document(text: &str) -> Document {
    Document {
        path: "x.txt".into(),
        line: None,
        text: text.into(),
    }
}

/// An encoder with one id per byte that knows no `~`.
fn bytes_as_ids(text: &str) -> Result<Vec<u32>, String> {
    if text.contains('~') {
        Err("no such letter".into())
    } else {
        Ok(text.bytes().map(u32::from).collect())
    }
}

#[test]
fn folders_are_read_sorted_and_files_by_name() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "b/two.txt", "\u{feff}two\n");
    write(dir.path(), "b/.hidden.txt", "hidden");
    write(
        dir.path(),
        "a.jsonl",
        "{\"text\": \"one\"}\r\n\n{\"text\": \"\"}\n{\"text\": \"more\", \"id\": 3}",
    );
    write(dir.path(), "b/image.bin", [0xff, 0xfe]);
    write(dir.path(), "empty.txt", "");
    write(dir.path(), "named.log", "named");
    let documents = read_documents(&[dir.path().to_owned(), dir.path().join("named.log")], "text").unwrap();
    let texts: Vec<&str> = documents.iter().map(|document| document.text.as_str()).collect();
    assert_eq!(texts, ["one", "more", "two\n", "named"]);
    assert_eq!(documents[1].line, Some(4));
    assert!(documents[1].place().ends_with("a.jsonl:4"));
}

#[test]
fn bad_input_is_named_by_file_line_and_offset() {
    let dir = tempfile::tempdir().unwrap();
    let says = |name: &str, bytes: &[u8], parts: &[&str]| {
        write(dir.path(), name, bytes);
        let error = read_documents(&[dir.path().join(name)], "text")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(name) && parts.iter().all(|part| error.contains(part)),
            "{error}"
        );
    };
    says("a.txt", b"good\xff", &["a.txt:1", "byte 4"]);
    says("a2.txt", b"one\ntwo\xff", &["a2.txt:2", "byte 7"]);
    says("b.jsonl", b"{\"text\": \"\xe2\x82\"}", &["b.jsonl:1", "byte 10"]);
    says(
        "b2.jsonl",
        b"\xef\xbb\xbf{\"text\": \"x\"}\n{\"text\": \"\xff\"}",
        &["b2.jsonl:2", "byte 27"],
    );
    // JSON is never read as prose, whatever its ending.
    says("whole.json", b"[{\"text\": \"x\"}]", &["whole.json:1", "a list"]);
    says(
        "c.jsonl",
        b"{\"text\": \"x\"}\n\n{\"text\": \n",
        &["c.jsonl:3", "not JSON"],
    );
    says("d.jsonl", b"[1]", &["d.jsonl:1", "a list"]);
    says("e.jsonl", b"{\"text\": 4}", &["`text`", "a number"]);
    says(
        "f.jsonl",
        b"{\"body\": \"x\", \"id\": 1}",
        &["no field `text`", "body, id"],
    );
    says("g.jsonl", b"{\"text\": \"\\ud800\"}", &["g.jsonl:1"]);
    says("h.txt", b"", &["no text"]);
    let missing = read_documents(&[dir.path().join("none.txt")], "text").unwrap_err();
    assert!(missing.to_string().contains("none.txt"), "{missing}");
    assert!(matches!(
        read_documents::<&Path>(&[], "text"),
        Err(DataError::Empty { .. })
    ));
    assert_eq!(
        parse_jsonl(Path::new("x"), b"{\"body\": \"b\"}", "body").unwrap()[0].text,
        "b"
    );
    assert_eq!(parse_text(Path::new("x"), b"").unwrap(), None);
}

/// Texts of the documents, up to a number of bytes.
fn up_to(dir: &Path, bytes: usize) -> Vec<String> {
    let sources = Sources::open(&[dir], "text").unwrap().up_to(bytes);
    let documents = sources.documents().map(|document| document.unwrap().text);
    documents.collect()
}

#[test]
fn a_limit_cuts_between_characters_and_reads_no_further() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a.txt", "\u{feff}äöü");
    write(
        dir.path(),
        "b.jsonl",
        "{\"text\": \"first\"}\n{\"text\": \"second\"}\nbroken",
    );
    assert_eq!(up_to(dir.path(), 0), Vec::<String>::new());
    assert_eq!(up_to(dir.path(), 1), Vec::<String>::new());
    assert_eq!(up_to(dir.path(), 3), ["ä"]);
    assert_eq!(up_to(dir.path(), 6), ["äöü"]);
    assert_eq!(up_to(dir.path(), 8), ["äöü", "fi"]);
    assert_eq!(up_to(dir.path(), 17), ["äöü", "first", "second"]);
    let all = Sources::open(&[dir.path()], "text").unwrap();
    let last = all.documents().last().unwrap();
    assert!(last.unwrap_err().to_string().contains("b.jsonl:3"));
    assert_eq!(all.documents().count(), 4, "nothing after an error");
}

#[test]
fn documents_are_separated_and_errors_carry_their_place() {
    let documents = [document("ab"), document("c")];
    let stream = TokenStream::pack(&documents, Some(70_000), bytes_as_ids).unwrap();
    assert_eq!(stream.slice(0..stream.len()), [97, 98, 70_000, 99, 70_000]);
    assert_eq!(stream.max_id(), Some(70_000));
    let plain = TokenStream::pack(&documents, None, bytes_as_ids).unwrap();
    assert_eq!(plain.slice(0..3), [97, 98, 99]);
    assert_ne!(plain.hash(), stream.hash());
    let error = TokenStream::pack(&[document("a~b")], None, bytes_as_ids).unwrap_err();
    assert_eq!(error.to_string(), "x.txt: cannot encode: no such letter");
    let empty = TokenStream::pack(&documents, Some(1), |_| Ok::<_, String>(Vec::new())).unwrap_err();
    assert!(matches!(empty, DataError::Empty { .. }), "a separator alone is no text");
}

#[test]
fn the_cache_is_used_keyed_and_rebuilt_when_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let documents = [document("some text"), document("more")];
    let calls = Cell::new(0);
    let pack = |documents: &[Document], tokenizer: &[u8], eos| {
        calls.set(0);
        let encode = |text: &str| {
            calls.set(calls.get() + 1);
            bytes_as_ids(text)
        };
        let stream = TokenStream::pack_cached(documents, tokenizer, eos, dir.path(), encode).unwrap();
        (stream, calls.get())
    };
    let (first, built) = pack(&documents, b"tok", Some(0));
    assert_eq!(built, 2);
    assert_eq!(pack(&documents, b"tok", Some(0)), (first.clone(), 0));
    assert_eq!(pack(&documents, b"other", Some(0)).1, 2, "another tokenizer");
    assert_eq!(pack(&documents, b"tok", None).1, 2, "another separator");
    assert_eq!(
        pack(&[document("some textm"), document("ore")], b"tok", Some(0)).1,
        2,
        "another split"
    );

    let key = cache_key(&documents, b"tok", Some(0));
    let path = cache_path(dir.path(), &key);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[60] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    assert!(
        TokenStream::load(&path, &key)
            .unwrap_err()
            .to_string()
            .contains("checksum")
    );
    assert_eq!(pack(&documents, b"tok", Some(0)), (first, 2));
    let foreign = TokenStream::load(&path, &[7; 32]).unwrap_err();
    assert!(foreign.to_string().contains("other data"), "{foreign}");
    assert!(
        std::fs::read_dir(dir.path())
            .unwrap()
            .all(|e| e.unwrap().path().extension().unwrap() == "tokens")
    );
}

#[test]
fn mixtures_have_the_promised_shares_and_lose_nothing() {
    let (a, b) = (
        TokenStream::from(vec![1; 100]),
        TokenStream::from((1000..1030).collect::<Vec<u32>>()),
    );
    let mixed = TokenStream::mix(&[(&a, 1.0), (&b, 1.0)]).unwrap();
    let ids = mixed.slice(0..mixed.len());
    assert_eq!((ids.len(), ids.iter().filter(|&&id| id == 1).count()), (200, 100));
    assert!((1000..1030).all(|id| ids.contains(&id)));
    assert_eq!(
        TokenStream::mix(&[(&a, 10.0), (&b, 1.0)]).unwrap().len(),
        330,
        "b is the longest for its weight"
    );
    for (weights, part) in [
        ([0.0, 1.0], "positive"),
        ([f64::NAN, 1.0], "positive"),
        ([1.0, 1e9], "repeat"),
    ] {
        let error = TokenStream::mix(&[(&a, weights[0]), (&b, weights[1])])
            .unwrap_err()
            .to_string();
        assert!(error.contains(part), "{error}");
    }
    assert!(TokenStream::mix(&[]).is_err());
}

#[test]
fn sampler_refuses_what_cannot_work() {
    let stream = Arc::new(TokenStream::from(vec![1; 8]));
    let new = |length, rows, micro| Sampler::new(stream.clone(), length, rows, micro, 0);
    assert!(new(8, 1, 1).unwrap_err().to_string().contains("8 tokens"));
    assert!(new(7, 1, 1).is_ok());
    assert!(new(0, 1, 1).is_err() && new(4, 0, 1).is_err() && new(4, 1, 0).is_err());
}

#[test]
fn aligned_windows_start_at_multiples_and_each_comes_once_per_epoch() {
    // Seven whole windows and the target after the last one; what is left over is not read.
    for (tokens, windows) in [(71, 7), (75, 7), (81, 8)] {
        let stream = Arc::new(TokenStream::from((0..tokens).collect::<Vec<u32>>()));
        let sampler = Sampler::new(stream, 10, 1, 1, 3).unwrap().aligned();
        assert_eq!(sampler.windows_per_epoch(), windows);
        for epoch in 0..3 {
            let mut starts: Vec<usize> = (epoch * windows..(epoch + 1) * windows)
                .map(|step| sampler.start(step, 0).1)
                .collect();
            starts.sort_unstable();
            assert_eq!(starts, (0..windows as usize).map(|w| 10 * w).collect::<Vec<_>>());
        }
        let batch = sampler.batch(0, 0);
        assert_eq!((batch.inputs[0] % 10, batch.targets[9]), (0, batch.inputs[9] + 1));
    }
}

#[test]
fn seeds_and_epochs_change_the_order() {
    let stream = Arc::new(TokenStream::from((0..10_000).collect::<Vec<u32>>()));
    let starts = |seed, from: u64| -> Vec<usize> {
        let sampler = Sampler::new(stream.clone(), 10, 1, 1, seed).unwrap();
        (from..from + sampler.windows_per_epoch())
            .map(|step| sampler.start(step, 0).1)
            .collect()
    };
    let first = starts(1, 0);
    assert_eq!(first, starts(1, 0));
    assert_ne!(first, starts(2, 0));
    let next = starts(1, first.len() as u64);
    // Compared as window numbers, since the phase alone would already make the starts differ.
    let order = |starts: &[usize]| -> Vec<usize> { starts.iter().map(|start| start / 10).collect() };
    assert_ne!(order(&first), order(&next));
    // Neighbours in time are not neighbours in text: about one pair in W/2 would be by chance.
    let close = first.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) == 10).count();
    assert!(close < 12, "{close} of {} neighbours", first.len());
    let phases: HashSet<usize> = (0..50)
        .map(|epoch| starts(1, epoch * first.len() as u64)[0] % 10)
        .collect();
    assert!(phases.len() > 7, "phases {phases:?}");
}

#[test]
fn data_names_expand_or_say_how() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let flag = DataDir::choose(Some(path.into()), Some("/nowhere".into()));
    assert_eq!(
        flag.expand("${data}/text/a.txt").unwrap(),
        Path::new(path).join("text/a.txt")
    );
    assert_eq!(
        DataDir::choose(None, Some(path.into())),
        DataDir::choose(None, Some(path.into()))
    );
    assert_eq!(
        DataDir::choose(None, Some(path.into())).expand("${data}").unwrap(),
        Path::new(path)
    );
    let none = DataDir::choose(None, Some("".into()));
    assert_eq!(none.expand("plain/$HOME.txt").unwrap(), Path::new("plain/$HOME.txt"));
    let says = |dir: &DataDir, name: &str, parts: &[&str]| {
        let error = dir.expand(name).unwrap_err();
        let error = format!("{error} (hint: {})", error.hint().unwrap_or_default());
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    };
    says(&none, "${data}/a", &["--data", "OUNCE_DATA", "ounce data toy"]);
    says(&flag, "${home}/a", &["${home}", "${data}"]);
    says(&flag, "${data/a", &["without"]);
    says(
        &DataDir::choose(Some("/no/such/folder".into()), None),
        "${data}/a",
        &["/no/such/folder"],
    );
    write(dir.path(), "file", "x");
    says(
        &DataDir::choose(None, Some(dir.path().join("file").into())),
        "${data}",
        &["OUNCE_DATA", "not a folder"],
    );
}

proptest! {
    #[test]
    fn permutations_visit_everything_once(n in 1u64..3000, seed: u64, epoch: u64) {
        let seen: HashSet<u64> = (0..n).map(|index| permute(index, n, seed, epoch)).collect();
        prop_assert_eq!(seen.len() as u64, n);
        prop_assert!(seen.iter().all(|&at| at < n));
    }

    #[test]
    fn an_epoch_predicts_each_token_of_its_span_once(
        extra in 1usize..400, length in 1usize..40, rows in 1usize..5, micro in 1usize..4, seed: u64, epoch in 0u64..5
    ) {
        let count = length + extra;
        let sampler = Sampler::new(Arc::new(TokenStream::from((0..count as u32).collect::<Vec<_>>())), length, rows, micro, seed).unwrap();
        let (windows, per_step) = (sampler.windows_per_epoch(), (rows * micro) as u64);
        let mut targets = Vec::new();
        for serial in epoch * windows..(epoch + 1) * windows {
            let (step, index) = (serial / per_step, (serial % per_step) as usize);
            prop_assert_eq!(sampler.start(step, index).0, epoch);
            let window = sampler.window(step, index);
            let batch = sampler.batch(step, index / rows);
            let row = index % rows * length;
            prop_assert_eq!(&batch.inputs[row..row + length], &window[..length]);
            prop_assert_eq!(&batch.targets[row..row + length], &window[1..]);
            targets.extend_from_slice(&window[1..]);
        }
        targets.sort_unstable();
        // The stream counts up, so a gap or a repetition shows as a wrong difference.
        prop_assert!(targets.windows(2).all(|pair| pair[1] == pair[0] + 1));
        prop_assert_eq!(targets.len(), windows as usize * length);
        prop_assert!(count - targets.len() <= 2 * length, "{} of {} unused", count - targets.len(), count);
    }

    #[test]
    fn token_files_round_trip(ids in prop::collection::vec(prop_oneof![0u32..70_000, any::<u32>()], 0..200), key: [u8; 32]) {
        let stream = TokenStream::from(ids.clone());
        let (found, back) = TokenStream::from_bytes(Path::new("x"), &stream.to_bytes(&key)).unwrap();
        prop_assert_eq!(found, key);
        prop_assert_eq!(back.slice(0..back.len()), ids);
    }
}
