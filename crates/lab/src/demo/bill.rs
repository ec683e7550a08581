//! The bill as a document: one table, the trade-off as plots, samples side by side.

use super::{DemoOptions, PROMPTS, Variant};
use crate::{
    LabError,
    report::{
        Axis, Block, Cell, Column, Figure, Footer, Goal, Plot, PlotData, Point, Report, Sample, Samples, Series, Table,
        Tone,
    },
};
use ounce_compress::MergeReport;
use ounce_formats::fsx;
use serde_json::Value;

/// Changes smaller than this are drawn as neutral: repeated runs differ by as much.
const NOISE_PERCENT: f64 = 3.0;

pub(super) fn report(options: &DemoOptions, variants: &[Variant], merges: &[MergeReport]) -> Result<Report, LabError> {
    let (original, smallest) = match variants {
        [first, .., last] => (&first.measured, &last.measured),
        _ => return Err(LabError::Demo("nothing was measured".into())),
    };
    let change = |label: &str, before: f64, after: f64, lower_is_better: bool, note: String| {
        let percent = (after / before - 1.0) * 100.0;
        let better = (percent < 0.0) == lower_is_better;
        let tone = match (percent.abs() < NOISE_PERCENT, better) {
            (true, _) => Tone::Neutral,
            (_, true) => Tone::Better,
            (_, false) => Tone::Worse,
        };
        Figure {
            label: label.into(),
            value: format!("{percent:+.1}").replace('-', "−"),
            unit: "%".into(),
            note,
            tone,
        }
    };
    let figures = vec![
        change(
            "Quality",
            original.bits_per_byte,
            smallest.bits_per_byte,
            true,
            format!(
                "bits per byte {:.3} → {:.3}",
                original.bits_per_byte, smallest.bits_per_byte
            ),
        ),
        change(
            "On disk",
            original.disk_bytes as f64,
            smallest.disk_bytes as f64,
            true,
            format!(
                "{} → {}",
                crate::report::format_bytes(original.disk_bytes),
                crate::report::format_bytes(smallest.disk_bytes)
            ),
        ),
        change(
            "Memory",
            original.peak_rss_bytes as f64,
            smallest.peak_rss_bytes as f64,
            true,
            "peak resident while generating, the whole process".into(),
        ),
        change(
            "Speed",
            median(original),
            median(smallest),
            false,
            "tokens/s at batch 1, median of five".into(),
        ),
    ];
    let mut report = Report::new(
        "Half the experts: the bill",
        "The model that ships with Ounce, a small mixture of experts trained on public-domain novels, measured, merged \
         with HC-SMoE to 75 % and 50 % of its experts without any retraining, and measured again.",
    )
    .with(Block::Figures { figures })
    .with(Block::Table(table(variants)?))
    .with(Block::Plot(trade_off(variants)));
    for prompt in 0..PROMPTS.len() {
        report = report.with(Block::Samples(samples(variants, prompt)));
    }
    report = report
        .heading("How the experts were grouped")
        .paragraph(
            "Each expert is described by its mean output on the calibration text; the experts of a layer are joined \
             bottom-up, nearest first (average linkage), and each group becomes one expert, its weights averaged by how \
             often the router chose them. The router is not changed: its old choices point to the merged experts.",
        )
        .with(Block::Table(groups(merges)?));
    if let Some(plot) = loss_curve(options) {
        report = report.heading("How the original was trained").with(Block::Plot(plot));
    }
    report.footer = Footer {
        command: options.command_line.clone(),
        version: options.version.clone(),
        date: String::new(),
        machine: crate::machine(),
    };
    Ok(report)
}

fn median(m: &super::Measurement) -> f64 {
    m.tokens_per_second
        .get(m.tokens_per_second.len() / 2)
        .copied()
        .unwrap_or(f64::NAN)
}

fn table(variants: &[Variant]) -> Result<Table, LabError> {
    let mut columns = vec![Column::text("Measure")];
    columns.extend(variants.iter().map(|v| Column::number(&v.name, "")));
    let mut table = Table::new("The bill", columns);
    let mut row = |group: &str, name: &str, unit: &str, cell: &dyn Fn(&Variant) -> Cell, goal: Goal| {
        let first = cell(&variants[0]);
        let before = first.value.unwrap_or(f64::NAN);
        let mut cells = vec![Cell::text(name).note(unit), first];
        cells.extend(variants[1..].iter().map(|v| cell(v).change_from(before)));
        table.push_group(group, cells).map(|t| {
            t.mark_best_in_last_row(goal);
        })
    };
    row(
        "Quality",
        "Bits per byte",
        "lower is better",
        &|v| Cell::number(v.measured.bits_per_byte, 3),
        Goal::Lower,
    )?;
    row(
        "",
        "Perplexity",
        "per token, lower is better",
        &|v| Cell::number(v.measured.perplexity, 2),
        Goal::Lower,
    )?;
    row(
        "Size",
        "Experts",
        "all layers",
        &|v| Cell::count(v.measured.experts as u64),
        Goal::Lower,
    )?;
    row(
        "",
        "Parameters",
        "",
        &|v| Cell::count(v.measured.parameters as u64),
        Goal::Lower,
    )?;
    row("", "On disk", "", &|v| Cell::bytes(v.measured.disk_bytes), Goal::Lower)?;
    row(
        "",
        "Resident memory",
        "peak while generating",
        &|v| Cell::bytes(v.measured.peak_rss_bytes),
        Goal::Lower,
    )?;
    row(
        "Speed",
        "Generation",
        "tokens/s, median of 5",
        &|v| Cell::number(median(&v.measured), 0),
        Goal::Higher,
    )?;
    row(
        "",
        "First token",
        "ms, opening the model included",
        &|v| Cell::number(v.measured.first_token_ms, 1),
        Goal::Lower,
    )?;
    let seconds: Vec<String> = variants
        .iter()
        .filter_map(|v| v.merge_seconds)
        .map(|s| format!("{s:.1} s"))
        .collect();
    table.note = format!(
        "Changes are against the original. Quality is measured on an original story that no model was trained on. \
         Merging took {}.",
        seconds.join(" and ")
    );
    Ok(table)
}

fn trade_off(variants: &[Variant]) -> Plot {
    let point = |v: &Variant| Point {
        x: v.measured.parameters as f64,
        y: v.measured.bits_per_byte,
        label: v.name.clone(),
        ..Point::default()
    };
    Plot {
        title: "Quality against size".into(),
        caption: "Down and to the left is better.".into(),
        data: PlotData::Scatter {
            x: Axis::linear("parameters", ""),
            y: Axis::linear("quality", "bits per byte"),
            series: vec![Series {
                name: "HC-SMoE".into(),
                points: variants.iter().map(point).collect(),
            }],
        },
    }
}

fn samples(variants: &[Variant], prompt: usize) -> Samples {
    Samples {
        prompt: PROMPTS[prompt].into(),
        samples: variants
            .iter()
            .filter_map(|v| v.measured.samples.get(prompt).map(|(_, text)| (v, text)))
            .map(|(v, text)| Sample {
                title: v.name.clone(),
                text: text.clone(),
            })
            .collect(),
        caption: "Temperature 0.8, seed 0.".into(),
    }
}

fn groups(merges: &[MergeReport]) -> Result<Table, LabError> {
    let columns = vec![
        Column::text("Experts kept"),
        Column::number("Layer", ""),
        Column::text("Groups of experts"),
    ];
    let mut table = Table::new("Groups", columns);
    for report in merges {
        for (i, layer) in report.layers.iter().enumerate() {
            let groups: Vec<String> = layer
                .groups()
                .iter()
                .map(|g| g.iter().map(usize::to_string).collect::<Vec<_>>().join("+"))
                .collect();
            let share = format!("{} of {}", layer.groups().len(), layer.labels.len());
            let cells = vec![
                Cell::text(share),
                Cell::count(layer.layer as u64),
                Cell::text(groups.join("  ")),
            ];
            table.push_group(if i == 0 { "merged" } else { "" }, cells)?;
        }
    }
    Ok(table)
}

/// The loss curve recorded when the shipped model was trained.
fn loss_curve(options: &DemoOptions) -> Option<Plot> {
    let text = fsx::read_to_string(&options.models.join("demo/metrics.jsonl")).ok()?;
    let rows: Vec<Value> = text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    let series = |name: &str, key: &str| {
        let points: Vec<Point> = rows
            .iter()
            .filter_map(|r| {
                Some(Point {
                    x: r["step"].as_f64()?,
                    y: r[key].as_f64()?,
                    ..Point::default()
                })
            })
            .collect();
        Series {
            name: name.into(),
            points,
        }
    };
    Some(Plot {
        title: "Loss while training".into(),
        caption: "Nats per token. The validation text was never trained on.".into(),
        data: PlotData::Lines {
            x: Axis::linear("step", ""),
            y: Axis::linear("loss", "nats per token"),
            series: vec![series("training", "loss"), series("validation", "validation_loss")],
        },
    })
}
