//! Output folders: refusals, kills at awkward moments, locks.

use std::{fs, io::Write, path::Path};

use ounce_formats::{
    FormatError, OutputFolder,
    Overwrite::{Refuse, Replace},
    Resume::{No, Yes},
};
use serde_json::json;

fn finished(out: &Path, text: &str) {
    let folder = OutputFolder::create(out, Replace, No).unwrap();
    fs::create_dir(folder.path().join("inner")).unwrap();
    fs::write(folder.path().join("inner/result"), text).unwrap();
    folder.finish().unwrap();
}

#[track_caller]
fn assert_error(result: Result<OutputFolder, FormatError>, message: &str, hint: &str) {
    let error = result.expect_err("refused on purpose");
    assert!(error.to_string().contains(message), "message: {error}");
    assert!(
        error.hint().unwrap_or_default().contains(hint),
        "hint: {:?}",
        error.hint()
    );
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_folder_gets_its_name_when_it_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("new/out");
    let mut folder = OutputFolder::create(&out, Refuse, No).unwrap();
    fs::write(folder.path().join("result"), "1").unwrap();
    folder.record(&json!({ "step": 1 })).unwrap();
    assert!(!out.exists());
    assert_eq!(
        (folder.target(), folder.entries()),
        (out.as_path(), &[json!({ "step": 1 })][..])
    );
    folder.finish().unwrap();
    assert_eq!(names(&dir.path().join("new")), ["out"]);
    assert_eq!(names(&out), ["result"]);
}

#[test]
fn what_exists_is_refused_or_replaced_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    finished(&out, "old");
    assert_error(
        OutputFolder::create(&out, Refuse, No),
        "out: exists already",
        "`--overwrite` replaces it",
    );
    assert_error(
        OutputFolder::create(&out, Refuse, Yes),
        "out: exists already",
        "`--overwrite` replaces it",
    );

    let folder = OutputFolder::create(&out, Replace, No).unwrap();
    fs::write(folder.path().join("new"), "new").unwrap();
    assert_eq!(
        fs::read_to_string(out.join("inner/result")).unwrap(),
        "old",
        "in place until the end"
    );
    folder.finish().unwrap();
    assert_eq!(names(&out), ["new"]);
    assert_eq!(names(dir.path()), ["out"]);

    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert_error(
        OutputFolder::create(&file, Replace, No),
        "exists and is not a folder",
        "another output folder",
    );
    assert_error(
        OutputFolder::create(&dir.path().join(".."), Replace, No),
        "names no new folder",
        "a name",
    );
    let here = std::env::current_dir().unwrap();
    assert_error(
        OutputFolder::create(&here, Replace, No),
        "holds the current folder",
        "another output folder",
    );
    assert!(!here.with_extension("partial").exists());
}

#[test]
fn an_out_that_appears_meanwhile_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let folder = OutputFolder::create(&out, Refuse, No).unwrap();
    fs::create_dir(&out).unwrap();
    let error = folder.finish().unwrap_err();
    assert!(error.to_string().contains("out: exists already"), "{error}");
    assert_eq!(names(dir.path()), ["out", "out.partial"], "the work is still there");
}

#[test]
fn an_unfinished_run_is_continued_or_cleared_or_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let mut folder = OutputFolder::create(&out, Refuse, No).unwrap();
    fs::create_dir(folder.path().join("inner")).unwrap();
    fs::write(folder.path().join("inner/half"), "x").unwrap();
    folder.record(&"one").unwrap();
    drop(folder);

    let hint = "`--resume` continues it, `--overwrite` starts again";
    assert_error(
        OutputFolder::create(&out, Refuse, No),
        "out.partial: is left over",
        hint,
    );

    let mut folder = OutputFolder::create(&out, Replace, Yes).unwrap();
    assert_eq!(folder.entries(), [json!("one")]);
    assert!(folder.path().join("inner/half").exists());
    folder.record(&"two").unwrap();
    drop(folder);
    assert_eq!(
        OutputFolder::create(&out, Refuse, Yes).unwrap().entries(),
        [json!("one"), json!("two")]
    );

    let folder = OutputFolder::create(&out, Replace, No).unwrap();
    assert!(folder.entries().is_empty());
    assert_eq!(names(folder.path()), ["journal.jsonl"]);
}

#[test]
fn a_folder_of_somebody_else_is_not_cleared() {
    let dir = tempfile::tempdir().unwrap();
    let theirs = dir.path().join("out.partial");
    fs::create_dir(&theirs).unwrap();
    fs::write(theirs.join("thesis.tex"), "x").unwrap();
    for resume in [No, Yes] {
        let result = OutputFolder::create(&dir.path().join("out"), Replace, resume);
        assert_error(result, "out.partial: holds files but no journal.jsonl", "move it away");
    }
    assert_eq!(names(&theirs), ["thesis.tex"]);
}

/// Every prefix of the journal's bytes is what a kill can leave; so are zeros where the last line should be.
#[test]
fn a_torn_last_line_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let journal = dir.path().join("out.partial/journal.jsonl");
    let mut folder = OutputFolder::create(&out, Refuse, No).unwrap();
    let lines = [json!({ "step": 1 }), json!("a \"b\"\n"), json!({ "step": 3 })];
    for line in &lines {
        folder.record(line).unwrap();
    }
    drop(folder);
    let whole = fs::read(&journal).unwrap();
    for cut in 0..=whole.len() {
        for zeros in [0, 5] {
            let mut bytes = whole[..cut].to_vec();
            bytes.resize(cut + zeros, 0);
            fs::write(&journal, &bytes).unwrap();
            let kept = whole[..cut].split(|&b| b == b'\n').count() - 1;
            let mut folder = OutputFolder::create(&out, Refuse, Yes).unwrap();
            assert_eq!(folder.entries(), &lines[..kept], "cut at {cut}");
            folder.record(&"next").unwrap();
            drop(folder);
            let folder = OutputFolder::create(&out, Refuse, Yes).unwrap();
            assert_eq!(folder.entries().len(), kept + 1);
            assert_eq!(folder.entries()[kept], json!("next"), "cut at {cut}");
        }
    }
}

#[test]
fn damage_before_the_last_line_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    drop(OutputFolder::create(&out, Refuse, No).unwrap());
    fs::write(dir.path().join("out.partial/journal.jsonl"), "1\nx\n3\n").unwrap();
    assert_error(
        OutputFolder::create(&out, Refuse, Yes),
        "journal.jsonl: line 2 is damaged",
        "starts again",
    );
    assert!(OutputFolder::create(&out, Replace, No).unwrap().entries().is_empty());
}

#[test]
fn two_writers_do_not_share_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let mut first = OutputFolder::create(&out, Refuse, No).unwrap();
    first.record(&1).unwrap();
    fs::write(first.path().join("work"), "x").unwrap();
    for (overwrite, resume) in [(Refuse, Yes), (Replace, No), (Replace, Yes)] {
        let second = OutputFolder::create(&out, overwrite, resume);
        assert_error(
            second,
            "out.partial: another process is writing it",
            "wait for it to end",
        );
    }
    assert_eq!(names(first.path()), ["journal.jsonl", "work"]);
    first.record(&2).unwrap();
    assert_eq!(
        fs::read_to_string(first.path().join("journal.jsonl")).unwrap(),
        "1\n2\n"
    );
    drop(first);
    assert!(OutputFolder::create(&out, Refuse, Yes).is_ok());
}

/// As after a kill between the final rename and the journal's removal, and between the renames of an overwrite.
#[test]
fn kills_around_the_final_rename_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    finished(&out, "old");
    let mut folder = OutputFolder::create(&out, Replace, No).unwrap();
    fs::write(folder.path().join("new"), "new").unwrap();
    folder.record(&"all done").unwrap();
    drop(folder);
    fs::rename(&out, dir.path().join("out.replaced-1")).unwrap();
    let folder = OutputFolder::create(&out, Refuse, Yes).unwrap();
    assert_eq!(folder.entries(), [json!("all done")]);
    folder.finish().unwrap();
    assert_eq!(names(&out), ["new"]);
    assert_eq!(
        fs::read_to_string(dir.path().join("out.replaced-1/inner/result")).unwrap(),
        "old"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn places_that_cannot_be_written_are_named() {
    let out = Path::new("/proc/ounce-out");
    let error = OutputFolder::create(out, Refuse, No).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("/proc/ounce-out.partial: cannot create this folder: "),
        "{error}"
    );
    let dir = tempfile::tempdir().unwrap();
    let mut file = fs::File::create(dir.path().join("file")).unwrap();
    file.write_all(b"x").unwrap();
    let error = OutputFolder::create(&dir.path().join("file/out"), Refuse, No).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("file/out.partial: cannot create this folder: "),
        "{error}"
    );
    assert_eq!(error.hint(), Some("one of the folders of this path is a file"));
}
