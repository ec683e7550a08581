//! `function` cases of grouped cross-attention: the output and all four gradients, of the fused operation and of the one
//! written out in primitive operations.

use super::{Checks, VerifyError, floats, function::Function, worst};
use ounce_formats::SafetensorsFile;
use ounce_tensor::{
    Compute, Gradients, Tensor,
    ops::{self, KeyValue, Neighbours},
};

/// f32 against stored f64.
const VALUES: f64 = 1e-5;
const GRADIENTS: f64 = 2e-5;

/// Swaps the second-last two of the four dimensions: `[N,h,T,d]` and `[N,T,h,d]`.
fn swapped(values: &[f32], [n, a, b, d]: [usize; 4]) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    for i in 0..n {
        for y in 0..b {
            for x in 0..a {
                let at = ((i * a + x) * b + y) * d;
                out.extend_from_slice(&values[at..at + d]);
            }
        }
    }
    out
}

fn shape<const N: usize>(file: &SafetensorsFile, name: &str) -> Result<[usize; N], VerifyError> {
    let found = file.view(name)?.shape;
    found
        .try_into()
        .map_err(|_| VerifyError::Case(format!("\"{name}\" must have {N} dimensions, has {}", found.len())))
}

/// Runs the checks of a case whose `fn` is `gca_attention`: `q [N,h,Cq,d]`, `k`, `v [N,n,h,Ck,d]`, `w [N,n]`.
pub(super) fn run(function: &Function<'_>, checks: &mut Checks) -> Result<(), VerifyError> {
    let (inputs, expected) = (&function.inputs, &function.expected);
    let [rows, heads, queries, d] = shape(inputs, "q")?;
    let [memory_rows, slots, memory_heads, keys, memory_d] = shape(inputs, "k")?;
    if [memory_rows, memory_heads, memory_d] != [rows, heads, d]
        || shape::<5>(inputs, "v")? != shape::<5>(inputs, "k")?
        || shape::<2>(inputs, "w")? != [rows, slots]
    {
        return Err(VerifyError::Case(
            "q is [N,h,Cq,d], k and v are [N,n,h,Ck,d], w is [N,n]".into(),
        ));
    }
    let Some(scale) = function.case["scale"].as_f64() else {
        return Err(VerifyError::Case("case.json: key \"scale\" is missing".into()));
    };
    let (query_dims, memory_dims) = ([rows, heads, queries, d], [rows * slots, heads, keys, d]);
    let queries_of =
        |file: &SafetensorsFile, name: &str| Ok::<_, VerifyError>(swapped(&floats(file, name)?, query_dims));
    let memory_of =
        |file: &SafetensorsFile, name: &str| Ok::<_, VerifyError>(swapped(&floats(file, name)?, memory_dims));
    let leaf = |values: Vec<f32>, dims: &[usize]| Ok::<_, VerifyError>(Tensor::new(values, dims)?.requires_grad());
    let all = [
        leaf(queries_of(inputs, "q")?, &[rows * queries, heads, d])?,
        leaf(memory_of(inputs, "k")?, &[rows * slots, keys, heads, d])?,
        leaf(memory_of(inputs, "v")?, &[rows * slots, keys, heads, d])?,
        leaf(floats(inputs, "w")?, &[rows, slots])?,
    ];
    let wanted = [
        queries_of(expected, "dq")?,
        memory_of(expected, "dk")?,
        memory_of(expected, "dv")?,
        floats(expected, "dw")?,
    ];
    let neighbours = Neighbours {
        runs: (0..rows).map(|i| i * queries..(i + 1) * queries).collect(),
        chunks: (0..rows * slots).map(Some).collect(),
    };
    let [q, k, v, w] = &all;
    for form in ["fused", "of primitive operations"] {
        let out = if form == "fused" {
            let (k, v) = (KeyValue::Tensor(k), KeyValue::Tensor(v));
            ops::gca(q, k, v, keys, &neighbours, w, (scale, Compute::F32))?
        } else {
            ops::gca_reference(q, (k, v), &neighbours, w, scale)?
        };
        checks.close(
            format!("out, {form}"),
            worst(&out.to_f32(), &queries_of(expected, "out")?),
            VALUES,
        );
        let dy = Tensor::new(queries_of(inputs, "grad_out")?, out.shape())?;
        let mut gradients = Gradients::new();
        out.backward_from(dy, &mut gradients)?;
        for ((name, leaf), wanted) in ["dq", "dk", "dv", "dw"].iter().zip(&all).zip(&wanted) {
            let found = gradients.get(leaf).map_or(Vec::new(), Tensor::to_f32);
            checks.close(format!("{name}, {form}"), worst(&found, wanted), GRADIENTS);
        }
    }
    Ok(())
}
