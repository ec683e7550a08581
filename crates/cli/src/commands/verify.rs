//! `ounce verify`.

use crate::{
    args::{Global, Verify},
    exit::{Failure, Outcome},
    output,
};
use ounce_lab::{
    report::{Cell, Column, Mark, Table},
    verify::{Check, verify_case},
};

pub(super) fn run(args: &Verify, global: &Global) -> Outcome {
    let chosen = args.cases.iter().filter(|dir| match &args.only {
        Some(pattern) => dir.file_name().is_some_and(|n| n.to_string_lossy().contains(pattern)),
        None => true,
    });
    let checks: Vec<Check> = chosen.flat_map(|dir| verify_case(dir)).collect();
    if checks.is_empty() {
        return Err(Failure::user(
            "no case matches",
            "--only PATTERN is a part of a folder's name",
        ));
    }
    let failed = checks.iter().filter(|c| !c.passed).count();
    if global.json {
        output::json(&checks)?;
    } else {
        let columns = vec![
            Column::text("Case"),
            Column::text("Check"),
            Column::number("Worst", ""),
            Column::number("Allowed", ""),
            Column::text("Verdict"),
        ];
        let mut table = Table::new("", columns);
        for c in &checks {
            let number = |x: Option<f64>| x.map_or_else(|| Cell::text(""), |x| Cell::text(format!("{x:.1e}")));
            let verdict = if c.passed {
                Cell::text("pass")
            } else {
                Cell::text("FAIL").mark(Mark::Worse)
            };
            let check = if c.note.is_empty() {
                c.check.clone()
            } else {
                format!("{}: {}", c.check, c.note)
            };
            table.push(vec![
                Cell::text(&c.case),
                Cell::text(check),
                number(c.worst),
                number(c.tolerance),
                verdict,
            ])?;
        }
        output::table(&table)?;
        output::line(&format!("{} checks, {failed} failed", checks.len()))?;
    }
    if failed > 0 { Err(Failure::Told) } else { Ok(()) }
}
