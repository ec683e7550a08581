//! `ounce data`.

use crate::{
    args::{Data, DataWhat, Global},
    exit::Outcome,
    output,
};

pub(super) fn run(args: &Data, global: &Global) -> Outcome {
    let DataWhat::Toy { out, bytes, seed } = &args.what;
    let written = ounce_data::toy::write_toys(out, *seed, *bytes)?;
    if global.json {
        return output::json(&written);
    }
    written
        .iter()
        .try_for_each(|path| output::line(&path.display().to_string()))
}
