//! Writes one report with every kind of block: `cargo run --release -p ounce-lab --example report_sample -- DIR`.
//!
//! All numbers and texts in it are illustrative; nothing was measured.

use ounce_lab::report::{
    Axis, Bar, BarSeries, Block, Cell, Column, Figure, Footer, Goal, Plot, PlotData, Point, Report, ReportError,
    Sample, Samples, Series, Table, Tone,
};
use std::io::Write as _;
use std::path::PathBuf;

fn bill() -> Result<Table, ReportError> {
    let columns = vec![
        Column::text("Measure"),
        Column::number("original", ""),
        Column::number("75 %", ""),
        Column::number("50 %", ""),
    ];
    let mut table = Table::new("The bill, before and after merging experts", columns);
    let mut row = |group: &str, name: &str, unit: &str, cells: [Cell; 3], goal| {
        let [before, b, c] = cells;
        let first = before.value.unwrap_or(f64::NAN);
        let cells = vec![
            Cell::text(name).note(unit),
            before,
            b.change_from(first),
            c.change_from(first),
        ];
        table.push_group(group, cells)?.mark_best_in_last_row(goal);
        Ok::<(), ReportError>(())
    };
    let number = |values: [f64; 3], decimals| values.map(|v| Cell::number(v, decimals));
    row(
        "Quality",
        "Bits per byte",
        "lower is better",
        number([1.842, 1.871, 1.954], 3),
        Goal::Lower,
    )?;
    row(
        "",
        "Perplexity",
        "per token, lower is better",
        number([11.63, 12.08, 13.79], 2),
        Goal::Lower,
    )?;
    row(
        "Size",
        "Parameters",
        "",
        [4_212_000, 3_301_000, 2_390_000].map(Cell::count),
        Goal::Lower,
    )?;
    row(
        "",
        "On disk",
        "bf16",
        [8_443_000, 6_621_000, 4_799_000].map(Cell::bytes),
        Goal::Lower,
    )?;
    row(
        "",
        "Resident memory",
        "peak",
        [41_300_000, 37_600_000, 33_900_000].map(Cell::bytes),
        Goal::Lower,
    )?;
    row(
        "Speed",
        "Generation",
        "tokens/s, higher is better",
        number([1210.0, 1274.0, 1391.0], 0),
        Goal::Higher,
    )?;
    table.note = "Illustrative numbers. Changes are against the original.".into();
    Ok(table)
}

fn loss_curve() -> Plot {
    let curve = |name: &str, floor: f64, seed: u32| Series {
        name: name.into(),
        points: (0..=200_u32)
            .map(|i| {
                let step = f64::from(i * 10);
                let ripple = f64::from((i * 7919 + seed * 104_729) % 97) / 97.0 - 0.5;
                let y = floor + 3.4 * (-step / 260.0).exp() + ripple * 0.06;
                let half = 0.05 + 0.2 * (-step / 400.0).exp();
                Point {
                    x: step,
                    y,
                    low: Some(y - half),
                    high: Some(y + half),
                    ..Point::default()
                }
            })
            .collect(),
    };
    Plot {
        title: "Training loss".into(),
        caption: "Mean of five seeds; the band is the 95 % confidence interval. Illustrative.".into(),
        data: PlotData::Lines {
            x: Axis::linear("step", ""),
            y: Axis::linear("cross entropy", "nats per token"),
            series: vec![
                curve("dense", 2.1, 1),
                curve("mixture of 8 experts", 1.8, 2),
                curve("merged to 4", 1.87, 3),
            ],
        },
    }
}

fn speed() -> Plot {
    let bars = |name: &str, values: [f64; 2]| BarSeries {
        name: name.into(),
        bars: values
            .map(|value| Bar {
                value,
                low: Some(value * 0.97),
                high: Some(value * 1.02),
            })
            .to_vec(),
    };
    Plot {
        title: "Speed".into(),
        caption: "Whiskers span the slowest and the fastest of five runs. Illustrative.".into(),
        data: PlotData::Bars {
            label: "throughput".into(),
            unit: "tokens/s".into(),
            groups: vec!["Reading the prompt".into(), "Generation".into()],
            series: vec![
                bars("original", [3120.0, 1210.0]),
                bars("75 %", [3388.0, 1274.0]),
                bars("50 %", [3702.0, 1391.0]),
            ],
        },
    }
}

fn trade_off() -> Plot {
    let points = |name: &str, all: &[(f64, f64, &str)]| Series {
        name: name.into(),
        points: all
            .iter()
            .map(|(x, y, label)| Point {
                x: *x,
                y: *y,
                label: (*label).into(),
                ..Point::default()
            })
            .collect(),
    };
    Plot {
        title: "Quality against size".into(),
        caption: "Down and to the left is better. Illustrative.".into(),
        data: PlotData::Scatter {
            x: Axis::log("parameters", ""),
            y: Axis::linear("quality", "bits per byte"),
            series: vec![
                points(
                    "merged",
                    &[
                        (4.21e6, 1.842, "original"),
                        (3.3e6, 1.871, "75 %"),
                        (2.39e6, 1.954, "50 %"),
                        (1.5e6, 2.16, "25 %"),
                    ],
                ),
                points(
                    "pruned",
                    &[(3.3e6, 1.93, "75 %"), (2.39e6, 2.11, "50 %"), (1.5e6, 2.39, "25 %")],
                ),
            ],
        },
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let figure = |label: &str, value: &str, unit: &str, note: &str, tone| Figure {
        label: label.into(),
        value: value.into(),
        unit: unit.into(),
        note: note.into(),
        tone,
    };
    let sample = |title: &str, text: &str| Sample {
        title: title.into(),
        text: text.into(),
    };
    let mut report = Report::new(
        "Half the experts, 6 % more bits",
        "A mixture of experts, merged to 75 % and 50 % of its experts without training. All numbers on this page are illustrative.",
    )
    .with(Block::Figures {
        figures: vec![
            figure("On disk", "−43", "%", "8.05 → 4.58 MiB", Tone::Better),
            figure("Memory", "−18", "%", "39.4 → 32.3 MiB", Tone::Better),
            figure("Speed", "+15", "%", "1210 → 1391 tokens/s", Tone::Better),
            figure("Quality", "+6.1", "%", "bits per byte", Tone::Worse),
        ],
    })
    .with(Block::Table(bill()?))
    .heading("Training")
    .with(Block::Plot(loss_curve()))
    .heading("What it costs, what it brings")
    .with(Block::Plot(speed()))
    .with(Block::Plot(trade_off()))
    .heading("Generated text")
    .with(Block::Samples(Samples {
        prompt: "The little boat".into(),
        samples: vec![
            sample("original", " was red and had a white sail.\nEvery morning it went out to the blue water,\nand every evening it came home."),
            sample("50 %", " was red and had a big sail.\nOne morning it went to the water and the water was blue,\nand it came home."),
        ],
        caption: "Greedy, 40 tokens. Illustrative.".into(),
    }))
    .heading("Method")
    .paragraph("Experts are grouped by the similarity of their mean outputs on calibration text, hierarchically with average linkage, and each group is merged into one expert, weighted by how often the router chose each. The router is kept: its outputs are mapped to the groups. `ounce compress --method hc-smoe` does the same to any checkpoint.")
    .with(Block::Details {
        summary: "How each number is measured".into(),
        blocks: vec![
            Block::Paragraph { text: "Quality: windows of 256 tokens with a stride of half a window, every token scored once.".into() },
            Block::Paragraph { text: "Memory: the peak of a process of its own for each model.".into() },
        ],
    });
    report.footer = Footer {
        command: "cargo run --release -p ounce-lab --example report_sample".into(),
        version: concat!("ounce ", env!("CARGO_PKG_VERSION")).into(),
        date: "2025-01-01".into(),
        machine: "illustrative".into(),
    };
    let dir = std::env::args_os()
        .nth(1)
        .map_or_else(|| PathBuf::from("."), PathBuf::from);
    report.write_html(&dir.join("report.html"))?;
    std::io::stdout().write_all(report.to_terminal(96, false).as_bytes())?;
    Ok(())
}
