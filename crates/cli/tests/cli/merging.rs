//! `ounce merge`: what is refused before it begins.

use crate::support::{copy_of, golden, poke, random_mixture, run, set_config, text, write_ids};
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};
use tempfile::TempDir;

/// Calibration ids for the golden mixtral, and a place for recipes.
fn place() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    write_ids(
        &dir.path().join("ids.safetensors"),
        &[5, 6, 7, 8, 9, 10, 11, 12],
        &[2, 4],
    );
    let recipe = dir.path().join("merge.toml");
    (dir, recipe)
}

fn calibrated(dir: &Path, keys: &str) -> String {
    format!(
        "{keys}\ncalibration = {{ ids = {:?} }}\n",
        text(&dir.join("ids.safetensors"))
    )
}

/// Insists on exit code 1, a message with these words, and nothing at or beside `out`.
fn refused(output: &Output, out: &Path, said: &[&str]) {
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.starts_with("error: "), "{err}");
    for word in said {
        assert!(err.contains(word), "{word:?} is not in: {err}");
    }
    let partial = PathBuf::from(format!("{}.partial", out.display()));
    assert!(!out.exists() && !partial.exists(), "left behind after: {err}");
}

#[test]
fn a_recipe_that_cannot_be_carried_out_is_refused_before_anything_is_written() {
    let (dir, recipe) = place();
    let (model, out) = (golden("mixtral"), dir.path().join("out"));
    let merge = |keys: &str, more: &[&str]| {
        fs::write(&recipe, calibrated(dir.path(), keys)).unwrap();
        let args = ["merge", text(&model), "--recipe", text(&recipe), "--out", text(&out)];
        run(&[&args[..], more].concat())
    };
    let cases: [(&str, &[&str], &[&str]); 14] = [
        (
            "budget = { experts = 0 }",
            &[],
            &["budget.experts", "0 is not a count", "hint: the smallest is 1"],
        ),
        (
            "budget = { experts = -1 }",
            &[],
            &["budget.experts", "-1 is not a count"],
        ),
        (
            "budget = { experts = 99 }",
            &[],
            &["budget.experts", "99 of its", "hint: choose between 1 and"],
        ),
        (
            "budget = { percent = 0 }",
            &[],
            &["budget.percent", "0 is not above 0", "hint: 50 keeps half"],
        ),
        (
            "budget = { percent = 100.5 }",
            &[],
            &["budget.percent", "100.5 is not above 0"],
        ),
        (
            "budget = { percent = nan }",
            &[],
            &["budget.percent", "NaN is not above 0"],
        ),
        (
            "budget = { per_layer = [1] }",
            &[],
            &["budget.per_layer", "1 counts for 2", "hint: give one count"],
        ),
        (
            "budget = { per_layer = [1, 0] }",
            &[],
            &["budget.per_layer", "0 is not a count"],
        ),
        (
            "budget = { per_layer = [1, 99] }",
            &[],
            &["budget.per_layer", "layer 1", "99 of its"],
        ),
        (
            "budget = { per_layer = [1, 1], allocate = \"global\" }",
            &[],
            &["budget.allocate", "contradicts", "hint: use `experts`"],
        ),
        (
            "method = \"prune\"\nbudget = { per_layer = [1, 2] }",
            &["--expanded"],
            &["key `budget`", "different size", "hint: leave out --expanded"],
        ),
        (
            "method = \"prune\"\nbudget = { percent = 50, allocate = \"global\" }",
            &["--expanded"],
            &["key `budget`", "different size"],
        ),
        (
            "method = \"o-prune\"\nbudget = { percent = 50, allocate = \"global\" }",
            &[],
            &["key `budget`", "by itself", "hint: budget = "],
        ),
        (
            "method = \"o-prune\"\nscore = \"ean-sum\"\nbudget = { experts = 1 }",
            &[],
            &["key `score`", "no meaning for method = \"o-prune\""],
        ),
    ];
    for (keys, more, said) in cases {
        refused(&merge(keys, more), &out, said);
        let dry = [more, &["--dry-run"]].concat();
        refused(&merge(keys, &dry), &out, said);
    }
}

#[test]
fn too_many_subsets_are_refused() {
    let (dir, recipe) = place();
    let model = dir.path().join("model");
    fs::create_dir(&model).unwrap();
    random_mixture(
        &model,
        &json!({
            "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_local_experts": 40,
            "num_experts_per_tok": 2,
        }),
    );
    fs::write(
        &recipe,
        calibrated(dir.path(), "method = \"o-prune\"\nbudget = { percent = 50 }"),
    )
    .unwrap();
    let out = dir.path().join("out");
    let output = run(&["merge", text(&model), "--recipe", text(&recipe), "--out", text(&out)]);
    refused(&output, &out, &["key `method`", "20 of 40 experts", "hint: "]);
}

#[test]
fn broken_input_is_refused_before_anything_is_written() {
    let (dir, recipe) = place();
    let out = dir.path().join("out");
    let merge = |model: &Path, keys: &str| {
        fs::write(&recipe, keys).unwrap();
        run(&["merge", text(model), "--recipe", text(&recipe), "--out", text(&out)])
    };
    let half = "budget = { percent = 50 }";
    let good = calibrated(dir.path(), half);
    let mixtral = golden("mixtral");

    let ids = |name: &str| format!("{half}\ncalibration = {{ ids = {:?} }}\n", text(&dir.path().join(name)));
    refused(
        &merge(&mixtral, &ids("absent")),
        &out,
        &["absent", "No such file", "hint: "],
    );
    write_ids(&dir.path().join("large"), &[1, 2, 99_999, 4], &[2, 2]);
    refused(
        &merge(&mixtral, &ids("large")),
        &out,
        &["large", "99999", "vocabulary", "hint: "],
    );
    write_ids(&dir.path().join("negative"), &[1, -2], &[1, 2]);
    refused(
        &merge(&mixtral, &ids("negative")),
        &out,
        &["negative", "-2 in row 0", "hint: "],
    );
    write_ids(&dir.path().join("flat"), &[1, 2], &[2]);
    refused(&merge(&mixtral, &ids("flat")), &out, &["flat", "[N, T]", "hint: "]);
    write_ids(&dir.path().join("empty"), &[], &[0, 3]);
    refused(&merge(&mixtral, &ids("empty")), &out, &["empty", "no token", "hint: "]);
    let words = format!("{half}\ncalibration = {{ text = {:?} }}\n", text(&recipe));
    refused(&merge(&mixtral, &words), &out, &["tokenizer"]);

    let model = copy_of("mixtral");
    set_config(model.path(), "num_experts_per_tok", json!(1000));
    refused(
        &merge(model.path(), &good),
        &out,
        &["num_experts_per_tok", "at most", "1000"],
    );

    let model = copy_of("mixtral");
    let index = json!({ "metadata": {}, "weight_map": { "model.norm.weight": "model-00001-of-00002.safetensors" } });
    fs::remove_file(model.path().join("model.safetensors")).unwrap();
    fs::write(model.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    refused(
        &merge(model.path(), &good),
        &out,
        &["model-00001-of-00002.safetensors", "hint: "],
    );
}

/// NaN shows while experts are measured, or at the latest when they are averaged.
#[test]
fn weights_that_are_not_finite_make_no_model() {
    let (dir, recipe) = place();
    let merge = |model: &Path, keys: &str, out: &str| {
        fs::write(&recipe, calibrated(dir.path(), keys)).unwrap();
        let out = dir.path().join(out);
        let output = run(&["merge", text(model), "--recipe", text(&recipe), "--out", text(&out)]);
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{err}");
        assert!(!out.exists(), "a model with NaN");
        err
    };
    let measured = "budget = { experts = 1 }";
    let unmeasured = "budget = { experts = 1 }\nsimilarity = \"router-logits\"";
    let by_weight = "budget = { experts = 1 }\nsimilarity = \"weight\"\nmerge = \"average\"";
    for (i, tensor) in ["layers.0.block_sparse_moe.experts.1.w2", "layers.1.self_attn.q_proj"]
        .into_iter()
        .enumerate()
    {
        let model = copy_of("mixtral");
        poke(
            &model.path().join("model.safetensors"),
            &format!("model.{tensor}.weight"),
            f32::NAN,
        );
        let err = merge(model.path(), measured, &format!("out-{i}"));
        assert!(
            err.contains("not finite") && err.contains("hint: ") && err.contains("layer"),
            "{err}"
        );
    }
    // The last layer's experts reach no statistic when the router alone is compared.
    for (i, keys) in [unmeasured, by_weight].into_iter().enumerate() {
        let model = copy_of("mixtral");
        let tensor = "model.layers.1.block_sparse_moe.experts.1.w1.weight";
        poke(&model.path().join("model.safetensors"), tensor, f32::INFINITY);
        let err = merge(model.path(), keys, &format!("last-{i}"));
        assert!(err.contains("layer 1") && err.contains("finite"), "{err}");
    }
}

#[test]
fn layers_pruned_to_different_sizes_load_and_run() {
    let (dir, recipe) = place();
    let (model, out) = (golden("mixtral"), dir.path().join("out"));
    let keys = "method = \"prune\"\nbudget = { per_layer = [1, 3] }";
    fs::write(&recipe, calibrated(dir.path(), keys)).unwrap();
    let args = ["merge", text(&model), "--recipe", text(&recipe), "--out", text(&out)];
    assert_eq!(run(&args).status.code(), Some(0));
    let config: serde_json::Value = serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["experts_per_layer"], json!([1, 3]));
    assert_eq!(config["model_type"], "ounce_merged");
    let output = run(&["generate", text(&out), "--ids", "1,2", "--max-new-tokens", "3"]);
    assert_eq!(output.status.code(), Some(0));
    for wrong in [json!([1]), json!([0, 3]), json!([1, 99])] {
        set_config(&out, "experts_per_layer", wrong);
        let output = run(&["inspect", text(&out)]);
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.code() == Some(1) && err.contains("experts_per_layer"),
            "{err}"
        );
    }
    let again = [
        "merge",
        text(&out),
        "--recipe",
        text(&recipe),
        "--out",
        text(dir.path()),
    ];
    assert_eq!(run(&again).status.code(), Some(1));
}
