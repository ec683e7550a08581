//! Matrix products: C (+)= A·B for any number of independent problems in one parallel region.
//!
//! One entry point, [`gemm`], serves every shape: f64 takes the plain loops of `reference`, f32 the fast paths.
//! It must not know what the matrices are (weights, activations, gradients); strides and dtypes say all it needs.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(test)]
mod block_tests;
mod blocked;
mod gemv;
mod microkernel;
mod pack;
mod reference;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod tiles;

use crate::blocks::Blocks;
use crate::float::Float;
use blocked::Problem;
use half::{bf16, f16};
use pack::Form;

/// The elements of a matrix (or of another kernel's operand) in one of the storage types.
#[derive(Clone, Copy, Debug)]
pub enum Data<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Double precision: gradient checks only.
    F64(&'a [f64]),
    /// bfloat16, widened (exactly) before use.
    Bf16(&'a [bf16]),
    /// IEEE half precision, widened (exactly) before use.
    F16(&'a [f16]),
    /// Blocks of quantised values, widened (exactly) before use: weights only, in rows of whole blocks.
    Blocks(Blocks<'a>),
}

impl<'a> Data<'a> {
    /// The elements `range`; nothing of it that is not there.
    ///
    /// # Panics
    /// If blocks would be cut.
    #[must_use]
    pub fn part(self, range: std::ops::Range<usize>) -> Data<'a> {
        let range = range.start.min(self.len())..range.end.min(self.len());
        match self {
            Self::F32(x) => Self::F32(&x[range]),
            Self::F64(x) => Self::F64(&x[range]),
            Self::Bf16(x) => Self::Bf16(&x[range]),
            Self::F16(x) => Self::F16(&x[range]),
            Self::Blocks(x) => Self::Blocks(x.part(range)),
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(x) => x.len(),
            Self::F64(x) => x.len(),
            Self::Bf16(x) => x.len(),
            Self::F16(x) => x.len(),
            Self::Blocks(x) => x.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Element `i`, exactly.
    #[inline]
    pub fn get(&self, i: usize) -> f64 {
        match self {
            Self::F32(x) => f64::from(x[i]),
            Self::F64(x) => x[i],
            Self::Bf16(x) => x[i].to_f64(),
            Self::F16(x) => x[i].to_f64(),
            Self::Blocks(x) => f64::from(x.get(i)),
        }
    }
}

/// A matrix: element (i, j) is `data[i * row_stride + j * col_stride]`. At least one stride is 1.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a> {
    /// Where the elements are.
    pub data: Data<'a>,
    /// Distance between rows.
    pub row_stride: usize,
    /// Distance between columns.
    pub col_stride: usize,
}

impl Mat<'_> {
    #[inline]
    fn at(&self, i: usize, j: usize) -> f64 {
        self.data.get(i * self.row_stride + j * self.col_stride)
    }

    fn check(&self, name: &str, rows: usize, cols: usize) {
        if rows == 0 || cols == 0 {
            return;
        }
        let last = (rows - 1) * self.row_stride + (cols - 1) * self.col_stride;
        assert!(
            last < self.data.len(),
            "{name} [{rows}, {cols}] has only {} elements",
            self.data.len()
        );
        let unit = self.row_stride == 1 || self.col_stride == 1;
        assert!(
            unit,
            "{name}: strides {} and {}, none is 1",
            self.row_stride, self.col_stride
        );
    }
}

/// The arithmetic of a product. Sums are f32 either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compute {
    /// Inputs as they are.
    F32,
    /// As `F32`, every row by itself: its bits do not depend on how many rows there are. For decoding steps, in which a
    /// sequence must not see its neighbours; for many rows `F32` is faster.
    F32Rows,
    /// Both inputs rounded to bf16 (to nearest even) first. On AVX-512-BF16 and AMX the CPU multiplies pairs of bf16 and
    /// treats denormals as zero; elsewhere the rounded inputs are multiplied in f32.
    Bf16,
}

impl Compute {
    /// The arithmetic of the same kind whose products are exact: for routers, whose decisions must not be rounded.
    #[must_use]
    pub fn exact(self) -> Self {
        match self {
            Self::F32Rows => self,
            Self::F32 | Self::Bf16 => Self::F32,
        }
    }
}

/// One product: `c[m, n] (+)= a[m, k] · b[k, n]`. `c` is row-major with `ldc` elements from row to row.
#[derive(Debug)]
pub struct Gemm<'a, T> {
    /// Rows of `a` and `c`; may be 0.
    pub m: usize,
    /// Columns of `b` and `c`; may be 0.
    pub n: usize,
    /// Columns of `a`, rows of `b`; 0 gives a zero product.
    pub k: usize,
    /// Left factor.
    pub a: Mat<'a>,
    /// Right factor. `y = x Wᵀ` with W `[n, k]` is `b` with row stride 1 and column stride k.
    pub b: Mat<'a>,
    /// Result.
    pub c: &'a mut [T],
    /// Distance between rows of `c`; at least n.
    pub ldc: usize,
    /// Whether to add to `c` instead of overwriting it.
    pub accumulate: bool,
}

impl<T> Gemm<'_, T> {
    fn check(&self) {
        assert!(!matches!(self.a.data, Data::Blocks(_)), "only b can be in blocks");
        self.a.check("a", self.m, self.k);
        self.b.check("b", self.k, self.n);
        if self.m > 0 && self.n > 0 {
            assert!(
                self.ldc >= self.n,
                "c: {} elements from row to row, {} columns",
                self.ldc,
                self.n
            );
            let last = (self.m - 1) * self.ldc + self.n - 1;
            assert!(
                last < self.c.len(),
                "c [{}, {}] has only {} elements",
                self.m,
                self.n,
                self.c.len()
            );
        }
    }
}

/// Computes all `problems` in one parallel region. Bits do not depend on the number of threads.
///
/// # Panics
/// If a matrix is shorter than its shape and strides say, or has no unit stride.
pub fn gemm<T: Float>(problems: &mut [Gemm<'_, T>], compute: Compute) {
    let path = match compute {
        Compute::F32 | Compute::F32Rows => Path::Vectors(Form::Exact),
        Compute::Bf16 if crate::isa::isa() == crate::Isa::Amx => Path::Tiles,
        Compute::Bf16 if crate::isa::bf16_dot() => Path::Vectors(Form::Pairs),
        Compute::Bf16 => Path::Vectors(Form::Rounded),
    };
    gemm_as(problems, compute, path);
}

/// Which registers hold the sums.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Path {
    /// Vectors, whose units are as the form says.
    Vectors(Form),
    /// Tiles. Few rows are streamed through vectors there, too.
    Tiles,
}

fn gemm_as<T: Float>(problems: &mut [Gemm<'_, T>], compute: Compute, path: Path) {
    let mut fast = Vec::with_capacity(problems.len());
    for p in problems {
        p.check();
        let plain = matches!(p.a.data, Data::F64(_)) || matches!(p.b.data, Data::F64(_));
        match T::as_f32_mut(p.c) {
            Some(c) if !plain && p.k > 0 => {
                if p.m > 0 && p.n > 0 {
                    let (c, ldc, accumulate) = (c.as_mut_ptr(), p.ldc, p.accumulate);
                    fast.push(Problem {
                        m: p.m,
                        n: p.n,
                        k: p.k,
                        a: p.a,
                        b: p.b,
                        c,
                        ldc,
                        accumulate,
                        by_rows: compute == Compute::F32Rows,
                    });
                }
            }
            _ => reference::gemm(p, compute),
        }
    }
    match path {
        Path::Vectors(form) => blocked::run(&fast, form),
        #[cfg(not(target_arch = "x86_64"))]
        Path::Tiles => unreachable!("invariant: only x86 has tile registers"),
        #[cfg(target_arch = "x86_64")]
        Path::Tiles => {
            let (few, many): (Vec<_>, Vec<_>) = fast.into_iter().partition(Problem::streamed);
            if !few.is_empty() {
                blocked::run(&few, Form::Pairs);
            }
            if !many.is_empty() {
                tiles::run(&many);
            }
        }
    }
}
