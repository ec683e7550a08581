//! `ounce demo`, and the process that measures one model for it.

use super::command_line;
use crate::{
    args::{Demo, Global, Measure},
    exit::{Failure, Outcome},
    output,
    progress::note,
};
use ounce_lab::{
    demo::{self, DemoOptions},
    report::Block,
};

pub(super) fn demo(args: &Demo, global: &Global) -> Outcome {
    let Some(models) = demo::find_models() else {
        return Err(Failure::user(
            "the demo model is not here",
            "run from the repository, or put its `models` folder beside the program",
        ));
    };
    let options = DemoOptions {
        out: args.out.clone(),
        models,
        program: std::env::current_exe()?,
        command_line: command_line(),
        version: env!("CARGO_PKG_VERSION").into(),
    };
    let result = demo::demo(&options, &mut |news| note(!global.no_progress, news))?;
    if global.json {
        return output::json(&result.variants);
    }
    for block in &result.report.blocks {
        match block {
            Block::Table(table) if table.caption == "The bill" => output::table(table)?,
            Block::Samples(samples) => {
                output::line(&format!("\n{}", samples.prompt.trim()))?;
                for sample in &samples.samples {
                    output::line(&format!(
                        "  [{}] {}",
                        sample.title,
                        sample.text.replace('\n', " ").trim()
                    ))?;
                }
            }
            _ => {}
        }
    }
    output::line(&format!("\nreport: {}", args.out.join("report.html").display()))
}

pub(super) fn measure(args: &Measure) -> Outcome {
    output::json(&demo::measure(
        &args.model,
        &args.text,
        &args.prompt,
        args.sample_tokens,
    )?)
}
