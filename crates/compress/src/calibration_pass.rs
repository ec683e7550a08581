//! The streaming pass: runs the original model over the calibration tokens, layer by layer, and measures its experts.
//!
//! What is in memory at one time: keys and values of one sequence in one layer, and the activations of one piece of it.
//! Pieces are cut by a budget that follows from the configuration alone, so neither long sequences nor wide layers need
//! more. Hidden states lie in files ([`crate::hidden`]), weights stay mapped. All statistics come from the original
//! model: hidden states always continue through the original layer.

use crate::{
    calibrate::CalibrationIds,
    error::CompressError,
    hidden::{self, HiddenStates, HiddenWriter, OneLayer},
    statistics::{LayerStatistics, Observer, Wanted},
};
use ounce_model::{
    Batch, Model, ModelConfig,
    config::{FfnConfig, MoeConfig},
};
use ounce_tensor::{Compute, no_grad};
use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

/// A pass over all layers up to the last mixture.
pub(crate) struct CalibrationPass<'a> {
    model: &'a Model,
    ids: &'a CalibrationIds,
    wanted: Wanted,
    dir: &'a Path,
    tokens: usize,
    piece: usize,
}

/// Told of each layer when it is done and the next one's hidden states are on the disk: its index, and the statistics
/// if it is a mixture.
pub(crate) type LayerDone<'a> = &'a mut dyn FnMut(usize, Option<LayerStatistics>) -> Result<(), CompressError>;

impl<'a> CalibrationPass<'a> {
    /// `dir` holds the hidden states, two files of the calibration's size.
    ///
    /// # Errors
    /// If there is no token.
    pub(crate) fn new(
        model: &'a Model,
        ids: &'a CalibrationIds,
        wanted: Wanted,
        dir: &'a Path,
    ) -> Result<Self, CompressError> {
        let tokens = ids.tokens();
        if tokens == 0 {
            return Err(CompressError::input(
                "calibration",
                "holds no token",
                "give text or ids",
            ));
        }
        Ok(Self {
            model,
            ids,
            wanted,
            dir,
            tokens,
            piece: piece_tokens(&model.config, wanted),
        })
    }

    /// Layers to run.
    pub(crate) fn layers(&self) -> usize {
        self.model
            .config
            .moe_layers()
            .map(|(layer, _)| layer + 1)
            .max()
            .unwrap_or(0)
    }

    /// Runs the layers after the first `done`, whose result an earlier pass left in the folder.
    ///
    /// # Errors
    /// If an id is outside the vocabulary, an activation is not finite, the disk refuses, or `stop` is set
    /// ([`CompressError::Stopped`]).
    pub(crate) fn run(&self, done: usize, each: LayerDone<'_>, stop: &AtomicBool) -> Result<(), CompressError> {
        let layers = self.layers();
        if done == 0 {
            self.embed(stop)?;
        } else {
            hidden::remove(self.dir, done - 1)?;
        }
        for layer in done..layers {
            let statistics = self.layer(layer, layer + 1 < layers, stop)?;
            each(layer, statistics)?;
            hidden::remove(self.dir, layer)?;
        }
        Ok(())
    }

    fn embed(&self, stop: &AtomicBool) -> Result<(), CompressError> {
        let mut out = HiddenWriter::create(self.dir, 0, self.tokens, self.model.config.hidden_size)?;
        for piece in self.ids.rows.iter().flat_map(|row| row.chunks(self.piece)) {
            go_on(stop)?;
            out.write(&self.model.embed(&self.model.context(input(piece))?)?)?;
        }
        out.finish()
    }

    fn layer(
        &self,
        layer: usize,
        continues: bool,
        stop: &AtomicBool,
    ) -> Result<Option<LayerStatistics>, CompressError> {
        let d = self.model.config.hidden_size;
        let before = HiddenStates::open(self.dir, layer, self.tokens, d)?;
        let mut after = if continues {
            Some(HiddenWriter::create(self.dir, layer + 1, self.tokens, d)?)
        } else {
            None
        };
        let block = &self.model.plan().blocks()[layer];
        let mut observer = match block.ffn().as_moe() {
            Some(moe) => Some(Observer::new(layer, moe, d, self.wanted)?),
            None => None,
        };
        let mut first = 0;
        for row in &self.ids.rows {
            let mut cache = OneLayer::new(self.model, row.len());
            for piece in row.chunks(self.piece) {
                go_on(stop)?;
                let x = before.piece(first, piece.len())?;
                let mut ctx = self.model.sequence_context(piece, &mut cache, Compute::F32)?;
                ctx.sink.want_ffn_inputs = observer.is_some();
                ctx.sink.want_routing = observer.is_some();
                let y = no_grad(|| block.forward(&x, &mut ctx))?;
                let mut sink = std::mem::take(&mut ctx.sink);
                if y.values::<f32>().is_some_and(|y| y.iter().any(|v| !v.is_finite())) {
                    return Err(not_finite(layer));
                }
                if let Some(after) = &mut after {
                    after.write(&y)?;
                }
                if let Some(observer) = &mut observer {
                    let (Some((_, inputs)), Some(routing)) = (sink.ffn_inputs.pop(), sink.routing.pop()) else {
                        return Err(CompressError::input("model", "a mixture layer reported nothing", ""));
                    };
                    drop(y);
                    observer.add(&inputs, &routing)?;
                }
                first += piece.len();
            }
            if let Some(observer) = &mut observer {
                observer.end_sequence();
            }
        }
        if let Some(after) = after {
            after.finish()?;
        }
        observer.map(|o| o.finish(self.tokens)).transpose()
    }
}

/// The statistics of every mixture layer of `model`; `dir` is an existing folder for the hidden states.
///
/// # Errors
/// If an id is outside the vocabulary, an activation is not finite, the disk refuses, or `stop` is set.
pub fn gather(
    model: &Model,
    ids: &CalibrationIds,
    wanted: Wanted,
    dir: &Path,
    stop: &AtomicBool,
) -> Result<Vec<LayerStatistics>, CompressError> {
    let mut all = Vec::new();
    let mut each = |_, statistics| {
        all.extend(statistics);
        Ok(())
    };
    CalibrationPass::new(model, ids, wanted, dir)?.run(0, &mut each, stop)?;
    Ok(all)
}

fn input(ids: &[u32]) -> Batch<'_> {
    Batch {
        ids,
        batch: 1,
        compute: Compute::F32,
    }
}

fn go_on(stop: &AtomicBool) -> Result<(), CompressError> {
    if stop.load(Ordering::Relaxed) {
        return Err(CompressError::Stopped(String::new()));
    }
    Ok(())
}

pub(crate) fn not_finite(layer: usize) -> CompressError {
    CompressError::input(
        format!("layer {layer}"),
        "an expert's output, the router or the residual stream is not finite on the calibration tokens",
        "the weights hold NaN or infinity; see `ounce inspect --scan`",
    )
}

/// Bytes of activations, beside what is allowed for three experts, which only the writing needs.
const ACTIVATIONS: usize = 48 << 20;
/// Fewer tokens would make the matrix products slow, more would not make them faster.
const PIECE: std::ops::RangeInclusive<usize> = 16..=2048;

/// Tokens run together: what one token needs at the widest place of the widest layer, against the budget.
fn piece_tokens(c: &ModelConfig, wanted: Wanted) -> usize {
    let d = c.hidden_size;
    let attention = 3 * (c.heads + 2 * c.kv_heads) * c.head_dim;
    let routed = |m: &MoeConfig| {
        let chosen = m.top_k * (3 * m.width + 3 * d) + 3 * m.shared_width.unwrap_or(0);
        let every = match wanted {
            Wanted { subsets: Some(_), .. } => 3 * m.width + (m.experts + 2) * d,
            Wanted { outputs: true, .. } => 3 * m.width + 2 * d,
            _ => 0,
        };
        chosen.max(every) + 4 * m.experts
    };
    let ffn = |ffn: &FfnConfig| {
        if let FfnConfig::Dense { width } = ffn {
            return 3 * width;
        }
        ffn.moe().map_or(0, routed)
    };
    let widest = c.layers.iter().map(|l| ffn(&l.ffn)).max().unwrap_or(0);
    let expert = c.moe_layers().map(|(_, m)| 3 * d * m.width).max().unwrap_or(0);
    let budget = ACTIVATIONS / size_of::<f32>() + 3 * expert;
    (budget / (6 * d + attention.max(widest))).clamp(*PIECE.start(), *PIECE.end())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ounce_model::OpenOptions;
    use serde_json::json;

    fn piece(top_k: usize, width: usize, d: usize) -> usize {
        let config = json!({
            "model_type": "mixtral", "vocab_size": 8, "hidden_size": d, "intermediate_size": width,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 8,
            "num_experts_per_tok": top_k, "rope_theta": 1e4, "rms_norm_eps": 1e-5, "max_position_embeddings": 64,
            "hidden_act": "silu",
        });
        let wanted = Wanted {
            outputs: true,
            ..Wanted::default()
        };
        piece_tokens(&ModelConfig::parse("test", &config).unwrap(), wanted)
    }

    #[test]
    fn pieces_shrink_with_the_width_and_stay_useful() {
        assert_eq!(piece(1, 8, 8), 2048);
        assert!(piece(4, 1024, 128) < piece(2, 1024, 128));
        assert!(piece(8, 4096, 64) >= 16);
    }

    /// Later pieces must see the keys of earlier ones, at their positions.
    #[test]
    fn cut_sequences_give_what_whole_ones_give() {
        let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/merge_mixtral");
        let model = Model::open(&case.join("model"), &OpenOptions::default()).unwrap();
        let row = |start: u32| (0..23).map(|i| (start + i * i) % 90).collect();
        let ids = CalibrationIds {
            rows: vec![row(3), row(8)],
        };
        let wanted = Wanted {
            outputs: true,
            router_columns: true,
            subsets: Some(6),
        };
        let scratch = tempfile::tempdir().unwrap();
        let measured = |piece| {
            let mut pass = CalibrationPass::new(&model, &ids, wanted, scratch.path()).unwrap();
            pass.piece = piece;
            let mut all = Vec::new();
            let mut each = |_, s: Option<LayerStatistics>| {
                all.extend(s);
                Ok(())
            };
            pass.run(0, &mut each, &AtomicBool::new(false)).unwrap();
            all
        };
        let whole = measured(64);
        assert_eq!(whole.len(), 2);
        for piece in [1, 5, 23] {
            for (a, b) in whole.iter().zip(measured(piece)) {
                assert_eq!(a.usage_counts, b.usage_counts, "piece {piece}");
                let pairs = [(&a.mean_output, &b.mean_output), (&a.subset_losses, &b.subset_losses)];
                for (x, y) in pairs.into_iter().flat_map(|(a, b)| a.iter().zip(b)) {
                    assert!((x - y).abs() < 1e-5 * (1.0 + x.abs()), "piece {piece}: {x} {y}");
                }
            }
        }
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0, "files were left");
    }
}
