//! `ounce inspect`.

use crate::{
    args::{Global, Inspect},
    exit::{Failure, Outcome},
    output,
};
use ounce_lab::{
    inspect::{InspectOptions, inspect},
    report::{Cell, Column, Table, format_bytes, format_count},
};

pub(super) fn run(args: &Inspect, global: &Global) -> Outcome {
    let options = InspectOptions {
        scan: args.scan,
        attention: args.attention.clone(),
        context: args.context,
    };
    let found = inspect(&args.model, &options, &mut |_, _| {})?;
    let broken = found.scan.as_ref().is_some_and(|s| !s.broken.is_empty());
    let changed = found.scan.as_ref().is_some_and(|s| s.table_intact == Some(false));
    if global.json {
        output::json(&found)?;
    } else {
        let mut table = Table::new(&found.model, vec![Column::text("Property"), Column::text("Value")]);
        let mut row = |name: &str, value: String| table.push(vec![Cell::text(name), Cell::text(value)]).map(|_| ());
        let s = &found.shape;
        row("family", found.family.clone())?;
        row("layers", s.layers.to_string())?;
        row("width, vocabulary", format!("{}, {}", s.hidden_size, s.vocab_size))?;
        row(
            "heads",
            format!("{} of {} ({} key/value heads)", s.heads, s.head_dim, s.kv_heads),
        )?;
        row("longest sequence", s.max_positions.to_string())?;
        if let Some(e) = &found.experts {
            let list = |v: &[usize]| match v {
                [first, rest @ ..] if rest.iter().all(|x| x == first) => first.to_string(),
                all => format!("{all:?}"),
            };
            row(
                "experts",
                format!(
                    "{} stored, {} routed, {} per token, in {} layers",
                    list(&e.stored),
                    list(&e.routed),
                    list(&e.per_token),
                    e.layers
                ),
            )?;
        }
        row("parameters", format_count(found.parameters))?;
        row(
            "active parameters",
            format!("{} per token", format_count(found.active_parameters)),
        )?;
        for note in &found.notes {
            row("note", note.clone())?;
        }
        row("on disk", format_bytes(found.bytes_on_disk))?;
        for (name, share) in &found.dtypes {
            row(
                "element type",
                format!("{name}: {} tensors, {}", share.tensors, format_bytes(share.bytes)),
            )?;
        }
        let windows = match found.shape.window {
            Some(window) => format!(
                ", in {} of {} layers for the last {window} tokens only",
                found.shape.windowed_layers, found.shape.layers
            ),
            None => String::new(),
        };
        row(
            "keys and values",
            format!("{} per token{windows}", format_bytes(found.kv_bytes_per_token)),
        )?;
        let more = match &found.plan {
            Some(plan) => format!(
                "{} of attention, whatever the length",
                format_count(plan.attention_flops_per_token.round() as u64)
            ),
            None => format!(
                "{} more per position looked at",
                format_count(found.attention_flops_per_position)
            ),
        };
        row(
            "arithmetic",
            format!("{} FLOPs per token, {more}", format_count(found.flops_per_token)),
        )?;
        for line in found.plan.iter().flat_map(|plan| &plan.explained) {
            row("retrieval", line.clone())?;
        }
        for line in &found.feed_forward {
            row("feed-forward", line.clone())?;
        }
        if let Some(a) = &found.attention {
            row("attention method", format!("{}: {}", a.method, a.settings))?;
            let figure = |x: f64| format_count(x.round() as u64);
            for cost in &a.costs {
                let change = format!("{} where full attention has {}", figure(cost.method), figure(cost.full));
                row(&format!("  {}", cost.what), format!("{change} ({})", cost.formula))?;
            }
        }
        if let Some(scan) = &found.scan {
            if let Some(intact) = scan.table_intact {
                let text = if intact {
                    "as it was built"
                } else {
                    "CHANGED since it was built"
                };
                row("lookup table", text.into())?;
            }
            row(
                "values that are not finite",
                if broken {
                    format!("in {} tensors", scan.broken.len())
                } else {
                    "none".into()
                },
            )?;
            for b in &scan.broken {
                row("  in", format!("{}: {} NaN, {} infinite", b.tensor, b.nan, b.infinite))?;
            }
        }
        for m in &found.methods {
            row(
                m.name,
                format!("{}: {}", if m.applies { m.command } else { "does not apply" }, m.why),
            )?;
        }
        output::table(&table)?;
    }
    if broken {
        return Err(Failure::user("the checkpoint holds values that are not finite", ""));
    }
    if changed {
        return Err(Failure::user(
            "the lookup table is not the one that was built",
            "build it again from the trained model: `ounce convert MODEL --to mole-lut`",
        ));
    }
    Ok(())
}
