//! Operations on whole rows (tokens) and reductions.

use super::real;
use crate::{
    error::{Result, TensorError, shape},
    storage::{DType, Real},
    tensor::Tensor,
};
use ounce_kernels as k;
use std::sync::Arc;

fn check_ids(op: &'static str, ids: &[usize], bound: usize) -> Result<()> {
    match ids.iter().find(|&&i| i >= bound) {
        Some(&index) => Err(TensorError::Index {
            op,
            index: index as i64,
            bound,
        }),
        None => Ok(()),
    }
}

/// Rows of a table: `table [V, D]` (any float dtype) at `ids` gives f32 (f64 for an f64 table) of shape `dims + [D]`.
///
/// # Errors
/// If an id is not below V.
pub fn embedding(table: &Tensor, ids: &[usize], dims: &[usize]) -> Result<Tensor> {
    const OP: &str = "embedding";
    let [rows, d] = table.shape[..] else {
        return shape(OP, "the table is [V, D]", &table.shape);
    };
    if dims.iter().product::<usize>() != ids.len() {
        return shape(OP, "ids fill the given dimensions", (ids.len(), dims));
    }
    check_ids(OP, ids, rows)?;
    let mut shape_y = dims.to_vec();
    shape_y.push(d);
    let y = match table.dtype() {
        DType::F32 | DType::F64 => real!(OP, table, T => {
            let mut y = T::buffer(ids.len() * d);
            k::gather_rows(table.get::<T>(OP)?, d, ids, &mut y);
            Ok(Tensor::owned(y, &shape_y))
        })?,
        _ => {
            let mut y = f32::buffer(ids.len() * d);
            for (&id, out) in ids.iter().zip(y.chunks_exact_mut(d.max(1))) {
                k::widen(table.data(OP)?.part(id * d..(id + 1) * d), out);
            }
            Tensor::owned(y, &shape_y)
        }
    };
    let ids: Arc<[usize]> = ids.into();
    Ok(y.recorded(&[table], move |dy, _| {
        let dw = real!(OP, dy, T => {
            let mut dw = T::buffer(rows * d);
            dw.fill(T::default());
            k::scatter_add_rows(dy.get::<T>(OP)?, d, &ids, &mut dw);
            Ok(Tensor::owned(dw, &[rows, d]))
        })?;
        Ok(vec![Some(dw)])
    }))
}

/// `y[i] = x[ids[i]]` for `x [N, D]`: `[ids, D]`.
///
/// # Errors
/// If an id is not below N.
pub fn gather_rows(x: &Tensor, ids: &[usize]) -> Result<Tensor> {
    const OP: &str = "gather_rows";
    let (n, d) = (x.rows(), x.last_dim());
    check_ids(OP, ids, n)?;
    let dims = x.shape.clone();
    let y: Tensor = real!(OP, x, T => {
        let mut y = T::buffer(ids.len() * d);
        k::gather_rows(x.get::<T>(OP)?, d, ids, &mut y);
        Ok(Tensor::owned(y, &[ids.len(), d]))
    })?;
    let ids: Arc<[usize]> = ids.into();
    Ok(y.recorded(&[x], move |dy, _| {
        Ok(vec![Some(super::reshape(&scatter_add_rows(&dy, &ids, n)?, &dims)?)])
    }))
}

/// `y[ids[i]] += x[i]` into `[rows, D]` zeros, for `x [ids, D]`.
///
/// # Errors
/// If an id is not below `rows`.
pub fn scatter_add_rows(x: &Tensor, ids: &[usize], rows: usize) -> Result<Tensor> {
    const OP: &str = "scatter_add_rows";
    let d = x.last_dim();
    check_ids(OP, ids, rows)?;
    if x.rows() != ids.len() {
        return shape(OP, "one id per row", (x.rows(), ids.len()));
    }
    let y: Tensor = real!(OP, x, T => {
        let mut y = T::buffer(rows * d);
        y.fill(T::default());
        k::scatter_add_rows(x.get::<T>(OP)?, d, ids, &mut y);
        Ok(Tensor::owned(y, &[rows, d]))
    })?;
    let ids: Arc<[usize]> = ids.into();
    Ok(y.recorded(&[x], move |dy, _| Ok(vec![Some(gather_rows(&dy, &ids)?)])))
}

/// `y[i] = s[i] * x[i]` for `x [.., D]` and one factor per row, `s` with as many elements as `x` has rows.
///
/// # Errors
/// If the number of factors differs.
pub fn scale_rows(x: &Tensor, s: &Tensor) -> Result<Tensor> {
    const OP: &str = "scale_rows";
    let d = x.last_dim();
    if s.numel() != x.rows() {
        return shape(OP, "one factor per row", (&x.shape, &s.shape));
    }
    let y: Tensor = real!(OP, x, T => {
        let mut y = T::buffer(x.numel());
        k::scale_rows(x.get::<T>(OP)?, d, s.get::<T>(OP)?, &mut y);
        Ok(Tensor::owned(y, &x.shape))
    })?;
    let (kept_x, kept_s) = (x.detach(), s.detach());
    Ok(y.recorded(&[x, s], move |dy, needs| {
        let dx = if needs[0] {
            Some(scale_rows(&dy, &kept_s)?)
        } else {
            None
        };
        let ds = if needs[1] {
            Some(real!(OP, dy, T => {
                let mut ds = T::buffer(kept_s.numel());
                k::row_dots(kept_x.get::<T>(OP)?, dy.get::<T>(OP)?, d, &mut ds);
                Ok(Tensor::owned(ds, &kept_s.shape))
            })?)
        } else {
            None
        };
        Ok(vec![dx, ds])
    }))
}

/// Every `step`th value, beginning with number `from`.
fn column<T: Copy>(values: &[T], from: usize, step: usize) -> Vec<T> {
    values.iter().skip(from).step_by(step).copied().collect()
}

/// Weighted sums of rows: `y[i] = Σ_j g[i,j] · z[ids[i,j]]` for `z [R, D]`, `g [N, E]` and E ids per row of `g`: `[N, D]`.
/// The N·E rows never exist together, and the tape keeps `z` and `g` only.
///
/// # Errors
/// If an id is not below R, or their number is not that of `g`.
pub fn mix_rows(z: &Tensor, ids: &[usize], g: &Tensor) -> Result<Tensor> {
    const OP: &str = "mix_rows";
    let (total, d) = (z.rows(), z.last_dim());
    let (n, per_row) = (g.rows(), g.last_dim());
    check_ids(OP, ids, total)?;
    if ids.len() != g.numel() {
        return shape(OP, "one id per weight", (ids.len(), &g.shape));
    }
    let y: Tensor = real!(OP, z, T => {
        let (zs, gs) = (z.get::<T>(OP)?, g.get::<T>(OP)?);
        let (mut y, mut rows, mut scaled) = (T::buffer(n * d), T::buffer(n * d), T::buffer(n * d));
        y.fill(T::default());
        for j in 0..per_row {
            k::gather_rows(zs, d, &column(ids, j, per_row), &mut rows);
            k::scale_rows(&rows, d, &column(gs, j, per_row), &mut scaled);
            k::add_assign(&mut y, &scaled);
        }
        Ok(Tensor::owned(y, &[n, d]))
    })?;
    let (kept_z, kept_g, ids) = (z.detach(), g.detach(), ids.to_vec());
    Ok(y.recorded(&[z, g], move |dy, needs| {
        real!(OP, dy, T => {
            let (zs, gs, ds) = (kept_z.get::<T>(OP)?, kept_g.get::<T>(OP)?, dy.get::<T>(OP)?);
            let mut rows = T::buffer(n * d);
            let mut dots = T::buffer(n);
            let mut dz = needs[0].then(|| T::buffer(total * d));
            let mut dg = needs[1].then(|| T::buffer(n * per_row));
            if let Some(dz) = &mut dz {
                dz.fill(T::default());
            }
            for j in 0..per_row {
                let ids = column(&ids, j, per_row);
                if let Some(dz) = &mut dz {
                    k::scale_rows(ds, d, &column(gs, j, per_row), &mut rows);
                    k::scatter_add_rows(&rows, d, &ids, dz);
                }
                if let Some(dg) = &mut dg {
                    k::gather_rows(zs, d, &ids, &mut rows);
                    k::row_dots(&rows, ds, d, &mut dots);
                    for (dg, &dot) in dg.iter_mut().skip(j).step_by(per_row).zip(&dots) {
                        *dg = dot;
                    }
                }
            }
            Ok(vec![
                dz.map(|v| Tensor::owned(v, &kept_z.shape)),
                dg.map(|v| Tensor::owned(v, &kept_g.shape)),
            ])
        })
    }))
}

/// `y[i,j] = x[i, ids[i,j]]` for `x [N, n]` and `k` ids per row: `[N, k]`.
///
/// # Errors
/// If an id is not below n, or their number is not a multiple of N.
pub fn take_last(x: &Tensor, ids: &[usize], k_per_row: usize) -> Result<Tensor> {
    const OP: &str = "take_last";
    let (rows, n) = (x.rows(), x.last_dim());
    check_ids(OP, ids, n)?;
    if ids.len() != rows * k_per_row {
        return shape(OP, "k ids per row", (rows, k_per_row, ids.len()));
    }
    let y: Tensor = real!(OP, x, T => {
        let xs = x.get::<T>(OP)?;
        let y: Vec<T> = ids.iter().enumerate().map(|(i, &j)| xs[i / k_per_row * n + j]).collect();
        Ok(Tensor::owned(y, &[rows, k_per_row]))
    })?;
    let (ids, dims): (Arc<[usize]>, _) = (ids.into(), x.shape.clone());
    Ok(y.recorded(&[x], move |dy, _| {
        let dx = real!(OP, dy, T => {
            let ds = dy.get::<T>(OP)?;
            let mut dx = T::buffer(rows * n);
            dx.fill(T::default());
            for (i, (&j, &g)) in ids.iter().zip(ds).enumerate() {
                dx[i / k_per_row * n + j] += g;
            }
            Ok(Tensor::owned(dx, &dims))
        })?;
        Ok(vec![Some(dx)])
    }))
}

/// Sum of all elements: a scalar.
///
/// # Errors
/// If the dtype is not f32 or f64.
pub fn sum(x: &Tensor) -> Result<Tensor> {
    const OP: &str = "sum";
    let dims = x.shape.clone();
    let y: Tensor = real!(OP, x, T => Ok(Tensor::scalar(<T as k::Float>::from_f64(k::sum(x.get::<T>(OP)?)))))?;
    Ok(y.recorded(&[x], move |dy, _| {
        let dx = real!(OP, dy, T => {
            let g = dy.get::<T>(OP)?[0];
            let mut dx = T::buffer(dims.iter().product());
            dx.fill(g);
            Ok(Tensor::owned(dx, &dims))
        })?;
        Ok(vec![Some(dx)])
    }))
}

/// Mean of all elements: a scalar.
///
/// # Errors
/// If the dtype is not f32 or f64, or there is no element.
pub fn mean(x: &Tensor) -> Result<Tensor> {
    if x.numel() == 0 {
        return shape("mean", "at least one element", &x.shape);
    }
    super::scale(&sum(x)?, 1.0 / x.numel() as f64)
}

/// Mean over rows: `x [N, n]` gives `[n]`.
///
/// # Errors
/// If there is no row.
pub fn column_mean(x: &Tensor) -> Result<Tensor> {
    const OP: &str = "column_mean";
    let (rows, n) = (x.rows(), x.last_dim());
    if rows == 0 {
        return shape(OP, "at least one row", &x.shape);
    }
    let dims = x.shape.clone();
    let y: Tensor = real!(OP, x, T => {
        let mut y = T::buffer(n);
        k::column_sum(x.get::<T>(OP)?, n, &mut y);
        Ok(Tensor::owned(y, &[n]))
    })?;
    let y = y.recorded(&[x], move |dy, _| {
        let dx = real!(OP, dy, T => {
            let row = dy.get::<T>(OP)?;
            let mut dx = T::buffer(rows * n);
            for out in dx.chunks_exact_mut(n.max(1)) {
                out.copy_from_slice(row);
            }
            Ok(Tensor::owned(dx, &dims))
        })?;
        Ok(vec![Some(dx)])
    });
    super::scale(&y, 1.0 / rows as f64)
}
