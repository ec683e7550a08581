//! `ounce logits`.

use crate::{
    args::{Global, Logits},
    exit::{Failure, Outcome},
    interrupt,
    progress::{bar, note},
};
use ounce_lab::logits::write_logits;
use ounce_model::ModelOptions;

pub(super) fn run(args: &Logits, global: &Global) -> Outcome {
    interrupt::flag();
    let progress = bar(!global.no_progress, 1);
    let options = ModelOptions {
        widen: true,
        attention: args.attention.clone(),
    };
    let written = write_logits(&args.model, &options, &args.ids, &args.out, &mut |done, total| {
        progress.set_length(total as u64);
        progress.set_position(done as u64);
        !interrupt::pressed()
    })?;
    progress.finish_and_clear();
    match written {
        None => Err(Failure::Interrupted("nothing was written".into())),
        Some(shape) => {
            note(
                !global.no_progress,
                &format!("{}: logits {shape:?} f32", args.out.display()),
            );
            Ok(())
        }
    }
}
