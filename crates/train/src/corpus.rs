//! From a recipe's file names to packed tokens, and the loss on text that is never trained on.

use crate::{
    error::{Result, TrainError},
    objective::{At, How, NextToken, Objective},
    recipe::{Recipe, TokenizerConfig},
};
use ounce_data::{Batch, DataDir, Document, Sources, TokenStream};
use ounce_model::{
    Model, ModelError, Tokenizer,
    tokenizer::{SpecialTokens, train_byte_level_bpe},
};
use ounce_tensor::{Compute, no_grad};
use std::{path::PathBuf, sync::Arc};

/// Tokenizer and tokens of a run.
pub(crate) struct Corpus {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) train: Arc<TokenStream>,
    pub(crate) validation: Option<TokenStream>,
}

fn sources(recipe: &Recipe, names: &[String], data: &DataDir) -> Result<Sources> {
    let paths = names
        .iter()
        .map(|n| data.expand(n))
        .collect::<std::result::Result<Vec<PathBuf>, _>>()?;
    Ok(Sources::open(&paths, &recipe.data.field)?)
}

impl Corpus {
    /// Reads the files, gets the tokenizer, packs the tokens. `known` is the tokenizer of a run that is resumed.
    pub(crate) fn load(recipe: &Recipe, data: &DataDir, known: Option<Tokenizer>) -> Result<Self> {
        let train = sources(recipe, &recipe.data.train, data)?;
        // Kept only where the tokenizer is made of the text itself: a pipe can be read once.
        let mut kept: Option<Vec<Document>> = None;
        let tokenizer = match (known, &recipe.tokenizer, &recipe.init) {
            (Some(known), ..) => known,
            (None, Some(TokenizerConfig::TrainVocab(size)), _) => {
                let documents = train.documents().collect::<ounce_data::Result<Vec<_>>>()?;
                let texts = kept.insert(documents).iter().map(|d| &d.text);
                train_byte_level_bpe(texts, *size, SpecialTokens::default()).map_err(ModelError::from)?
            }
            (None, Some(TokenizerConfig::Reuse(folder)), _) | (None, None, Some(folder)) => {
                Tokenizer::open(data.expand(folder)?).map_err(ModelError::from)?
            }
            (None, None, None) => {
                return Err(TrainError::Recipe {
                    file: "recipe".into(),
                    key: "tokenizer".into(),
                    rule: "is missing".into(),
                    hint: "give tokenizer.train_vocab or tokenizer.reuse".into(),
                });
            }
        };
        let eos = tokenizer.eos_ids().first().copied();
        let encode = |s: &str| tokenizer.encode(s, false);
        let stream = |sources: &Sources| TokenStream::pack_all(sources.documents(), eos, encode);
        let validation = if recipe.data.validation.is_empty() {
            None
        } else {
            Some(stream(&sources(recipe, &recipe.data.validation, data)?)?)
        };
        let train = match &kept {
            Some(documents) => TokenStream::pack(documents, eos, encode)?,
            None => stream(&train)?,
        };
        Ok(Self {
            train: Arc::new(train),
            validation,
            tokenizer,
        })
    }

    /// Refuses ids that a model with `vocabulary` embeddings has no row for (a tokenizer of another model).
    pub(crate) fn check_range(&self, vocabulary: usize) -> Result<()> {
        let streams = self.validation.iter().chain([&*self.train]);
        match streams.filter_map(TokenStream::max_id).max() {
            Some(id) if id as usize >= vocabulary => Err(TrainError::Recipe {
                file: "recipe".into(),
                key: "tokenizer".into(),
                rule: format!("makes token id {id}, the model has a vocabulary of {vocabulary}"),
                hint: "use the tokenizer of the checkpoint that init names".into(),
            }),
            _ => Ok(()),
        }
    }

    /// Bytes of text that `ids` stand for; special tokens stand for none.
    fn bytes(&self, ids: &[u32]) -> Result<usize> {
        let mut bytes = 0;
        for &id in ids {
            if !self.tokenizer.is_special(id) {
                bytes += self.tokenizer.token_bytes(id).map_err(ModelError::from)?.len();
            }
        }
        Ok(bytes)
    }

    /// Mean next-token loss (nats per token; whatever the objective, so that runs compare) and bits per byte on the first `tokens` validation tokens, in windows of `length`
    /// that do not overlap; `None` without a validation text. Comparable over a run; `ounce eval` gives every token
    /// more context and so a lower figure.
    pub(crate) fn evaluate(
        &self,
        model: &Model,
        length: usize,
        tokens: usize,
        compute: Compute,
    ) -> Result<Option<(f64, f64)>> {
        let Some(stream) = &self.validation else {
            return Ok(None);
        };
        let how = How {
            at: At::default(),
            compute,
            choices: None,
        };
        let (mut nats, mut count, mut bytes, mut start) = (0.0, 0, 0, 0);
        while start + 1 < stream.len() && count < tokens {
            let end = (start + length).min(stream.len() - 1);
            let window = stream.slice(start..end + 1);
            let batch = Batch {
                rows: 1,
                length: end - start,
                inputs: window[..end - start].to_vec(),
                targets: window[1..].to_vec(),
            };
            let loss = no_grad(|| NextToken.loss(model, &batch, &how))?;
            let cross_entropy = loss.parts.first().map_or(f64::NAN, |p| p.1);
            nats += cross_entropy * batch.length as f64;
            count += batch.length;
            bytes += self.bytes(&batch.targets)?;
            start = end;
        }
        if count == 0 {
            return Ok(None);
        }
        Ok(Some((
            nats / count as f64,
            nats / std::f64::consts::LN_2 / bytes.max(1) as f64,
        )))
    }
}
