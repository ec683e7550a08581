//! How a document is cut into overlapping windows.
//!
//! A window has W tokens and starts S after the one before it; it scores what no earlier window has scored, so that every
//! token is scored once and sees at least W - S tokens before it, or all there are. Unless told otherwise W = min(positions
//! of the model, 2048) and S = W/2: the cost of attention grows with W, and results stay comparable between models.

use crate::error::{EvalError, Result};
use ounce_model::Model;
use serde::Serialize;

/// Longest window, unless a longer one is asked for.
pub const MAX_WINDOW: usize = 2048;

/// Tokens `begin..end` of a document, of which `from..end` are scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Window {
    /// First token.
    pub begin: usize,
    /// First scored token.
    pub from: usize,
    /// One past the last token.
    pub end: usize,
}

/// Length and distance of windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windowing {
    /// Tokens of a window, at least 2: one and one before it.
    pub window: usize,
    /// Tokens from the start of one to the start of the next, less than `window`.
    pub stride: usize,
}

impl Windowing {
    /// What is used for `model` unless told otherwise.
    ///
    /// # Errors
    /// If it has fewer than two positions.
    pub fn of(model: &Model) -> Result<Self> {
        Self::chosen(model, None, None)
    }

    /// With a length and a stride of one's own.
    ///
    /// # Errors
    /// A window that is shorter than two tokens or longer than the model has positions; a stride that leaves a token
    /// without one before it.
    pub fn chosen(model: &Model, window: Option<usize>, stride: Option<usize>) -> Result<Self> {
        let refuse = |what: &str, rule, hint| {
            Err(EvalError::Input {
                what: what.into(),
                rule,
                hint,
            })
        };
        let positions = model.config.max_positions;
        if positions < 2 {
            let rule = format!("cannot be cut into windows of {positions} token(s)");
            return refuse("text", rule, "max_position_embeddings must be 2 or more");
        }
        let window = window.unwrap_or(positions.min(MAX_WINDOW));
        if !(2..=positions).contains(&window) {
            let rule = format!("must be in 2..={positions}, the positions of the model, is {window}");
            return refuse("window", rule, "a window holds a token and at least one before it");
        }
        let stride = stride.unwrap_or(window / 2);
        if !(1..window).contains(&stride) {
            let rule = format!("must be in 1..={}, less than the window, is {stride}", window - 1);
            return refuse(
                "stride",
                rule,
                "the first token of a window is scored by the window before it",
            );
        }
        Ok(Self { window, stride })
    }

    /// The windows of a document of `tokens` tokens. None if there is nothing to predict.
    pub fn windows(self, tokens: usize) -> Vec<Window> {
        let (mut all, mut begin, mut from) = (Vec::new(), 0, 1);
        while from < tokens {
            let end = tokens.min(begin + self.window);
            all.push(Window { begin, from, end });
            (begin, from) = (begin + self.stride, end);
        }
        all
    }

    /// The protocol in words, for tables.
    pub fn in_words(self) -> String {
        let Self { window, stride } = self;
        format!(
            "Windows of {window} tokens, stride {stride}: every token of a document but its first is scored once, with at \
             least {} tokens before it or all there are.",
            window - stride
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tiny;

    #[test]
    fn every_token_but_the_first_is_scored_once_with_enough_before_it() {
        for window in 2..16 {
            for stride in 1..window {
                for tokens in 0..70 {
                    let mut scored = vec![0; tokens];
                    for w in (Windowing { window, stride }).windows(tokens) {
                        assert!(w.end - w.begin <= window && w.from > w.begin, "{w:?}");
                        for t in w.from..w.end {
                            scored[t] += 1;
                            let least = t.min(window - stride);
                            assert!(t - w.begin >= least, "{tokens} {window} {stride} {w:?} {t}");
                        }
                    }
                    assert!(
                        scored.iter().skip(1).all(|&n| n == 1),
                        "{tokens} {window} {stride} {scored:?}"
                    );
                    assert!(scored.first().is_none_or(|&n| n == 0));
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_scored_is_refused() {
        let model = tiny(37, 32);
        let says = |window, stride| Windowing::chosen(&model, window, stride).unwrap_err().to_string();
        assert_eq!(Windowing::of(&model).unwrap(), Windowing { window: 32, stride: 16 });
        assert_eq!(
            says(Some(1), None),
            "window: must be in 2..=32, the positions of the model, is 1"
        );
        assert!(says(Some(33), None).contains("is 33"));
        assert_eq!(
            says(Some(8), Some(8)),
            "stride: must be in 1..=7, less than the window, is 8"
        );
        assert!(says(None, Some(0)).contains("is 0"));
    }
}
