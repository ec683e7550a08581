//! What a terminal prints, and how numbers and tables read in text.

use super::{bill, sample};
use crate::report::{
    Cell, Column, Goal, Mark, Table, format_bytes, format_count, format_percent_change,
    text::{format_number, width, wrap},
};

#[test]
fn terminal_table_lines_up_and_marks_without_colour() {
    let expected = "\
The bill
Measure              original       75 %
───────────────────  ─────────  ────────────────
Quality
Bits per byte           1.842*     1.871  +1.6 %
Cost
Résumé 重み on disk  12.3 MiB   9.25 MiB*  −25 %
Speed (tokens/s)         1234       1650*  +34 %
* best
Lower is better, except for speed.
";
    assert_eq!(bill().to_terminal(80, false), expected);
}

#[test]
fn terminal_colour_only_adds_to_the_same_text() {
    let coloured = bill().to_terminal(80, true);
    assert!(coloured.contains("\x1b[1;32m"), "{coloured:?}");
    let mut plain = String::new();
    let mut rest = coloured.as_str();
    while let Some((before, after)) = rest.split_once('\x1b') {
        plain += before;
        rest = after.split_once('m').map_or("", |(_, rest)| rest);
    }
    plain += rest;
    let trim = |text: &str| text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
    assert_eq!(trim(&plain), trim(&bill().to_terminal(80, false)));
}

#[test]
fn terminal_table_becomes_records_when_the_grid_does_not_fit() {
    let text = bill().to_terminal(24, false);
    assert!(
        text.contains("Bits per byte\n  original: 1.842 *\n  75 %: 1.871 (+1.6 %)\n"),
        "{text}"
    );
    for limit in 8..100 {
        let text = bill().to_terminal(limit, false);
        let longest = text.lines().map(width).max().unwrap_or(0);
        assert!(longest <= limit, "{longest} columns for {limit}:\n{text}");
    }
}

#[test]
fn terminal_text_cannot_command_the_terminal() {
    let mut report = sample();
    report.title = "a\x1b[2Jb\u{9b}31m\u{202e}".into();
    let text = report.to_terminal(80, false);
    assert!(text.starts_with("a␛[2Jb\u{fffd}31m\u{fffd}\n"), "{text:?}");
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
}

#[test]
fn markdown_table_escapes_its_own_syntax() {
    let mut table = Table::new("", vec![Column::text("a|b"), Column::number("n", "MiB")]);
    let row = vec![
        Cell::text("x\ny *z*"),
        Cell::number(-2.5, 1).mark(Mark::Best).note("−3 %"),
    ];
    table.push(row).expect("invariant: two cells for two columns");
    let expected = "| a\\|b | n (MiB) |\n| --- | ---: |\n| x y \\*z\\* | **−2.5** (−3 %) |\n";
    assert_eq!(table.to_markdown(), expected);
}

#[test]
fn rows_of_the_wrong_length_are_refused() {
    let mut table = Table::new("bill", vec![Column::text("a"), Column::text("b")]);
    let error = table
        .push(vec![Cell::missing()])
        .map(|_| ())
        .expect_err("one cell for two columns");
    assert!(
        error
            .to_string()
            .starts_with("table \"bill\", row 0: 1 cells for 2 columns"),
        "{error}"
    );
}

#[test]
fn best_ignores_what_is_not_a_number_and_needs_a_loser() {
    let columns = (0..4).map(|i| Column::number(i.to_string(), "")).collect();
    let mut table = Table::new("", columns);
    let marks = |cells: Vec<Cell>, table: &mut Table, goal| -> Vec<Mark> {
        table
            .push(cells)
            .expect("invariant: four cells")
            .mark_best_in_last_row(goal);
        table
            .rows
            .last()
            .map(|row| row.cells.iter().map(|c| c.mark).collect())
            .unwrap_or_default()
    };
    let cells = || {
        vec![
            Cell::number(f64::NAN, 1),
            Cell::number(2.0, 1),
            Cell::number(1.0, 1),
            Cell::number(1.0, 1),
        ]
    };
    let (n, b) = (Mark::None, Mark::Best);
    assert_eq!(marks(cells(), &mut table, Goal::Lower), [n, n, b, b]);
    assert_eq!(marks(cells(), &mut table, Goal::Higher), [n, b, n, n]);
    assert_eq!(
        marks(vec![Cell::number(1.0, 1); 4], &mut table, Goal::Lower),
        [n, n, n, n]
    );
}

#[test]
fn numbers_read_well() {
    assert_eq!(format_number(1_234_567.891, 1), "1\u{202f}234\u{202f}567.9");
    assert_eq!(format_number(-0.04, 1), "0.0");
    assert_eq!(format_number(f64::NEG_INFINITY, 1), "−∞");
    assert_eq!(format_bytes(999), "999 B");
    assert_eq!(format_bytes(1023), "1.00 KiB");
    assert_eq!(format_bytes(u64::MAX), "16.0 EiB");
    assert_eq!(format_count(999_999), "1.00 M");
    assert_eq!(format_percent_change(2.0, 2.0001).as_deref(), Some("±0 %"));
    assert_eq!(format_percent_change(0.0, 1.0), None);
    assert_eq!(format_percent_change(1.0, f64::NAN), None);
}

#[test]
fn wrapping_keeps_every_word_and_the_limit() {
    let lines = wrap("the quick 重重重重 brown-fox\nend", 6);
    assert_eq!(lines, ["the", "quick", "重重重", "重", "brown-", "fox", "end"]);
}
