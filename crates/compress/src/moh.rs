//! `ounce convert --to moh`: a trained model whose heads become a mixture.
//!
//! Paper: MoH (arXiv 2410.11842), section on continue-tuning. No weight changes. With the `query_norm` router there is
//! nothing to add: the first `shared_heads` heads are always on, of the others each token uses those with the longest
//! queries. `two_stage` adds freshly drawn routers (normal, the paper's 0.02; 0 makes every gate 1). The result computes
//! something else than the model it came from and needs tuning: `ounce train` with `init`. With every head active,
//! `query_norm` is the same function to the bit.
//!
//! Heads are shared in the order they are stored, as in the published model; K and V are untouched.

use crate::{
    convert::{Conversion, Options},
    error::CompressError,
    pass::{Card, Plan, Source, Take},
};
use ounce_formats::{Dtype, TensorSpec};
use ounce_model::{
    ModelConfig, Opened, model_tensors,
    weights::{FreshWeights, Weights},
};
use ounce_tensor::DType;
use serde_json::{Map, Value};

pub(crate) const CONVERSION: Conversion = Conversion {
    name: "moh",
    about: "a mixture of heads: some heads always on, of the others each token uses a few",
    options: &[
        ("router", "query_norm (default, no weights) or two_stage (learned)"),
        ("shared_heads", "heads that are always on; half of all by default"),
        (
            "active_routed_heads",
            "routed heads per token; half of the routed ones by default",
        ),
        (
            "std",
            "standard deviation of the fresh routers of two_stage, 0.02 by default",
        ),
        ("seed", "seed of the fresh routers, 0 by default"),
    ],
    plan,
};

/// What whoever made it should know.
const ADVICE: &str = "Train it on before use (`ounce train` with `init`): untuned it is a much worse model than the one it \
    was made from. With the default split, three heads of four, SmolLM2-135M-Instruct's perplexity goes from 26 to 105.";

fn number<T: std::str::FromStr>(options: &Options, key: &str, default: T) -> Result<T, CompressError> {
    match options.get(key) {
        None => Ok(default),
        Some(text) => text.parse().map_err(|_| {
            CompressError::input(
                format!("option \"{key}\""),
                format!("\"{text}\" is no such number"),
                "see `ounce convert --help`",
            )
        }),
    }
}

fn plan(opened: &Opened, options: &Options) -> Result<Plan<'static>, CompressError> {
    let checkpoint = opened.checkpoint();
    let file = checkpoint.path().join("config.json").display().to_string();
    let before = ModelConfig::parse(&file, checkpoint.config())?;
    if let Some(method) = &before.attention {
        return Err(CompressError::input(
            checkpoint.path().display().to_string(),
            format!("has \"{}\" in its attention already", method.key()),
            "convert a model with full attention",
        ));
    }
    let shared = number(options, "shared_heads", before.heads / 2)?;
    let routed = before.heads.saturating_sub(shared);
    let mut moh = Map::new();
    let router = options.get("router").map_or("query_norm", String::as_str);
    moh.insert("router".into(), router.into());
    moh.insert("shared_heads".into(), shared.into());
    let active = number(options, "active_routed_heads", routed.div_ceil(2))?;
    moh.insert("active_routed_heads".into(), active.into());

    let what = format!(
        "Attention is a mixture of heads (MoH, arXiv 2410.11842): {shared} of {} heads are always on, {active} of the \
         others per token, chosen by the {router} router. `moh` in `config.json` says so; other programs \
         pass it over, load the weights as an ordinary model and compute something else.",
        before.heads
    );
    let all = active == routed && router == "query_norm";
    let (seed, std) = (number(options, "seed", 0u64)?, number(options, "std", 0.02f64)?);
    let mut parameters = vec![
        ("router", router.to_owned()),
        ("shared_heads", shared.to_string()),
        ("active_routed_heads", active.to_string()),
    ];
    if router == "two_stage" {
        parameters.extend([("std", std.to_string()), ("seed", seed.to_string())]);
    }
    let card = Card {
        method: CONVERSION.name,
        what,
        parameters,
        advice: (!all).then(|| ADVICE.into()),
    };
    let mut plan = Plan::copying(checkpoint, card, |_| true);
    plan.config.insert("moh".into(), Value::Object(moh));
    // The same rules as for a file that was read.
    let after = ModelConfig::parse("options", &Value::Object(plan.config.clone()))?;

    if !(std.is_finite() && std >= 0.0) {
        let rule = format!("must not be negative, is {std}");
        return Err(CompressError::input(
            "option \"std\"",
            rule,
            "0.02 is the published value",
        ));
    }
    let dtype = checkpoint
        .info("model.embed_tokens.weight")
        .map_or(Dtype::F32, |t| t.dtype);
    for (name, shape) in model_tensors(&after)? {
        if checkpoint.contains(&name) || !name.contains(".self_attn.wg") {
            continue;
        }
        let target = match dtype {
            Dtype::BF16 => DType::BF16,
            Dtype::F16 => DType::F16,
            _ => DType::F32,
        };
        let spec_dtype = if target == DType::F32 { Dtype::F32 } else { dtype };
        let spec = TensorSpec::new(name.clone(), spec_dtype, shape.clone());
        let make = move |take: Take<'_>| {
            let fresh = FreshWeights { seed, std }.tensor(&name, &shape)?;
            take(fresh.cast(target)?.bytes())
        };
        plan.tensors.push((spec, Source::Made(Box::new(make))));
    }
    Ok(plan)
}
