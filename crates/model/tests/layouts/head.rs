//! Embedding and head: the flag says whether they are one, the weights decide, as in the reference library.

use crate::support::{FAMILIES, Stored, config, opened, refused, renamed, tensors};
use ounce_model::{OpenOptions, Opened};
use serde_json::json;

const HEAD: &str = "lm_head.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";

#[test]
fn a_tied_flag_beside_other_values_keeps_the_head_and_is_corrected() {
    for family in FAMILIES {
        let (tied, untied) = (config(family, true), config(family, false));
        let own = tensors(&untied);
        let (expected, _) = opened(&untied, &own);
        let (found, said) = opened(&tied, &own);
        assert!(found == expected, "{family}");
        assert!(said.contains(HEAD) && said.contains("its own"), "{family}: {said}");
        let dir = tempfile::tempdir().unwrap();
        crate::support::write(dir.path(), &tied, &own);
        let opened = Opened::new(dir.path(), &OpenOptions::default()).unwrap();
        assert_eq!(
            opened.json()["tie_word_embeddings"],
            json!(false),
            "what is copied from here agrees"
        );
        assert!(!opened.config().tied);
    }
}

#[test]
fn a_copy_of_the_embedding_is_the_head() {
    for family in FAMILIES {
        let tied = config(family, true);
        let plain = tensors(&tied);
        let (expected, _) = opened(&tied, &plain);
        let mut copied = plain.clone();
        let embedding = plain.iter().find(|t| t.name == EMBEDDING).unwrap();
        copied.push(Stored {
            name: HEAD.into(),
            ..embedding.clone()
        });
        assert_eq!(opened(&tied, &copied), (expected.clone(), String::new()), "{family}");
        // Only the head is stored.
        let only: Vec<Stored> = copied.into_iter().filter(|t| t.name != EMBEDDING).collect();
        let (found, said) = opened(&tied, &only);
        assert!(found == expected, "{family}");
        assert!(
            said.contains(EMBEDDING) && said.contains("is not stored"),
            "{family}: {said}"
        );
        // The same below the names of a compiled model.
        let (found, said) = opened(&tied, &renamed(&only, |n| format!("_orig_mod.{n}")));
        assert!(found == expected && said.contains("_orig_mod"), "{family}: {said}");
    }
}

#[test]
fn a_head_that_is_not_there_is_not_made_up() {
    for family in FAMILIES {
        let untied = config(family, false);
        let headless: Vec<Stored> = tensors(&untied).into_iter().filter(|t| t.name != HEAD).collect();
        let (message, hint) = refused(&untied, &headless);
        assert!(
            message.contains(HEAD) && message.contains("tie_word_embeddings"),
            "{family}: {message}"
        );
        assert!(hint.contains("random"), "{family}: {hint}");
        let neither: Vec<Stored> = headless.into_iter().filter(|t| t.name != EMBEDDING).collect();
        assert!(
            refused(&config(family, true), &neither).0.contains(EMBEDDING),
            "{family}"
        );
    }
}
