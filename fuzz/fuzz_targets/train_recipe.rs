//! Any bytes as a training recipe with overrides (after a line of `%`, one per line): refused, or a recipe that writes
//! itself down and is read back as the same one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ounce_train::Recipe;

fuzz_target!(|text: &str| {
    let (text, overrides) = text.split_once("\n%\n").unwrap_or((text, ""));
    let overrides: Vec<String> = overrides.lines().map(str::to_owned).collect();
    let Ok(recipe) = Recipe::parse("fuzz.toml", text, &overrides) else {
        return;
    };
    let again = Recipe::parse("again.toml", &recipe.to_toml(), &[]).expect("what a recipe writes, a recipe reads");
    assert_eq!(recipe.hash(), again.hash());
    for step in [1, recipe.run.steps] {
        assert!(recipe.schedule.factor(step, recipe.run.steps).is_finite());
    }
});
