//! Any text as a merge recipe: refused, or a recipe that writes itself down and is read back as the same one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ounce_compress::MergeRecipe;

fuzz_target!(|text: &str| {
    let Ok(recipe) = MergeRecipe::from_toml(text) else {
        return;
    };
    let _ = recipe.needs_calibration();
    let Ok(written) = recipe.to_toml() else { return };
    let again = MergeRecipe::from_toml(&written).expect("what a recipe writes, a recipe reads");
    assert_eq!(again.to_toml().ok(), Some(written));
});
