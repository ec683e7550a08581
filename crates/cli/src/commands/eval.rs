//! `ounce eval`.

mod measure;
mod show;

use crate::{
    args::{Eval, Global},
    exit::Outcome,
    output,
    progress::{bar, note, notes},
};
use measure::Bench;
use ounce_eval::{Misalignment, PasskeyReport, Perplexity, Suite, Windowing, choice::ChoiceReport};
use ounce_model::{Model, OpenOptions, Tokenizer};

/// Everything that was asked for.
struct Measured {
    /// Name of each `--text` and what it costs.
    texts: Vec<(String, Perplexity)>,
    misalignment: Option<Misalignment>,
    suite: Option<(Suite, ChoiceReport)>,
    passkeys: Option<PasskeyReport>,
}

pub(super) fn run(args: &Eval, global: &Global) -> Outcome {
    let how = OpenOptions {
        widen: false,
        attention: args.attention.clone(),
    };
    let model = Model::open(&args.model, &how)?;
    notes(model.notes());
    if model.config.attention.as_ref().is_some_and(|a| a.looks_ahead()) {
        note(
            true,
            "note: with this attention a token's logits depend on later tokens of the text, so the figures flatter the \
             model; --attention dga:selection=causal_block is honest",
        );
    }
    let tokenizer = Tokenizer::open(&args.model)?;
    let windowing = Windowing::chosen(&model, args.window, args.stride)?;
    let progress = bar(!global.no_progress, 1);
    let mut show = |done: usize, total: usize| {
        progress.set_length(total as u64);
        progress.set_position(done as u64);
    };
    let bench = Bench::new(&model, &tokenizer, windowing);
    let measured = bench.all(args, &mut show);
    progress.finish_and_clear();
    let measured = measured?;
    if global.json {
        return output::json(&show::as_json(&measured, model.config.attention.as_deref()));
    }
    show::print(&args.model, &measured, windowing)
}
