//! The report as its readers meet it. Here are the reports that the tests show.

mod axes;
mod page;
mod terminal;

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
