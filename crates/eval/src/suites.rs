//! The suites: which files they read, and how a line becomes an item.
//!
//! A suite is one JSONL file below the data folder. Readers take the fields that are there and refuse anything else about
//! them, naming file and line: a suite read wrongly gives a number that looks right.

use crate::{
    choice::ChoiceItem,
    error::{EvalError, Result},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fmt, fs,
    path::{Path, PathBuf},
    str::FromStr,
};

/// A multiple-choice suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Suite {
    /// PIQA (Bisk et al. 2020): which of two solutions reaches a physical goal.
    Piqa,
    /// BLiMP (Warstadt et al. 2020): which of two sentences is grammatical; by the likelihood of the whole sentence.
    Blimp,
}

impl Suite {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Piqa, Self::Blimp];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Piqa => "piqa",
            Self::Blimp => "blimp",
        }
    }

    /// Its file below the data folder.
    pub fn file(self, data: &Path) -> PathBuf {
        data.join(match self {
            Self::Piqa => "eval/piqa/valid.jsonl",
            Self::Blimp => "eval/blimp/blimp.jsonl",
        })
    }

    /// Reads the items of `path`, a file of this suite. Empty lines are skipped.
    ///
    /// # Errors
    /// If the file cannot be read, holds no item, or a line is not an item of this suite.
    pub fn read(self, path: &Path) -> Result<Vec<ChoiceItem>> {
        match self {
            Self::Piqa => read_lines(path, PIQA_LINE, |line| piqa(&line)),
            Self::Blimp => read_lines(path, BLIMP_LINE, |line| Ok(blimp(line))),
        }
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Suite {
    type Err = EvalError;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|suite| suite.name() == name)
            .ok_or_else(|| EvalError::Input {
                what: format!("suite \"{name}\""),
                rule: "is not known".into(),
                hint: "the suites are piqa and blimp",
            })
    }
}

/// `count` items spread evenly over `items`, which keeps a selection of a sorted suite representative; all of them if there
/// are no more.
pub fn spread(items: &[ChoiceItem], count: usize) -> Vec<ChoiceItem> {
    let n = items.len();
    if count >= n {
        items.to_vec()
    } else {
        (0..count).map(|i| items[i * n / count].clone()).collect()
    }
}

const PIQA_LINE: &str = "a line is {\"goal\": text, \"sol1\": text, \"sol2\": text, \"label\": 0 or 1}";
const BLIMP_LINE: &str = "a line is {\"uid\": text, \"term\": text, \"field\": text, \"good\": text, \"bad\": text}";

#[derive(Deserialize)]
struct PiqaLine {
    goal: String,
    sol1: String,
    sol2: String,
    label: usize,
}

/// The prompt is that of lm-evaluation-harness.
fn piqa(line: &PiqaLine) -> std::result::Result<ChoiceItem, String> {
    if line.label > 1 {
        return Err(format!("label is {}, not 0 or 1", line.label));
    }
    Ok(ChoiceItem {
        context: format!("Question: {}\nAnswer:", line.goal),
        choices: vec![format!(" {}", line.sol1), format!(" {}", line.sol2)],
        answer: line.label,
        groups: Vec::new(),
    })
}

#[derive(Deserialize)]
struct BlimpLine {
    uid: String,
    term: String,
    field: String,
    good: String,
    bad: String,
}

fn blimp(line: BlimpLine) -> ChoiceItem {
    ChoiceItem {
        context: String::new(),
        choices: vec![line.good, line.bad],
        answer: 0,
        groups: vec![
            ("uid".into(), line.uid),
            ("term".into(), line.term),
            ("field".into(), line.field),
        ],
    }
}

fn read_lines<L: DeserializeOwned>(
    path: &Path,
    hint: &'static str,
    item: fn(L) -> std::result::Result<ChoiceItem, String>,
) -> Result<Vec<ChoiceItem>> {
    let text = fs::read(path).map_err(|source| EvalError::Io {
        path: path.to_owned(),
        source,
    })?;
    let mut items = Vec::new();
    for (n, line) in text.split(|&byte| byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        let parsed = serde_json::from_slice::<L>(line)
            .map_err(|e| e.to_string())
            .and_then(item);
        items.push(parsed.map_err(|rule| EvalError::Line {
            path: path.to_owned(),
            line: n + 1,
            rule,
            hint,
        })?);
    }
    if items.is_empty() {
        return Err(EvalError::Line {
            path: path.to_owned(),
            line: 1,
            rule: "the file holds no item".into(),
            hint,
        });
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(suite: Suite, content: &[u8]) -> Result<Vec<ChoiceItem>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("suite.jsonl");
        fs::write(&path, content).unwrap();
        suite.read(&path)
    }

    #[test]
    fn piqa_lines_become_questions() {
        let content = br#"{"goal": "ice box", "sol1": "will cool", "sol2": "will heat ", "label": 0}

{"goal": "dresser", "sol1": "a", "sol2": "b", "label": 1, "extra": true}"#;
        let items = read(Suite::Piqa, content).unwrap();
        assert_eq!(items.len(), 2);
        assert_eq!(items[0].context, "Question: ice box\nAnswer:");
        assert_eq!(items[0].choices, [" will cool", " will heat "]);
        assert_eq!((items[0].answer, items[1].answer), (0, 1));
    }

    #[test]
    fn blimp_lines_become_pairs_without_context() {
        let content = br#"{"uid": "adjunct_island", "term": "island_effects", "field": "syntax", "good": "Who ran?", "bad": "Ran who?"}"#;
        let items = read(Suite::Blimp, content).unwrap();
        assert_eq!((items[0].context.as_str(), items[0].answer), ("", 0));
        assert_eq!(items[0].choices, ["Who ran?", "Ran who?"]);
        let groups: Vec<_> = items[0]
            .groups
            .iter()
            .map(|(kind, name)| (kind.as_str(), name.as_str()))
            .collect();
        assert_eq!(
            groups,
            [
                ("uid", "adjunct_island"),
                ("term", "island_effects"),
                ("field", "syntax")
            ]
        );
    }

    #[test]
    fn malformed_lines_are_named() {
        let good = r#"{"goal": "g", "sol1": "a", "sol2": "b", "label": 0}"#;
        for (bad, rule) in [
            ("{", "EOF"),
            (r#"{"goal": "g", "sol1": "a", "label": 0}"#, "sol2"),
            (r#"{"goal": "g", "sol1": "a", "sol2": "b", "label": 2}"#, "label is 2"),
            (r#"{"goal": "g", "sol1": "a", "sol2": "b", "label": -1}"#, "-1"),
            (r#"{"goal": 3, "sol1": "a", "sol2": "b", "label": 0}"#, "string"),
            (&format!("{good} {good}"), "trailing"),
        ] {
            let error = read(Suite::Piqa, format!("{good}\n\n{bad}\n").as_bytes()).unwrap_err();
            let text = error.to_string();
            assert!(text.contains("suite.jsonl: line 3: ") && text.contains(rule), "{text}");
            assert!(error.hint().unwrap().contains("sol1"));
        }
        let bytes = b"{\"goal\": \"\xff\", \"sol1\": \"a\", \"sol2\": \"b\", \"label\": 0}";
        assert!(read(Suite::Piqa, bytes).unwrap_err().to_string().contains("line 1"));
        // One pair of the published file holds the same sentence twice: a tie, which counts as wrong.
        let same = br#"{"uid": "u", "term": "t", "field": "f", "good": "x", "bad": "x"}"#;
        assert_eq!(read(Suite::Blimp, same).unwrap().len(), 1);
        assert!(
            read(Suite::Blimp, b"\n \n")
                .unwrap_err()
                .to_string()
                .contains("no item")
        );
        let missing = Suite::Blimp.read(Path::new("no/such.jsonl")).unwrap_err().to_string();
        assert!(missing.starts_with("no/such.jsonl: "), "{missing}");
    }

    #[test]
    fn names_lead_back_to_suites() {
        for suite in Suite::ALL {
            assert_eq!(suite.name().parse::<Suite>().unwrap(), suite);
            let error = "mmlu".parse::<Suite>().unwrap_err();
            assert!(error.hint().unwrap().contains(suite.name()));
        }
    }

    #[test]
    fn a_selection_spreads_over_the_suite() {
        let items: Vec<ChoiceItem> = (0..10)
            .map(|i| ChoiceItem {
                context: i.to_string(),
                choices: Vec::new(),
                answer: 0,
                groups: Vec::new(),
            })
            .collect();
        let pick = |count| {
            spread(&items, count)
                .iter()
                .map(|i| i.context.clone())
                .collect::<String>()
        };
        assert_eq!(pick(5), "02468");
        assert_eq!(pick(3), "036");
        assert_eq!(
            (pick(10).as_str(), pick(99).as_str(), pick(0).as_str()),
            ("0123456789", "0123456789", "")
        );
    }
}
