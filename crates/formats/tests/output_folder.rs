//! Output folders: refusals, kills at awkward moments, locks.

use std::{fs, io::Write, path::Path};

use ounce_formats::{
    Begun, FormatError, Identity, Inputs, Output, OutputFolder, Overwrite,
    Overwrite::{Any, Refuse, Replace},
    Resume,
    Resume::{No, Yes},
    check_output_file,
};
use serde_json::{Value, json};

fn output(path: &Path, overwrite: Overwrite, resume: Resume) -> Output<'_> {
    Output {
        path,
        overwrite,
        resume,
        identity: Identity::new("test"),
        inputs: Inputs::default(),
        sources: Vec::new(),
        command_line: "ounce test",
    }
}

fn work(begun: Begun) -> OutputFolder {
    match begun {
        Begun::Work(folder) => folder,
        Begun::Whole => panic!("there is something to do"),
    }
}

fn create(path: &Path, overwrite: Overwrite, resume: Resume) -> Result<OutputFolder, FormatError> {
    OutputFolder::create(output(path, overwrite, resume)).map(work)
}

/// The caller's own lines of the journal.
fn entries(folder: &OutputFolder) -> Vec<Value> {
    let own = |e: &&Value| e.get("job").is_none() && e.get("replaces").is_none();
    folder.entries().iter().filter(own).cloned().collect()
}

fn finished(out: &Path, text: &str) {
    let folder = create(out, Replace, No).unwrap();
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
    let mut folder = create(&out, Refuse, No).unwrap();
    fs::write(folder.path().join("result"), "1").unwrap();
    folder.record(&json!({ "step": 1 })).unwrap();
    assert!(!out.exists());
    assert_eq!(
        (folder.target(), entries(&folder)),
        (out.as_path(), vec![json!({ "step": 1 })])
    );
    folder.finish().unwrap();
    assert_eq!(names(&dir.path().join("new")), ["out"]);
    assert_eq!(names(&out), ["ounce.json", "result"]);
}

#[test]
fn what_exists_is_refused_or_replaced_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    finished(&out, "old");
    assert_error(
        create(&out, Refuse, No),
        "out: exists already",
        "`--overwrite` replaces it",
    );
    let again = OutputFolder::create(output(&out, Refuse, Yes)).unwrap();
    assert!(matches!(again, Begun::Whole), "nothing is left to do");

    let folder = create(&out, Replace, No).unwrap();
    fs::write(folder.path().join("new"), "new").unwrap();
    assert_eq!(
        fs::read_to_string(out.join("inner/result")).unwrap(),
        "old",
        "in place until the end"
    );
    folder.finish().unwrap();
    assert_eq!(names(&out), ["new", "ounce.json"]);
    assert_eq!(names(dir.path()), ["out"]);

    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert_error(
        create(&file, Replace, No),
        "exists and is not a folder",
        "another output folder",
    );
    assert_error(
        create(&dir.path().join(".."), Replace, No),
        "names no new folder",
        "a name",
    );
    let here = std::env::current_dir().unwrap();
    assert_error(
        create(&here, Replace, No),
        "holds the current folder",
        "another output folder",
    );
    assert!(!here.with_extension("partial").exists());
}

#[test]
fn an_out_that_appears_meanwhile_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let folder = create(&out, Refuse, No).unwrap();
    fs::create_dir(&out).unwrap();
    let error = folder.finish().unwrap_err();
    assert!(error.to_string().contains("out: exists already"), "{error}");
    assert_eq!(names(dir.path()), ["out", "out.partial"], "the work is still there");
}

#[test]
fn an_unfinished_run_is_continued_or_cleared_or_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let mut folder = create(&out, Refuse, No).unwrap();
    fs::create_dir(folder.path().join("inner")).unwrap();
    fs::write(folder.path().join("inner/half"), "x").unwrap();
    folder.record(&"one").unwrap();
    drop(folder);

    let hint = "`--resume` continues it, `--overwrite` starts again";
    assert_error(create(&out, Refuse, No), "out.partial: is left over", hint);

    let mut folder = create(&out, Replace, Yes).unwrap();
    assert_eq!(entries(&folder), [json!("one")]);
    assert!(folder.path().join("inner/half").exists());
    folder.record(&"two").unwrap();
    drop(folder);
    assert_eq!(
        entries(&create(&out, Refuse, Yes).unwrap()),
        [json!("one"), json!("two")]
    );

    let folder = create(&out, Replace, No).unwrap();
    assert!(entries(&folder).is_empty());
    assert_eq!(names(folder.path()), [".ounce-lock", "journal.jsonl", "ounce.json"]);
}

#[test]
fn a_folder_of_somebody_else_is_not_cleared() {
    let dir = tempfile::tempdir().unwrap();
    let theirs = dir.path().join("out.partial");
    fs::create_dir(&theirs).unwrap();
    fs::write(theirs.join("thesis.tex"), "x").unwrap();
    for resume in [No, Yes] {
        let result = create(&dir.path().join("out"), Replace, resume);
        assert_error(result, "out.partial: holds files but no ounce.json", "move it away");
    }
    assert_eq!(names(&theirs), ["thesis.tex"]);
}

/// Every prefix of the journal's bytes is what a kill can leave; so are zeros where the last line should be.
#[test]
fn a_torn_last_line_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let journal = dir.path().join("out.partial/journal.jsonl");
    let mut folder = create(&out, Refuse, No).unwrap();
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
            // The first line is the job's; without it, it is begun anew.
            let kept = (whole[..cut].split(|&b| b == b'\n').count() - 1).saturating_sub(1);
            let mut folder = create(&out, Refuse, Yes).unwrap();
            assert_eq!(entries(&folder), &lines[..kept], "cut at {cut}");
            folder.record(&"next").unwrap();
            drop(folder);
            let folder = entries(&create(&out, Refuse, Yes).unwrap());
            assert_eq!(folder.len(), kept + 1);
            assert_eq!(folder[kept], json!("next"), "cut at {cut}");
        }
    }
}

#[test]
fn damage_before_the_last_line_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let mut folder = create(&out, Refuse, No).unwrap();
    for step in 1..4 {
        folder.record(&json!({ "step": step })).unwrap();
    }
    drop(folder);
    let journal = dir.path().join("out.partial/journal.jsonl");
    let whole = fs::read_to_string(&journal).unwrap();
    // Still JSON, and still a line: only the check sum tells.
    fs::write(&journal, whole.replace("\"step\":2", "\"step\":7")).unwrap();
    assert_error(
        create(&out, Refuse, Yes),
        "journal.jsonl: line 3 is damaged",
        "starts again",
    );
    assert!(entries(&create(&out, Replace, No).unwrap()).is_empty());
}

#[test]
fn two_writers_do_not_share_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let mut first = create(&out, Refuse, No).unwrap();
    first.record(&1).unwrap();
    fs::write(first.path().join("work"), "x").unwrap();
    for (overwrite, resume) in [(Refuse, Yes), (Replace, No), (Replace, Yes)] {
        let second = create(&out, overwrite, resume);
        let who = format!("out.partial: another process is writing it: {} (", std::process::id());
        assert_error(second, &who, "wait for it to end");
    }
    assert_eq!(
        names(first.path()),
        [".ounce-lock", "journal.jsonl", "ounce.json", "work"]
    );
    first.record(&2).unwrap();
    assert_eq!(entries(&first), [json!(1), json!(2)]);
    drop(first);
    assert!(create(&out, Refuse, Yes).is_ok());
}

/// As after a kill between the renames of an overwrite: OUT is there again after the next command, whatever that is.
#[test]
fn a_kill_between_the_renames_loses_nothing() {
    for (overwrite, resume) in [(Refuse, Yes), (Replace, Yes), (Replace, No), (Refuse, No)] {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        finished(&out, "old");
        let mut folder = create(&out, Replace, No).unwrap();
        fs::write(folder.path().join("new"), "new").unwrap();
        folder.record(&"all done").unwrap();
        folder.record(&json!({ "replaces": "out.replaced-1" })).unwrap();
        // Names in a journal reach no further than it would write.
        folder.record(&json!({ "replaces": "precious" })).unwrap();
        drop(folder);
        fs::rename(&out, dir.path().join("out.replaced-1")).unwrap();
        fs::create_dir(dir.path().join("precious")).unwrap();
        let begun = create(&out, overwrite, resume);
        assert_eq!(fs::read_to_string(out.join("inner/result")).unwrap(), "old");
        if overwrite == Refuse {
            assert_error(begun, "out: exists already", "`--overwrite`");
            assert_eq!(names(dir.path()), ["out", "out.partial", "precious"]);
            continue;
        }
        let folder = begun.unwrap();
        fs::write(folder.path().join("new"), "new").unwrap();
        folder.finish().unwrap();
        assert_eq!(names(&out), ["new", "ounce.json"]);
        assert_eq!(names(dir.path()), ["out", "precious"]);
    }
}

/// As after a kill between the last rename and the removal of the journal.
#[test]
fn a_kill_after_the_last_rename_leaves_a_whole_folder() {
    for (overwrite, resume) in [(Refuse, Yes), (Replace, Yes), (Replace, No), (Refuse, No)] {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let mut folder = create(&out, Refuse, No).unwrap();
        folder.record(&json!({ "replaces": "out.replaced-7" })).unwrap();
        let journal = fs::read(folder.path().join("journal.jsonl")).unwrap();
        fs::write(folder.path().join("result"), "new").unwrap();
        folder.finish().unwrap();
        fs::write(out.join("journal.jsonl"), journal).unwrap();
        fs::write(out.join(".ounce-lock"), "7 (gone)").unwrap();
        fs::create_dir(dir.path().join("out.replaced-7")).unwrap();
        let begun = OutputFolder::create(output(&out, overwrite, resume));
        assert_eq!(names(&out), ["ounce.json", "result"]);
        assert!(!dir.path().join("out.replaced-7").exists());
        match (overwrite, resume) {
            (_, Yes) => assert!(matches!(begun.unwrap(), Begun::Whole)),
            (Refuse, No) => assert_error(begun.map(work), "out: exists already", "`--overwrite`"),
            _ => drop(work(begun.unwrap())),
        }
    }
}

#[test]
fn only_the_same_job_is_continued() {
    let dir = tempfile::tempdir().unwrap();
    let (out, file) = (dir.path().join("out"), dir.path().join("weights"));
    fs::write(&file, "1").unwrap();
    let with = |recipe: &str, overwrite, resume| {
        let inputs = Inputs::of([("weights".to_owned(), file.clone())]).unwrap();
        let identity = Identity::new("test").with("recipe", recipe);
        let sources = vec![file.clone()];
        OutputFolder::create(Output {
            identity,
            inputs,
            sources,
            ..output(&out, overwrite, resume)
        })
    };
    let refused = |begun: Result<Begun, FormatError>, rule: &str| assert_error(begun.map(work), rule, "--overwrite");
    drop(with("a", Refuse, No).unwrap());
    refused(with("b", Refuse, Yes), "out.partial: was begun with another recipe");
    fs::write(&file, "2").unwrap();
    refused(
        with("b", Refuse, Yes),
        "was begun with another recipe and another weights",
    );
    refused(with("a", Replace, Yes), "was begun with another weights");
    fs::write(&file, "1").unwrap();
    let folder = work(with("a", Refuse, Yes).unwrap());
    fs::write(folder.path().join("result"), "x").unwrap();
    folder.finish().unwrap();

    // Whole: the same job has nothing to do, another one is told what differs.
    assert!(matches!(with("a", Refuse, Yes).unwrap(), Begun::Whole));
    refused(with("a", Refuse, No), "out: exists already");
    refused(with("b", Refuse, Yes), "out: exists already, made with another recipe");
    fs::write(&file, "2").unwrap();
    refused(with("a", Refuse, Yes), "out: exists already, made with another weights");
    drop(work(with("a", Replace, Yes).unwrap()));
    // An input that is changed while it is read makes no result.
    let folder = work(with("a", Replace, No).unwrap());
    fs::write(&file, "33").unwrap();
    let error = folder.finish().unwrap_err().to_string();
    assert!(error.contains("weights: was changed while it was read"), "{error}");
}

#[test]
fn what_is_read_or_is_not_ours_is_never_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (out, model) = (dir.path().join("out"), dir.path().join("out/model"));
    finished(&out, "ours");
    fs::create_dir(&model).unwrap();
    fs::write(model.join("weights"), "x").unwrap();
    let reading = |source: &Path, path: &Path, overwrite| {
        let sources = vec![source.to_owned()];
        OutputFolder::create(Output {
            sources,
            ..output(path, overwrite, No)
        })
        .map(work)
    };
    for overwrite in [Replace, Any] {
        assert_error(
            reading(&model, &out, overwrite),
            "out: holds what is read: ",
            "another output folder",
        );
        assert_error(
            reading(&model, &model, overwrite),
            "out/model: is what is read: ",
            "another output folder",
        );
        assert_error(
            reading(&out, &model, overwrite),
            "out/model: is part of what is read: ",
            "another output folder",
        );
        // Nor the folder that the work would be done in.
        let work = dir.path().join("x.partial");
        fs::create_dir_all(&work).unwrap();
        assert_error(
            reading(&work, &dir.path().join("x"), overwrite),
            "x.partial: is what is read: ",
            "another output folder",
        );
    }
    let here = "out: holds what Ounce did not make there: model/weights";
    assert_error(create(&out, Replace, No), here, "`--overwrite=any` removes all of it");
    assert_eq!(fs::read_to_string(out.join("inner/result")).unwrap(), "ours");
    let folder = create(&out, Any, No).unwrap();
    folder.finish().unwrap();
    assert_eq!(names(&out), ["ounce.json"]);

    let theirs = dir.path().join("theirs");
    fs::create_dir(&theirs).unwrap();
    drop(create(&theirs, Replace, No).unwrap());
    for name in ["a", "b", "c", "d", "e"] {
        fs::write(theirs.join(name), "x").unwrap();
    }
    let rule = "theirs: holds what Ounce did not make there: a, b, c and 2 more";
    assert_error(create(&theirs, Replace, Yes), rule, "`--overwrite=any`");
}

#[test]
fn a_link_at_the_name_of_the_work_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let victim = dir.path().join("victim");
    fs::create_dir(&victim).unwrap();
    fs::write(victim.join("thesis.tex"), "x").unwrap();
    std::os::unix::fs::symlink(&victim, dir.path().join("out.partial")).unwrap();
    for (overwrite, resume) in [(Refuse, No), (Replace, No), (Any, No), (Refuse, Yes)] {
        let begun = create(&dir.path().join("out"), overwrite, resume);
        assert_error(begun, "out.partial: exists and is no folder", "move it away");
    }
    assert_eq!(names(&victim), ["thesis.tex"]);
}

/// Somebody removed the folder and began again: the first process must not give the other's work its name.
#[test]
fn a_folder_taken_away_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let mut first = create(&out, Refuse, No).unwrap();
    fs::remove_dir_all(first.path()).unwrap();
    let second = create(&out, Refuse, No).unwrap();
    fs::write(second.path().join("half"), "x").unwrap();
    let taken = |error: FormatError| {
        error
            .to_string()
            .contains("was removed or replaced while this process wrote it")
    };
    assert!(taken(first.record(&1).unwrap_err()));
    assert!(taken(first.write("config.json", b"{}").unwrap_err()));
    first.finish().unwrap_err();
    assert!(!out.exists());
    assert_eq!(
        names(second.path()),
        [".ounce-lock", "half", "journal.jsonl", "ounce.json"]
    );
    second.finish().unwrap();
    assert_eq!(names(&out), ["half", "ounce.json"]);
}

#[test]
fn temporary_names_are_cleaned_up_by_the_next_run() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let folder = create(&out, Refuse, No).unwrap();
    fs::write(folder.path().join("config.json.tmp-1"), "x").unwrap();
    drop(folder);
    create(&out, Refuse, Yes).unwrap().finish().unwrap();
    assert_eq!(names(&out), ["ounce.json"]);
}

#[test]
fn a_single_file_replaces_only_a_file_that_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let (model, ids) = (dir.path().join("model"), dir.path().join("ids"));
    fs::create_dir(&model).unwrap();
    fs::write(model.join("weights"), "x").unwrap();
    fs::write(&ids, "x").unwrap();
    let sources = [model.as_path(), ids.as_path()];
    let refused = |path: &Path, rule: &str| {
        let error = check_output_file(path, &sources).unwrap_err().to_string();
        assert!(error.contains(rule), "{error}");
    };
    refused(&ids, "ids: is part of what is read");
    refused(&model.join("weights"), "weights: is part of what is read");
    refused(&model, "is no regular file");
    refused(Path::new("/dev/null"), "is no regular file");
    std::os::unix::fs::symlink(&ids, dir.path().join("link")).unwrap();
    refused(&dir.path().join("link"), "is no regular file");
    fs::hard_link(&ids, dir.path().join("hard")).unwrap();
    refused(&dir.path().join("hard"), "is part of what is read");
    fs::write(dir.path().join("earlier"), "x").unwrap();
    for name in ["earlier", "new"] {
        check_output_file(&dir.path().join(name), &sources).unwrap();
    }
}

#[cfg(target_os = "linux")]
#[test]
fn places_that_cannot_be_written_are_named() {
    let out = Path::new("/proc/ounce-out");
    let error = create(out, Refuse, No).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("/proc/ounce-out.partial: cannot create this folder: "),
        "{error}"
    );
    let dir = tempfile::tempdir().unwrap();
    let mut file = fs::File::create(dir.path().join("file")).unwrap();
    file.write_all(b"x").unwrap();
    let error = create(&dir.path().join("file/out"), Refuse, No).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("file/out.partial: cannot create this folder: "),
        "{error}"
    );
    assert_eq!(error.hint(), Some("one of the folders of this path is a file"));
}
