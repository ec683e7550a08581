//! The recipe that every experiment writes for its runs.

use super::Budget;
use crate::LabError;
use ounce_train::Recipe;

/// Sizes of a model and of its training.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    /// Model width.
    pub(super) d: usize,
    /// Layers.
    pub(super) layers: usize,
    /// Width of a feed-forward block; what exactly it is the width of is up to the experiment.
    pub(super) ffn: usize,
    /// Tokens of the vocabulary.
    pub(super) vocab: usize,
    /// Tokens per window.
    pub(super) length: usize,
    /// Steps.
    pub(super) steps: usize,
    /// Windows per step.
    pub(super) batch: usize,
}

impl Sizes {
    /// The sizes of a budget, each list in the order of the fields.
    pub(super) fn pick(budget: Budget, quick: [usize; 7], standard: [usize; 7], full: [usize; 7]) -> Self {
        let [d, layers, ffn, vocab, length, steps, batch] = budget.pick(quick, standard, full);
        Self {
            d,
            layers,
            ffn,
            vocab,
            length,
            steps,
            batch,
        }
    }
}

/// A run: its sizes, and what else differs between experiments.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setup {
    /// Sizes.
    pub(super) sizes: Sizes,
    /// Heads.
    pub(super) heads: usize,
    /// Positions of the model.
    pub(super) positions: usize,
    /// Toy corpora; the validation text is that of the first.
    pub(super) corpora: &'static [&'static str],
    /// Validation tokens per evaluation.
    pub(super) eval_tokens: usize,
}

impl Setup {
    /// The recipe of a new model; `own` are the lines of `[model]`, and the tables after it, that belong to the variant.
    ///
    /// # Errors
    /// If it is not valid.
    pub(super) fn recipe(&self, own: &str, seed: u64) -> Result<Recipe, LabError> {
        let Self {
            sizes,
            heads,
            positions,
            ..
        } = self;
        let model = format!(
            "[tokenizer]\ntrain_vocab = {}\n[model]\nhidden_size = {}\nlayers = {}\nheads = {heads}\nmax_positions = {positions}\n{own}",
            sizes.vocab, sizes.d, sizes.layers
        );
        self.parse(&model, "3e-3", seed)
    }

    /// The recipe that continues a model at a third of the learning rate; whoever trains it puts the folder in. `own` are
    /// the tables that belong to the variant.
    ///
    /// # Errors
    /// If it is not valid.
    pub(super) fn tuning(&self, own: &str, seed: u64) -> Result<Recipe, LabError> {
        self.parse(&format!("init = \"BASE\"\n{own}"), "1e-3", seed)
    }

    fn parse(&self, model: &str, lr: &str, seed: u64) -> Result<Recipe, LabError> {
        let Sizes {
            length, steps, batch, ..
        } = self.sizes;
        let path = |name: &str| format!("${{data}}/{name}.txt");
        let train: Vec<String> = self.corpora.iter().map(|name| path(name)).collect();
        let validation: Vec<String> = self
            .corpora
            .iter()
            .take(1)
            .map(|n| path(&format!("{n}.valid")))
            .collect();
        let text = format!(
            r#"
{model}
[data]
train = {train:?}
validation = {validation:?}
[optimizer]
lr = {lr}
[schedule]
warmup = {}
[run]
steps = {steps}
batch = {batch}
length = {length}
seed = {seed}
eval_every = {}
eval_tokens = {}
checkpoint_every = {}
keep = 1
export = "f32"
"#,
            steps / 10,
            (steps / 8).max(1),
            self.eval_tokens,
            (steps / 4).max(1),
        );
        Ok(Recipe::parse("the experiment", &text, &[])?)
    }
}

/// The settings of a run of two recipes: the first as TOML, the second in comments below it.
pub(super) fn followed_by(first: &Recipe, second: &Recipe) -> String {
    let second = second.to_toml();
    let lines = second.lines().map(|line| format!("# then: {line}\n"));
    first.to_toml() + &lines.collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_holds_the_sizes_and_the_lines_of_its_variant() {
        let sizes = Sizes::pick(Budget::Standard, [0; 7], [32, 2, 48, 300, 16, 80, 4], [0; 7]);
        let setup = Setup {
            sizes,
            heads: 2,
            positions: 64,
            corpora: &["toy-text", "toy-retrieval"],
            eval_tokens: 128,
        };
        let recipe = setup
            .recipe(
                "intermediate_size = 48\n[objective]\nkind = \"long_short\"\nalpha = 0.5",
                7,
            )
            .unwrap();
        let text = recipe.to_toml();
        let lines = |text: &str| -> Vec<String> { text.lines().map(str::to_owned).collect() };
        for line in [
            "hidden_size = 32",
            "layers = 2",
            "heads = 2",
            "intermediate_size = 48",
            "max_positions = 64",
            "train_vocab = 300",
            "alpha = 0.5",
            "warmup = 8",
            "steps = 80",
            "batch = 4",
            "length = 16",
            "seed = 7",
            "eval_every = 10",
            "eval_tokens = 128",
        ] {
            assert!(lines(&text).contains(&line.to_owned()), "{line}: {text}");
        }
        assert_eq!(recipe.data.validation, ["${data}/toy-text.valid.txt"]);
        assert_eq!(recipe.data.train, ["${data}/toy-text.txt", "${data}/toy-retrieval.txt"]);
        let tuning = setup.tuning("", 7).unwrap();
        assert!(tuning.model.is_none() && tuning.init.is_some());
        let both = followed_by(&recipe, &tuning);
        assert!(
            both.starts_with(&text) && both.contains("\n# then: steps = 80\n"),
            "{both}"
        );
        assert_eq!(Recipe::parse("both", &both, &[]).unwrap().hash(), recipe.hash());
        assert!(setup.recipe("intermediate_size = \"wide\"", 7).is_err());
    }
}
