//! Shape changes. Reshaping and leading-dimension slices share values; concatenation copies.

use super::real;
use crate::{
    error::{Result, shape},
    storage::Real,
    tensor::Tensor,
};

/// The same values under another shape.
///
/// # Errors
/// If the number of elements differs.
pub fn reshape(x: &Tensor, dims: &[usize]) -> Result<Tensor> {
    if dims.iter().product::<usize>() != x.numel() {
        return shape("reshape", "the number of elements stays", (x.describe(), dims));
    }
    if !x.dtype().fits(dims) {
        return shape("reshape", "rows are whole blocks", (x.describe(), dims));
    }
    let mut y = x.detach();
    y.shape = dims.to_vec();
    let old = x.shape.clone();
    Ok(y.recorded(&[x], move |dy, _| Ok(vec![Some(reshape(&dy, &old)?)])))
}

/// Entries `from..to` of the first dimension; shares the values.
///
/// # Errors
/// If the range is not inside the dimension.
pub fn narrow_rows(x: &Tensor, from: usize, to: usize) -> Result<Tensor> {
    const OP: &str = "narrow_rows";
    if x.shape.is_empty() || from > to || to > x.shape[0] {
        return shape(OP, "a range inside the first dimension", (&x.shape, from, to));
    }
    let inner: usize = x.shape[1..].iter().product();
    let mut y = x.detach();
    y.offset += from * inner;
    y.shape[0] = to - from;
    let dims = x.shape.clone();
    Ok(y.recorded(&[x], move |dy, _| {
        let dx = real!(OP, dy, T => {
            let mut dx = T::buffer(dims.iter().product());
            dx.fill(T::default());
            dx[from * inner..to * inner].copy_from_slice(dy.get::<T>(OP)?);
            Ok(Tensor::owned(dx, &dims))
        })?;
        Ok(vec![Some(dx)])
    }))
}

/// Concatenation along the first dimension.
///
/// # Errors
/// If the other dimensions differ, or there is nothing to concatenate.
pub fn concat_rows(parts: &[&Tensor]) -> Result<Tensor> {
    const OP: &str = "concat_rows";
    let Some(first) = parts.first() else {
        return shape(OP, "at least one part", 0);
    };
    if parts
        .iter()
        .any(|p| p.shape.is_empty() || p.shape[1..] != first.shape[1..])
    {
        return shape(
            OP,
            "all but the first dimension are equal",
            parts.iter().map(|p| &p.shape).collect::<Vec<_>>(),
        );
    }
    let mut dims = first.shape.clone();
    dims[0] = parts.iter().map(|p| p.shape[0]).sum();
    let y: Tensor = real!(OP, first, T => {
        let mut y = T::buffer(dims.iter().product());
        let mut at = 0;
        for part in parts {
            let values = part.get::<T>(OP)?;
            y[at..at + values.len()].copy_from_slice(values);
            at += values.len();
        }
        Ok(Tensor::owned(y, &dims))
    })?;
    let counts: Vec<usize> = parts.iter().map(|p| p.shape[0]).collect();
    Ok(y.recorded(parts, move |dy, needs| {
        let mut at = 0;
        counts
            .iter()
            .zip(needs)
            .map(|(&n, &need)| {
                at += n;
                if need {
                    narrow_rows(&dy, at - n, at).map(Some)
                } else {
                    Ok(None)
                }
            })
            .collect()
    }))
}
