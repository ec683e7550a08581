//! `ounce generate`.

use super::generation::{answer, ends_of_turn, open, settings, template, warn_of_length};
use crate::{
    args::{Generate, Global},
    exit::{Failure, Outcome},
    interrupt, output,
};
use ounce_formats::fsx;
use ounce_model::{Conversation, Message, Model, StreamDecoder, Tokenizer};
use serde_json::{Value, json};
use std::io::{self, IsTerminal, Read};

pub(super) fn run(args: &Generate, global: &Global) -> Outcome {
    interrupt::at_once("generation");
    let text = prompt_text(args)?;
    let ids = args.ids.as_deref().map(parse_ids).transpose()?;
    let model = open(&args.model, args.attention.as_ref())?;
    let tokenizer = if text.is_some() {
        Some(Tokenizer::open(&args.model)?)
    } else {
        Tokenizer::find(&args.model)?
    };
    let template = if args.chat { Some(template(&args.model)?) } else { None };
    let (text, prompt) = match (text, &tokenizer, &template) {
        (Some(said), Some(tokenizer), Some(template)) => {
            let system = args.system.iter().map(|s| Message::new("system", s));
            let messages: Vec<Message> = system.chain([Message::new("user", said)]).collect();
            let text = template.render(&messages, true)?;
            let prompt = tokenizer.encode(&text, false)?;
            (Some(text), prompt)
        }
        (Some(text), Some(tokenizer), None) => {
            let prompt = tokenizer.encode(&text, true)?;
            (Some(text), prompt)
        }
        _ => (None, ids.unwrap_or_default()),
    };
    let eos = match (&tokenizer, &template) {
        (Some(tokenizer), Some(template)) => ends_of_turn(tokenizer, &model, template)?,
        (Some(t), None) if text.is_some() && !t.eos_ids().is_empty() => t.eos_ids().to_vec(),
        _ if text.is_some() => model.config.eos_ids.clone(),
        _ => Vec::new(),
    };
    let settings = settings(&args.sampling, &model, eos, &Value::Null, 128);
    warn_of_length(&model, prompt.len(), &settings);
    let Some(tokenizer) = &tokenizer else {
        return ids_alone(&model, &prompt, &settings.options, global);
    };
    let mut talk = Conversation::new(&model, settings.options.compute);
    // Shown with the first token: a prompt that is refused prints nothing. A pipe gets the continuation alone.
    let mut opening = text.clone().filter(|_| !global.json && !args.chat);
    let to_stdout = args.echo || io::stdout().is_terminal();
    let mut open_with = || match opening.take() {
        Some(text) if to_stdout => output::piece(&text),
        Some(text) => {
            output::aside(&text);
            Ok(())
        }
        None => Ok(()),
    };
    // An answer is a text of its own; otherwise the prompt's goes on.
    let decoder = match template {
        Some(_) => StreamDecoder::new(tokenizer, true),
        None => StreamDecoder::after(tokenizer, &prompt, true),
    };
    let made = answer(&mut talk, decoder, &prompt, &settings, |piece| {
        if global.json {
            return Ok(());
        }
        open_with()?;
        output::piece(piece)
    })?;
    open_with()?;
    let hint = if template.is_some() {
        "--ignore-eos goes on"
    } else {
        "--ignore-eos goes on, --chat asks as the model was trained to be asked"
    };
    made.explain_silence(tokenizer, hint);
    if global.json {
        let mut value = made.details();
        let whole = tokenizer.decode(&made.made.ids, true)?;
        value["ids"] = json!(made.made.ids);
        value["text"] = json!(whole);
        value["prompt_text"] = json!(match text {
            Some(text) => text,
            None => tokenizer.decode(&prompt, false)?,
        });
        value["completion"] = json!(made.text);
        output::json(&value)?;
    } else {
        output::line("")?;
    }
    ended(made.made.new_ids().len())
}

/// Text from the argument, from stdin or from a file.
fn prompt_text(args: &Generate) -> Result<Option<String>, Failure> {
    Ok(match (&args.prompt, &args.prompt_file) {
        (Some(dash), _) if dash == "-" => {
            let mut text = String::new();
            io::stdin()
                .read_to_string(&mut text)
                .map_err(|e| Failure::user(format!("stdin: {e}"), "a prompt is UTF-8 text"))?;
            Some(text)
        }
        (Some(text), _) => Some(text.clone()),
        (None, Some(file)) => Some(fsx::read_to_string(file)?),
        (None, None) => None,
    })
}

/// Ids between commas or blanks.
fn parse_ids(text: &str) -> Result<Vec<u32>, Failure> {
    let words = text.split([',', ' ', '\n', '\t']).filter(|w| !w.is_empty());
    words
        .map(|word| {
            word.parse().map_err(|_| {
                Failure::user(
                    format!("--ids: \"{word}\" is no token id"),
                    "give ids as 1,2,3 or \"1 2 3\"",
                )
            })
        })
        .collect()
}

/// A model without a tokenizer: ids in, ids out.
fn ids_alone(model: &Model, prompt: &[u32], options: &ounce_model::GenerateOptions, global: &Global) -> Outcome {
    let made = ounce_model::generate(model, prompt, options, |_| !interrupt::pressed())?;
    if global.json {
        let (ids, speed) = (&made.ids, made.tokens_per_second());
        output::json(&json!({
            "ids": ids, "text": null, "tokens_per_second": speed,
            "prompt_ids": prompt, "completion_ids": made.new_ids(),
            "prompt_tokens": prompt.len(), "completion_tokens": made.new_ids().len(),
        }))?;
    } else {
        let ids: Vec<String> = made.ids.iter().map(u32::to_string).collect();
        output::line(&ids.join(","))?;
    }
    ended(made.new_ids().len())
}

fn ended(tokens: usize) -> Outcome {
    if interrupt::pressed() {
        return Err(Failure::Interrupted(format!("after {tokens} tokens")));
    }
    Ok(())
}
