//! DGA: quality of grouped attention against exact attention, at equal tokens, steps and seeds, where distant context
//! matters.
//!
//! Models are trained with exact attention and with grouped attention of the honest selection (`causal_block`), with and
//! without the entropy bias; the exact ones are also read with grouped attention without any training for it. Figures of
//! the paper's own selection (`global`) are shown for comparison only: it looks ahead in a whole text and flatters.
//! Retrieval: which of the values in a line belongs to the key that is asked for, after a window of other lines.
//!
//! Time is not measured here: `ounce bench attention --method dga` does, on a quiet machine.

use super::{
    Budget, Finding, Measured, Reproduction, Results, Row, Verdict, Workbench,
    recipe::{Setup, Sizes},
    workbench::token_entropy,
};
use crate::{
    LabError,
    report::{Axis, Plot, PlotData},
};
use ounce_eval::{ChoiceItem, Interval};
use ounce_model::attention::dga::DgaConfig;
use ounce_train::Recipe;

/// See the module.
pub(super) struct Dga;

const EXACT: &str = "exact";
/// The paper's settings with the honest selection.
const HEADLINE: &str = "grouped";
/// The same with the entropy bias.
const BIASED: &str = "grouped-entropy";

/// By how much, in percent, the paper's average over `LongBench-E` falls: 21.69 to 21.14.
const PAPER: f64 = 100.0 * (21.69 - 21.14) / 21.69;
/// Points by which exact match in its multi-document retrieval falls: 33.6 to 27.7.
const PAPER_RETRIEVAL: f64 = -5.9;

/// Nats per token that context beyond the exact buffer must gain the exact model: else there is nothing to lose by
/// grouping it. Our choice.
const MATTERS: f64 = 0.05;

/// m of the headline. The paper's 16 is for contexts of thousands of tokens; in the toy corpora nearly all that helps
/// lies within some tens of tokens, which a group of 16 with its buffer would hardly touch.
const GROUP: usize = 4;

/// Share of tokens that stay single, the paper's.
const FOCAL: f64 = 0.1;

/// The keys of `dga` of a variant; none for exact attention.
fn settings(variant: &str) -> Option<String> {
    let (m, gamma, bias) = match variant {
        EXACT => return None,
        BIASED => (GROUP, FOCAL, "entropy"),
        "grouped-m-8" => (8, FOCAL, "none"),
        "grouped-m-16" => (16, FOCAL, "none"),
        "grouped-m-32" => (32, FOCAL, "none"),
        "grouped-gamma-0.2" => (GROUP, 0.2, "none"),
        "grouped-gamma-0.4" => (GROUP, 0.4, "none"),
        _ => (GROUP, FOCAL, "none"),
    };
    Some(format!(
        "dga = {{ selection = \"causal_block\", group_size = {m}, focal_ratio = {gamma}, group_bias = \"{bias}\" }}"
    ))
}

/// Tokens that are compressed together, and what is kept of them.
fn block() -> (usize, usize) {
    let dga = DgaConfig::new(GROUP, FOCAL);
    let block = dga.m_prime.unwrap_or(GROUP);
    let (focal, groups) = dga.block_split(block);
    (block, focal + groups)
}

/// A window whose second half sees one to two blocks: at least what grouped attention keeps single.
fn short() -> usize {
    2 * block().0
}

struct Scale {
    length: usize,
    /// Tokens of an evaluation, scored in second halves of windows.
    tokens: usize,
    questions: usize,
    recipe: Recipe,
}

fn scale(variant: &str, seed: u64, budget: Budget) -> Result<Scale, LabError> {
    // At most 1 M parameters up to `standard`.
    let sizes = Sizes::pick(
        budget,
        [64, 3, 160, 512, 96, 300, 8],
        [128, 4, 320, 1024, 192, 450, 8],
        [192, 6, 512, 4096, 512, 6000, 16],
    );
    let setup = Setup {
        sizes,
        heads: 4,
        positions: sizes.length,
        corpora: &["toy-text", "toy-retrieval"],
        eval_tokens: budget.pick(4096, 8192, 16_384),
    };
    let dga = settings(variant).unwrap_or_default();
    Ok(Scale {
        length: sizes.length,
        tokens: budget.pick(8192, 32_768, 131_072),
        questions: budget.pick(48, 100, 400),
        recipe: setup.recipe(&format!("intermediate_size = {}\ntied = true\n{dga}", sizes.ffn), seed)?,
    })
}

/// Questions of the toy corpus `text` (lines `find: KEY=VALUE … ? KEY => VALUE`), each after `before` bytes of lines; the
/// values of its line are the choices.
fn questions(text: &str, before: usize, count: usize) -> Vec<ChoiceItem> {
    let mut items = Vec::new();
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let (start, end) = (at, at + line.trim_end().len());
        at += line.len();
        // The toy corpus is ASCII.
        let Some(from) = start.checked_sub(before) else {
            continue;
        };
        let Some((known, answer)) = line
            .trim_end()
            .rsplit_once(" => ")
            .filter(|_| line.starts_with("find:"))
        else {
            continue;
        };
        let pairs = known
            .split_whitespace()
            .filter_map(|word| Some(word.split_once('=')?.1));
        let mut choices: Vec<String> = pairs.map(|value| format!(" {value}")).collect();
        choices.sort();
        choices.dedup();
        let answer = choices.iter().position(|c| c.trim() == answer);
        if let (Some(answer), true) = (answer, choices.len() > 1) {
            items.push(ChoiceItem {
                context: text[from..end - choices[answer].len()].to_owned(),
                choices,
                answer,
                groups: Vec::new(),
            });
        }
        if items.len() == count {
            break;
        }
    }
    items
}

impl Reproduction for Dga {
    fn name(&self) -> &'static str {
        "dga"
    }
    fn title(&self) -> &'static str {
        "DGA: dynamic group attention (ICML 2025, arXiv 2505.22107)"
    }
    fn claim(&self) -> &'static str {
        "With 0.156 of the keys a model answers nearly as well: the average over LongBench-E falls from 21.69 to 21.14, by \
         2.5 %, while decoding takes 28.8 ms per token in place of 69.7 (Llama-2-7B continued for 1000 steps); exact \
         match in retrieval falls from 33.6 to 27.7. Tested here: at equal tokens, steps and seeds, and with a selection \
         that cannot look ahead, the validation loss is at most 2.5 % above that of exact attention; windows are short, so \
         groups have 4 tokens in place of 16, and 0.4 of the keys are kept. Time is not tested here: `ounce bench \
         attention --method dga` measures it."
    }
    fn variants(&self, budget: Budget) -> Vec<&'static str> {
        budget.pick(
            vec![EXACT, HEADLINE, BIASED],
            vec![EXACT, HEADLINE, BIASED, "grouped-m-16"],
            vec![
                EXACT,
                HEADLINE,
                BIASED,
                "grouped-m-8",
                "grouped-m-16",
                "grouped-m-32",
                "grouped-gamma-0.2",
                "grouped-gamma-0.4",
            ],
        )
    }
    fn seeds(&self, budget: Budget) -> u64 {
        budget.pick(8, 5, 5)
    }
    fn settings(&self, variant: &str, seed: u64, budget: Budget) -> Result<String, LabError> {
        Ok(scale(variant, seed, budget)?.recipe.to_toml())
    }

    fn run(&self, variant: &str, seed: u64, bench: &mut Workbench<'_>) -> Result<Measured, LabError> {
        let scale = scale(variant, seed, bench.budget)?;
        let trained = bench.train("train", &scale.recipe)?;
        let valid = trained.ids(&bench.text("toy-text.valid.txt")?)?;
        // A third of a window of tokens: bytes are more than tokens, and what is too long loses its beginning.
        let items = questions(&bench.text("toy-retrieval.valid.txt")?, scale.length, scale.questions);
        let mut measured = Measured::default();
        let mut put = |name: String, value: f64| {
            measured.values.insert(name, value);
        };
        if variant == EXACT {
            for (name, keys) in [
                ("at once", "selection=causal_block"),
                ("at once, entropy", "selection=causal_block,group_bias=entropy"),
                ("at once, looking ahead", "selection=global"),
            ] {
                let spec = format!("dga:group_size={GROUP},focal_ratio={FOCAL},{keys}");
                let grouped = trained.with_attention(&spec)?;
                let loss = grouped.loss_at(&valid, scale.length, scale.tokens)?;
                put(format!("loss, {name}"), 100.0 * loss.ln());
                put(format!("retrieval, {name}"), 100.0 * grouped.accuracy(&items)?);
            }
            put("short".into(), trained.loss_at(&valid, short(), scale.tokens)?);
            let chance = items.iter().map(|i| 1.0 / i.choices.len() as f64).sum::<f64>();
            put("chance".into(), 100.0 * chance / items.len() as f64);
        }
        let loss = trained.loss_at(&valid, scale.length, scale.tokens)?;
        put("loss".into(), loss);
        // Differences of these are percent of the loss.
        put("log loss".into(), 100.0 * loss.ln());
        put("retrieval".into(), 100.0 * trained.accuracy(&items)?);
        put("no context".into(), token_entropy(&valid));
        let mut by_length = Vec::new();
        for window in [scale.length / 8, scale.length / 4, scale.length / 2, scale.length] {
            by_length.push((window as f64, trained.loss_at(&valid, window, scale.tokens)?));
        }
        measured.curves.insert("by length".into(), by_length);
        measured.curves.insert("validation".into(), trained.validation);
        Ok(measured)
    }

    fn judge(&self, results: &Results) -> Result<Finding, LabError> {
        let variants = self.variants(results.budget);
        let mut rows = vec![
            Row::new(
                "loss without any context (nats/token)",
                results.interval(EXACT, "no context")?,
                None,
            ),
            Row::new(
                format!("loss, {EXACT}, windows of {} (nats/token)", short()),
                results.interval(EXACT, "short")?,
                None,
            ),
        ];
        for variant in &variants {
            let name = format!("loss, {variant} (nats/token)");
            rows.push(Row::new(name, results.interval(variant, "loss")?, None));
        }
        let gain = results.change(EXACT, "short", "loss")?;
        let name = format!("gain of {EXACT} from more than that (nats/token)");
        rows.push(Row::new(name, gain, None));
        let (block, kept) = block();
        if let Some(share) = Interval::of(&[kept as f64 / block as f64]) {
            rows.push(Row::new("keys kept of a full block", share, Some(0.156)));
        }
        for variant in variants.iter().filter(|v| **v != EXACT) {
            let paper = (*variant == HEADLINE).then_some(PAPER);
            let name = format!("{variant} - {EXACT} (% of the loss; paper: fall of the score)");
            rows.push(Row::new(name, results.difference(variant, EXACT, "log loss")?, paper));
        }
        for (name, words) in [
            ("at once", "grouped, not trained so"),
            ("at once, entropy", "grouped with entropy, not trained so"),
            ("at once, looking ahead", "grouped looking ahead, not trained so"),
        ] {
            let change = results.change(EXACT, &format!("loss, {name}"), "log loss")?;
            rows.push(Row::new(format!("{words} - {EXACT} (% of the loss)"), change, None));
        }
        rows.push(Row::new(
            "retrieval by chance (%)",
            results.interval(EXACT, "chance")?,
            None,
        ));
        rows.push(Row::new(
            "retrieval, exact (%; paper: exact match)",
            results.interval(EXACT, "retrieval")?,
            Some(33.6),
        ));
        for variant in variants.iter().filter(|v| **v != EXACT) {
            let paper = (*variant == HEADLINE).then_some(PAPER_RETRIEVAL);
            let name = format!("retrieval, {variant} - {EXACT} (points)");
            rows.push(Row::new(name, results.difference(variant, EXACT, "retrieval")?, paper));
        }
        for name in ["at once", "at once, entropy"] {
            let change = results.change(EXACT, &format!("retrieval, {name}"), "retrieval")?;
            rows.push(Row::new(
                format!("retrieval, grouped {name} - {EXACT} (points)"),
                change,
                None,
            ));
        }

        let gap = results.difference(HEADLINE, EXACT, "log loss")?;
        let far = gain.ci95.map_or(gain.mean, |[low, _]| low) >= MATTERS;
        let verdict = match Verdict::at_most(&gap, PAPER) {
            Verdict::Holds if !far => Verdict::Inconclusive,
            verdict => verdict,
        };
        let seen = gap.half_width().map_or_else(
            || "one seed has no interval, so nothing can be told".to_owned(),
            |half| format!("the smallest change that could have been told from none is {half:.2} %"),
        );
        let blind = if far {
            format!(
                ", where context beyond {} tokens gains exact attention {:.4} nats per token",
                short(),
                gain.mean
            )
        } else {
            format!(
                "; but context beyond {} tokens gains even exact attention only {:.4} nats per token (below {MATTERS}), so \
                 there is little that grouping could lose",
                short(),
                gain.mean
            )
        };
        let recall = results.change(EXACT, "retrieval", "chance")?;
        let recalls = recall.ci95.map_or(recall.mean, |[low, _]| low) > 0.0;
        let recall = if recalls {
            ""
        } else {
            " Even exact attention answers the retrieval questions no better than by chance, so they say nothing of recall."
        };
        let why = format!(
            "Trained and read with grouped attention that cannot look ahead, the loss is {:+.2} % from that of exact \
             attention over {} seeds, against a margin of {PAPER:.2} %{blind}; {seen}. Small models on toy text, groups of \
             {GROUP} in place of the paper's 16 and windows of at most some hundred tokens: quality only, not time.{recall}",
            gap.mean, gap.n
        );
        let plot = |title: &str, caption: &str, x: Axis, curve: &str| -> Result<Plot, LabError> {
            let series = variants.iter().map(|v| results.curve(v, curve));
            Ok(Plot {
                title: title.into(),
                caption: caption.into(),
                data: PlotData::Lines {
                    x,
                    y: Axis::linear("Loss", "nats per token"),
                    series: series.collect::<Result<_, _>>()?,
                },
            })
        };
        Ok(Finding {
            rows,
            verdict,
            why,
            plots: vec![
                plot(
                    "Loss by window",
                    "Mean over seeds; bands are 95 % intervals. Second halves of windows only.",
                    Axis::log("Window", "tokens"),
                    "by length",
                )?,
                plot(
                    "Validation loss over steps",
                    "Mean over seeds; bands are 95 % intervals.",
                    Axis::linear("Step", ""),
                    "validation",
                )?,
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn questions_ask_for_the_value_of_a_key_among_those_of_the_line() {
        let text = "copy: a b => a b\nfind: amber=12 birch=34 cedar=34 ? birch => 34\ncopy: c => c\n\
                    find: delta=56 ? delta => 56\nfind: ember=78 flint=90 ? ember => 78\n";
        let items = questions(text, 5, 9);
        // One value is no choice; values that occur twice are one choice.
        assert_eq!(items.len(), 2);
        assert_eq!(
            (items[0].choices.clone(), items[0].answer),
            (vec![" 12".to_owned(), " 34".to_owned()], 1)
        );
        assert_eq!(items[0].context, " a b\nfind: amber=12 birch=34 cedar=34 ? birch =>");
        assert_eq!(items[1].choices[items[1].answer], " 78");
        assert!(items[1].context.ends_with("find: ember=78 flint=90 ? ember =>"));
        assert_eq!(questions(text, 5, 1).len(), 1);
        assert!(questions(text, 500, 9).is_empty());
    }

    fn judged(gain: f64, percent: f64) -> Finding {
        let seeds: Vec<u64> = (1..=4).collect();
        let mut results = Results::new(Budget::Quick, seeds.clone());
        for &seed in &seeds {
            let noise = 1e-3 * seed as f64;
            for variant in Dga.variants(Budget::Quick) {
                let log = if variant == EXACT { 0.0 } else { percent + noise };
                let mut values = BTreeMap::new();
                for (name, value) in [
                    ("loss", 1.0),
                    ("log loss", log),
                    ("no context", 4.0),
                    ("short", 1.0 + gain + noise),
                    ("chance", 25.0),
                    ("retrieval", 40.0),
                    ("loss, at once", 1.0),
                    ("loss, at once, entropy", 1.0),
                    ("loss, at once, looking ahead", 1.0),
                    ("retrieval, at once", 1.0),
                    ("retrieval, at once, entropy", 1.0),
                ] {
                    values.insert(name.to_owned(), value);
                }
                let line = vec![(1.0, 1.0)];
                let curves = BTreeMap::from([("by length".to_owned(), line.clone()), ("validation".to_owned(), line)]);
                results.insert(variant, seed, Measured { values, curves });
            }
        }
        Dga.judge(&results).unwrap()
    }

    /// Where distant context gains nothing, nothing can be lost by grouping it: no verdict from such models.
    #[test]
    fn the_verdict_needs_distant_context_that_matters() {
        assert_eq!(judged(0.2, 1.0).verdict, Verdict::Holds);
        let blind = judged(0.01, 1.0);
        assert_eq!(blind.verdict, Verdict::Inconclusive);
        assert!(blind.why.contains("little that grouping could lose"), "{}", blind.why);
        assert_eq!(judged(0.2, 5.0).verdict, Verdict::DoesNotHold);
        assert_eq!(judged(0.2, PAPER - 0.0025).verdict, Verdict::Inconclusive);
    }
}
