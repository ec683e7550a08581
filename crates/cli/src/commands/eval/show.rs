//! How `ounce eval` shows what it measured.

use super::Measured;
use crate::{exit::Outcome, output};
use ounce_eval::{Misalignment, Perplexity, Suite, Windowing, choice::ChoiceReport};
use ounce_lab::report::{Cell, Column, Table};
use ounce_model::attention::Method;
use serde_json::{Value, json};
use std::path::Path;

/// One object: the totals over all texts, and whatever else was asked for under its own key.
pub(super) fn as_json(measured: &Measured, attention: Option<&dyn Method>) -> Value {
    let Measured {
        texts,
        misalignment,
        suite,
        passkeys,
    } = measured;
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
    if let Some(attention) = attention {
        value["attention"] = json!({ attention.key(): attention.describe(), "looks_ahead": attention.looks_ahead() });
    }
    if let Some(m) = misalignment {
        value["misalignment"] = serde_json::to_value(m).unwrap_or_default();
    }
    if let Some((suite, report)) = suite {
        value[suite.name()] = serde_json::to_value(report).unwrap_or_default();
    }
    if let Some(report) = passkeys {
        value["passkey"] = serde_json::to_value(report).unwrap_or_default();
    }
    value
}

/// Tables and sentences.
pub(super) fn print(model: &Path, measured: &Measured, windowing: Windowing) -> Outcome {
    if !measured.texts.is_empty() {
        output::table(&texts(model, &measured.texts, windowing)?)?;
    }
    if let Some(m) = &measured.misalignment {
        print_misalignment(m)?;
    }
    if let Some((suite, report)) = &measured.suite {
        print_suite(*suite, report)?;
    }
    if let Some(report) = &measured.passkeys {
        output::line(&report.in_words())?;
    }
    Ok(())
}

fn texts(
    model: &Path,
    texts: &[(String, Perplexity)],
    windowing: Windowing,
) -> Result<Table, ounce_lab::report::ReportError> {
    let columns = vec![
        Column::text("Text"),
        Column::number("Bits per byte", ""),
        Column::number("Perplexity", "per token"),
        Column::number("±", "standard error"),
        Column::number("Documents", ""),
        Column::number("Tokens", ""),
        Column::number("Bytes", ""),
        Column::number("Seconds", ""),
    ];
    let mut table = Table::new(model.display().to_string(), columns);
    for (name, p) in texts {
        table.push(vec![
            Cell::text(name),
            Cell::number(p.bits_per_byte, 4),
            Cell::number(p.perplexity, 3),
            p.standard_error.map_or_else(|| Cell::text("-"), |e| Cell::number(e, 3)),
            Cell::count(p.documents as u64),
            Cell::count(p.tokens as u64),
            Cell::count(p.bytes as u64),
            Cell::number(p.seconds, 1),
        ])?;
    }
    table.note = windowing.in_words();
    Ok(table)
}

fn print_misalignment(m: &Misalignment) -> Outcome {
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
    ))
}

fn print_suite(suite: Suite, report: &ChoiceReport) -> Outcome {
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
    Ok(())
}
