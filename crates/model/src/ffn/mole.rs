//! Mixture of Lookup Experts: routed experts that read the token's embedding, and so become tables.
//!
//! Paper: Jie et al., "Mixture of Lookup Experts", ICML 2025, arXiv 2503.15798. An expert whose input is the embedding has
//! only V different inputs. After training, each expert's V outputs are computed once and stored; a token then fetches a
//! few kilobytes whose place is known from its id alone, and no expert weights or arithmetic remain. Router and shared
//! expert still see the hidden state.
//!
//! Symbols: N tokens, D model width, E routed experts, I width of every expert, V vocabulary, L layers, U different ids
//! among the tokens; `u` the normalised input of the slot, `e` the raw embeddings.
//!
//! ```text
//! g   = softmax_E(u w_routerᵀ)                          all E experts, in f32
//! s   = gelu(u w_upᵀ) w_downᵀ                           the shared expert; exact (erf) GELU, no gate matrix
//! z_j = gelu(rms_norm(e, w_exp) w_up,jᵀ) w_down,jᵀ      training form
//! z_j = table[id, layer, j]                             lookup form
//! y   = s + Σ_j g_j · z_j
//! ```
//!
//! What the paper leaves open and what we chose:
//! - Its formulas omit the norm of the experts' input, its published model has it (one per layer for all experts): so do
//!   we. That program ignores `hidden_act`: so do we, any value is allowed and GELU is meant.
//! - z depends on nothing but the id: both forms compute or fetch it once per different id of a call.
//! - The published table is one matrix `model.moe_table.weight [V, L·E·D]`, a token's row in the order layer, expert,
//!   channel. We read the same layout, mapped from the file, and gather it layer by layer.
//! - A table belongs to the embedding and experts it was made from. Our builder notes SHA-256 sums under the key
//!   `mole_table`: of everything it read (`built_from`), of the embedding, of all rows (`rows`) and of a sample of rows
//!   spread over the table (`sample`). Opening a model checks embedding and sample, so a table whose embedding has moved
//!   on, or a table of another model, is refused. A folder without the key (made by another program) is taken as it is.
//!
//! Training the lookup form is refused: the embedding would move and the table would not. Decode is the same forward.

mod table;
#[cfg(test)]
mod tests;

use super::{Bill, FeedForward, FfnFamily, FfnMethod};
use crate::{
    config::{ModelConfig, keys::Keys, refuse},
    ctx::Ctx,
    error::{ModelError, Result},
    param::{Linear, Param},
    weights::Weights,
};
use ounce_tensor::{Compute, Tensor, ops};
use std::{collections::HashMap, sync::Arc};
use table::check_record;

pub use table::{EMBEDDING, RECORD, TABLE, TableRecord, sample_sum, sampled};

/// The keys of `model_type` "mole" and "`mole_lut`" that belong to the method.
#[derive(Debug, Clone, PartialEq)]
pub struct MoleConfig {
    /// `num_experts`: E; 0 leaves the shared expert alone, which is the paper's dense model.
    pub experts: usize,
    /// `intermediate_size`: I, of the shared and of every routed expert.
    pub width: usize,
    /// Is this the lookup form?
    pub lookup: bool,
    /// `mole_table`, in the lookup form.
    pub record: Option<TableRecord>,
}

pub(crate) const FAMILY: FfnFamily = FfnFamily {
    model_type: "mole",
    used: &["attention_bias", "pretraining_tp", "num_experts"],
    reads_hidden_act: false,
    read: |keys| Ok(Arc::new(MoleConfig::read(keys, false)?)),
};

pub(crate) const LOOKUP: FfnFamily = FfnFamily {
    model_type: "mole_lut",
    used: &["attention_bias", "pretraining_tp", "num_experts", RECORD],
    reads_hidden_act: false,
    read: |keys| Ok(Arc::new(MoleConfig::read(keys, true)?)),
};

impl MoleConfig {
    fn read(keys: &Keys<'_>, lookup: bool) -> Result<Self> {
        let experts = match keys.count("num_experts", 0..=1 << 16)? {
            Some(0) if lookup => {
                let hint = "a model without routed experts has no table: \"model_type\": \"mole\"";
                return refuse(keys.file, "num_experts", "must be at least 1, is 0", hint);
            }
            Some(n) => n,
            None => return keys.bad("num_experts", "is missing"),
        };
        let record = match keys.get(RECORD) {
            None => None,
            Some(value) => match serde_json::from_value(value.clone()) {
                Ok(record) => Some(record),
                Err(e) => {
                    let hint = "build the table again with `ounce convert --to mole-lut`";
                    return refuse(keys.file, RECORD, format!("is damaged: {e}"), hint);
                }
            },
        };
        Ok(Self {
            experts,
            width: keys.size("intermediate_size")?,
            lookup,
            record,
        })
    }
}

impl FfnMethod for MoleConfig {
    fn build(&self, config: &ModelConfig, layer: usize, weights: &mut dyn Weights) -> Result<Box<dyn FeedForward>> {
        Ok(Box::new(MoleFfn::new(self, config, layer, weights)?))
    }

    fn width(&self) -> usize {
        self.width * (1 + if self.lookup { 0 } else { self.experts })
    }
}

/// A two-matrix layer: `down(gelu(up(x)))`.
struct Mlp {
    /// `[I, D]`.
    up: Linear,
    /// `[D, I]`.
    down: Linear,
}

impl Mlp {
    fn new(prefix: &str, d: usize, width: usize, weights: &mut dyn Weights) -> Result<Self> {
        Ok(Self {
            up: weights.linear(&format!("{prefix}.up_proj"), width, d, false)?,
            down: weights.linear(&format!("{prefix}.down_proj"), d, width, false)?,
        })
    }
    fn apply(&self, x: &Tensor, compute: Compute) -> Result<Tensor> {
        self.down.forward(&ops::gelu(&self.up.forward(x, compute)?)?, compute)
    }
    fn visit(&mut self, f: &mut dyn FnMut(&mut Param)) {
        self.up.visit(f);
        self.down.visit(f);
    }
    fn parameters(&self) -> u64 {
        self.up.parameters() + self.down.parameters()
    }
}

/// Where the routed experts' outputs come from.
enum Experts {
    /// The experts themselves and the norm of their input.
    Trained { norm: Param, eps: f64, experts: Vec<Mlp> },
    /// Rows of the table `[V, L·E·D]`.
    Table { table: Param, layers: usize },
}

/// Experts that know the token and not its context, and the router that does.
struct Routed {
    count: usize,
    /// `[E, D]`.
    router: Linear,
    experts: Experts,
}

/// A shared expert, and routed ones unless there are none.
pub struct MoleFfn {
    layer: usize,
    shared: Mlp,
    routed: Option<Routed>,
}

impl MoleFfn {
    /// E, the experts beside the shared one.
    pub fn routed(&self) -> usize {
        self.routed.as_ref().map_or(0, |routed| routed.count)
    }

    fn new(mole: &MoleConfig, config: &ModelConfig, layer: usize, weights: &mut dyn Weights) -> Result<Self> {
        let prefix = format!("model.layers.{layer}");
        let (d, layers) = (config.hidden_size, config.layers.len());
        let shared = Mlp::new(&format!("{prefix}.mlp"), d, mole.width, weights)?;
        if mole.experts == 0 {
            return Ok(Self {
                layer,
                shared,
                routed: None,
            });
        }
        let router = weights.linear(&format!("{prefix}.router"), mole.experts, d, false)?;
        let experts = if mole.lookup {
            let shape = [config.vocab_size, layers * mole.experts * d];
            let tensor = weights.rows(TABLE, &shape)?;
            if let (0, Some(record)) = (layer, &mole.record) {
                check_record(record, weights)?;
            }
            let name = TABLE.to_owned();
            Experts::Table {
                table: Param { name, tensor },
                layers,
            }
        } else {
            Experts::Trained {
                norm: weights.param(&format!("{prefix}.expert_layernorm.weight"), &[d])?,
                eps: config.rms_norm_eps,
                experts: (0..mole.experts)
                    .map(|j| Mlp::new(&format!("{prefix}.experts.{j}"), d, mole.width, weights))
                    .collect::<Result<_>>()?,
            }
        };
        Ok(Self {
            layer,
            shared,
            routed: Some(Routed {
                count: mole.experts,
                router,
                experts,
            }),
        })
    }

    /// What every expert says of each of the embeddings `e [U, D]`: `[E·U, D]`, expert by expert. `None` in the lookup form, and
    /// without routed experts.
    ///
    /// # Errors
    /// If the last dimension is not D.
    pub fn outputs(&self, e_ud: &Tensor, compute: Compute) -> Result<Option<Tensor>> {
        let Some(Routed {
            experts: Experts::Trained { norm, eps, experts },
            ..
        }) = &self.routed
        else {
            return Ok(None);
        };
        let x_ud = ops::rms_norm(e_ud, &norm.tensor, *eps)?;
        let ups: Vec<&Linear> = experts.iter().map(|m| &m.up).collect();
        let z: Vec<Tensor> = Linear::forward_many(&x_ud, &ups, compute)?
            .iter()
            .zip(experts)
            .map(|(h, m)| m.down.forward(&ops::gelu(h)?, compute))
            .collect::<Result<_>>()?;
        Ok(Some(ops::concat_rows(&z.iter().collect::<Vec<_>>())?))
    }

    /// `z [rows, D]` for the different ids of the call, and the row of expert `j` for different id number `i`: `row(i, j)`.
    fn said(
        &self,
        routed: &Routed,
        ids: &Different,
        ctx: &Ctx<'_>,
    ) -> Result<(Tensor, impl Fn(usize, usize) -> usize + use<>)> {
        let (count, different) = (routed.count, ids.first.len());
        let (z, lookup) = if let Experts::Table { table, layers } = &routed.experts {
            let [vocabulary, width] = [table.tensor.dim(0), table.tensor.dim(1)];
            // The row of a token is one slice per layer: so only this layer's slice is touched.
            let slices = ops::reshape(&table.tensor.detach(), &[vocabulary * layers, width / layers])?;
            let rows: Vec<usize> = ids
                .first
                .iter()
                .map(|&t| ctx.ids[t] as usize * layers + self.layer)
                .collect();
            let z = ops::embedding(&slices, &rows, &[different])?;
            (ops::reshape(&z, &[different * count, width / layers / count])?, true)
        } else {
            let Some(e_nd) = &ctx.embeddings else {
                return Err(ModelError::Input {
                    what: "embeddings".into(),
                    rule: "experts that read the embedding need the forward of a whole model".into(),
                    hint: String::new(),
                });
            };
            let e_ud = ops::gather_rows(e_nd, &ids.first)?;
            let Some(z) = self.outputs(&e_ud, ctx.compute)? else {
                unreachable!("invariant: the table was dealt with above");
            };
            (z, false)
        };
        let row = move |i: usize, j: usize| if lookup { i * count + j } else { j * different + i };
        Ok((z, row))
    }
}

/// The different ids of a call.
struct Different {
    /// Where each is seen first.
    first: Vec<usize>,
    /// Which of them each token is `[N]`.
    of: Vec<usize>,
}

impl Different {
    fn new(ids: &[u32]) -> Self {
        let mut number = HashMap::new();
        let mut first = Vec::new();
        let of = ids
            .iter()
            .enumerate()
            .map(|(t, id)| {
                *number.entry(*id).or_insert_with(|| {
                    first.push(t);
                    first.len() - 1
                })
            })
            .collect();
        Self { first, of }
    }
}

impl FeedForward for MoleFfn {
    fn forward(&self, x_nd: &Tensor, ctx: &mut Ctx<'_>) -> Result<Tensor> {
        ctx.note_ffn_input(self.layer, x_nd);
        let s_nd = self.shared.apply(x_nd, ctx.compute)?;
        let Some(routed) = &self.routed else {
            return Ok(s_nd);
        };
        let g_ne = ops::softmax(&routed.router.forward(x_nd, ctx.compute.exact())?)?;

        let ids = Different::new(ctx.ids);
        let (z, row) = self.said(routed, &ids, ctx)?;
        let rows: Vec<usize> = ids
            .of
            .iter()
            .flat_map(|&i| (0..routed.count).map(move |j| (i, j)))
            .map(|(i, j)| row(i, j))
            .collect();
        let y_nd = ops::add(&s_nd, &ops::mix_rows(&z, &rows, &g_ne)?)?;
        Ok(y_nd)
    }

    fn visit(&mut self, f: &mut dyn FnMut(&mut Param)) {
        self.shared.visit(f);
        let Some(routed) = &mut self.routed else { return };
        routed.router.visit(f);
        match &mut routed.experts {
            Experts::Trained { norm, experts, .. } => {
                f(norm);
                for expert in experts {
                    expert.visit(f);
                }
            }
            // One table for all layers.
            Experts::Table { table, .. } if self.layer == 0 => f(table),
            Experts::Table { .. } => {}
        }
    }

    fn frozen(&self) -> Option<&'static str> {
        let table = |routed: &Routed| matches!(routed.experts, Experts::Table { .. });
        self.routed
            .as_ref()
            .is_some_and(table)
            .then_some("the model looks its experts up in a table, which cannot follow an embedding that is trained")
    }

    fn as_mole(&self) -> Option<&MoleFfn> {
        Some(self)
    }

    fn bill(&self) -> Bill {
        let shared = self.shared.parameters();
        let Some(routed) = &self.routed else {
            return Bill {
                parameters: shared,
                active_parameters: shared,
                explained: vec!["MoLE without routed experts: the shared expert alone, a dense layer".into()],
            };
        };
        let d = routed.router.weight.tensor.last_dim() as u64;
        let (e, always) = (routed.count as u64, shared + routed.router.parameters());
        let common = format!("MoLE: a shared expert, and {e} that know the token's id and not its context");
        match &routed.experts {
            Experts::Trained { norm, experts, .. } => {
                let routed = norm.tensor.numel() as u64 + experts.iter().map(Mlp::parameters).sum::<u64>();
                Bill {
                    parameters: always + routed,
                    active_parameters: always + routed,
                    explained: vec![
                        common,
                        format!(
                            "MoLE training form: all {e} experts are computed, {} FLOPs per layer and different token; \
                             `ounce convert --to mole-lut` replaces them by {} values per layer and token of the vocabulary",
                            2 * routed,
                            e * d
                        ),
                    ],
                }
            }
            Experts::Table { table, layers } => {
                let values = table.tensor.numel() as u64 / *layers as u64;
                let bytes = table.tensor.dtype().bytes_of(1) as u64;
                Bill {
                    parameters: always + values,
                    // A weighted sum of what is fetched: 2 FLOPs per value, as for a weight.
                    active_parameters: always + e * d,
                    explained: vec![
                        common,
                        format!(
                            "MoLE lookup form: {} bytes of table stay on disk, {} bytes are fetched per token over all layers; \
                             no expert weights in memory, {} FLOPs of experts per token and layer",
                            table.tensor.numel() as u64 * bytes,
                            e * d * bytes * *layers as u64,
                            2 * e * d
                        ),
                    ],
                }
            }
        }
    }
}
