//! `function` case `dga_attention`: which tokens are focal, what the groups become, and the output.

use super::{Checks, VerifyError, floats, function::Function, worst};
use ounce_model::attention::dga::{DgaConfig, GroupBias, Head, ScoreMode, Shape, attention, heads};
use ounce_tensor::{Compute, Tensor, ops::RowSpan};

/// Functions in f32 against stored f64.
const VALUES: f64 = 1e-5;

pub(super) fn run(f: &Function<'_>, checks: &mut Checks) -> Result<(), VerifyError> {
    let number = |key: &str| {
        f.case[key]
            .as_u64()
            .map(|n| n as usize)
            .ok_or_else(|| VerifyError::Case(format!("key \"{key}\" must be a whole number")))
    };
    let unknown = |key: &str| VerifyError::Case(format!("key \"{key}\" is {}, which is not supported", f.case[key]));
    let gamma = f.case["focal_ratio"].as_f64().ok_or_else(|| unknown("focal_ratio"))?;
    let group_size = number("group_size")?;
    if group_size == 0 {
        return Err(unknown("group_size"));
    }
    let mut config = DgaConfig::new(group_size, gamma);
    config.score_queries = number("score_queries")?;
    config.min_len = 0;
    config.score_mode = match f.case["score_mode"].as_str() {
        Some("last") => ScoreMode::Last,
        Some("last+strided") => ScoreMode::LastStrided,
        _ => return Err(unknown("score_mode")),
    };
    config.group_bias = match f.case["group_bias"].as_str() {
        Some("none") => GroupBias::None,
        Some("entropy") => GroupBias::Entropy,
        Some("logm") => GroupBias::LogM,
        _ => return Err(unknown("group_bias")),
    };
    if f.case["selection"].as_str() != Some("global") {
        return Err(unknown("selection"));
    }
    let (q, [batch, heads_q, len, hd]) = time_first(f, "q")?;
    let (k, [_, kv_heads, ..]) = time_first(f, "k")?;
    let (v, _) = time_first(f, "v")?;
    let shape = Shape {
        batch,
        len,
        heads: heads_q,
        kv_heads,
        head_dim: hd,
        scale: f.case["scale"].as_f64().ok_or_else(|| unknown("scale"))?,
    };
    let span = RowSpan {
        q_start: 0,
        kv_begin: 0,
        kv_len: len,
    };
    let spans = vec![span; batch];
    let out = attention(&q, &k, &v, &shape, &spans, &config, Compute::F32)?.to_f32();
    // [B,L,H,hd] back to [B,H,L,hd].
    let mut out_bhld = Vec::with_capacity(out.len());
    for b in 0..batch {
        for a in 0..heads_q {
            for t in 0..len {
                let at = ((b * len + t) * heads_q + a) * hd;
                out_bhld.extend_from_slice(&out[at..at + hd]);
            }
        }
    }
    checks.close("out", worst(&out_bhld, &floats(&f.expected, "out")?), VALUES);

    let made: Vec<Head<f32>> = heads(&q, &k, &v, &shape, &spans, &config)?;
    let mut equal = |name: &str, ours: Vec<i64>| -> Result<(), VerifyError> {
        let theirs = f.expected.view(name)?.to_i64_vec()?;
        checks.equal(name, ours == theirs, format!("{ours:?} where {theirs:?} is expected"));
        Ok(())
    };
    let layouts = || made.iter().map(|h| &h.layout);
    equal("focal", layouts().flat_map(|l| &l.focal).map(|&t| t as i64).collect())?;
    let ends = layouts().flat_map(|l| &l.groups).filter_map(|g| g.members.last());
    let ends: Vec<i64> = ends.map(|&t| t as i64).collect();
    // A case without groups has no tensor for them.
    if f.expected.contains("group_ends") || !ends.is_empty() {
        equal("group_ends", ends)?;
    }
    let score: Vec<f32> = made.iter().flat_map(|h| &h.score).map(|&s| s as f32).collect();
    checks.close("score", worst(&score, &floats(&f.expected, "score")?), VALUES);
    if f.expected.contains("group_k") {
        let keys: Vec<f32> = made.iter().flat_map(Head::group_keys).copied().collect();
        let values: Vec<f32> = made.iter().flat_map(Head::group_values).copied().collect();
        let entropy: Vec<f32> = made.iter().flat_map(Head::group_entropy).collect();
        for (name, ours) in [("group_k", keys), ("group_v", values), ("group_entropy", entropy)] {
            checks.close(name, worst(&ours, &floats(&f.expected, name)?), VALUES);
        }
    }
    Ok(())
}

/// An input `[B,H,L,hd]` as `[B,L,H,hd]`, and its dimensions.
fn time_first(f: &Function<'_>, name: &str) -> Result<(Tensor, [usize; 4]), VerifyError> {
    let view = f.inputs.view(name)?;
    let (&[b, h, l, hd], false) = (view.shape, view.shape.contains(&0)) else {
        return Err(VerifyError::Case(format!(
            "tensor \"{name}\" must be [B,H,L,hd], none of them 0"
        )));
    };
    let from = view.to_f32_vec()?;
    let mut to = Vec::with_capacity(from.len());
    for row in 0..b {
        for t in 0..l {
            for head in 0..h {
                let at = ((row * h + head) * l + t) * hd;
                to.extend_from_slice(&from[at..at + hd]);
            }
        }
    }
    Ok((Tensor::new(to, &[b, l, h, hd])?, [b, h, l, hd]))
}
