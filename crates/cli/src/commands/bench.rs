//! `ounce bench`.

use crate::{
    args::{Bench, BenchWhat, Global},
    exit::Outcome,
    output,
};
use ounce_lab::{
    LabError,
    bench::{self, AttentionBench, BenchRow},
    report::{Cell, Column, Table, format_bytes},
};
use ounce_model::{Model, OpenOptions};
use ounce_tensor::Compute;

pub(super) fn run(args: &Bench, global: &Global) -> Outcome {
    let runs = args.runs;
    if runs == 0 {
        return Err(LabError::Bench {
            what: "--runs 0".into(),
            rule: "must be at least 1".into(),
            hint: "one run is timed after one that warms up; the default is 5".into(),
        }
        .into());
    }
    let rows = match &args.what {
        BenchWhat::Kernels => bench::kernels(runs)?,
        BenchWhat::Train { recipes } if recipes.is_empty() => bench::train(runs)?,
        BenchWhat::Train { recipes } => bench::train_recipes(recipes, runs)?,
        BenchWhat::Decode { model, context } => vec![bench::decode(
            &Model::open(model, &OpenOptions::default())?,
            *context,
            runs,
        )?],
        BenchWhat::Prefill { model, context } => vec![bench::prefill(
            &Model::open(model, &OpenOptions::default())?,
            *context,
            runs,
        )?],
        BenchWhat::Attention {
            method,
            context,
            heads,
            head_dim,
            compute,
        } => {
            let what = AttentionBench {
                method: method.clone(),
                context: *context,
                heads: *heads,
                head_dim: *head_dim,
                compute: if compute == "bf16" { Compute::Bf16 } else { Compute::F32 },
            };
            bench::attention(&what, runs)?
        }
        BenchWhat::Checkpoint {
            family,
            gb,
            out,
            overwrite,
        } => {
            let bytes = bench::random_checkpoint(family, *gb, out, crate::args::overwrite(*overwrite))?;
            return output::line(&format!(
                "{}: {} of random bf16 weights",
                out.display(),
                format_bytes(bytes)
            ));
        }
    };
    if global.json {
        return rows.iter().try_for_each(output::json);
    }
    let columns = vec![
        Column::text("Benchmark"),
        Column::number("Min", ""),
        Column::number("Median", ""),
        Column::number("Max", ""),
        Column::text("Unit"),
        Column::number("Runs", ""),
        Column::number("Threads", ""),
        Column::number("Peak memory", ""),
    ];
    let mut table = Table::new("", columns);
    for BenchRow {
        name,
        unit,
        min,
        median,
        max,
        runs,
        threads,
        peak_rss_bytes,
    } in rows
    {
        table.push(vec![
            Cell::text(name),
            Cell::number(min, 1),
            Cell::number(median, 1),
            Cell::number(max, 1),
            Cell::text(unit),
            Cell::count(runs as u64),
            Cell::count(threads as u64),
            Cell::bytes(peak_rss_bytes),
        ])?;
    }
    output::table(&table)
}
