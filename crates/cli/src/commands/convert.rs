//! `ounce convert`.

use super::command_line;
use crate::{
    args::{Convert, Global, overwrite},
    exit::{Failure, Outcome},
    interrupt, output,
    progress::{bar, note, notes},
};
use ounce_compress::{CompressError, ConvertJob, ConvertReport, convert, estimate_conversion};
use ounce_lab::report::format_bytes;
use std::collections::BTreeMap;

pub(super) fn run(args: &Convert, global: &Global) -> Outcome {
    let mut options: BTreeMap<String, String> = args.dtype.iter().map(|d| ("dtype".to_owned(), d.clone())).collect();
    for pair in &args.set {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(Failure::user(
                format!("--set {pair}: is not KEY=VALUE"),
                "for example: --set dtype=f16",
            ));
        };
        options.insert(key.trim().to_owned(), value.trim().to_owned());
    }
    let job = ConvertJob {
        model: args.model.clone(),
        to: args.to.clone(),
        options,
        out: args.out.clone(),
        overwrite: overwrite(args.overwrite),
        resume: args.resume,
        command_line: command_line(),
    };
    if args.dry_run {
        return show(&estimate_conversion(&job)?, global);
    }
    let progress = bar(!global.no_progress, 1);
    progress.set_message("bytes written");
    let result = convert(
        &job,
        &mut |done, total| {
            progress.set_length(total);
            progress.set_position(done);
        },
        interrupt::flag(),
    );
    progress.finish_and_clear();
    match result {
        Err(CompressError::Stopped(_)) => Err(Failure::Interrupted(format!(
            "{}.partial can be continued with --resume",
            args.out.display()
        ))),
        other => {
            let report = other?;
            super::tell_left(&args.model, &report.left);
            if let Some(advice) = &report.advice {
                note(true, &format!("note: {advice}"));
            }
            show(&report, global)
        }
    }
}

fn show(report: &ConvertReport, global: &Global) -> Outcome {
    notes(&report.notes);
    if global.json {
        return output::json(report);
    }
    output::line(&format!(
        "{}: {} tensors, weights {} -> {}",
        report.to,
        report.tensors,
        format_bytes(report.bytes_before),
        format_bytes(report.bytes_after)
    ))
}
