//! What `generate` and `chat` share: a model with its texts, settings, and one answer.

use crate::{
    args::{Sampling, Seed},
    exit::Failure,
    interrupt,
    progress::{note, notes},
};
use ounce_formats::fsx;
use ounce_model::{
    ChatTemplate, Conversation, Finish, GenerateOptions, Generation, Model, OpenOptions, SamplerConfig, StopTexts,
    StreamDecoder, TextStream, Tokenizer,
};
use serde_json::{Value, json};
use std::{
    hash::{BuildHasher, Hasher, RandomState},
    path::Path,
};

/// Opens a model and tells what was chosen.
pub(super) fn open(path: &Path, attention: Option<&String>) -> Result<Model, Failure> {
    let options = OpenOptions {
        widen: false,
        attention: attention.cloned(),
    };
    let name = path.to_string_lossy();
    let hub = !path.exists() && name.split('/').count() == 2 && !name.starts_with(['.', '/']) && !name.ends_with('/');
    if hub {
        return Err(Failure::user(
            format!("{name}: no such folder"),
            "ounce does not download: if this is a name on a model hub, fetch its files into a folder first",
        ));
    }
    let model = Model::open(path, &options)?;
    notes(model.notes());
    Ok(model)
}

/// The template of a model that is to chat.
pub(super) fn template(path: &Path) -> Result<ChatTemplate, Failure> {
    ChatTemplate::open(path)?.ok_or_else(|| {
        Failure::user(
            format!("{}: has no chat template", path.display()),
            "it may be no chat model; `ounce generate --prompt` continues a text without one",
        )
    })
}

/// Settings for one answer.
pub(super) struct Settings {
    pub(super) options: GenerateOptions,
    pub(super) stops: Vec<String>,
}

/// Settings from the command line, and from the model where it says nothing.
pub(super) fn settings(args: &Sampling, model: &Model, eos: Vec<u32>, of_model: &Value, most: usize) -> Settings {
    let number = |key: &str| of_model[key].as_f64();
    // The reference draws only where the model says so; its own default then is to keep 50.
    let draws = of_model["do_sample"].as_bool() == Some(true);
    let drawn = |key: &str, else_: f64| if draws { number(key).unwrap_or(else_) } else { else_ };
    let temperature = if draws {
        number("temperature").unwrap_or(1.0)
    } else {
        0.0
    };
    let top_k = if draws {
        of_model["top_k"].as_i64().unwrap_or(50)
    } else {
        0
    };
    let (mut temperature, top_k) = (
        args.temperature.unwrap_or(temperature as f32),
        args.top_k.unwrap_or(top_k),
    );
    let mut top_p = args.top_p.unwrap_or(drawn("top_p", 1.0) as f32);
    if top_p == 0.0 {
        // The best alone.
        (temperature, top_p) = (temperature.min(0.0), 1.0);
    }
    let seed = match args.seed {
        Seed::Given(seed) => seed,
        Seed::Drawn => {
            let seed = RandomState::new().build_hasher().finish() >> 1;
            note(true, &format!("note: seed {seed}"));
            seed
        }
    };
    let penalty = number("repetition_penalty").unwrap_or(1.0) as f32;
    let mut stops = args.stop.clone();
    match &of_model["stop_strings"] {
        Value::String(text) => stops.push(text.clone()),
        Value::Array(list) => stops.extend(list.iter().filter_map(|v| v.as_str().map(str::to_owned))),
        _ => {}
    }
    Settings {
        options: GenerateOptions {
            max_new_tokens: args.max_new_tokens.unwrap_or(most),
            sampler: SamplerConfig {
                temperature,
                top_k: usize::try_from(top_k).unwrap_or(0),
                top_p,
                min_p: args.min_p.unwrap_or(drawn("min_p", 0.0) as f32),
                repetition_penalty: args.repetition_penalty.unwrap_or(penalty),
                seed,
            },
            eos: if args.ignore_eos { Vec::new() } else { eos },
            compute: model.compute(),
        },
        stops,
    }
}

/// Warns where a prompt and its answer go beyond what the model was made for.
pub(super) fn warn_of_length(model: &Model, prompt: usize, settings: &Settings) {
    let most = model.config.max_positions;
    if prompt.saturating_add(settings.options.max_new_tokens) > most && prompt >= most {
        note(
            true,
            &format!("note: the prompt has {prompt} tokens, the model was made for {most}"),
        );
    }
}

/// What a model's `generation_config.json` says; null if it has none.
pub(super) fn generation_config(path: &Path) -> Result<Value, Failure> {
    let file = path.join("generation_config.json");
    if !file.is_file() {
        return Ok(Value::Null);
    }
    serde_json::from_str(&fsx::read_to_string(&file)?)
        .map_err(|e| Failure::user(format!("{}: not JSON: {e}", file.display()), "download it again"))
}

/// All ids that end an answer in a chat: those that the files name, and what the template puts behind an answer.
pub(super) fn ends_of_turn(tokenizer: &Tokenizer, model: &Model, template: &ChatTemplate) -> Result<Vec<u32>, Failure> {
    let mut eos = tokenizer.eos_ids().to_vec();
    eos.extend(&model.config.eos_ids);
    eos.extend(template.end_of_turn(tokenizer)?);
    let mut seen = Vec::new();
    eos.retain(|id| {
        !seen.contains(id) && {
            seen.push(*id);
            true
        }
    });
    Ok(eos)
}

/// An answer with its text.
pub(super) struct Answer {
    pub(super) made: Generation,
    pub(super) text: String,
    stopped_by: Option<String>,
}

/// Has `prompt` continued; `show` gets the text as it comes from `decoder`.
pub(super) fn answer(
    talk: &mut Conversation<'_>,
    decoder: StreamDecoder,
    prompt: &[u32],
    settings: &Settings,
    mut show: impl FnMut(&str) -> Result<(), Failure>,
) -> Result<Answer, Failure> {
    let mut stream = TextStream::new(decoder, StopTexts::new(settings.stops.clone()));
    let mut shown = Ok(());
    let made = talk.generate(prompt, &settings.options, |id| {
        let text = stream.push(id);
        if !text.is_empty() && shown.is_ok() {
            shown = show(&text);
        }
        shown.is_ok() && stream.stopped_by().is_none() && !interrupt::pressed()
    })?;
    shown?;
    let rest = stream.finish();
    if !rest.is_empty() {
        show(&rest)?;
    }
    Ok(Answer {
        text: stream.text().to_owned(),
        stopped_by: stream.stopped_by().map(str::to_owned),
        made,
    })
}

impl Answer {
    /// Why it ended, in the words of other tools: `stop` (an end token or a stop text), `length`, or `interrupted`.
    pub(super) fn finish_reason(&self) -> &'static str {
        match self.made.finish {
            _ if self.stopped_by.is_some() => "stop",
            Finish::Eos(_) => "stop",
            Finish::Length => "length",
            Finish::Stopped => "interrupted",
        }
    }

    /// What both commands tell besides their own keys.
    pub(super) fn details(&self) -> Value {
        let stopped = match (self.made.finish, &self.stopped_by) {
            (_, Some(text)) => json!({ "text": text }),
            (Finish::Eos(id), None) => json!({ "id": id }),
            _ => Value::Null,
        };
        json!({
            "finish_reason": self.finish_reason(),
            "stopped_by": stopped,
            "prompt_ids": self.made.ids[..self.made.prompt_len],
            "completion_ids": self.made.new_ids(),
            "prompt_tokens": self.made.prompt_len,
            "cached_tokens": self.made.cached,
            "completion_tokens": self.made.new_ids().len(),
            "seconds_to_first_token": self.made.prefill.as_secs_f64(),
            "decode_seconds": self.made.decode.as_secs_f64(),
            "tokens_per_second": self.made.tokens_per_second(),
        })
    }

    /// Tells why there is no text, if there is none.
    pub(super) fn explain_silence(&self, tokenizer: &Tokenizer, hint: &str) {
        if let (true, Finish::Eos(id)) = (self.text.is_empty(), self.made.finish) {
            let token = tokenizer.decode(&[id], false).unwrap_or_default();
            note(
                true,
                &format!("note: the model ended at once, with token {id} ({token}); {hint}"),
            );
        }
    }
}
