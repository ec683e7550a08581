//! The table: cells that know their number as well as their text, and which of them matter.
//!
//! Owns the data and its Markdown form. HTML is in `html`, terminal text in `terminal`.

use super::ReportError;
use super::text::{format_bytes, format_count, format_number, format_percent_change};
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;

/// Rows and columns with a caption. The first column names the rows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// What the table shows.
    pub caption: String,
    /// The columns; the first one holds the row names.
    pub columns: Vec<Column>,
    /// The rows; each has one cell per column.
    pub rows: Vec<Row>,
    /// How to read it, what is missing and why; may be empty.
    pub note: String,
}

/// A column head.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Unit of every value below; empty when the rows have units of their own.
    pub unit: String,
    /// Alignment of its cells.
    pub align: Align,
}

impl Column {
    /// A column of words.
    pub fn text(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }

    /// A column of numbers.
    pub fn number(name: impl Into<String>, unit: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            unit: unit.into(),
            align: Align::Right,
        }
    }

    /// Name and unit on one line.
    pub(crate) fn head(&self) -> String {
        join_unit(&self.name, &self.unit)
    }
}

pub(crate) fn join_unit(name: &str, unit: &str) -> String {
    match (name.is_empty(), unit.is_empty()) {
        (_, true) => name.to_owned(),
        (true, false) => unit.to_owned(),
        (false, false) => format!("{name} ({unit})"),
    }
}

/// Where a column's cells line up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Align {
    /// Words.
    #[default]
    Left,
    /// Numbers.
    Right,
}

/// One row.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Title of the group of rows that begins here; empty inside a group.
    pub group: String,
    /// One cell per column.
    pub cells: Vec<Cell>,
}

/// One cell.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// What is shown.
    pub text: String,
    /// The exact number behind the text, for machines and for `mark_best`; not-a-number becomes null.
    #[serde(default)]
    pub value: Option<f64>,
    /// A short aside: the change against another cell, the direction that is better.
    #[serde(default)]
    pub note: String,
    /// Whether the eye should stop here.
    #[serde(default)]
    pub mark: Mark,
}

/// Why a cell stands out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mark {
    /// It does not.
    #[default]
    None,
    /// The best of its row or column.
    Best,
    /// Not what it was.
    Changed,
    /// Worse than it may be.
    Worse,
}

impl Mark {
    /// The sign that carries the meaning without colour.
    pub(crate) fn sign(self) -> &'static str {
        match self {
            Self::None => " ",
            Self::Best => "*",
            Self::Changed => "~",
            Self::Worse => "!",
        }
    }

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Best => "best",
            Self::Changed => "changed",
            Self::Worse => "worse",
        }
    }
}

/// Which way a number is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// Memory, loss, time.
    Lower,
    /// Speed, accuracy.
    Higher,
}

impl Cell {
    /// Words.
    pub fn text(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            ..Self::default()
        }
    }

    /// A number with a fixed number of decimals.
    pub fn number(value: f64, decimals: usize) -> Self {
        Self {
            value: Some(value),
            ..Self::text(format_number(value, decimals))
        }
    }

    /// A number of bytes, in binary units.
    pub fn bytes(bytes: u64) -> Self {
        Self {
            value: Some(bytes as f64),
            ..Self::text(format_bytes(bytes))
        }
    }

    /// A count, in decimal units.
    pub fn count(count: u64) -> Self {
        Self {
            value: Some(count as f64),
            ..Self::text(format_count(count))
        }
    }

    /// A value that is not known.
    pub fn missing() -> Self {
        Self::text("–")
    }

    /// The same cell with an aside.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    /// The same cell with its change against `before` as the aside.
    #[must_use]
    pub fn change_from(mut self, before: f64) -> Self {
        if let Some(change) = self.value.and_then(|after| format_percent_change(before, after)) {
            self.note = change;
        }
        self
    }

    /// The same cell, highlighted.
    #[must_use]
    pub fn mark(mut self, mark: Mark) -> Self {
        self.mark = mark;
        self
    }
}

impl Table {
    /// A table without rows.
    pub fn new(caption: impl Into<String>, columns: Vec<Column>) -> Self {
        Self {
            caption: caption.into(),
            columns,
            ..Self::default()
        }
    }

    /// Adds a row.
    ///
    /// # Errors
    /// When it has not one cell per column.
    pub fn push(&mut self, cells: Vec<Cell>) -> Result<&mut Self, ReportError> {
        self.push_group("", cells)
    }

    /// Adds a row that begins a titled group of rows.
    ///
    /// # Errors
    /// When it has not one cell per column.
    pub fn push_group(&mut self, group: impl Into<String>, cells: Vec<Cell>) -> Result<&mut Self, ReportError> {
        if cells.len() != self.columns.len() {
            return Err(ReportError::RowLength {
                table: self.caption.clone(),
                row: self.rows.len(),
                found: cells.len(),
                expected: self.columns.len(),
            });
        }
        self.rows.push(Row {
            group: group.into(),
            cells,
        });
        Ok(self)
    }

    /// Highlights the best number of the last row, ties included. Cells without a finite number do not compete,
    /// and a row where all are equal has no best.
    pub fn mark_best_in_last_row(&mut self, goal: Goal) -> &mut Self {
        if let Some(row) = self.rows.last_mut() {
            mark_best(row.cells.iter_mut(), goal);
        }
        self
    }

    /// Highlights the best number of a column, by the same rules.
    pub fn mark_best_in_column(&mut self, column: usize, goal: Goal) -> &mut Self {
        let cells: Vec<&mut Cell> = self
            .rows
            .iter_mut()
            .filter_map(|row| row.cells.get_mut(column))
            .collect();
        mark_best(cells.into_iter(), goal);
        self
    }

    /// The marks that occur, in a fixed order: what the legend explains.
    pub(crate) fn marks(&self) -> Vec<Mark> {
        [Mark::Best, Mark::Changed, Mark::Worse]
            .into_iter()
            .filter(|mark| {
                let mut cells = self.rows.iter().flat_map(|row| &row.cells);
                cells.any(|cell| cell.mark == *mark)
            })
            .collect()
    }

    /// The table as text for a terminal `width` columns wide. Highlights are signs first, colours second.
    pub fn to_terminal(&self, width: usize, colour: bool) -> String {
        super::terminal::table(self, width, colour)
    }

    /// The table as a GitHub-flavoured Markdown table; the best cells are bold.
    pub fn to_markdown(&self) -> String {
        let mut out = String::new();
        if !self.caption.is_empty() {
            let _ = writeln!(out, "**{}**\n", markdown(&self.caption));
        }
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        out += &line(self.columns.iter().map(|c| markdown(&c.head())).collect());
        let rule = self.columns.iter().map(|c| match c.align {
            Align::Left => "---".to_owned(),
            Align::Right => "---:".to_owned(),
        });
        out += &line(rule.collect());
        for row in &self.rows {
            if !row.group.is_empty() {
                let mut cells = vec![String::new(); self.columns.len()];
                if let Some(first) = cells.first_mut() {
                    *first = format!("*{}*", markdown(&row.group));
                }
                out += &line(cells);
            }
            out += &line(row.cells.iter().map(markdown_cell).collect());
        }
        let marks = self.marks();
        if marks.iter().any(|mark| *mark != Mark::Best) {
            let legend: Vec<String> = marks
                .iter()
                .map(|mark| match mark {
                    Mark::Best => "**bold** best".to_owned(),
                    other => format!("{} {}", markdown(other.sign()), other.word()),
                })
                .collect();
            let _ = writeln!(out, "\n{}", legend.join(", "));
        }
        if !self.note.is_empty() {
            let _ = writeln!(out, "\n{}", markdown(&self.note));
        }
        out
    }
}

fn mark_best<'a>(cells: impl Iterator<Item = &'a mut Cell>, goal: Goal) {
    let mut rivals: Vec<(f64, &mut Cell)> = cells
        .filter_map(|cell| cell.value.filter(|v| v.is_finite()).map(|v| (v, cell)))
        .collect();
    let least = rivals.iter().map(|(v, _)| *v).fold(f64::INFINITY, f64::min);
    let most = rivals.iter().map(|(v, _)| *v).fold(f64::NEG_INFINITY, f64::max);
    if least >= most {
        return;
    }
    let best = if goal == Goal::Lower { least } else { most };
    for (value, cell) in &mut rivals {
        if *value == best {
            cell.mark = Mark::Best;
        }
    }
}

fn markdown_cell(cell: &Cell) -> String {
    let text = markdown(&cell.text);
    let mut out = match cell.mark {
        Mark::Best if !text.is_empty() => format!("**{text}**"),
        Mark::None | Mark::Best => text,
        other => format!("{text} {}", markdown(other.sign())),
    };
    if !cell.note.is_empty() {
        let _ = write!(out, " ({})", markdown(&cell.note));
    }
    out
}

/// Escapes what Markdown would read as markup or as the end of a cell.
fn markdown(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '\n' | '\r' => out.push(' '),
            '<' => out.push_str("&lt;"),
            '&' => out.push_str("&amp;"),
            '|' | '*' | '_' | '`' | '[' | ']' | '\\' | '~' | '!' => out.extend(['\\', c]),
            other => out.push(other),
        }
    }
    out
}
