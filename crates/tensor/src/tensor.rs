//! [`Tensor`]: contiguous row-major values, a shape, and (if a gradient is wanted) the node that made it.

use crate::{
    autograd::Node,
    error::{Result, TensorError, shape},
    storage::{DType, Element, Storage, limit_buffers},
};
use half::{bf16, f16};
use ounce_kernels::{Blocks, Data, mapped::MappedFile};
use std::{fmt, ops::Range, sync::Arc};

/// A contiguous row-major tensor. Cloning shares the values.
#[derive(Clone)]
pub struct Tensor {
    pub(crate) storage: Arc<Storage>,
    /// First element within the storage: leading-dimension slices share their parent's values.
    pub(crate) offset: usize,
    pub(crate) shape: Vec<usize>,
    pub(crate) node: Option<Arc<Node>>,
}

impl Tensor {
    /// A tensor that owns `values`; their number must be the product of `dims`.
    ///
    /// # Errors
    /// If the counts differ.
    pub fn new<T: Element>(values: Vec<T>, dims: &[usize]) -> Result<Self> {
        if values.len() != dims.iter().product::<usize>() {
            return shape(
                "tensor",
                "number of values = product of dimensions",
                (values.len(), dims),
            );
        }
        Ok(Self::owned(values, dims))
    }

    pub(crate) fn owned<T: Element>(values: Vec<T>, dims: &[usize]) -> Self {
        debug_assert_eq!(values.len(), dims.iter().product::<usize>());
        Self {
            storage: Arc::new(T::store(values)),
            offset: 0,
            shape: dims.to_vec(),
            node: None,
        }
    }

    /// One value, shape `[]`.
    pub fn scalar<T: Element>(value: T) -> Self {
        Self::owned(vec![value], &[])
    }

    /// f32 zeros.
    pub fn zeros(dims: &[usize]) -> Self {
        Self::owned(vec![0f32; dims.iter().product()], dims)
    }

    /// A file-backed tensor over `range` (bytes) of a mapped file. `None` if the range is not aligned for `dtype` or has
    /// the wrong length: the caller then copies the values.
    pub fn from_mapped(file: Arc<MappedFile>, range: Range<usize>, dtype: DType, dims: &[usize]) -> Option<Self> {
        let bytes = file.get(range.clone())?;
        let elements = dims.iter().product::<usize>();
        let aligned = match dtype {
            DType::F32 => bytemuck::try_cast_slice::<u8, f32>(bytes).is_ok(),
            DType::F64 => bytemuck::try_cast_slice::<u8, f64>(bytes).is_ok(),
            DType::BF16 | DType::F16 => bytemuck::try_cast_slice::<u8, u16>(bytes).is_ok(),
            DType::I64 => bytemuck::try_cast_slice::<u8, i64>(bytes).is_ok(),
            DType::Blocks(_) => true,
        };
        (aligned && dtype.fits(dims) && bytes.len() == dtype.bytes_of(elements)).then(|| Self {
            storage: Arc::new(Storage::Mapped { file, range, dtype }),
            offset: 0,
            shape: dims.to_vec(),
            node: None,
        })
    }

    /// A tensor read from little-endian bytes, copied.
    ///
    /// # Errors
    /// If the number of bytes is not that of the shape.
    pub fn from_le_bytes(bytes: &[u8], dtype: DType, dims: &[usize]) -> Result<Self> {
        if !dtype.fits(dims) || bytes.len() != dtype.bytes_of(dims.iter().product()) {
            return shape(
                "tensor",
                "number of bytes = elements x size",
                (bytes.len(), dims, dtype),
            );
        }
        Ok(match dtype {
            DType::F32 => Self::owned::<f32>(bytemuck::allocation::pod_collect_to_vec(bytes), dims),
            DType::F64 => Self::owned::<f64>(bytemuck::allocation::pod_collect_to_vec(bytes), dims),
            DType::BF16 => Self::owned::<bf16>(bytemuck::allocation::pod_collect_to_vec(bytes), dims),
            DType::F16 => Self::owned::<f16>(bytemuck::allocation::pod_collect_to_vec(bytes), dims),
            DType::I64 => Self::owned::<i64>(bytemuck::allocation::pod_collect_to_vec(bytes), dims),
            DType::Blocks(kind) => Self {
                storage: Arc::new(Storage::Blocks(kind, bytes.to_vec())),
                offset: 0,
                shape: dims.to_vec(),
                node: None,
            },
        })
    }

    /// Dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }
    /// Size of dimension `axis`.
    pub fn dim(&self, axis: usize) -> usize {
        self.shape[axis]
    }
    /// Size of the last dimension (1 for a scalar).
    pub fn last_dim(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }
    /// Product of all dimensions but the last.
    pub fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }
    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }
    /// Element type.
    pub fn dtype(&self) -> DType {
        self.storage.dtype()
    }
    /// Are the values read from a mapped file?
    pub fn is_mapped(&self) -> bool {
        matches!(*self.storage, Storage::Mapped { .. })
    }

    /// The values as `T`; `None` if the dtype is another.
    pub fn values<T: Element>(&self) -> Option<&[T]> {
        let all: &[T] = match &*self.storage {
            Storage::Mapped { file, range, dtype } if *dtype == T::DTYPE => T::borrow(&file[range.clone()]),
            other => T::vec(other)?,
        };
        Some(&all[self.offset..self.offset + self.numel()])
    }

    /// The values as `T`, or an error that names the operation.
    pub(crate) fn get<T: Element>(&self, op: &'static str) -> Result<&[T]> {
        self.values::<T>().ok_or_else(|| TensorError::Dtype {
            op,
            rule: "all inputs share one dtype the operation takes",
            got: format!("{:?} where {:?} is needed", self.dtype(), T::DTYPE),
        })
    }

    /// Values for writing, in place. `None` if another tensor shares them, the dtype differs, or they are file-backed.
    pub fn values_mut<T: Element>(&mut self) -> Option<&mut [T]> {
        let (offset, n) = (self.offset, self.numel());
        Some(&mut T::vec_mut(Arc::get_mut(&mut self.storage)?)?[offset..offset + n])
    }

    /// The values as a kernel operand (any float dtype); `op` names the operation in errors.
    ///
    /// # Errors
    /// If the values are integers.
    pub fn data(&self, op: &'static str) -> Result<Data<'_>> {
        let data = match self.dtype() {
            DType::F32 => self.values::<f32>().and_then(f32::data),
            DType::F64 => self.values::<f64>().and_then(f64::data),
            DType::BF16 => self.values::<bf16>().and_then(bf16::data),
            DType::F16 => self.values::<f16>().and_then(f16::data),
            DType::Blocks(kind) => self.block_bytes().map(|bytes| Data::Blocks(Blocks::new(kind, bytes))),
            DType::I64 => None,
        };
        data.ok_or(TensorError::Dtype {
            op,
            rule: "a float tensor",
            got: format!("{:?}", self.dtype()),
        })
    }

    /// The bytes of values in blocks; `None` if they are in none.
    fn block_bytes(&self) -> Option<&[u8]> {
        let all: &[u8] = match &*self.storage {
            Storage::Mapped { file, range, .. } => &file[range.clone()],
            Storage::Blocks(_, bytes) => bytes,
            _ => return None,
        };
        let at = |value| self.dtype().bytes_of(value);
        all.get(at(self.offset)..at(self.offset + self.numel()))
    }

    /// Raw little-endian bytes of the values, for writing to files.
    pub fn bytes(&self) -> &[u8] {
        fn of<T: Element>(t: &Tensor) -> &[u8] {
            t.values::<T>().map_or(&[], bytemuck::cast_slice)
        }
        match self.dtype() {
            DType::F32 => of::<f32>(self),
            DType::F64 => of::<f64>(self),
            DType::BF16 => of::<bf16>(self),
            DType::F16 => of::<f16>(self),
            DType::I64 => of::<i64>(self),
            DType::Blocks(_) => self.block_bytes().unwrap_or(&[]),
        }
    }

    /// All values widened to f32 (rounded, for f64 and i64).
    pub fn to_f32(&self) -> Vec<f32> {
        match self.dtype() {
            DType::F32 => self.values::<f32>().unwrap_or(&[]).to_vec(),
            DType::F64 => self.values::<f64>().unwrap_or(&[]).iter().map(|&x| x as f32).collect(),
            DType::I64 => self.values::<i64>().unwrap_or(&[]).iter().map(|&x| x as f32).collect(),
            DType::BF16 | DType::F16 | DType::Blocks(_) => {
                let mut out = vec![0f32; self.numel()];
                if let Ok(data) = self.data("to_f32") {
                    ounce_kernels::widen(data, &mut out);
                }
                out
            }
        }
    }

    /// The same values in another float dtype (rounded to nearest even); shares them if the dtype is the same already.
    ///
    /// # Errors
    /// If the target is `I64` or blocks.
    pub fn cast(&self, dtype: DType) -> Result<Tensor> {
        if dtype == self.dtype() {
            return Ok(self.detach());
        }
        Ok(match dtype {
            DType::F32 => Self::owned(self.to_f32(), &self.shape),
            DType::F64 => Self::owned(self.to_f32().into_iter().map(f64::from).collect(), &self.shape),
            DType::BF16 => Self::owned(self.to_f32().into_iter().map(bf16::from_f32).collect(), &self.shape),
            DType::F16 => Self::owned(self.to_f32().into_iter().map(f16::from_f32).collect(), &self.shape),
            DType::I64 | DType::Blocks(_) => {
                return Err(TensorError::Dtype {
                    op: "cast",
                    rule: "a float target",
                    got: format!("{dtype:?}"),
                });
            }
        })
    }

    /// The only value of a tensor with one element, as f64.
    ///
    /// # Errors
    /// If it has another number of elements.
    pub fn item(&self) -> Result<f64> {
        if self.numel() != 1 {
            return shape("item", "exactly one element", &self.shape);
        }
        Ok(match self.dtype() {
            DType::F64 => self.values::<f64>().map_or(f64::NAN, |v| v[0]),
            DType::I64 => self.values::<i64>().map_or(f64::NAN, |v| v[0] as f64),
            _ => f64::from(self.to_f32()[0]),
        })
    }

    /// The same values without the tape.
    pub fn detach(&self) -> Tensor {
        Tensor {
            node: None,
            ..self.clone()
        }
    }

    /// Values `start..start + len` in row-major order, widened to f32 (empty for integers): for reading large weights
    /// in pieces.
    pub fn piece(&self, start: usize, len: usize) -> Vec<f32> {
        let mut out = vec![0f32; len];
        let range = start..start + len;
        match self.data("piece") {
            // A piece may begin or end within a block.
            Ok(Data::Blocks(blocks)) => blocks.widen_from(start, &mut out),
            Ok(data) => ounce_kernels::widen(data.part(range), &mut out),
            Err(_) => return Vec::new(),
        }
        out
    }

    /// Shape as text for messages.
    pub(crate) fn describe(&self) -> String {
        format!("{:?}", self.shape)
    }

    /// Gives recycled buffers back to the system and keeps at most `bytes` of them from now on.
    pub fn limit_buffers(bytes: usize) {
        limit_buffers(bytes);
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Tensor({:?}, {:?}{})",
            self.dtype(),
            self.shape,
            if self.node.is_some() { ", grad" } else { "" }
        )
    }
}
