//! `ounce eval`.

use crate::{
    args::{Eval, Global},
    exit::{Failure, Outcome},
    output,
    progress::{bar, note, notes},
};
use ounce_data::{DataDir, passkey::Passkey};
use ounce_eval::{
    Encoder, MAX_WINDOW, MisalignmentOptions, Perplexity, ScoreOptions, Suite, choice_report, find_passkeys,
    misalignment, perplexity_of_text, suites::spread,
};
use ounce_formats::fsx;
use ounce_lab::report::{Cell, Column, Table};
use ounce_model::{Model, OpenOptions, Tokenizer};
use serde_json::json;

/// Pairs of contexts that are compared for `--misalignment`.
const COMPARISONS: usize = 128;

/// Keys that are looked for with `--passkey`.
const KEYS: usize = 100;

/// Tokens after which questions are aligned for models that have no chunks of their own.
const CHUNK: usize = 64;

pub(super) fn run(args: &Eval, global: &Global) -> Outcome {
    let how = OpenOptions {
        widen: false,
        attention: args.attention.clone(),
    };
    let model = Model::open(&args.model, &how)?;
    notes(model.notes());
    let attention = model.config.attention.clone();
    if attention.as_ref().is_some_and(|a| a.looks_ahead()) {
        note(
            true,
            "note: with this attention a token's logits depend on later tokens of the text, so the figures flatter the \
             model; --attention dga:selection=causal_block is honest",
        );
    }
    let tokenizer = Tokenizer::from_folder(&args.model)?;
    let options = ScoreOptions::for_model(&model);
    let with_special = |s: &str| tokenizer.encode(s, true).map_err(Into::into);
    let plain = |s: &str| tokenizer.encode(s, false).map_err(Into::into);
    let progress = bar(!global.no_progress, 1);
    let mut show = |done: usize, total: usize| {
        progress.set_length(total as u64);
        progress.set_position(done as u64);
    };

    let mut texts = Vec::new();
    let mut ids = Vec::new();
    for path in &args.text {
        let text = fsx::read_to_string(path)?;
        let scored = perplexity_of_text(&model, &text, &with_special, &options, &mut show)
            .map_err(|e| Failure::user(format!("{}: {e}", path.display()), e.hint().unwrap_or_default()))?;
        texts.push((path.display().to_string(), scored));
        if args.misalignment.is_some() {
            ids.extend(tokenizer.encode(&text, false)?);
        }
    }
    let aligned = match args.misalignment {
        None => None,
        Some(length) => {
            let positions = model.config.max_positions.min(MAX_WINDOW);
            let options = MisalignmentOptions {
                length: if length == 0 { positions } else { length },
                samples: COMPARISONS,
                seed: 0,
                compute: options.compute,
            };
            Some(misalignment(&model, &ids, options, &mut show)?)
        }
    };
    let suite = match &args.suite {
        None => None,
        Some(name) => {
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
            let encoder = Encoder {
                encode: &plain,
                start: tokenizer.bos_id().or(tokenizer.eos_ids().first().copied()),
            };
            Some((suite, choice_report(&model, &items, encoder, &options, &mut show)?))
        }
    };
    let passkeys = match args.passkey {
        None => None,
        Some(length) => {
            let passkey = Passkey {
                length,
                chunk: model.config.chunk().unwrap_or(CHUNK),
                digits: args.digits,
                haystack: args.haystack,
                copies: 1,
            };
            let items = args.items.unwrap_or(KEYS);
            Some(find_passkeys(
                &model,
                passkey,
                (args.seed, items),
                options.compute,
                &plain,
                &mut show,
            )?)
        }
    };
    progress.finish_and_clear();

    if global.json {
        let all: Vec<Perplexity> = texts.iter().map(|(_, p)| *p).collect();
        let mut value = match Perplexity::combine(&all) {
            Some(total) => serde_json::to_value(total).unwrap_or_default(),
            None => json!({}),
        };
        if texts.len() > 1 {
            value["texts"] = texts
                .iter()
                .map(|(name, p)| json!({ "file": name, "result": p }))
                .collect();
        }
        if let Some(attention) = &attention {
            value["attention"] =
                json!({ attention.key(): attention.describe(), "looks_ahead": attention.looks_ahead() });
        }
        if let Some(m) = &aligned {
            value["misalignment"] = serde_json::to_value(m).unwrap_or_default();
        }
        if let Some((suite, report)) = &suite {
            value[suite.name()] = serde_json::to_value(report).unwrap_or_default();
        }
        if let Some(report) = &passkeys {
            value["passkey"] = serde_json::to_value(report).unwrap_or_default();
        }
        return output::json(&value);
    }
    if !texts.is_empty() {
        let columns = vec![
            Column::text("Text"),
            Column::number("Bits per byte", ""),
            Column::number("Perplexity", "per token"),
            Column::number("Tokens", ""),
            Column::number("Bytes", ""),
            Column::number("Seconds", ""),
        ];
        let mut table = Table::new(args.model.display().to_string(), columns);
        for (name, p) in &texts {
            table.push(vec![
                Cell::text(name),
                Cell::number(p.bits_per_byte, 4),
                Cell::number(p.perplexity, 3),
                Cell::count(p.tokens as u64),
                Cell::count(p.bytes as u64),
                Cell::number(p.seconds, 1),
            ])?;
        }
        output::table(&table)?;
    }
    if let Some(m) = &aligned {
        let d = m.divergences;
        output::line(&format!(
            "misalignment of {} contexts of {} to {} tokens: Jeffreys {:.4}, SCE {:.4}, entropy {:.4} long and {:.4} short; \
             same first choice {:.3}",
            m.n,
            m.l_train / 2,
            m.l_train,
            d.jeffreys,
            d.sce,
            d.h_long,
            d.h_short,
            m.top1_agree
        ))?;
        let p = m.long_range;
        let interval = p.gain.ci95.map_or(String::new(), |[low, high]| {
            format!(" (95 % interval {low:.4} to {high:.4})")
        });
        output::line(&format!(
            "long-range probe: a passage repeated after {} tokens is predicted {:.4} nats per token better{interval}",
            p.distance, p.gain.mean
        ))?;
    }
    if let Some((suite, report)) = &suite {
        for (name, a) in [
            ("accuracy", &report.accuracy),
            ("accuracy, length-normalised", &report.accuracy_norm),
        ] {
            let [low, high] = a.ci95;
            output::line(&format!(
                "{suite} {name}: {:.4} (95 % interval {low:.4} to {high:.4}, n = {})",
                a.accuracy, a.items
            ))?;
        }
    }
    if let Some(report) = &passkeys {
        output::line(&report.in_words())?;
    }
    Ok(())
}
