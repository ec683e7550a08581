//! `ounce merge`.

use super::command_line;
use crate::{
    args::{Global, Merge, overwrite},
    exit::{Failure, Outcome},
    interrupt, output,
    progress::{bar, note, notes},
};
use ounce_compress::{
    CALIBRATION_TEXT_BYTES, CompressError, MergeEvent, MergeJob, MergeRecipe, estimate, merge,
    recipe::{Calibration, CalibrationSource},
};
use ounce_formats::fsx;
use ounce_lab::report::{Cell, Column, Table, format_bytes, format_count};
use std::fs;

pub(super) fn run(args: &Merge, global: &Global) -> Outcome {
    let recipe = MergeRecipe::from_toml(&fsx::read_to_string(&args.recipe)?).map_err(|e| {
        let text = e.to_string();
        let (message, hint) = text.rsplit_once("(hint: ").unwrap_or((&text, ""));
        Failure::user(
            format!("{}: {}", args.recipe.display(), message.trim_end()),
            hint.trim_end_matches(')'),
        )
    })?;
    if let Some(Calibration {
        source: CalibrationSource::Text { path, .. },
        ..
    }) = &recipe.calibration
        && fs::metadata(path).is_ok_and(|file| file.len() > CALIBRATION_TEXT_BYTES as u64)
    {
        let used = format_bytes(CALIBRATION_TEXT_BYTES as u64);
        note(
            true,
            &format!(
                "note: {}: calibration uses the first {used} of text at most",
                path.display()
            ),
        );
    }
    let job = MergeJob {
        model: args.model.clone(),
        recipe,
        out: args.out.clone(),
        expanded: args.expanded,
        overwrite: overwrite(args.overwrite),
        resume: args.resume,
        command_line: command_line(),
    };
    if args.dry_run {
        let e = estimate(&job)?;
        if global.json {
            return output::json(&e);
        }
        output::line(&format!(
            "calibration     {} tokens, {} FLOPs",
            format_count(e.calibration_tokens as u64),
            format_count(e.calibration_flops as u64)
        ))?;
        output::line(&format!(
            "memory          at most {} beside the mapped weights",
            format_bytes(e.memory_bytes)
        ))?;
        output::line(&format!(
            "disk meanwhile  {} beside the result",
            format_bytes(e.scratch_bytes)
        ))?;
        return output::line(&format!(
            "weights         {} -> {}",
            format_bytes(e.bytes_before),
            format_bytes(e.bytes_after)
        ));
    }
    let progress = bar(!global.no_progress, 1);
    let result = merge(
        &job,
        &mut |event| match event {
            MergeEvent::Calibrated(done, total) => {
                progress.set_length(total as u64);
                progress.set_position(done as u64);
                progress.set_message("layers measured");
            }
            MergeEvent::Written(done, total) => {
                progress.set_length(total);
                progress.set_position(done);
                progress.set_message("bytes written");
            }
        },
        interrupt::flag(),
    );
    progress.finish_and_clear();
    let report = match result {
        Err(CompressError::Stopped(_)) => {
            return Err(Failure::Interrupted(format!(
                "{}.partial can be continued with --resume",
                args.out.display()
            )));
        }
        other => other?,
    };
    notes(&report.notes);
    super::tell_left(&args.model, &report.left);
    if global.json {
        return output::json(&report);
    }
    let columns = vec![
        Column::number("Layer", ""),
        Column::number("Experts", ""),
        Column::text("Groups"),
    ];
    let mut table = Table::new(format!("{} -> {}", args.model.display(), args.out.display()), columns);
    for layer in &report.layers {
        let groups = layer.groups();
        let text: Vec<String> = groups
            .iter()
            .map(|g| g.iter().map(usize::to_string).collect::<Vec<_>>().join("+"))
            .collect();
        table.push(vec![
            Cell::count(layer.layer as u64),
            Cell::text(format!("{} -> {}", layer.labels.len(), groups.len())),
            Cell::text(text.join("  ")),
        ])?;
    }
    output::table(&table)?;
    output::line(&format!(
        "weights {} -> {}, {} calibration tokens, {:.1} s",
        format_bytes(report.bytes_before),
        format_bytes(report.bytes_after),
        format_count(report.calibration_tokens as u64),
        report.seconds
    ))
}
