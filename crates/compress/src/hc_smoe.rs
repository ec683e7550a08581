//! HC-SMoE: retraining-free merging of experts by hierarchical clustering.
//!
//! Paper: "Retraining-Free Merging of Sparse MoE via Hierarchical Clustering", Chen et al., ICML 2025, arXiv 2410.08589.
//! Idea (section 3): describe each expert by its mean output on a small calibration set, join the experts of a layer
//! bottom-up until r groups are left, and replace each group by one expert, the average of its members weighted by how
//! often the router chose them. The router is not touched: its old outputs point to the merged experts.
//!
//! Symbols: n experts of a layer, r groups, N calibration tokens, `o_i [d]` mean output of expert i over all tokens,
//! routed or not, not weighted by the router; `f_i` share of the top-k selections.
//!
//! 1. Features: `o_i`; or the flattened weights; or the expert's column of the router logits.
//! 2. Start with singletons; n - r times, merge the two clusters with the smallest linkage distance (Euclidean; average,
//!    single or complete linkage). Ties: the lexicographically smallest pair of smallest members.
//! 3. Each matrix of a group is `Σ f_i W_i / Σ f_i`; if all `f_i` are zero, the plain average.
//!
//! What the paper leaves open, and what we chose: complete linkage merges the *nearest* pair (the published code takes
//! the farthest); frequencies use the model's own k (the published code always takes 2); nothing is added to the
//! denominator, so that r = n changes no bit; statistics of all layers come from the original model; accumulation is f32.
//! With `merge = "aligned"`, hidden neurons are matched one to one to the group's first member before averaging, which
//! the paper does not do and which keeps permuted copies lossless.

use crate::{
    budget::Budget,
    cluster::{Dendrogram, Linkage, agglomerate},
    error::{CompressError, LayerError},
    geometry::{Geometry, GeometryError, PairAccumulator},
    grouping::Grouping,
    recipe::Similarity,
    statistics::LayerStatistics,
};
use ounce_model::Model;

/// Groups of one layer.
#[derive(Debug, Clone)]
pub struct LayerPlan {
    /// Layer index.
    pub layer: usize,
    /// The groups.
    pub grouping: Grouping,
    /// Heights of all merges of the layer's tree.
    pub heights: Vec<f64>,
}

/// Values of a weight compared at one time.
const PIECE: usize = 1 << 16;

/// Steps 1 and 2 for every mixture layer of `model`. `statistics` has one entry per mixture layer unless weights are
/// compared.
///
/// # Errors
/// If features are not finite, or the budget does not fit.
pub fn plan(
    model: &Model,
    statistics: &[LayerStatistics],
    similarity: Similarity,
    linkage: Linkage,
    budget: &Budget,
) -> Result<Vec<LayerPlan>, CompressError> {
    let layers: Vec<usize> = model.config.moe_layers().map(|(layer, _)| layer).collect();
    let mut trees: Vec<Dendrogram> = Vec::with_capacity(layers.len());
    for (i, &layer) in layers.iter().enumerate() {
        let geometry = match similarity {
            Similarity::ExpertOutput => measured(statistics[i].output_geometry.as_ref()),
            Similarity::RouterLogits => measured(statistics[i].router_geometry.as_ref()),
            Similarity::Weight => weight_geometry(model, layer),
        };
        trees.push(agglomerate(
            &geometry.map_err(|e| LayerError::from(e).at(layer))?,
            linkage,
        ));
    }
    let counts = budget.for_merging(&trees)?;
    layers
        .into_iter()
        .zip(trees.iter().zip(counts))
        .map(|(layer, (tree, r))| {
            let grouping = tree.cut(r).map_err(|e| LayerError::from(e).at(layer))?;
            Ok(LayerPlan {
                layer,
                grouping,
                heights: tree.heights(),
            })
        })
        .collect()
}

/// Distances that the statistics hold; an error if they were not asked for.
fn measured(geometry: Option<&Geometry>) -> Result<Geometry, GeometryError> {
    geometry.cloned().ok_or(GeometryError::Empty)
}

/// Distances of flattened gate, up and down matrices, a piece of every expert at a time.
fn weight_geometry(model: &Model, layer: usize) -> Result<Geometry, GeometryError> {
    let blocks = model.plan().blocks();
    let Some(moe) = blocks[layer].ffn().as_moe() else {
        return Geometry::from_points::<f64>(&[], 0);
    };
    let experts: Vec<_> = moe.map.iter().map(|&e| &moe.experts[e]).collect();
    let mut pairs = PairAccumulator::new(experts.len())?;
    for matrix in 0..3 {
        let tensors: Vec<_> = experts
            .iter()
            .map(|e| &[&e.gate, &e.down, &e.up][matrix].weight.tensor)
            .collect();
        let len = experts[0].gate.weight.tensor.numel();
        for start in (0..len).step_by(PIECE) {
            let pieces: Vec<Vec<f32>> = tensors.iter().map(|t| t.piece(start, PIECE.min(len - start))).collect();
            let rows: Vec<&[f32]> = pieces.iter().map(Vec::as_slice).collect();
            pairs.add_rows(&rows)?;
        }
    }
    pairs.finish()
}
