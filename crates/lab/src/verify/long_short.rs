//! `function` cases of Long-Short Alignment: divergences of two views, and their gradients.

use super::{Checks, VerifyError, floats, function::Function, worst};
use ounce_tensor::{Gradients, Tensor, ops};
use ounce_train::objective::long_short::{Divergence, divergence_reference, divergence_sum, pairs};

/// f32 against stored f64; gradients are only 0.01 to 0.1 large.
const VALUES: f64 = 1e-5;
const GRADIENTS: f64 = 1e-6;

/// Runs the checks of a case whose `fn` is `long_short`.
pub(super) fn run(function: &Function<'_>, checks: &mut Checks) -> Result<(), VerifyError> {
    let (inputs, expected) = (&function.inputs, &function.expected);
    let [rows, length, v] = inputs.view("logits_long")?.shape[..] else {
        return Err(VerifyError::Case("logits_long must be [B, l, V]".into()));
    };
    let ids = |name: &str| -> Result<Vec<i64>, VerifyError> { Ok(inputs.view(name)?.to_i64_vec()?) };
    let extras: Vec<usize> = ids("l_extra")?.into_iter().map(|e| e.max(0) as usize).collect();
    let (mask_long, mask_short) = (ids("mask_long")?, ids("mask_short")?);
    let size = rows * length;
    if extras.len() != rows || mask_long.len() != size || mask_short.len() != size {
        return Err(VerifyError::Case("l_extra is [B], masks are [B, l]".into()));
    }
    let counted = pairs(length, &extras, 0, &|b, t, s| {
        mask_long[b * length + t] == 1 && mask_short[b * length + s] == 1
    });
    let views = [floats(inputs, "logits_long")?, floats(inputs, "logits_short")?];
    for (name, divergence) in [("sce", Divergence::Sce), ("jeffreys", Divergence::Jeffreys)] {
        let leaf = |values: &Vec<f32>| Ok::<_, VerifyError>(Tensor::new(values.clone(), &[size, v])?.requires_grad());
        let (long, short) = (leaf(&views[0])?, leaf(&views[1])?);
        let all = ops::concat_rows(&[&long, &short])?;
        let side = |f: fn(&(usize, usize)) -> usize| {
            let rows: Vec<usize> = counted.iter().map(f).collect();
            ops::gather_rows(&all, &rows)
        };
        let (a, b) = (side(|p| p.0)?, side(|p| p.1)?);
        let (loss, found) = divergence_sum(&a, &b, divergence, counted.len()).map_err(|e| case(&e))?;
        let reference = divergence_reference(&a.detach(), &b.detach(), divergence).map_err(|e| case(&e))?;
        let stored = |name: &str| -> Result<f64, VerifyError> {
            let value = floats(expected, name)?;
            value
                .first()
                .map(|&x| f64::from(x))
                .ok_or_else(|| VerifyError::Case(format!("{name} is empty")))
        };
        checks.close(name, (loss.item()? - stored(name)?).abs(), VALUES);
        checks.close(
            format!("{name}, of primitive operations"),
            (reference.item()? - stored(name)?).abs(),
            VALUES,
        );
        if divergence == Divergence::Sce {
            let n = counted.len() as f64;
            checks.close("h_long", (found.h_long / n - stored("h_long")?).abs(), VALUES);
            checks.close("h_short", (found.h_short / n - stored("h_short")?).abs(), VALUES);
        }
        let mut gradients = Gradients::new();
        loss.backward(&mut gradients)?;
        for (leaf, side) in [(&long, "long"), (&short, "short")] {
            let name = format!("{name}_grad_{side}");
            let ours = gradients.get(leaf).map(Tensor::to_f32).unwrap_or_default();
            let theirs = floats(expected, &name)?;
            checks.close(name, worst(&ours, &theirs), GRADIENTS);
        }
    }
    Ok(())
}

fn case(error: &ounce_train::TrainError) -> VerifyError {
    VerifyError::Case(error.to_string())
}
