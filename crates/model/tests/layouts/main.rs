//! One model under the many names that tools give it: the same logits to the bit, and what was done is said. What cannot be
//! understood is refused by its true reason.

mod head;
mod mixtures;
mod support;

use ounce_formats::Dtype;
use support::{FAMILIES, Stored, config, opened, refused, renamed, tensors};

/// Names put around those of the model, and what the note says was taken away.
type Around = (&'static str, fn(&str) -> String, &'static [&'static str]);

const AROUND: [Around; 9] = [
    ("data parallel", |n| format!("module.{n}"), &["\"module.\""]),
    ("compiled", |n| format!("_orig_mod.{n}"), &["\"_orig_mod.\""]),
    (
        "merged adapter",
        |n| format!("base_model.model.{n}"),
        &["\"base_model.model.\""],
    ),
    (
        "compiled in parallel",
        |n| format!("module._orig_mod.{n}"),
        &["\"module.\"", "\"_orig_mod.\""],
    ),
    ("an attribute called model", |n| format!("model.{n}"), &["\"model.\""]),
    ("any attribute", |n| format!("net.llm.{n}"), &["\"net.llm.\""]),
    (
        "parallel below an attribute",
        |n| format!("net.module.{n}"),
        &["\"net.module.\""],
    ),
    (
        "layers wrapped by themselves",
        |n| n.replace("layers.1.", "layers.1._checkpoint_wrapped_module._orig_mod."),
        &["\"_checkpoint_wrapped_module.\"", "\"_orig_mod.\""],
    ),
    (
        "saved without its head",
        |n| n.strip_prefix("model.").unwrap_or(n).to_owned(),
        &["without its head", "\"model.\""],
    ),
];

#[test]
fn every_family_is_read_under_the_names_of_other_tools() {
    for family in FAMILIES {
        for tied in [false, true] {
            let config = config(family, tied);
            let plain = tensors(&config);
            let (expected, quiet) = opened(&config, &plain);
            assert_eq!(quiet, "", "{family}: nothing to say");
            for (how, rename, notes) in AROUND {
                let (found, said) = opened(&config, &renamed(&plain, rename));
                assert!(found == expected, "{family}, {how}: other logits");
                for note in notes {
                    assert!(said.contains(note), "{family}, {how}: {said:?} should say {note}");
                }
            }
        }
    }
}

#[test]
fn recomputed_tables_are_passed_over_and_it_is_said() {
    for family in FAMILIES {
        let config = config(family, false);
        let plain = tensors(&config);
        let (expected, _) = opened(&config, &plain);
        let mut more = plain.clone();
        for layer in 0..2 {
            let at = |rest: &str| format!("model.layers.{layer}.self_attn.{rest}");
            more.push(Stored::f32(&at("rotary_emb.inv_freq"), &[2], &[1.0, 0.1]));
            more.push(Stored::f32(&at("rotary_emb.cos_cached"), &[1, 2], &[1.0, 0.1]));
            more.push(Stored::f32(&at("attn.masked_bias"), &[], &[-1e4]));
            more.push(Stored {
                name: at("attn.bias"),
                dtype: Dtype::Bool,
                shape: vec![1, 1, 2, 2],
                bytes: vec![1, 0, 1, 1],
            });
        }
        more.push(Stored {
            name: "model.position_ids".into(),
            dtype: Dtype::I64,
            shape: vec![1],
            bytes: vec![0; 8],
        });
        let (found, said) = opened(&config, &more);
        assert!(found == expected, "{family}");
        for note in ["rotary positions", "masks of attention", "lists of positions"] {
            assert!(said.contains(note), "{family}: {said:?} should say {note}");
        }
    }
}

#[test]
fn a_real_bias_is_not_taken_for_a_mask() {
    let config = config("llama", false);
    let mut more = tensors(&config);
    more.push(Stored::f32("model.layers.0.self_attn.o_proj.bias", &[8], &[1.0; 8]));
    let (message, _) = refused(&config, &more);
    assert!(
        message.contains("o_proj.bias") && message.contains("no use"),
        "{message}"
    );
    more.pop();
    more.push(Stored::f32("model.layers.0.attn.bias", &[8], &[1.0; 8]));
    assert!(refused(&config, &more).0.contains("attn.bias"));
}

#[test]
fn doubles_are_computed_as_floats() {
    for family in FAMILIES {
        let config = config(family, true);
        let plain = tensors(&config);
        let (expected, _) = opened(&config, &plain);
        let wide: Vec<Stored> = plain
            .iter()
            .map(|t| Stored {
                dtype: Dtype::F64,
                bytes: t.floats().iter().flat_map(|&v| f64::from(v).to_le_bytes()).collect(),
                ..t.clone()
            })
            .collect();
        assert!(opened(&config, &wide).0 == expected, "{family}");
    }
}

#[test]
fn two_tensors_that_claim_one_name_are_refused_and_both_are_named() {
    let config = config("llama", false);
    let mut both = tensors(&config);
    let mut second = renamed(&both, |n| format!("module.{n}"));
    both.append(&mut second);
    let (message, hint) = refused(&config, &both);
    let (first, second) = ("\"model.embed_tokens.weight\"", "\"module.model.embed_tokens.weight\"");
    assert!(message.contains(first) && message.contains(second), "{message}");
    assert!(hint.contains("two exports"), "{hint}");
}

#[test]
fn what_is_refused_is_refused_by_its_reason() {
    let config = config("llama", false);
    let plain = tensors(&config);
    let with = |name: &str, dtype: Dtype| {
        let mut more = plain.clone();
        let size = dtype.bits() / 8;
        more.push(Stored {
            name: name.into(),
            dtype,
            shape: vec![4],
            bytes: vec![0; 4 * size],
        });
        more
    };
    let q = "model.layers.0.self_attn.q_proj";
    for (name, rule) in [
        (format!("{q}.lora_A.default.weight"), "adapter that was not merged"),
        (format!("{q}.qweight"), "quantised model"),
        (format!("{q}.weight_scale_inv"), "quantised model"),
        ("model.layers.7.input_layernorm.weight".into(), "is of layer 7"),
        ("model.surprise".into(), "no use"),
    ] {
        let (message, hint) = refused(&config, &with(&name, Dtype::F32));
        assert!(message.contains(rule) && message.contains(&name), "{message}");
        assert!(!hint.is_empty(), "{message}");
    }

    // A quantised model lacks the weight itself: the reason, not the symptom.
    let packed = renamed(&plain, |n| n.replace("q_proj.weight", "q_proj.qweight"));
    let (message, hint) = refused(&config, &packed);
    assert!(
        message.contains("quantised") && hint.contains("BF16"),
        "{message} {hint}"
    );
    let adapter = renamed(&plain, |n| n.replace("q_proj.weight", "q_proj.base_layer.weight"));
    let (message, hint) = refused(&config, &adapter);
    assert!(
        message.contains("not merged") && hint.contains("merge"),
        "{message} {hint}"
    );

    let mut eight_bit = plain.clone();
    let weight = eight_bit.iter_mut().find(|t| t.name == format!("{q}.weight")).unwrap();
    weight.dtype = Dtype::from_name("F8_E4M3").unwrap();
    weight.bytes.truncate(weight.bytes.len() / 4);
    let (message, hint) = refused(&config, &eight_bit);
    assert!(
        message.contains("F8_E4M3") && hint.contains("scales"),
        "{message} {hint}"
    );
    let mut integers = plain;
    let weight = integers.iter_mut().find(|t| t.name == format!("{q}.weight")).unwrap();
    weight.dtype = Dtype::I32;
    assert!(refused(&config, &integers).0.contains("no weight"));
}

/// Whatever is made from the checkpoint copies its configuration.
#[test]
fn a_stale_element_type_is_corrected_and_it_is_said() {
    let mut config = config("llama", true);
    let plain = tensors(&config);
    let (expected, _) = opened(&config, &plain);
    for (said, right) in [("float16", false), ("torch.float32", true), ("float32", true)] {
        config["dtype"] = said.into();
        config["torch_dtype"] = "bfloat16".into();
        let (found, notes) = opened(&config, &plain);
        assert!(found == expected);
        assert_eq!(notes.contains("\"dtype\""), !right, "{notes}");
        assert!(
            notes.contains("\"torch_dtype\" is bfloat16, the weights are float32"),
            "{notes}"
        );
        let dir = tempfile::tempdir().unwrap();
        support::write(dir.path(), &config, &plain);
        let opened = ounce_model::Opened::new(dir.path(), &ounce_model::OpenOptions::default()).unwrap();
        assert_eq!(opened.checkpoint().config()["torch_dtype"], "float32");
        let dtype = opened.config().raw["dtype"].as_str().unwrap();
        assert_eq!(dtype.trim_start_matches("torch."), "float32");
    }
}
