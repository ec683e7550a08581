//! What recipes mean, and what is refused.

use super::*;
use crate::budget::{Allocation, Amount};

const CALIBRATION: &str = "calibration = { text = \"c4.txt\" }\n";

fn refused(text: &str) -> String {
    MergeRecipe::from_toml(text).unwrap_err().to_string()
}

#[test]
fn defaults_are_those_of_the_paper() {
    let recipe = MergeRecipe::from_toml(&format!("budget = {{ percent = 50 }}\n{CALIBRATION}")).unwrap();
    assert_eq!(
        recipe.method,
        Method::HcSmoe {
            similarity: Similarity::ExpertOutput,
            linkage: Linkage::Average,
            merge: MergeRule {
                weighting: Weighting::Frequency,
                align: false
            },
        }
    );
    assert_eq!(
        recipe.budget,
        Budget {
            amount: Amount::Percent(50.0),
            allocation: Allocation::Uniform
        }
    );
    assert_eq!(
        recipe.calibration,
        Some(Calibration {
            source: CalibrationSource::Text {
                path: "c4.txt".into(),
                field: "text".into()
            },
            sequences: Some(32),
            length: Some(2048),
            seed: Some(42),
        })
    );
}

#[test]
fn every_name_survives_writing_and_reading() {
    let mut recipes = Vec::new();
    for (similarity, _) in SIMILARITIES {
        for (linkage, _) in LINKAGES {
            for (merge, _) in MERGES {
                recipes.push(format!(
                    "similarity = \"{similarity}\"\nlinkage = \"{linkage}\"\nmerge = \"{merge}\"\nbudget = {{ experts = 4, allocate = \"global\" }}\n{CALIBRATION}"
                ));
            }
        }
    }
    for (score, _) in SCORES {
        recipes.push(format!(
            "method = \"prune\"\nscore = \"{score}\"\nbudget = {{ per_layer = [4, 3] }}\ncalibration = {{ ids = \"c.safetensors\", sequences = 2 }}\n"
        ));
    }
    let mut seen: Vec<MergeRecipe> = Vec::new();
    for text in recipes {
        let recipe = MergeRecipe::from_toml(&text).unwrap();
        let written = recipe.to_toml().unwrap();
        assert_eq!(MergeRecipe::from_toml(&written), Ok(recipe.clone()), "{written}");
        assert!(!seen.contains(&recipe), "two spellings of one recipe: {text}");
        seen.push(recipe);
    }
}

#[test]
fn wrong_recipes_name_key_rule_and_hint() {
    let budget = "budget = { percent = 50 }\n";
    let cases: &[(String, &[&str])] = &[
        (CALIBRATION.into(), &["`budget`", "missing", "percent = 50"]),
        (budget.into(), &["`calibration`", "missing", "text = "]),
        (
            format!("{budget}method = \"kmeans\"\n{CALIBRATION}"),
            &["`method`", "kmeans", "\"hc-smoe\", \"prune\""],
        ),
        (
            format!("{budget}linkage = \"ward\"\n{CALIBRATION}"),
            &["`linkage`", "\"ward\"", "\"ward-unsquared\""],
        ),
        (
            format!("{budget}similarity = \"output\"\n{CALIBRATION}"),
            &["`similarity`", "\"expert-output\""],
        ),
        (
            format!("{budget}merge = \"zipit\"\n{CALIBRATION}"),
            &["`merge`", "zipit", "\"aligned\""],
        ),
        (
            format!("{budget}score = \"ean-sum\"\n{CALIBRATION}"),
            &["`score`", "no meaning", "hc-smoe"],
        ),
        (
            format!("{budget}method = \"prune\"\nlinkage = \"single\"\n{CALIBRATION}"),
            &["`linkage`", "no meaning"],
        ),
        (
            format!("{budget}method = \"prune\"\nscore = \"magnitude\"\n{CALIBRATION}"),
            &["`score`", "\"ean-mean\""],
        ),
        (
            format!("{budget}linkages = \"single\"\n{CALIBRATION}"),
            &["linkages", "unknown field", "hint"],
        ),
        (
            format!("budget = {{ percent = 50, keep = 1 }}\n{CALIBRATION}"),
            &["keep", "unknown field"],
        ),
        (
            format!("{budget}calibration = {{ text = \"a\", tokens = 3 }}"),
            &["tokens", "unknown field"],
        ),
        (
            format!("{budget}linkage = 3\n{CALIBRATION}"),
            &["linkage", "invalid type", "hint"],
        ),
        (format!("{budget}linkage = \n"), &["linkage", "hint"]),
        (
            format!("budget = {{ percent = 0 }}\n{CALIBRATION}"),
            &["`budget.percent`", "above 0", "hint"],
        ),
        (
            format!("budget = {{ percent = nan }}\n{CALIBRATION}"),
            &["`budget.percent`", "above 0", "hint"],
        ),
        (
            format!("budget = {{ experts = 0 }}\n{CALIBRATION}"),
            &["`budget.experts`", "0 is not a count"],
        ),
        (
            format!("budget = {{ experts = -3 }}\n{CALIBRATION}"),
            &["`budget.experts`", "-3 is not a count"],
        ),
        (
            format!("budget = {{ per_layer = [2, 0] }}\n{CALIBRATION}"),
            &["`budget.per_layer`", "0 is not a count"],
        ),
        (format!("budget = {{ }}\n{CALIBRATION}"), &["`budget`", "exactly one"]),
        (
            format!("budget = {{ experts = 1, percent = 9 }}\n{CALIBRATION}"),
            &["`budget`", "exactly one"],
        ),
        (
            format!("budget = {{ per_layer = [1], allocate = \"global\" }}\n{CALIBRATION}"),
            &["`budget.allocate`", "contradicts", "hint"],
        ),
        (
            format!("budget = {{ experts = 1, allocate = \"auto\" }}\n{CALIBRATION}"),
            &["`budget.allocate`", "\"uniform\", \"global\""],
        ),
        (
            format!("{budget}calibration = {{ sequences = 1 }}"),
            &["`calibration`", "exactly one"],
        ),
        (
            format!("{budget}calibration = {{ text = \"a\", ids = \"b\" }}"),
            &["`calibration`", "exactly one"],
        ),
        (
            format!("{budget}calibration = {{ text = \"\" }}"),
            &["`calibration.text`", "empty"],
        ),
        (
            format!("{budget}calibration = {{ text = \"a\", sequences = 0 }}"),
            &["`calibration.sequences`", "count"],
        ),
        (
            format!("{budget}calibration = {{ ids = \"a\", length = -1 }}"),
            &["`calibration.length`", "count"],
        ),
        (
            format!("{budget}calibration = {{ text = \"a\", seed = -1 }}"),
            &["`calibration.seed`", "negative"],
        ),
    ];
    for (text, parts) in cases {
        let message = refused(text);
        for part in *parts {
            assert!(message.contains(part), "{text}\n-> {message}\nlacks {part}");
        }
        assert!(message.contains("hint"), "{message}");
    }
}

#[test]
fn comparing_and_averaging_weights_needs_no_tokens() {
    let recipe = "similarity = \"weight\"\nmerge = \"aligned-average\"\nbudget = { experts = 2 }";
    assert_eq!(MergeRecipe::from_toml(recipe).unwrap().calibration, None);
    assert!(refused("similarity = \"weight\"\nbudget = { experts = 2 }").contains("`calibration`"));
}

#[test]
fn a_seed_beyond_toml_is_refused_instead_of_wrapped() {
    let text = format!("budget = {{ experts = 2 }}\n{CALIBRATION}");
    let mut recipe = MergeRecipe::from_toml(&text).unwrap();
    let calibration = recipe.calibration.as_mut().unwrap();
    calibration.seed = Some(u64::MAX);
    assert!(matches!(recipe.to_toml(), Err(RecipeError::Toml(_))));
}
