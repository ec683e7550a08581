//! Tensors where they lie: borrowed from a file's bytes, or kept together with the map they lie in.
//!
//! Nothing here is aligned: the format lets a tensor start at any byte, so the conversions read element by element from
//! little-endian bytes (which the compiler turns into vector loads) instead of casting.

use std::{ops::Range, path::Path, sync::Arc};

use half::{bf16, f16};
use ounce_kernels::mapped::MappedFile;

use crate::{
    dtype::Dtype,
    error::{FormatError, Result},
};

/// One tensor of a file, borrowed. `bytes` is as long as `dtype` and `shape` say.
#[derive(Debug, Clone, Copy)]
pub struct TensorView<'a> {
    /// The file, for messages.
    pub path: &'a Path,
    /// The tensor's name.
    pub name: &'a str,
    /// Element type; never [`Dtype::Foreign`].
    pub dtype: Dtype,
    /// Row-major shape; empty for a scalar.
    pub shape: &'a [usize],
    /// The elements, little-endian, at any alignment.
    pub bytes: &'a [u8],
}

impl TensorView<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The elements as `f32`: widened from F16, BF16 and blocks, rounded from F64.
    ///
    /// # Errors
    /// The tensor does not hold floats.
    pub fn to_f32_vec(&self) -> Result<Vec<f32>> {
        Ok(match self.dtype {
            Dtype::F32 => self.elements(f32::from_le_bytes),
            Dtype::F16 => self.elements(|b| f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => self.elements(|b| bf16::from_le_bytes(b).to_f32()),
            Dtype::F64 => self.elements(|b| f64::from_le_bytes(b) as f32),
            Dtype::Blocks(kind) => {
                let mut values = vec![0.0; self.len()];
                ounce_kernels::Blocks::new(kind, self.bytes).widen_from(0, &mut values);
                values
            }
            _ => return Err(self.wrong_type("F32, F64, F16, BF16 or blocks")),
        })
    }

    /// The elements as `i64`, from I64, I32 or U8.
    ///
    /// # Errors
    /// The tensor does not hold integers.
    pub fn to_i64_vec(&self) -> Result<Vec<i64>> {
        Ok(match self.dtype {
            Dtype::I64 => self.elements(i64::from_le_bytes),
            Dtype::I32 => self.elements(|b| i64::from(i32::from_le_bytes(b))),
            Dtype::U8 => self.elements(|[b]: [u8; 1]| i64::from(b)),
            _ => return Err(self.wrong_type("I64, I32 or U8")),
        })
    }

    fn elements<const N: usize, T>(&self, read: impl Fn([u8; N]) -> T) -> Vec<T> {
        let (elements, rest) = self.bytes.as_chunks::<N>();
        debug_assert!(rest.is_empty(), "the length was checked when the file was opened");
        elements.iter().map(|&element| read(element)).collect()
    }

    fn wrong_type(&self, wanted: &str) -> FormatError {
        let rule = format!("holds {}, where {wanted} is needed", self.dtype);
        FormatError::tensor(self.path, self.name, rule, "store the tensor in one of these types")
    }
}

/// One tensor of a file together with the map it lies in: keeps weights file-backed without a lifetime.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Region {
    /// The whole file.
    pub file: Arc<MappedFile>,
    /// The tensor's bytes within `file`.
    pub range: Range<usize>,
    /// Element type; never [`Dtype::Foreign`].
    pub dtype: Dtype,
    /// Row-major shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// The tensor's name.
    pub name: String,
    /// The file's path, for messages.
    pub path: Arc<Path>,
}

impl Region {
    /// The elements, little-endian, at any alignment.
    pub fn bytes(&self) -> &[u8] {
        &self.file[self.range.clone()]
    }

    /// The same tensor, borrowed.
    pub fn view(&self) -> TensorView<'_> {
        TensorView {
            path: &self.path,
            name: &self.name,
            dtype: self.dtype,
            shape: &self.shape,
            bytes: self.bytes(),
        }
    }
}
