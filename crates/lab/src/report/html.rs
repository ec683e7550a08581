//! The page: one file that shows itself anywhere, for ever.
//!
//! No script, no font, no picture, no address is loaded; the page forbids itself to (`Content-Security-Policy`).
//! Every text passes through `escape`, and through nothing else, on its way in.

use super::plot::Plot;
use super::style::STYLE;
use super::svg::Canvas;
use super::table::{Align, Cell, Mark, Table};
use super::text::escape;
use super::{Block, Figure, Report, Samples, Tone};
use std::fmt::Write as _;

/// Counts what needs an id of its own.
#[derive(Default)]
struct Page {
    out: String,
    plots: usize,
}

/// The whole page.
pub(crate) fn page(report: &Report) -> String {
    let mut page = Page::default();
    let title = escape(&report.title);
    let _ = write!(
        page.out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<header>\n<h1>{title}</h1>\n"
    );
    if !report.subtitle.is_empty() {
        let _ = writeln!(page.out, "<p class=\"lead\">{}</p>", inline(&report.subtitle));
    }
    page.out += "</header>\n<main>\n";
    for block in &report.blocks {
        page.block(block, 2);
    }
    page.out += "</main>\n";
    page.footer(report);
    page.out += "</body>\n</html>\n";
    page.out
}

/// Escaped text in which `` `code` `` is set as code. A lone backtick stays what it is.
fn inline(text: &str) -> String {
    let parts: Vec<&str> = text.split('`').collect();
    let mut out = String::new();
    for (i, part) in parts.iter().enumerate() {
        let part = escape(part);
        match (i % 2 == 1, i + 1 == parts.len()) {
            (true, false) => {
                let _ = write!(out, "<code>{part}</code>");
            }
            (true, true) => {
                let _ = write!(out, "`{part}");
            }
            (false, _) => out += &part,
        }
    }
    out
}

impl Page {
    /// `level` is that of the headings inside: a section that folds away is one deeper.
    fn block(&mut self, block: &Block, level: usize) {
        match block {
            Block::Heading { text } => {
                let level = level.min(6);
                let _ = writeln!(self.out, "<h{level}>{}</h{level}>", escape(text));
            }
            Block::Paragraph { text } => {
                let _ = writeln!(self.out, "<p>{}</p>", inline(text));
            }
            Block::Figures { figures } => self.figures(figures),
            Block::Table(inner) => self.table(inner),
            Block::Plot(inner) => self.plot(inner),
            Block::Samples(inner) => self.samples(inner),
            Block::Details { summary, blocks } => {
                let _ = writeln!(self.out, "<details>\n<summary>{}</summary>", escape(summary));
                for inner in blocks {
                    self.block(inner, level + 1);
                }
                self.out += "</details>\n";
            }
        }
    }

    fn figures(&mut self, figures: &[Figure]) {
        self.out += "<dl class=\"figures\">\n";
        for figure in figures {
            let (class, arrow) = match figure.tone {
                Tone::Neutral => ("", ""),
                Tone::Better => (" class=\"better\"", "✓ better"),
                Tone::Worse => (" class=\"worse\"", "▲ worse"),
            };
            let _ = write!(
                self.out,
                "<div{class}><dt>{}</dt><dd><b>{}</b>",
                escape(&figure.label),
                escape(&figure.value)
            );
            if !figure.unit.is_empty() {
                let _ = write!(self.out, " <span class=\"unit\">{}</span>", escape(&figure.unit));
            }
            self.out += "</dd>";
            if !arrow.is_empty() || !figure.note.is_empty() {
                self.out += "<dd class=\"note\">";
                if !arrow.is_empty() {
                    let _ = write!(self.out, "<span class=\"tone\">{arrow}</span> ");
                }
                self.out += &escape(&figure.note);
                self.out += "</dd>";
            }
            self.out += "</div>\n";
        }
        self.out += "</dl>\n";
    }

    fn table(&mut self, table: &Table) {
        // Focusable, so that a wide table can be scrolled with the keyboard.
        let _ = write!(
            self.out,
            "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{0}\">\n<table>\n\
             <caption>{0}</caption>\n<thead><tr>",
            escape(&table.caption)
        );
        for column in &table.columns {
            let _ = write!(
                self.out,
                "<th scope=\"col\"{}>{}",
                number(column.align),
                escape(&column.name)
            );
            if !column.unit.is_empty() {
                let _ = write!(self.out, " <span class=\"unit\">{}</span>", escape(&column.unit));
            }
            self.out += "</th>";
        }
        self.out += "</tr></thead>\n";
        let mut open = false;
        for row in &table.rows {
            if !open || !row.group.is_empty() {
                self.out += if open { "</tbody>\n<tbody>\n" } else { "<tbody>\n" };
                open = true;
            }
            if !row.group.is_empty() {
                let _ = writeln!(
                    self.out,
                    "<tr class=\"group\"><th scope=\"rowgroup\" colspan=\"{}\">{}</th></tr>",
                    table.columns.len().max(1),
                    escape(&row.group)
                );
            }
            self.out += "<tr>";
            for (i, (cell, column)) in row.cells.iter().zip(&table.columns).enumerate() {
                self.cell(cell, column.align, i == 0);
            }
            self.out += "</tr>\n";
        }
        self.out += if open {
            "</tbody>\n</table>\n</div>\n"
        } else {
            "</table>\n</div>\n"
        };
        self.table_notes(table);
    }

    fn cell(&mut self, cell: &Cell, align: Align, head: bool) {
        let (tag, scope) = if head { ("th", " scope=\"row\"") } else { ("td", "") };
        let _ = write!(self.out, "<{tag}{scope}{}>", number(align));
        let text = escape(&cell.text);
        if cell.mark == Mark::None {
            self.out += &text;
        } else {
            let _ = write!(
                self.out,
                "<span class=\"mark {0}\">{text}</span><span class=\"hidden\"> ({0})</span>",
                cell.mark.word()
            );
        }
        if !cell.note.is_empty() {
            let _ = write!(self.out, " <span class=\"note\">{}</span>", escape(&cell.note));
        }
        let _ = write!(self.out, "</{tag}>");
    }

    fn table_notes(&mut self, table: &Table) {
        let marks = table.marks();
        if marks.is_empty() && table.note.is_empty() {
            return;
        }
        self.out += "<p class=\"note under\">";
        for mark in marks {
            let _ = write!(self.out, "<span class=\"mark {0}\">{0}</span> ", mark.word());
        }
        let _ = writeln!(self.out, "{}</p>", inline(&table.note));
    }

    fn plot(&mut self, plot: &Plot) {
        self.plots += 1;
        let id = format!("plot-{}", self.plots);
        let _ = write!(
            self.out,
            "<figure>\n<figcaption>{}</figcaption>\n<div class=\"wide\">{}</div>\n<div class=\"narrow\">{}</div>\n",
            escape(&plot.title),
            plot.to_svg(Canvas::Wide, &id),
            plot.to_svg(Canvas::Narrow, &format!("{id}-n")),
        );
        if let Some(left_out) = plot.omissions() {
            let _ = writeln!(self.out, "<p class=\"note warn\">⚠ {}</p>", escape(&left_out));
        }
        if !plot.caption.is_empty() {
            let _ = writeln!(self.out, "<p class=\"note\">{}</p>", inline(&plot.caption));
        }
        self.out += "</figure>\n";
    }

    fn samples(&mut self, samples: &Samples) {
        self.out += "<div class=\"samples\">\n";
        for sample in &samples.samples {
            let _ = write!(
                self.out,
                "<figure><figcaption>{}</figcaption><pre>",
                escape(&sample.title)
            );
            if !samples.prompt.is_empty() {
                let _ = write!(self.out, "<b>{}</b>", escape(&samples.prompt));
            }
            let _ = writeln!(self.out, "{}</pre></figure>", escape(&sample.text));
        }
        self.out += "</div>\n";
        if !samples.caption.is_empty() {
            let _ = writeln!(self.out, "<p class=\"note under\">{}</p>", inline(&samples.caption));
        }
    }

    fn footer(&mut self, report: &Report) {
        let mut entries = report.footer.entries().peekable();
        if entries.peek().is_none() {
            return;
        }
        self.out += "<footer>\n<dl>\n";
        for (name, value) in entries {
            let value = escape(value);
            let value = if name == "Command" {
                format!("<code>{value}</code>")
            } else {
                value
            };
            let _ = writeln!(self.out, "<dt>{name}</dt><dd>{value}</dd>");
        }
        self.out += "</dl>\n</footer>\n";
    }
}

fn number(align: Align) -> &'static str {
    match align {
        Align::Left => "",
        Align::Right => " class=\"number\"",
    }
}
