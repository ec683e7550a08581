//! Reports and tables as terminal text.
//!
//! Meaning never depends on colour: highlights are signs with a legend, colours only repeat them. Everything is
//! printable text of known width. Must not know whether it writes to a terminal: the caller says so.

use super::plot::Plot;
use super::table::{Align, Cell, Mark, Table};
use super::text::{printable, width, wrap};
use super::{Block, Report};
use std::fmt::Write as _;

/// Narrower than this, wrapped words are harder to read than one record after the other.
const NARROWEST_TEXT: usize = 14;
const GAP: &str = "  ";

struct Paint(bool);

impl Paint {
    fn put(&self, code: &str, text: &str) -> String {
        if self.0 && !text.trim().is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
    fn bold(&self, text: &str) -> String {
        self.put("1", text)
    }
    fn dim(&self, text: &str) -> String {
        self.put("2", text)
    }
    fn mark(&self, mark: Mark, text: &str) -> String {
        match mark {
            Mark::None => text.to_owned(),
            Mark::Best => self.put("1;32", text),
            Mark::Changed => self.put("33", text),
            Mark::Worse => self.put("31", text),
        }
    }
}

/// Widths of a column's three parts: the text, the sign of its mark, the aside.
#[derive(Clone, Default)]
struct Layout {
    text: usize,
    sign: usize,
    note: usize,
}

impl Layout {
    fn total(&self) -> usize {
        self.text + self.sign + if self.note > 0 { 1 + self.note } else { 0 }
    }
}

/// A table in at most `limit` columns, unless a single number is wider than that.
pub(crate) fn table(table: &Table, limit: usize, colour: bool) -> String {
    let paint = Paint(colour);
    let mut out = String::new();
    if !table.caption.is_empty() {
        for line in wrap(&printable(&table.caption), limit) {
            let _ = writeln!(out, "{}", paint.bold(&line));
        }
    }
    match columns(table, limit) {
        Some(layout) => grid(table, &layout, &paint, &mut out),
        None => records(table, limit, &paint, &mut out),
    }
    let legend: Vec<String> = table
        .marks()
        .into_iter()
        .map(|mark| format!("{} {}", mark.sign(), mark.word()))
        .collect();
    if !legend.is_empty() {
        let _ = writeln!(out, "{}", paint.dim(&legend.join("   ")));
    }
    if !table.note.is_empty() {
        for line in wrap(&printable(&table.note), limit) {
            let _ = writeln!(out, "{}", paint.dim(&line));
        }
    }
    out
}

/// Column widths that fit, giving up width in word columns first; `None` when even that is too wide.
fn columns(table: &Table, limit: usize) -> Option<Vec<Layout>> {
    let mut layout = vec![Layout::default(); table.columns.len()];
    for row in &table.rows {
        for (column, cell) in layout.iter_mut().zip(&row.cells) {
            column.text = column.text.max(longest_line(&cell.text));
            column.note = column.note.max(width(&printable(&cell.note)));
            column.sign = column.sign.max(usize::from(cell.mark != Mark::None));
        }
    }
    for (column, head) in layout.iter_mut().zip(&table.columns) {
        let head = longest_line(&head.head());
        if column.total() < head {
            column.text += head - column.total();
        }
    }
    let gaps = GAP.len() * layout.len().saturating_sub(1);
    loop {
        let total = layout.iter().map(Layout::total).sum::<usize>() + gaps;
        let Some(excess) = total.checked_sub(limit).filter(|e| *e > 0) else {
            return Some(layout);
        };
        let (widest, _) = layout
            .iter_mut()
            .zip(&table.columns)
            .filter(|(column, head)| head.align == Align::Left && column.text > NARROWEST_TEXT)
            .max_by_key(|(column, _)| column.text)?;
        // One step at a time where several columns share the loss would be fairer, but slower; halving the
        // excess keeps the columns balanced in a few rounds.
        let step = excess.div_ceil(2).min(widest.text - NARROWEST_TEXT);
        widest.text -= step;
    }
}

fn longest_line(text: &str) -> usize {
    printable(text).split('\n').map(width).max().unwrap_or(0)
}

fn grid(table: &Table, layout: &[Layout], paint: &Paint, out: &mut String) {
    let heads: Vec<Vec<String>> = table
        .columns
        .iter()
        .zip(layout)
        .map(|(head, column)| wrap(&printable(&head.head()), column.total()))
        .collect();
    let height = heads.iter().map(Vec::len).max().unwrap_or(0);
    for i in 0..height {
        let parts = table.columns.iter().zip(layout).zip(&heads);
        let line = parts.map(|((head, column), lines)| {
            // Heads sit at the bottom of their cell, next to what they name. They line up with the text, so
            // that numbers are right under them and the asides stick out.
            let text = (i + lines.len())
                .checked_sub(height)
                .and_then(|k| lines.get(k))
                .map_or("", String::as_str);
            let reach = if width(text) <= column.text {
                column.text
            } else {
                column.total()
            };
            let padded = pad(&pad(text, reach, head.align), column.total(), Align::Left);
            paint.bold(&padded)
        });
        push_line(out, &line.collect::<Vec<_>>());
    }
    let rule = layout.iter().map(|column| paint.dim(&"─".repeat(column.total())));
    push_line(out, &rule.collect::<Vec<_>>());
    for row in &table.rows {
        if !row.group.is_empty() {
            let _ = writeln!(out, "{}", paint.dim(&printable(&row.group).replace('\n', " ")));
        }
        let texts: Vec<Vec<String>> = row
            .cells
            .iter()
            .zip(layout)
            .map(|(cell, column)| wrap(&printable(&cell.text), column.text))
            .collect();
        for i in 0..texts.iter().map(Vec::len).max().unwrap_or(0) {
            let parts = row.cells.iter().zip(&table.columns).zip(layout).zip(&texts);
            let line = parts.map(|(((cell, head), column), lines)| {
                let text = lines.get(i).map_or("", String::as_str);
                grid_cell(cell, text, i == 0, head.align, column, paint)
            });
            push_line(out, &line.collect::<Vec<_>>());
        }
    }
}

fn grid_cell(cell: &Cell, text: &str, first: bool, align: Align, column: &Layout, paint: &Paint) -> String {
    let mut out = paint.mark(cell.mark, &pad(text, column.text, align));
    if column.sign > 0 {
        out += &paint.mark(cell.mark, if first { cell.mark.sign() } else { " " });
    }
    if column.note > 0 {
        let note = if first { printable(&cell.note) } else { String::new() };
        let _ = write!(out, " {}", paint.dim(&pad(&note, column.note, align)));
    }
    out
}

/// One record per row, for screens too narrow for the grid.
fn records(table: &Table, limit: usize, paint: &Paint, out: &mut String) {
    for row in &table.rows {
        if !row.group.is_empty() {
            let _ = writeln!(out, "{}", paint.dim(&printable(&row.group)));
        }
        for (i, (cell, head)) in row.cells.iter().zip(&table.columns).enumerate() {
            let mut text = printable(&cell.text);
            if cell.mark != Mark::None {
                let _ = write!(text, " {}", cell.mark.sign());
            }
            if !cell.note.is_empty() {
                let _ = write!(text, " ({})", printable(&cell.note));
            }
            let (text, indent) = if i == 0 {
                (text, "")
            } else {
                (format!("{}: {text}", printable(&head.head())), GAP)
            };
            for line in wrap(&text, limit.saturating_sub(indent.len())) {
                let line = if i == 0 {
                    paint.bold(&line)
                } else {
                    paint.mark(cell.mark, &line)
                };
                let _ = writeln!(out, "{indent}{line}");
            }
        }
    }
}

fn pad(text: &str, to: usize, align: Align) -> String {
    let space = " ".repeat(to.saturating_sub(width(text)));
    match align {
        Align::Left => format!("{text}{space}"),
        Align::Right => format!("{space}{text}"),
    }
}

fn push_line(out: &mut String, parts: &[String]) {
    *out += parts.join(GAP).trim_end();
    out.push('\n');
}

/// The whole report.
pub(crate) fn report(report: &Report, limit: usize, colour: bool) -> String {
    let paint = Paint(colour);
    let mut out = format!("{}\n", paint.bold(&printable(&report.title)));
    lines(&report.subtitle, limit, &mut out);
    for block in &report.blocks {
        out.push('\n');
        self::block(block, limit, &paint, &mut out);
    }
    if report.footer.entries().next().is_some() {
        out.push('\n');
    }
    for (name, value) in report.footer.entries() {
        // Not wrapped: a command line is there to be copied.
        let _ = writeln!(out, "{} {}", paint.dim(&format!("{name:<8}")), printable(value));
    }
    out
}

fn block(block: &Block, limit: usize, paint: &Paint, out: &mut String) {
    match block {
        Block::Heading { text } => {
            let _ = writeln!(out, "{}", paint.bold(&format!("## {}", printable(text))));
        }
        Block::Paragraph { text } => lines(text, limit, out),
        Block::Figures { figures } => {
            let longest = figures.iter().map(|f| width(&printable(&f.label))).max().unwrap_or(0);
            for figure in figures {
                let label = pad(&printable(&figure.label), longest, Align::Left);
                let value = printable(format!("{} {}", figure.value, figure.unit).trim());
                let _ = write!(out, "{label}{GAP}{}", paint.bold(&value));
                let aside: Vec<&str> = [figure.tone.word(), &figure.note]
                    .into_iter()
                    .filter(|part| !part.is_empty())
                    .collect();
                if !aside.is_empty() {
                    *out += &paint.dim(&format!("  ({})", printable(&aside.join(": "))));
                }
                out.push('\n');
            }
        }
        Block::Table(inner) => *out += &table(inner, limit, paint.0),
        Block::Plot(inner) => plot(inner, limit, paint, out),
        Block::Samples(inner) => {
            for sample in &inner.samples {
                let _ = writeln!(out, "{}", paint.bold(&printable(&sample.title)));
                let text = printable(&format!("{}{}", inner.prompt, sample.text));
                for line in wrap(&text, limit.saturating_sub(2)) {
                    *out += format!("│ {line}").trim_end();
                    out.push('\n');
                }
            }
            if !inner.caption.is_empty() {
                lines(&inner.caption, limit, out);
            }
        }
        Block::Details { summary, blocks } => {
            let _ = writeln!(out, "{}", paint.bold(&printable(summary)));
            for inner in blocks {
                self::block(inner, limit, paint, out);
            }
        }
    }
}

fn plot(plot: &Plot, limit: usize, paint: &Paint, out: &mut String) {
    let _ = writeln!(out, "{}", paint.bold(&printable(&plot.title)));
    for sentence in plot.summary() {
        for line in wrap(&printable(&sentence), limit.saturating_sub(2)) {
            let _ = writeln!(out, "  {line}");
        }
    }
}

fn lines(text: &str, limit: usize, out: &mut String) {
    if text.is_empty() {
        return;
    }
    for line in wrap(&printable(text), limit) {
        *out += &line;
        out.push('\n');
    }
}
