//! Conversations as the text a model was trained on: its chat template.
//!
//! Owns finding the template of a model, running it as the reference does (Jinja, with the reference's settings and
//! functions), and telling which token ends a turn. A template comes with a stranger's model and is a program: it runs
//! within bounds of time, memory and depth, and whatever goes wrong in it is one line. It must not know who is talking, or
//! what is done with the text. The text is encoded without special tokens: a template writes its own.

mod limits;
mod python;
mod scan;
mod sources;

use crate::{
    error::{ModelError, Result},
    tokenizer::Tokenizer,
};
use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior,
    syntax::SyntaxConfig,
    value::{Serde, Value},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{collections::BTreeMap, fmt::Write as _, sync::Arc};

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who says it: `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
        }
    }
}

/// A model's template; a clone is a reference count.
#[derive(Debug, Clone)]
pub struct ChatTemplate(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    /// Where it was found, for messages.
    place: String,
    /// The source as the engine gets it.
    source: String,
    /// `bos_token` and its like.
    tokens: BTreeMap<String, String>,
}

/// In front of what a template itself raises.
const RAISED: char = '\u{1}';

impl ChatTemplate {
    /// A template from its source. `place` is where it was found, `tokens` are the special tokens by the names that
    /// templates know (`bos_token`, `eos_token`, …).
    ///
    /// # Errors
    /// If it is no template, or one that is refused for what it could cost.
    pub fn new(place: impl Into<String>, source: &str, tokens: BTreeMap<String, String>) -> Result<Self> {
        let place = place.into();
        let source = scan::prepare(source).map_err(|rule| refused(&place, rule, "real templates need far less"))?;
        let template = Self(Arc::new(Parts { place, source, tokens }));
        let parts = template.0.clone();
        template.bounded(move || {
            let env = environment(limits::LEAST_FUEL);
            env.template_from_named_str(NAME, &parts.source).map(drop)
        })?;
        Ok(template)
    }

    /// The text of a conversation; with `answer`, up to where the assistant's next message begins.
    ///
    /// # Errors
    /// If the template refuses the conversation, fails, or needs too much time or memory.
    pub fn render(&self, messages: &[Message], answer: bool) -> Result<String> {
        let fuel = limits::fuel(messages);
        let (parts, messages) = (self.0.clone(), messages.to_vec());
        self.bounded(move || {
            let mut context = json!({
                "messages": messages, "add_generation_prompt": answer, "tools": null, "documents": null,
            });
            for (name, token) in &parts.tokens {
                context[name] = token.as_str().into();
            }
            let env = environment(fuel);
            env.template_from_named_str(NAME, &parts.source)?
                .render(Value::from(Serde(&context)))
        })
    }

    /// The ids of a conversation, up to where the assistant's next message begins.
    ///
    /// # Errors
    /// As [`Self::render`]; if the tokenizer fails.
    pub fn encode(&self, tokenizer: &Tokenizer, messages: &[Message]) -> Result<Vec<u32>> {
        Ok(tokenizer.encode(&self.render(messages, true)?, false)?)
    }

    /// The special token that the template puts behind what an assistant says, if it puts one: a model that makes it has
    /// said all it wants to say, whether or not its configuration names it.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn end_of_turn(&self, tokenizer: &Tokenizer) -> Result<Option<u32>> {
        const SAID: &str = "ounce0said0this";
        let turn = [Message::new("user", "Hello"), Message::new("assistant", SAID)];
        // A template that wants other turns than these has no end of turn that could be found so.
        let Ok(text) = self.render(&turn, false) else {
            return Ok(None);
        };
        let Some((_, after)) = text.rsplit_once(SAID) else {
            return Ok(None);
        };
        let after = tokenizer.encode(after.trim_start(), false)?;
        Ok(after.first().copied().filter(|&id| tokenizer.is_special(id)))
    }

    /// Runs `work` within the limits; its errors become one line.
    fn bounded<R: Send + 'static>(
        &self,
        work: impl FnOnce() -> std::result::Result<R, Error> + Send + 'static,
    ) -> Result<R> {
        let place = &self.0.place;
        match limits::within(work) {
            Ok(Ok(made)) => Ok(made),
            Ok(Err(error)) => Err(told(place, &error)),
            Err(rule) => Err(refused(place, rule, COSTLY)),
        }
    }
}

/// What the template is called in the engine.
const NAME: &str = "template";

const COSTLY: &str = "a template that needs so much is broken or hostile; `--prompt` without a template still works";

/// The engine as the reference sets it up.
fn environment<'a>(fuel: u64) -> Environment<'a> {
    let mut env = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true);
    syntax.lstrip_blocks(true);
    if let Ok(syntax) = syntax.build() {
        env.set_syntax(syntax);
    }
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    env.set_fuel(Some(fuel));
    env.set_recursion_limit(limits::RECURSION);
    env.add_function(
        "raise_exception",
        |message: String| -> std::result::Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
        },
    );
    python::add_to(&mut env);
    env
}

/// An error of the engine as ours.
fn told(place: &str, error: &Error) -> ModelError {
    let detail = error.detail().unwrap_or_default();
    if let Some(message) = detail.strip_prefix(RAISED) {
        let rule = format!("the template refuses this conversation: {}", one_line(message));
        return refused(
            place,
            rule,
            "some templates want user and assistant by turns, or no system message",
        );
    }
    if error.kind() == ErrorKind::OutOfFuel {
        return refused(
            place,
            "the template needs too many steps, or makes too much text",
            COSTLY,
        );
    }
    let mut rule = String::from("the template fails");
    if let Some(line) = error.line() {
        let _ = write!(rule, " in line {line}");
    }
    let _ = write!(rule, ": {}", error.kind());
    if !detail.is_empty() {
        let _ = write!(rule, ": {}", one_line(detail));
    }
    refused(
        place,
        rule,
        "it may use what this engine lacks; `--prompt` without a template still works",
    )
}

/// What a stranger wrote, fit for one line of a message.
fn one_line(text: &str) -> String {
    const MOST: usize = 300;
    let line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MOST)
        .collect();
    line.trim().to_owned()
}

fn refused(place: &str, rule: impl Into<String>, hint: &str) -> ModelError {
    ModelError::Input {
        what: place.into(),
        rule: rule.into(),
        hint: hint.into(),
    }
}
