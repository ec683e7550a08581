//! `ounce inspect`: what a checkpoint is, what it costs, and which methods can make it cheaper.
//!
//! Every figure comes from the configuration and the tensors as they are stored; nothing is run. Costs are those of one
//! token: parameters it meets, arithmetic, and memory it leaves in the cache.

use ounce_formats::{Checkpoint, FormatError, SafetensorsFile, TensorView, fsx, view::Region};
use ounce_model::{
    Model, ModelConfig, ModelError, OpenOptions, Opened, attention::Cost, ffn::Bill, ffn::mole, plan::PlanBill,
};
use ounce_tensor::DType;
use serde::Serialize;
use serde_json::{Value, json};
use std::{collections::BTreeMap, path::Path};

/// Elements of a tensor looked at together.
const PIECE: usize = 1 << 20;

/// What `ounce inspect` says of a checkpoint.
#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    /// The folder.
    pub model: String,
    /// `model_type` of the layout: `llama`, `mixtral`, …
    pub family: String,
    /// Sizes.
    pub shape: Shape,
    /// The mixture of experts, if there is one.
    pub experts: Option<Experts>,
    /// All parameters.
    pub parameters: u64,
    /// Parameters that one token meets: all but the experts it is not sent to.
    pub active_parameters: u64,
    /// What was chosen, taken away or ignored when it was opened.
    pub notes: Vec<String>,
    /// Bytes of the weight files.
    pub bytes_on_disk: u64,
    /// Bytes of keys and values that each token leaves in the cache, over all layers.
    pub kv_bytes_per_token: u64,
    /// Floating point operations of the products with weights, per token.
    pub flops_per_token: u64,
    /// Floating point operations of attention, per token and per position it looks at, over all layers.
    pub attention_flops_per_position: u64,
    /// What the method in the feed-forward slot costs and saves; empty for stock layers.
    pub feed_forward: Vec<String>,
    /// The method in the attention slot, if there is one.
    pub attention: Option<AttentionCosts>,
    /// What the plan costs, where it is not all layers one after the other. The figures above are then its: bytes per token
    /// are those that grow with the text, and attention costs nothing more per position.
    pub plan: Option<PlanBill>,
    /// Element types of the tensors on disk.
    pub dtypes: BTreeMap<String, DtypeShare>,
    /// Tensors with values that are no numbers; `None` unless asked for.
    pub scan: Option<Scan>,
    /// Methods of Ounce, and whether they apply.
    pub methods: Vec<Method>,
}

/// What the attention method costs and saves.
#[derive(Debug, Clone, Serialize)]
pub struct AttentionCosts {
    /// Its configuration key.
    pub method: &'static str,
    /// Its settings in one line.
    pub settings: String,
    /// Tokens in the context.
    pub context: usize,
    /// Quantities with and without it.
    pub costs: Vec<Cost>,
}

/// Sizes of a model.
#[derive(Debug, Clone, Serialize)]
pub struct Shape {
    /// V.
    pub vocab_size: usize,
    /// D.
    pub hidden_size: usize,
    /// Layers.
    pub layers: usize,
    /// H.
    pub heads: usize,
    /// Hk.
    pub kv_heads: usize,
    /// hd.
    pub head_dim: usize,
    /// Longest sequence.
    pub max_positions: usize,
    /// Layers whose attention sees a window only.
    pub windowed_layers: usize,
    /// The widest of their windows: keys and values of older tokens are forgotten there.
    pub window: Option<usize>,
    /// Is the head the embedding?
    pub tied: bool,
}

/// Mixture-of-experts layers, which may differ from layer to layer.
#[derive(Debug, Clone, Serialize)]
pub struct Experts {
    /// Layers that are mixtures.
    pub layers: usize,
    /// Router outputs of each such layer.
    pub routed: Vec<usize>,
    /// Experts stored in each such layer; fewer than routed after merging.
    pub stored: Vec<usize>,
    /// Experts per token of each such layer.
    pub per_token: Vec<usize>,
    /// Parameters of all stored experts.
    pub parameters: u64,
}

/// Tensors of one element type.
#[derive(Debug, Clone, Default, Serialize)]
pub struct DtypeShare {
    /// How many tensors.
    pub tensors: u64,
    /// Elements of them.
    pub elements: u64,
    /// Bytes of them.
    pub bytes: u64,
}

/// Result of looking at every value.
#[derive(Debug, Clone, Serialize)]
pub struct Scan {
    /// Values looked at.
    pub values: u64,
    /// Tensors with a value that is not finite.
    pub broken: Vec<BrokenTensor>,
    /// Does the lookup table have the checksum its builder noted? `None` without a table or a note.
    pub table_intact: Option<bool>,
}

/// A tensor with values that are not finite.
#[derive(Debug, Clone, Serialize)]
pub struct BrokenTensor {
    /// Its name.
    pub tensor: String,
    /// How many NaN.
    pub nan: u64,
    /// How many infinities.
    pub infinite: u64,
}

/// A method of Ounce and whether it applies to this model.
#[derive(Debug, Clone, Serialize)]
pub struct Method {
    /// Its name.
    pub name: &'static str,
    /// Can it be used?
    pub applies: bool,
    /// What it would do here, or why it cannot be used.
    pub why: String,
    /// The command that runs it.
    pub command: &'static str,
}

/// What to look at.
#[derive(Debug, Clone, Default)]
pub struct InspectOptions {
    /// Read every value.
    pub scan: bool,
    /// An attention method in place of the checkpoint's own.
    pub attention: Option<String>,
    /// Tokens in the context for the attention method's costs; the longest sequence if absent.
    pub context: Option<usize>,
}

/// Looks at the checkpoint in `dir`. `progress` hears how many of how many bytes of a scan are done.
///
/// # Errors
/// For anything wrong with the folder, its configuration or its tensors.
pub fn inspect(
    dir: &Path,
    options: &InspectOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Inspection, ModelError> {
    let how = OpenOptions {
        widen: false,
        attention: options.attention.clone(),
    };
    let opened = Opened::new(dir, &how)?;
    let checkpoint = opened.checkpoint();
    let mut model = opened.model()?;
    let parameters = model.parameters() as u64;
    let embedding = (model.config.vocab_size * model.config.hidden_size) as u64;
    let mut vectors = 0;
    model.visit(&mut |p| {
        if p.tensor.shape().len() < 2 {
            vectors += p.tensor.numel() as u64;
        }
    });

    let config = &model.config;
    let experts = |moe: &ounce_model::config::MoeConfig| (moe.stored * 3 * config.hidden_size * moe.width) as u64;
    let expert_parameters: u64 = config.moe_layers().map(|(_, moe)| experts(moe)).sum();
    let bills: Vec<Bill> = model.plan().blocks().iter().map(|b| b.ffn().bill()).collect();
    let idle: u64 = bills.iter().map(|b| b.parameters - b.active_parameters).sum();
    let active_parameters = parameters - idle;
    // The embedding is looked up, not multiplied; as a tied head it is.
    let looked_up = if config.tied { 0 } else { embedding };
    let element = if model.dtype() == DType::F32 { 4 } else { 2 };
    let plan = config.plan.as_ref().map(|plan| plan.bill(config, element));
    let list = |f: fn(&ounce_model::config::MoeConfig) -> usize| config.moe_layers().map(|(_, m)| f(m)).collect();
    Ok(Inspection {
        model: dir.display().to_string(),
        family: config.model_type.clone(),
        shape: Shape {
            vocab_size: config.vocab_size,
            hidden_size: config.hidden_size,
            layers: config.layers.len(),
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            max_positions: config.max_positions,
            windowed_layers: config.layers.iter().filter(|l| l.window.is_some()).count(),
            window: config.layers.iter().filter_map(|l| l.window).max(),
            tied: config.tied,
        },
        experts: config.is_moe().then(|| Experts {
            layers: config.moe_layers().count(),
            routed: list(|m| m.experts),
            stored: list(|m| m.stored),
            per_token: list(|m| m.top_k),
            parameters: expert_parameters,
        }),
        parameters,
        active_parameters,
        notes: opened.notes(),
        bytes_on_disk: disk(checkpoint)?,
        kv_bytes_per_token: match &plan {
            Some(plan) => plan.memory_bytes_per_token.ceil() as u64,
            None => config.kv_bytes_per_token(element) as u64,
        },
        flops_per_token: match &plan {
            Some(plan) => plan.flops_per_token.round() as u64,
            None => 2 * (active_parameters - looked_up - vectors),
        },
        attention_flops_per_position: match &plan {
            Some(_) => 0,
            None => 4 * (config.heads * config.head_dim * config.layers.len()) as u64,
        },
        feed_forward: bills.into_iter().next().unwrap_or_default().explained,
        attention: config.attention.as_ref().map(|method| {
            let context = options.context.unwrap_or(config.max_positions);
            AttentionCosts {
                method: method.key(),
                settings: method.describe(),
                context,
                costs: method.costs(config, context, element),
            }
        }),
        plan,
        dtypes: dtypes(checkpoint),
        scan: if options.scan {
            Some(scan_values(checkpoint, progress)?)
        } else {
            None
        },
        methods: methods(&model),
    })
}

fn disk(checkpoint: &Checkpoint) -> Result<u64, FormatError> {
    let mut bytes = 0;
    // Several parts may lie in one file.
    let mut files: Vec<&SafetensorsFile> = checkpoint.shards().iter().collect();
    files.sort_by_key(|shard| shard.path());
    files.dedup_by_key(|shard| shard.path());
    for shard in files {
        bytes += ounce_formats::fsx::open(shard.path())?
            .metadata()
            .map_err(|error| FormatError::Io {
                path: shard.path().to_owned(),
                action: "read its size",
                error,
            })?
            .len();
    }
    Ok(bytes)
}

fn dtypes(checkpoint: &Checkpoint) -> BTreeMap<String, DtypeShare> {
    let mut shares = BTreeMap::<String, DtypeShare>::new();
    for tensor in checkpoint.tensors() {
        let share = shares.entry(tensor.dtype.name().to_owned()).or_default();
        share.tensors += 1;
        share.elements += tensor.shape.iter().product::<usize>() as u64;
        share.bytes += tensor.range.len() as u64;
    }
    shares
}

fn scan_values(checkpoint: &Checkpoint, progress: &mut dyn FnMut(u64, u64)) -> Result<Scan, FormatError> {
    use ounce_formats::Dtype::{BF16, F16, F32, F64};
    let total = checkpoint.total_bytes();
    let (mut done, mut values, mut broken) = (0, 0, Vec::new());
    for info in checkpoint.tensors() {
        done += info.range.len() as u64;
        if matches!(info.dtype, F32 | F64 | F16 | BF16) {
            let (nan, infinite) = not_finite(&checkpoint.region(&info.name)?)?;
            values += info.shape.iter().product::<usize>() as u64;
            if nan + infinite > 0 {
                broken.push(BrokenTensor {
                    tensor: info.name.clone(),
                    nan,
                    infinite,
                });
            }
        }
        progress(done, total);
    }
    let noted = checkpoint
        .config()
        .get(mole::RECORD)
        .and_then(|r| r.get("rows")?.as_str());
    let table_intact = match noted {
        Some(sum) => Some(fsx::sha256_bytes(checkpoint.region(mole::TABLE)?.bytes()) == sum),
        None => None,
    };
    Ok(Scan {
        values,
        broken,
        table_intact,
    })
}

/// How many NaN and infinities, piece by piece, so that a large tensor is never widened as a whole. An f64 beyond the
/// range of f32 counts as infinite: that is what computing with it would make of it.
fn not_finite(region: &Region) -> Result<(u64, u64), FormatError> {
    let (mut nan, mut infinite) = (0, 0);
    let width = region.dtype.bits() / 8;
    for bytes in region.bytes().chunks(PIECE * width) {
        let piece = TensorView {
            shape: &[bytes.len() / width],
            bytes,
            ..region.view()
        };
        for value in piece.to_f32_vec()? {
            nan += u64::from(value.is_nan());
            infinite += u64::from(value.is_infinite());
        }
    }
    Ok((nan, infinite))
}

/// The list of methods: one entry to add when a method lands.
fn methods(model: &Model) -> Vec<Method> {
    let stored: Vec<usize> = model.config.moe_layers().map(|(_, m)| m.stored).collect();
    let largest = stored.iter().copied().max().unwrap_or(0);
    let config = &model.config;
    let lookup = config.model_type.as_str();
    let blocks = model.plan().blocks();
    let routed = blocks.iter().filter_map(|b| Some(b.ffn().as_mole()?.routed())).max();
    let windowed = config.layers.iter().any(|l| l.window.is_some());
    let other = config.attention.as_ref().map(|a| a.key());
    vec![
        Method {
            name: "HC-SMoE",
            applies: largest > 1,
            why: match largest {
                0 => "the model has no mixture of experts with a router".into(),
                1 => "every layer is merged to one expert already".into(),
                n => format!("merges experts that behave alike: {} layers of up to {n}", stored.len()),
            },
            command: "ounce merge",
        },
        Method {
            name: "MoLE table",
            applies: lookup == "mole" && routed > Some(0),
            why: match lookup {
                "mole" if routed == Some(0) => "the model has no routed experts".into(),
                "mole" => "writes the routed experts as a table that is read by token id".into(),
                "mole_lut" => "the experts are a table already".into(),
                _ => "the experts must have been trained on embeddings".into(),
            },
            command: "ounce convert --to mole-lut",
        },
        Method {
            name: "DGA",
            applies: !windowed && other.is_none_or(|key| key == "dga"),
            why: match other {
                Some("moh") => "cannot be combined with a mixture of heads".into(),
                _ if windowed => "some layers see a sliding window".into(),
                _ => "keeps few tokens single and attends to the others in groups; see --context".into(),
            },
            command: "--attention dga",
        },
        heads(model),
        ladder(model),
    ]
}

/// What a mixture of half the heads as shared ones would run.
fn heads(model: &Model) -> Method {
    let config = &model.config;
    let shared = config.heads / 2;
    let active = (config.heads - shared).div_ceil(2);
    let mut json = Value::Object(config.raw.clone());
    json["moh"] = json!({ "router": "query_norm", "shared_heads": shared, "active_routed_heads": active });
    // The converter's own rules: a configuration that cannot be read is one that cannot be made.
    let refused = match &config.attention {
        Some(method) => Some(format!("has \"{}\" in its attention already", method.key())),
        None => ModelConfig::parse("config.json", &json).err().map(|e| e.to_string()),
    };
    Method {
        name: "MoH",
        applies: refused.is_none(),
        why: refused.unwrap_or_else(|| {
            format!(
                "runs {} of {} heads per token, chosen by the norms of their queries; needs training on",
                shared + active,
                config.heads
            )
        }),
        command: "ounce convert --to moh",
    }
}

/// What Ladder Residual costs and saves: nothing in parameters, cache and arithmetic; sums between ranks that hide.
fn ladder(model: &Model) -> Method {
    use ounce_model::{
        Wiring,
        residual::{LADDER, sums},
    };
    let config = &model.config;
    let layers = config.layers.len();
    let now = sums(config.layers.iter().map(|l| l.wiring));
    let all = sums(vec![Wiring::Ladder; layers]);
    let saved = "same parameters, cache and arithmetic. With C_a and C_m the time of attention and feed-forward and A that of \
                 a sum, a layer takes max(C_a, A) + max(C_m, A) instead of C_a + C_m + 2A: at most twice as fast, nothing on one \
                 device";
    let applies = config.model_type == "llama" || config.model_type == LADDER;
    Method {
        name: "Ladder Residual",
        applies,
        why: if applies {
            format!(
                "across ranks, {} of {} sums of {} values per token hide behind computing (now {}); {saved}; needs training on",
                all.hidden, all.total, config.hidden_size, now.hidden
            )
        } else {
            format!("is defined for llama, the model is of family {}", config.model_type)
        },
        command: "ounce convert --to ladder",
    }
}
