//! From queries, keys and values to the outputs of heads: with caches or without, whatever the lengths of the sequences.
//!
//! Sequences without a cache that stand alike are one call of the kernel, every other sequence is a call of its own: so none
//! sees its neighbours, and its bits do not depend on them.

use crate::{ctx::Ctx, error::Result};
use ounce_tensor::{
    Tensor,
    ops::{self, AttentionConfig, KeyValue, RowSpan},
};

/// What attention is computed from.
pub(crate) struct Projected {
    /// Rotated queries `[N,H,hd]`.
    pub(crate) q: Tensor,
    /// Rotated keys `[N,Hk,hd]`.
    pub(crate) k: Tensor,
    /// Values `[N,Hk,hd]`.
    pub(crate) v: Tensor,
}

/// What a method adds to plain attention.
#[derive(Clone, Copy)]
pub(crate) enum Form<'a> {
    /// Nothing.
    Plain,
    /// Linear biases, one slope per query head.
    Slopes(&'a [f32]),
    /// Only some (token, head) pairs `[N·H]`; the others may be computed or give zeros, whichever is faster.
    Of(&'a [bool]),
}

/// Below this many tokens of a sequence the calls for gathered heads cost more than the heads they skip.
const SKIP_FROM: usize = 16;

/// Rotary positions on `x [N,H,hd]`.
///
/// # Errors
/// If the angles do not have one row per token.
pub(crate) fn rope(x: &Tensor, ctx: &Ctx<'_>) -> Result<Tensor> {
    let [n, h, hd] = [x.dim(0), x.dim(1), x.dim(2)];
    let turned = ops::rope(&ops::reshape(x, &[1, n, h, hd])?, &ctx.rows.cos, &ctx.rows.sin)?;
    Ok(ops::reshape(&turned, &[n, h, hd])?)
}

/// Head outputs `[N,H,hd]`. Where there are caches, the call's keys and values go to layer `layer` of each first.
///
/// # Errors
/// If shapes do not fit or a cache refuses.
pub(crate) fn attend(
    layer: usize,
    p: &Projected,
    config: AttentionConfig,
    form: Form<'_>,
    ctx: &mut Ctx<'_>,
) -> Result<Tensor> {
    let heads = p.q.dim(1);
    let groups = ctx.rows.groups(!ctx.caches.is_empty());
    let mut made = Vec::with_capacity(groups.len());
    for group in &groups {
        let seq = &ctx.rows.seqs[group.start];
        let (batch, len, past) = (group.len(), seq.tokens.len(), seq.past);
        let tokens = ctx.rows.tokens_of(group);
        let part = |x: &Tensor| -> Result<Tensor> {
            let dims = [batch, len, x.dim(1), x.dim(2)];
            Ok(match groups.len() {
                1 => ops::reshape(x, &dims)?,
                _ => ops::reshape(&ops::narrow_rows(x, tokens.start, tokens.end)?, &dims)?,
            })
        };
        let (q, k, v) = (part(&p.q)?, part(&p.k)?, part(&p.v)?);
        let (keys, values, span) = match ctx.caches.get_mut(group.start) {
            None => {
                let span = RowSpan {
                    q_start: 0,
                    kv_begin: 0,
                    kv_len: len,
                };
                (KeyValue::Tensor(&k), KeyValue::Tensor(&v), span)
            }
            Some(cache) => {
                let flat = |x: &Tensor| ops::reshape(x, &[len, x.dim(2), x.dim(3)]);
                cache.append(layer, &flat(&k)?, &flat(&v)?)?;
                let kept = cache.read(layer)?;
                (kept.keys, kept.values, kept.span(past, len))
            }
        };
        let spans = vec![span; batch];
        let out = match form {
            Form::Slopes(slopes) => ops::alibi_attention(&q, keys, values, &spans, config, slopes)?,
            Form::Of(active) if len >= SKIP_FROM => {
                let active = &active[tokens.start * heads..tokens.end * heads];
                ops::attention_of(&q, keys, values, &spans, config, active)?
            }
            Form::Plain | Form::Of(_) => ops::attention(&q, keys, values, &spans, config)?,
        };
        made.push(ops::reshape(&out, &[batch * len, heads, p.q.dim(2)])?);
    }
    match &made[..] {
        [one] => Ok(one.clone()),
        all => Ok(ops::concat_rows(&all.iter().collect::<Vec<_>>())?),
    }
}
