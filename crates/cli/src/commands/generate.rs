//! `ounce generate`.

use crate::{
    args::{Generate, Global},
    exit::{Failure, Outcome},
    interrupt, output,
    progress::notes,
};
use ounce_model::{GenerateOptions, Model, OpenOptions, SamplerConfig, StreamDecoder, Tokenizer, generate};
use serde_json::json;

pub(super) fn run(args: &Generate, global: &Global) -> Outcome {
    interrupt::flag();
    let options = OpenOptions {
        widen: false,
        attention: args.attention.clone(),
    };
    let model = Model::open(&args.model, &options)?;
    notes(model.notes());
    let has_tokenizer = args.model.join("tokenizer.json").is_file();
    let tokenizer = if has_tokenizer || args.prompt.is_some() {
        Some(Tokenizer::from_folder(&args.model)?)
    } else {
        None
    };
    let prompt = match (&args.prompt, &tokenizer) {
        (Some(text), Some(tokenizer)) => tokenizer.encode(text, true)?,
        _ => args.ids.clone().unwrap_or_default(),
    };
    let stops = args.prompt.is_some() && !args.ignore_eos;
    let eos = match &tokenizer {
        Some(t) if stops && !t.eos_ids().is_empty() => t.eos_ids().to_vec(),
        _ if stops => model.config.eos_ids.clone(),
        _ => Vec::new(),
    };
    let options = GenerateOptions {
        max_new_tokens: args.max_new_tokens,
        sampler: SamplerConfig {
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
            min_p: args.min_p,
            repetition_penalty: args.repetition_penalty,
            seed: args.seed,
        },
        eos,
        compute: model.compute(),
    };
    let streaming = !global.json && tokenizer.is_some();
    let mut decoder = tokenizer.as_ref().map(|t| StreamDecoder::after(t, &prompt, true));
    let mut printed = Ok(());
    // Printed with the first token: a prompt that is refused prints nothing.
    let mut opening = args.prompt.clone().filter(|_| streaming);
    let made = generate(&model, &prompt, &options, |id| {
        if let (true, Some(decoder)) = (streaming, &mut decoder) {
            let text = opening.take().unwrap_or_default() + &decoder.push(id).unwrap_or_default();
            if !text.is_empty() {
                printed = output::piece(&text);
            }
        }
        printed.is_ok() && !interrupt::pressed()
    })?;
    printed?;
    if streaming {
        let rest = decoder.and_then(StreamDecoder::finish).unwrap_or_default();
        output::line(&(opening.unwrap_or_default() + &rest))?;
    } else if global.json {
        let text = match &tokenizer {
            Some(tokenizer) => Some(tokenizer.decode(&made.ids, true)?),
            None => None,
        };
        output::json(&json!({ "ids": made.ids, "text": text, "tokens_per_second": made.tokens_per_second() }))?;
    } else {
        let ids: Vec<String> = made.ids.iter().map(u32::to_string).collect();
        output::line(&ids.join(","))?;
    }
    if interrupt::pressed() {
        return Err(Failure::Interrupted(format!(
            "after {} tokens",
            made.ids.len() - made.prompt_len
        )));
    }
    Ok(())
}
