//! `ounce chat`.

use super::generation::{Settings, answer, ends_of_turn, generation_config, open, settings, template, warn_of_length};
use crate::{
    args::{Chat, Global},
    exit::{Failure, Outcome},
    interrupt, output,
};
use ounce_model::{ChatTemplate, Conversation, Message, Model, StreamDecoder, Tokenizer};
use serde_json::json;
use std::io::{self, BufRead, IsTerminal};

/// Tokens of an answer, unless said otherwise.
const ANSWER: usize = 1024;

pub(super) fn run(args: &Chat, global: &Global) -> Outcome {
    interrupt::at_once("chat");
    let template = template(&args.model)?;
    let of_model = generation_config(&args.model)?;
    let model = open(&args.model, args.attention.as_ref())?;
    let tokenizer = Tokenizer::open(&args.model)?;
    let eos = ends_of_turn(&tokenizer, &model, &template)?;
    let settings = settings(&args.sampling, &model, eos, &of_model, ANSWER);
    let mut chat = Talk {
        conversation: Conversation::new(&model, settings.options.compute),
        messages: first(args),
        model: &model,
        tokenizer,
        template,
        settings,
    };
    if let Some(said) = &args.prompt {
        return chat.turn(said, global);
    }
    let mark = io::stdin().is_terminal() && io::stderr().is_terminal();
    let mut lines = io::stdin().lock().lines();
    loop {
        if mark {
            output::aside("> ");
        }
        let Some(line) = lines.next() else { return Ok(()) };
        let line = line.map_err(|e| Failure::user(format!("stdin: {e}"), "what is said is UTF-8 text"))?;
        match line.trim() {
            "" => {}
            "/exit" => return Ok(()),
            "/reset" => chat.messages = first(args),
            said => chat.turn(said, global)?,
        }
    }
}

/// What stands before anything is said.
fn first(args: &Chat) -> Vec<Message> {
    args.system.iter().map(|text| Message::new("system", text)).collect()
}

struct Talk<'m> {
    conversation: Conversation<'m>,
    messages: Vec<Message>,
    model: &'m Model,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    settings: Settings,
}

impl Talk<'_> {
    /// The user says something, the model answers.
    fn turn(&mut self, said: &str, global: &Global) -> Outcome {
        self.messages.push(Message::new("user", said));
        let prompt = self.template.encode(&self.tokenizer, &self.messages)?;
        warn_of_length(self.model, prompt.len(), &self.settings);
        let decoder = StreamDecoder::new(&self.tokenizer, true);
        let made = answer(&mut self.conversation, decoder, &prompt, &self.settings, |piece| {
            if global.json { Ok(()) } else { output::piece(piece) }
        })?;
        made.explain_silence(&self.tokenizer, "--ignore-eos goes on");
        if global.json {
            let mut value = made.details();
            value["text"] = json!(made.text);
            value["ids"] = json!(made.made.new_ids());
            output::json(&value)?;
        } else {
            output::line("")?;
        }
        // Each turn draws anew.
        let seed = &mut self.settings.options.sampler.seed;
        *seed = seed.wrapping_add(1);
        self.messages.push(Message::new("assistant", made.text));
        Ok(())
    }
}
