//! `ounce data`.

use crate::{
    args::{Data, DataWhat, Global},
    exit::Outcome,
    output,
};

pub(super) fn run(args: &Data, global: &Global) -> Outcome {
    let written = match &args.what {
        DataWhat::Toy { out, bytes, seed } => ounce_data::toy::write_toys(out, *seed, *bytes)?,
        DataWhat::Passkey {
            out,
            bytes,
            length,
            chunk,
            digits,
            haystack,
            copies,
            seed,
        } => {
            let passkey = ounce_data::passkey::Passkey {
                length: *length,
                chunk: *chunk,
                digits: *digits,
                haystack: *haystack,
                copies: *copies,
            };
            ounce_data::passkey::write_passkeys(out, *seed, *bytes, passkey)?
        }
        DataWhat::Length { out, bytes, seed } => ounce_data::length::write_lengths(out, *seed, *bytes)?,
    };
    if global.json {
        return output::json(&written);
    }
    written
        .iter()
        .try_for_each(|path| output::line(&path.display().to_string()))
}
