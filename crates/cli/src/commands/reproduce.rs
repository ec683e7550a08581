//! `ounce reproduce`.

use super::command_line;
use crate::{
    args::{Global, Reproduce},
    exit::{Failure, Outcome},
    interrupt, output,
    progress::note,
};
use ounce_lab::{
    LabError,
    reproduce::{Budget, ReproduceOptions, reproduce},
};

pub(super) fn run(args: &Reproduce, global: &Global) -> Outcome {
    let budget = Budget::ALL.iter().find(|(name, _)| *name == args.budget);
    let options = ReproduceOptions {
        method: args.method.clone(),
        budget: budget.map_or(Budget::Quick, |(_, budget)| *budget),
        seeds: args.seeds.clone(),
        out: args.out.clone(),
        resume: args.resume,
        command_line: command_line(),
    };
    let made = match reproduce(&options, &mut |news| note(!global.no_progress, news), interrupt::flag()) {
        Err(LabError::Interrupted(_)) => {
            return Err(Failure::Interrupted(format!(
                "finished runs are in {}; --resume continues",
                args.out.display()
            )));
        }
        other => other?,
    };
    if global.json {
        return output::json(&made.result);
    }
    output::table(&made.table()?)?;
    output::line(&format!("{}\n{}", made.result.verdict.words(), made.result.why))?;
    output::line(&format!("report: {}", args.out.join("report.html").display()))
}
