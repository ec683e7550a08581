//! What a browser gets and may never get, and what a script reads.

use super::sample;
use crate::report::{Block, Plot, PlotData, Report};

/// Calls `edit` with a copy of `whole` for each string inside it, that string replaced.
fn each_string(whole: &serde_json::Value, with: &str, edit: &mut impl FnMut(&str, serde_json::Value)) {
    fn paths(value: &serde_json::Value, at: &str, out: &mut Vec<String>) {
        match value {
            serde_json::Value::String(_) => out.push(at.to_owned()),
            serde_json::Value::Array(items) => {
                items
                    .iter()
                    .enumerate()
                    .for_each(|(i, v)| paths(v, &format!("{at}/{i}"), out));
            }
            serde_json::Value::Object(map) => map.iter().for_each(|(k, v)| paths(v, &format!("{at}/{k}"), out)),
            _ => {}
        }
    }
    let mut all = Vec::new();
    paths(whole, "", &mut all);
    for path in all {
        let mut copy = whole.clone();
        *copy.pointer_mut(&path).expect("invariant: the path was just walked") = with.into();
        edit(&path, copy);
    }
}

/// Whatever text stands in whichever field, the page has the same elements: nothing is ever read as markup.
#[test]
fn no_text_in_any_field_becomes_markup() {
    let whole = serde_json::to_value(sample()).expect("invariant: a report is plain data");
    let tags = |html: &str| html.matches('<').count();
    let quotes = |html: &str| html.matches('"').count();
    for hostile in [
        "\"><script>alert(1)</script>",
        "' onload='x",
        "--></style></pre></svg></title><script>",
        "]]><script>&lt;\0\u{b}",
    ] {
        let mut tried = 0;
        each_string(&whole, hostile, &mut |path, value| {
            // Fails where the string is the name of a variant, not a text.
            let Ok(report) = serde_json::from_value::<Report>(value.clone()) else {
                return;
            };
            tried += 1;
            let html = report.to_html();
            assert!(!html.contains("<script"), "{hostile:?} in {path}");
            assert!(!html.contains('\0') && !html.contains('\u{b}'), "{hostile:?} in {path}");
            // The same page with a harmless text of the same length must have as many tags and quotes.
            let harmless = serde_json::to_string(&value).expect("invariant: a value is plain data");
            let quoted = serde_json::to_string(hostile).expect("invariant: a string is plain data");
            let word = format!("\"{}\"", "x".repeat(hostile.chars().count()));
            let harmless: Report =
                serde_json::from_str(&harmless.replace(&quoted, &word)).expect("invariant: still a report");
            let harmless = harmless.to_html();
            assert_eq!(tags(&html), tags(&harmless), "{hostile:?} in {path}");
            assert_eq!(quotes(&html), quotes(&harmless), "{hostile:?} in {path}");
        });
        assert!(tried > 50, "only {tried} fields");
    }
}

#[test]
fn page_loads_nothing_and_names_everything() {
    let html = sample().to_html();
    for loader in ["src=", "href=", "@import", "url(", "<script", "<link"] {
        assert!(!html.contains(loader), "{loader}");
    }
    let count = |needle: &str| html.matches(needle).count();
    assert_eq!(count("<svg "), 6, "three charts, each for two widths");
    assert_eq!(count("role=\"img\""), count("<svg "));
    assert_eq!(count("<desc "), count("<svg "));
    assert_eq!(count("<th "), count("scope="), "every table head says what it heads");
    let ids: Vec<&str> = html
        .split(" id=\"")
        .skip(1)
        .filter_map(|s| s.split('"').next())
        .collect();
    let unique: std::collections::BTreeSet<_> = ids.iter().collect();
    assert_eq!(ids.len(), unique.len());
    // Every element that is opened is closed, in order.
    let mut open = Vec::new();
    for tag in html.split('<').skip(1) {
        let name: String = tag
            .chars()
            .take_while(|c| c.is_ascii_alphanumeric() || *c == '/' || *c == '!')
            .collect();
        let closed = tag.split('>').next().is_some_and(|t| t.ends_with('/'));
        match name.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop().as_deref(), Some(name)),
            None if closed || ["meta", "!doctype"].contains(&name.as_str()) => {}
            None => open.push(name),
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn json_gives_the_report_back() {
    let mut report = sample();
    let text = serde_json::to_string(&report).expect("invariant: a report is plain data");
    let back: Report = serde_json::from_str(&text).expect("a report");
    // Not-a-number is null in JSON and not-a-number again after it; it is not equal to itself.
    let Block::Plot(Plot {
        data: PlotData::Lines { series, .. },
        ..
    }) = &back.blocks[4]
    else {
        panic!("the fifth block is the line chart: {:?}", back.blocks[4]);
    };
    assert!(series[1].points[1].y.is_nan());
    let mut back = back;
    for report in [&mut report, &mut back] {
        report.blocks.retain(|block| !matches!(block, Block::Plot(_)));
    }
    assert_eq!(back, report);
}

#[test]
fn file_is_written_whole_and_errors_name_it() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("report.html");
    sample().write_html(&path).expect("written");
    assert_eq!(std::fs::read_to_string(&path).expect("read"), sample().to_html());
    assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 1);
    let error = sample()
        .write_html(&dir.path().join("no/report.html"))
        .expect_err("no such folder");
    assert!(
        error.to_string().contains("no/report.html: cannot write the report"),
        "{error}"
    );
}
