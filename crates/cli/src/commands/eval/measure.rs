//! What `ounce eval` measures, one function a kind.

use super::Measured;
use crate::{args::Eval, exit::Failure};
use ounce_data::{DataDir, Document, Sources, passkey::Passkey};
use ounce_eval::{
    Encoded, Encoder, EvalError, MAX_WINDOW, Misalignment, MisalignmentOptions, PasskeyReport, Perplexity,
    ScoreOptions, Suite, Windowing, choice::ChoiceReport, choice_report, find_passkeys, misalignment,
    perplexity_of_documents, suites::spread,
};
use ounce_model::{Model, Tokenizer};
use std::path::Path;

/// Pairs of contexts that are compared for `--misalignment`.
const COMPARISONS: usize = 128;

/// Keys that are looked for with `--passkey`.
const KEYS: usize = 100;

/// Tokens after which questions are aligned for models that have no chunks of their own.
const CHUNK: usize = 64;

type Progress<'a> = &'a mut dyn FnMut(usize, usize);

/// A model with what is needed to measure it.
pub(super) struct Bench<'a> {
    model: &'a Model,
    tokenizer: &'a Tokenizer,
    windowing: Windowing,
    options: ScoreOptions,
}

impl<'a> Bench<'a> {
    pub(super) fn new(model: &'a Model, tokenizer: &'a Tokenizer, windowing: Windowing) -> Self {
        Self {
            model,
            tokenizer,
            windowing,
            options: ScoreOptions::for_model(model),
        }
    }

    /// Whatever `args` ask for.
    pub(super) fn all(&self, args: &Eval, show: Progress<'_>) -> Result<Measured, Failure> {
        let texts = args
            .text
            .iter()
            .map(|path| Ok((path.display().to_string(), self.perplexity(args, path, show)?)))
            .collect::<Result<_, Failure>>()?;
        let misalignment = match args.misalignment {
            None => None,
            Some(length) => Some(self.misalignment(args, length, show)?),
        };
        let suite = match &args.suite {
            None => None,
            Some(name) => Some(self.suite(args, name, show)?),
        };
        let passkeys = match args.passkey {
            None => None,
            Some(length) => Some(self.passkeys(args, length, show)?),
        };
        Ok(Measured {
            texts,
            misalignment,
            suite,
            passkeys,
        })
    }

    fn perplexity(&self, args: &Eval, path: &Path, show: Progress<'_>) -> Result<Perplexity, Failure> {
        let sources = sources(args, path)?;
        let encoded = sources.documents().map(|document| {
            let Document { text, .. } = &document?;
            let ids = self.tokenizer.encode(text, true)?;
            Ok::<_, Reading>(Encoded { ids, bytes: text.len() })
        });
        perplexity_of_documents(self.model, encoded, self.windowing, &self.options, show).map_err(|error| match error {
            Reading::Failure(failure) => failure,
            Reading::Eval(e) => Failure::user(format!("{}: {e}", path.display()), e.hint().unwrap_or_default()),
        })
    }

    fn misalignment(&self, args: &Eval, length: usize, show: Progress<'_>) -> Result<Misalignment, Failure> {
        let mut ids = Vec::new();
        for path in &args.text {
            for document in sources(args, path)?.documents() {
                ids.extend(self.tokenizer.encode(&document?.text, false)?);
            }
        }
        let positions = self.model.config.max_positions.min(MAX_WINDOW);
        let options = MisalignmentOptions {
            length: if length == 0 { positions } else { length },
            samples: COMPARISONS,
            seed: 0,
            compute: self.options.compute,
        };
        Ok(misalignment(self.model, &ids, options, show)?)
    }

    fn suite(&self, args: &Eval, name: &str, show: Progress<'_>) -> Result<(Suite, ChoiceReport), Failure> {
        let Some(suite) = Suite::ALL.into_iter().find(|s| s.name() == name) else {
            let known: Vec<&str> = Suite::ALL.iter().map(|s| s.name()).collect();
            return Err(Failure::user(
                format!("suite \"{name}\" is unknown"),
                format!("known: {}", known.join(", ")),
            ));
        };
        let file = match &args.file {
            Some(file) => file.clone(),
            None => suite.file(&DataDir::from_environment(args.data.clone()).expand("${data}")?),
        };
        let mut items = suite.read(&file)?;
        if let Some(n) = args.items {
            items = spread(&items, n);
        }
        let encode = |s: &str| self.tokenizer.encode(s, false).map_err(Into::into);
        let encoder = Encoder {
            encode: &encode,
            start: self.tokenizer.bos_id().or(self.tokenizer.eos_ids().first().copied()),
        };
        Ok((suite, choice_report(self.model, &items, encoder, &self.options, show)?))
    }

    fn passkeys(&self, args: &Eval, length: usize, show: Progress<'_>) -> Result<PasskeyReport, Failure> {
        let passkey = Passkey {
            length,
            chunk: self.model.config.chunk().unwrap_or(CHUNK),
            digits: args.digits,
            haystack: args.haystack,
            copies: 1,
        };
        let encode = |s: &str| self.tokenizer.encode(s, false).map_err(Into::into);
        let keys = (args.seed, args.items.unwrap_or(KEYS));
        Ok(find_passkeys(
            self.model,
            passkey,
            keys,
            self.options.compute,
            &encode,
            show,
        )?)
    }
}

/// The documents of a `--text`.
fn sources(args: &Eval, path: &Path) -> Result<Sources, Failure> {
    let sources = Sources::open(&[path], &args.field)?;
    Ok(match args.limit {
        None => sources,
        Some(bytes) => sources.up_to(bytes),
    })
}

/// What stops the scoring of a text: reading it, or the model.
enum Reading {
    Failure(Failure),
    Eval(EvalError),
}

impl From<EvalError> for Reading {
    fn from(error: EvalError) -> Self {
        Self::Eval(error)
    }
}

impl From<ounce_data::DataError> for Reading {
    fn from(error: ounce_data::DataError) -> Self {
        Self::Failure(error.into())
    }
}

impl From<ounce_model::TokenizerError> for Reading {
    fn from(error: ounce_model::TokenizerError) -> Self {
        Self::Failure(error.into())
    }
}
