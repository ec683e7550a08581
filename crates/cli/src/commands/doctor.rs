//! `ounce doctor`.

use crate::{
    args::{Doctor, Global},
    exit::{Failure, Outcome},
    output,
};
use ounce_data::DataDir;
use ounce_lab::{
    doctor::{Verdict, examine},
    report::{Cell, Column, Mark, Table},
};

pub(super) fn run(args: &Doctor, global: &Global) -> Outcome {
    let findings = examine(DataDir::from_environment(args.data.clone()).folder());
    if global.json {
        output::json(&findings)?;
    } else {
        let mut table = Table::new(
            "",
            vec![Column::text("What"), Column::text("Found"), Column::text("Verdict")],
        );
        for f in &findings {
            let verdict = match f.verdict {
                Verdict::Good => Cell::text("good"),
                Verdict::Warning => Cell::text("warning").mark(Mark::Changed),
                Verdict::Bad => Cell::text("BAD").mark(Mark::Worse),
            };
            let value = if f.hint.is_empty() {
                f.value.clone()
            } else {
                format!("{}; {}", f.value, f.hint)
            };
            table.push(vec![Cell::text(&f.name), Cell::text(value), verdict])?;
        }
        output::table(&table)?;
    }
    if findings.iter().any(|f| f.verdict == Verdict::Bad) {
        Err(Failure::Told)
    } else {
        Ok(())
    }
}
