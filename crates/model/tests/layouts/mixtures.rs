//! Experts: one tensor a matrix, or all experts of a layer in two (transformers) or three (MLX).

use crate::support::{D, E, I, MIXTURES, Stored, config, opened, refused, renamed, tensors};

/// Splits `….experts.N.M.weight`: what is before, N, and gate, up or down.
fn expert(name: &str) -> Option<(&str, usize, usize)> {
    let (base, rest) = name.split_once(".experts.")?;
    let (number, matrix) = rest.split_once('.')?;
    let matrix = match matrix {
        "w1.weight" | "gate_proj.weight" => 0,
        "w3.weight" | "up_proj.weight" => 1,
        "w2.weight" | "down_proj.weight" => 2,
        _ => return None,
    };
    Some((base, number.parse().unwrap(), matrix))
}

/// The tensors with the experts of each layer put together: for each tensor its name and which matrices it holds.
fn fused(plain: &[Stored], names: &[(&str, &[usize])]) -> Vec<Stored> {
    let mut all: Vec<Stored> = plain.iter().filter(|t| expert(&t.name).is_none()).cloned().collect();
    let mut bases: Vec<&str> = plain.iter().filter_map(|t| Some(expert(&t.name)?.0)).collect();
    bases.dedup();
    bases.sort_unstable();
    bases.dedup();
    for base in bases {
        for (name, matrices) in names {
            let mut values = Vec::new();
            for e in 0..E {
                for m in *matrices {
                    let part = plain.iter().find(|t| expert(&t.name) == Some((base, e, *m))).unwrap();
                    values.extend(part.floats());
                }
            }
            let shape = if matrices == &[2] {
                [E, D, I]
            } else {
                [E, matrices.len() * I, D]
            };
            all.push(Stored::f32(&format!("{base}.{name}"), &shape, &values));
        }
    }
    all
}

const TRANSFORMERS: [(&str, &[usize]); 2] = [("experts.gate_up_proj", &[0, 1]), ("experts.down_proj", &[2])];
const MLX: [(&str, &[usize]); 3] = [
    ("switch_mlp.gate_proj.weight", &[0]),
    ("switch_mlp.up_proj.weight", &[1]),
    ("switch_mlp.down_proj.weight", &[2]),
];

#[test]
fn fused_experts_of_every_family_are_read() {
    for family in MIXTURES {
        let config = config(family, false);
        let plain = tensors(&config);
        let (expected, _) = opened(&config, &plain);
        for names in [&TRANSFORMERS[..], &MLX[..]] {
            let together = fused(&plain, names);
            assert!(together.len() < plain.len());
            let (found, said) = opened(&config, &together);
            assert!(found == expected, "{family}, {}", names[0].0);
            assert!(said.contains("in one tensor"), "{family}: {said}");
            // Mixtral's block under its new name, and all of it within data parallelism and without its head.
            let moved = renamed(&together, |n| n.replace(".block_sparse_moe.", ".mlp."));
            assert!(
                opened(&config, &moved).0 == expected,
                "{family}, {} below mlp",
                names[0].0
            );
            let deep = renamed(&moved, |n| format!("module.{}", n.strip_prefix("model.").unwrap_or(n)));
            let (found, said) = opened(&config, &deep);
            assert!(found == expected, "{family}");
            assert!(
                said.contains("\"module.\"") && said.contains("in one tensor"),
                "{family}: {said}"
            );
        }
    }
}

#[test]
fn either_spelling_of_an_expert_is_read() {
    let spelled = |name: &str, to: [&str; 3]| match expert(name) {
        Some((base, number, matrix)) => format!("{base}.experts.{number}.{}.weight", to[matrix]),
        None => name.to_owned(),
    };
    for family in MIXTURES {
        let config = config(family, false);
        let plain = tensors(&config);
        let (expected, _) = opened(&config, &plain);
        for to in [["w1", "w3", "w2"], ["gate_proj", "up_proj", "down_proj"]] {
            let moved = renamed(&plain, |n| spelled(n, to).replace(".block_sparse_moe.", ".mlp."));
            let (found, said) = opened(&config, &moved);
            assert!(found == expected, "{family}, {to:?}");
            let changed = moved.iter().zip(&plain).any(|(a, b)| a.name != b.name);
            assert_eq!(said.contains("another version"), changed, "{family}: {said}");
        }
    }
}

#[test]
fn fused_experts_of_another_shape_are_refused() {
    for family in MIXTURES {
        let config = config(family, false);
        let mut together = fused(&tensors(&config), &TRANSFORMERS);
        let gate_up = together.iter_mut().find(|t| t.name.ends_with("gate_up_proj")).unwrap();
        gate_up.shape = vec![E, D, 2 * I];
        let (message, hint) = refused(&config, &together);
        assert!(
            message.contains("gate_up_proj") && message.contains("[experts, 12, 8]"),
            "{family}: {message}"
        );
        assert!(hint.contains("transposed"), "{family}: {hint}");

        // One expert less, one more than the configuration says.
        for (count, rule) in [(E - 1, "is missing"), (E + 1, "no use")] {
            let mut other = config.clone();
            for key in ["num_local_experts", "num_experts"] {
                if other.get(key).is_some() {
                    other[key] = count.into();
                }
            }
            let mut more = fused(&tensors(&config), &TRANSFORMERS);
            for t in &mut more {
                if t.name.ends_with(".gate.weight") {
                    let row = t.bytes.len() / E;
                    t.bytes = t.bytes[..row].repeat(count);
                    t.shape[0] = count;
                }
            }
            let (message, _) = refused(&other, &more);
            let expected = if rule == "no use" { "is missing" } else { "no use" };
            assert!(message.contains(expected), "{family}, {count} experts: {message}");
        }
    }
}
