//! The report as its readers meet it: what a terminal prints, what a browser may never get, what axes say.

use super::scale::AxisScale;
use super::text::{format_number, width, wrap};
use super::*;

fn bill() -> Table {
    let mut table = Table::new(
        "The bill",
        vec![
            Column::text("Measure"),
            Column::number("original", ""),
            Column::number("75 %", ""),
        ],
    );
    let mut add = |group: &str, name: &str, before: Cell, after: Cell, goal| {
        let after = match before.value {
            Some(b) => after.change_from(b),
            None => after,
        };
        table
            .push_group(group, vec![Cell::text(name), before, after])
            .expect("invariant: three cells for three columns")
            .mark_best_in_last_row(goal);
    };
    add(
        "Quality",
        "Bits per byte",
        Cell::number(1.842, 3),
        Cell::number(1.871, 3),
        Goal::Lower,
    );
    add(
        "Cost",
        "Résumé 重み on disk",
        Cell::bytes(12_900_000),
        Cell::bytes(9_700_000),
        Goal::Lower,
    );
    add(
        "",
        "Speed (tokens/s)",
        Cell::number(1234.0, 0),
        Cell::number(1650.0, 0),
        Goal::Higher,
    );
    table.note = "Lower is better, except for speed.".into();
    table
}

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

/// Every kind of block, every field filled in.
fn sample() -> Report {
    let point = |x: f64, y: f64| Point {
        x,
        y,
        low: Some(y * 0.9),
        high: Some(y * 1.1),
        label: "p".into(),
    };
    let series = vec![
        Series {
            name: "seed 0".into(),
            points: (1..30).map(|i| point(f64::from(i), 9.0 / f64::from(i))).collect(),
        },
        Series::new("seed 1", [(1.0, 3.0), (2.0, f64::NAN), (3.0, 1.0)]),
    ];
    let (x, y) = (Axis::linear("step", "1"), Axis::log("loss", "nats"));
    let lines = PlotData::Lines {
        x: x.clone(),
        y: y.clone(),
        series: series.clone(),
    };
    let bars = PlotData::Bars {
        label: "speed".into(),
        unit: "tokens/s".into(),
        groups: vec!["prefill".into(), "decode".into()],
        series: vec![BarSeries::new("before", [10.0, -2.0]), BarSeries::new("after", [12.0])],
    };
    let plot = |data| {
        Block::Plot(Plot {
            title: "chart".into(),
            caption: "how to read it".into(),
            data,
        })
    };
    let mut table = bill();
    table.columns[1].unit = "unit".into();
    table.rows[0].cells[1].mark = Mark::Changed;
    table.rows[1].cells[1].mark = Mark::Worse;
    Report {
        footer: Footer {
            command: "ounce demo".into(),
            version: "0.1.0".into(),
            date: "2025-01-01".into(),
            machine: "2 threads".into(),
        },
        ..Report::new("Title", "subtitle with `code`")
    }
    .heading("Heading")
    .paragraph("text with `code` and a lone `")
    .with(Block::Figures {
        figures: vec![Figure {
            label: "Memory".into(),
            value: "61".into(),
            unit: "%".into(),
            note: "of 12 MiB".into(),
            tone: Tone::Better,
        }],
    })
    .with(Block::Table(table))
    .with(plot(lines))
    .with(plot(PlotData::Scatter { x, y, series }))
    .with(Block::Samples(Samples {
        prompt: "Once".into(),
        samples: vec![Sample {
            title: "before".into(),
            text: " upon".into(),
        }],
        caption: "greedy".into(),
    }))
    .with(Block::Details {
        summary: "More".into(),
        blocks: vec![plot(bars)],
    })
}

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

fn labels(values: &[f64], scale: Scale) -> (Vec<String>, String) {
    let axis = AxisScale::new(values.iter().copied(), scale, 5, false).expect("there are values");
    (axis.ticks.iter().map(|t| t.label.clone()).collect(), axis.factor())
}

#[test]
fn ticks_are_round_numbers() {
    let texts = |values: &[f64], scale| {
        let (labels, factor) = labels(values, scale);
        format!("{} {factor}", labels.join(" "))
    };
    assert_eq!(texts(&[0.0, 9.7], Scale::Linear), "0 2 4 6 8 10 ");
    assert_eq!(texts(&[-1.0, 1.0], Scale::Linear), "−1.0 −0.5 0.0 0.5 1.0 ");
    assert_eq!(texts(&[0.0, 4.2e-9], Scale::Linear), "0 1 2 3 4 5 ×10⁻⁹");
    assert_eq!(texts(&[0.0, 8e12], Scale::Linear), "0 2 4 6 8 ×10¹²");
    assert_eq!(texts(&[7.0], Scale::Linear), "6.0 6.5 7.0 7.5 8.0 ");
    assert_eq!(texts(&[0.0], Scale::Linear), "−1.0 −0.5 0.0 0.5 1.0 ");
    assert_eq!(texts(&[0.001, 1000.0], Scale::Log), "0.001 0.01 0.1 1 10 100 1000 ");
    assert_eq!(texts(&[1.0, 60.0], Scale::Log), "1 2 5 10 20 50 ");
}

/// The promise of every axis, for numbers nobody expects.
#[test]
fn axes_hold_for_any_numbers() {
    let sizes = [
        0.0,
        5e-324,
        1e-300,
        1e-40,
        1e-3,
        1.0,
        1.0 + 1e-12,
        3.7,
        1e6 + 1e-3,
        1e15,
        1e40,
        1e300,
    ];
    for a in sizes {
        for b in sizes {
            for (a, b) in [(a, b), (-a, b), (a, -b), (-a, -b)] {
                for scale in [Scale::Linear, Scale::Log] {
                    for tight in [false, true] {
                        let values = [a, b].into_iter().filter(|v| super::plot::drawable(*v, scale));
                        let Some(axis) = AxisScale::new(values.clone(), scale, 5, tight) else {
                            continue;
                        };
                        let what = format!("{a:e} {b:e} {scale:?} tight {tight}: {axis:?}");
                        assert!(axis.low < axis.high, "{what}");
                        assert!((1..=16).contains(&axis.ticks.len()), "{what}");
                        for pair in axis.ticks.windows(2) {
                            assert!(pair[0].value < pair[1].value, "{what}");
                            assert_ne!(pair[0].label, pair[1].label, "{what}");
                        }
                        for v in values.chain(axis.ticks.iter().map(|t| t.value)) {
                            let place = axis.place(v);
                            assert!((-1e-6..=1.0 + 1e-6).contains(&place), "{v:e} at {place}: {what}");
                        }
                    }
                }
            }
        }
    }
}

fn svg(data: PlotData) -> (String, String) {
    let plot = Plot {
        title: "t".into(),
        caption: String::new(),
        data,
    };
    let svg = plot.to_svg(Canvas::Wide, "a") + &plot.to_svg(Canvas::Narrow, "b");
    // Places and lengths must be numbers; texts may say NaN.
    let shapes: Vec<&str> = svg
        .split('<')
        .filter(|tag| !tag.starts_with("text") && !tag.starts_with("desc"))
        .collect();
    for bad in ["NaN", "inf"] {
        assert!(shapes.iter().all(|tag| !tag.contains(bad)), "{bad} in {svg}");
    }
    (svg, plot.omissions().unwrap_or_default())
}

#[test]
fn what_cannot_be_drawn_is_said() {
    let axes = || (Axis::linear("x", ""), Axis::log("y", ""));
    let (x, y) = axes();
    let hole = Series::new(
        "s",
        [
            (1.0, 1.0),
            (2.0, 2.0),
            (3.0, f64::NAN),
            (4.0, -1.0),
            (5.0, 3.0),
            (6.0, 2.0),
        ],
    );
    let (image, said) = svg(PlotData::Lines {
        x,
        y,
        series: vec![hole, Series::new("none", [])],
    });
    assert_eq!(
        image.matches("<path d=\"M").count() - image.matches("l4.8 8.4").count(),
        4,
        "a gap splits the line"
    );
    assert!(said.starts_with("2 values are not drawn"), "{said}");
    assert!(said.ends_with("Without any point: none."), "{said}");

    for values in [
        vec![],
        vec![(f64::NAN, 1.0)],
        vec![(1.0, f64::INFINITY)],
        vec![(0.0, -1.0)],
    ] {
        for scatter in [false, true] {
            let (x, y) = axes();
            let series = vec![Series::new("s", values.clone())];
            let data = if scatter {
                PlotData::Scatter { x, y, series }
            } else {
                PlotData::Lines { x, y, series }
            };
            let (image, said) = svg(data);
            assert!(image.contains("No data to draw"));
            assert!(!said.is_empty(), "{values:?}");
        }
    }

    let bars = |groups: usize, values: Vec<f64>| PlotData::Bars {
        label: "n".into(),
        unit: String::new(),
        groups: vec!["g".into(); groups],
        series: vec![BarSeries::new("s", values)],
    };
    let (image, said) = svg(bars(3, vec![1.0, f64::NAN]));
    assert_eq!(image.matches("no value").count(), 4);
    assert_eq!(said, "2 values are not drawn: missing or not a finite number.");
    let (_, said) = svg(bars(1, vec![1.0, 2.0]));
    assert_eq!(said, "1 value is not drawn: missing or not a finite number.");
    assert!(svg(bars(0, vec![])).0.contains("No data to draw"));
    for values in [[0.0, 0.0], [-1e300, 1e300], [-5.0, -1.0], [1e-310, 1e-300]] {
        assert_eq!(svg(bars(2, values.to_vec())).1, "");
    }
}
