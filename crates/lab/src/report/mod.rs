//! What every experiment hands to its reader: one report, written once, shown four ways.
//!
//! Owns the document model (title, blocks, footer) and its renderings: a self-contained HTML page, plain
//! terminal text, Markdown tables and, through serde, JSON. It exists so that the bill on the terminal, the
//! page in the browser and the numbers a script reads can never disagree. It must not know how a number was
//! measured, and never measures anything itself.

mod html;
mod plot;
mod scale;
mod style;
mod svg;
mod svg_bars;
mod table;
mod terminal;
#[cfg(test)]
mod tests;
mod text;

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

pub use plot::{Axis, Bar, BarSeries, Plot, PlotData, Point, Scale, Series};
pub use svg::Canvas;
pub use table::{Align, Cell, Column, Goal, Mark, Row, Table};
pub use text::{format_bytes, format_count, format_percent_change};

/// A document: what was done, what came out, and how to do it again.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// One line; also the title of the browser tab.
    pub title: String,
    /// One or two sentences with the answer. May be empty.
    pub subtitle: String,
    /// The content, in reading order.
    pub blocks: Vec<Block>,
    /// How to make this report again.
    pub footer: Footer,
}

/// One piece of a report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Block {
    /// A section heading.
    Heading {
        /// One line.
        text: String,
    },
    /// Running text. `` `code` `` between backticks is set as code; nothing else is markup.
    Paragraph {
        /// One paragraph.
        text: String,
    },
    /// The few numbers to remember, as cards.
    Figures {
        /// In order of importance.
        figures: Vec<Figure>,
    },
    /// A table.
    Table(Table),
    /// A chart.
    Plot(Plot),
    /// Texts to compare, side by side where there is room.
    Samples(Samples),
    /// Content that is folded away until asked for (always open on paper and on the terminal).
    Details {
        /// The line that stays visible.
        summary: String,
        /// What unfolds.
        blocks: Vec<Block>,
    },
}

/// A key figure: one number with its name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What the number is.
    pub label: String,
    /// The number, formatted.
    pub value: String,
    /// Its unit; may be empty.
    pub unit: String,
    /// What it is compared with; may be empty.
    pub note: String,
    /// Whether the number is good or bad news.
    pub tone: Tone,
}

/// Whether a key figure is good or bad news. Shown as a word too, never by colour alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tone {
    /// Neither.
    #[default]
    Neutral,
    /// Better than what it is compared with.
    Better,
    /// Worse than what it is compared with.
    Worse,
}

impl Tone {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Neutral => "",
            Self::Better => "better",
            Self::Worse => "worse",
        }
    }
}

/// Preformatted texts with one common beginning, for instance what each model generates from one prompt.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Samples {
    /// The common beginning, shown set apart before each text; may be empty.
    pub prompt: String,
    /// The texts, in the order of comparison.
    pub samples: Vec<Sample>,
    /// How they were made (temperature, seed, …); may be empty.
    pub caption: String,
}

/// One preformatted text.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Whose text it is.
    pub title: String,
    /// The text without the prompt; spaces and line ends are kept.
    pub text: String,
}

/// How a report was made. Empty fields are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footer {
    /// The command line that makes this report again.
    pub command: String,
    /// Version of the program, with the commit if known.
    pub version: String,
    /// Date of the run, ISO 8601.
    pub date: String,
    /// Processor, threads, memory, instruction set.
    pub machine: String,
}

impl Footer {
    /// The fields that are filled in, with their names.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&'static str, &str)> {
        [
            ("Command", &self.command),
            ("Version", &self.version),
            ("Date", &self.date),
            ("Machine", &self.machine),
        ]
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| (name, value.as_str()))
    }
}

/// Why a report was not made or not written.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A row does not fit its table.
    #[error(
        "table \"{table}\", row {row}: {found} cells for {expected} columns. Hint: give an unknown value as Cell::missing()."
    )]
    RowLength {
        /// Caption of the table.
        table: String,
        /// Row number, from 0.
        row: usize,
        /// Cells given.
        found: usize,
        /// Columns of the table.
        expected: usize,
    },
    /// The file system refused.
    #[error("{}: cannot write the report: {source}. Hint: choose a folder you may write to with --out.", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Report {
    /// An empty report.
    pub fn new(title: impl Into<String>, subtitle: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            subtitle: subtitle.into(),
            ..Self::default()
        }
    }

    /// Adds a block at the end.
    #[must_use]
    pub fn with(mut self, block: Block) -> Self {
        self.blocks.push(block);
        self
    }

    /// Adds a section heading.
    #[must_use]
    pub fn heading(self, text: impl Into<String>) -> Self {
        self.with(Block::Heading { text: text.into() })
    }

    /// Adds a paragraph.
    #[must_use]
    pub fn paragraph(self, text: impl Into<String>) -> Self {
        self.with(Block::Paragraph { text: text.into() })
    }

    /// The whole report as one HTML page that needs no other file, no network and no script.
    pub fn to_html(&self) -> String {
        html::page(self)
    }

    /// The whole report as text for a terminal `width` columns wide; plots become one line per series.
    pub fn to_terminal(&self, width: usize, colour: bool) -> String {
        terminal::report(self, width, colour)
    }

    /// Writes the HTML page. The file appears complete or not at all: it is written beside its place and renamed.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_html(&self, path: &Path) -> Result<(), ReportError> {
        let refused = |source| ReportError::Write {
            path: path.to_path_buf(),
            source,
        };
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        std::fs::write(&partial, self.to_html()).map_err(refused)?;
        std::fs::rename(&partial, path).map_err(refused)
    }
}
