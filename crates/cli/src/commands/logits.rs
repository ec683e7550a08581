//! `ounce logits`.

use crate::{
    args::{Global, Logits},
    exit::{Failure, Outcome},
    interrupt,
    progress::{bar, note, notes},
};
use ounce_lab::logits::write_logits;
use ounce_model::{OpenOptions, Opened};

pub(super) fn run(args: &Logits, global: &Global) -> Outcome {
    interrupt::flag();
    let progress = bar(!global.no_progress, 1);
    let options = OpenOptions {
        widen: true,
        attention: args.attention.clone(),
    };
    let opened = Opened::new(&args.model, &options)?;
    notes(&opened.notes());
    let written = write_logits(&opened, &args.ids, &args.out, &mut |done, total| {
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
