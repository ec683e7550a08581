//! Where a tensor's values live: vectors in memory, or a range of a mapped file.
//!
//! Large f32 buffers are recycled through a small free list: a training step allocates the same sizes again and again,
//! and fresh pages from the system cost more than many of the operations that fill them.

use half::{bf16, f16};
use ounce_kernels::{BlockKind, Data, Float, mapped::MappedFile};
use std::{
    collections::HashMap,
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Element types a tensor can hold. `F64` exists for gradient checks, `I64` for ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float.
    F32,
    /// 64-bit float (gradient checks only).
    F64,
    /// bfloat16.
    BF16,
    /// IEEE half.
    F16,
    /// 64-bit integer.
    I64,
    /// Quantised weights in blocks: matrices whose rows are whole blocks, for products and lookups only.
    Blocks(BlockKind),
}

impl DType {
    /// Bytes of `n` elements; of blocks, those of the whole blocks among them.
    pub fn bytes_of(self, n: usize) -> usize {
        match self {
            DType::BF16 | DType::F16 => 2 * n,
            DType::F32 => 4 * n,
            DType::F64 | DType::I64 => 8 * n,
            DType::Blocks(kind) => n / kind.values() * kind.bytes(),
        }
    }

    /// Whether a tensor of this shape can be of this type: rows of blocks are whole ones.
    pub fn fits(self, dims: &[usize]) -> bool {
        match self {
            DType::Blocks(kind) => dims.last().is_some_and(|d| d.is_multiple_of(kind.values())),
            _ => true,
        }
    }
}

#[derive(Debug)]
pub(crate) enum Storage {
    F32(Vec<f32>),
    F64(Vec<f64>),
    BF16(Vec<bf16>),
    F16(Vec<f16>),
    I64(Vec<i64>),
    Blocks(BlockKind, Vec<u8>),
    /// `range` is aligned for `dtype` and holds whole elements (checked by `Tensor::from_mapped`).
    Mapped {
        file: Arc<MappedFile>,
        range: Range<usize>,
        dtype: DType,
    },
}

impl Storage {
    pub(crate) fn dtype(&self) -> DType {
        match self {
            Storage::F32(_) => DType::F32,
            Storage::F64(_) => DType::F64,
            Storage::BF16(_) => DType::BF16,
            Storage::F16(_) => DType::F16,
            Storage::I64(_) => DType::I64,
            Storage::Blocks(kind, _) => DType::Blocks(*kind),
            Storage::Mapped { dtype, .. } => *dtype,
        }
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        if let Storage::F32(values) = self {
            recycle(std::mem::take(values));
        }
    }
}

/// A Rust type that is a tensor's element type.
pub trait Element: Copy + Send + Sync + bytemuck::Pod + 'static {
    /// The matching dtype.
    const DTYPE: DType;
    #[doc(hidden)]
    fn borrow(storage: &[u8]) -> &[Self] {
        bytemuck::cast_slice(storage)
    }
    #[doc(hidden)]
    #[expect(
        private_interfaces,
        reason = "sealed: storage stays private, the trait is public only as a bound"
    )]
    fn vec(storage: &Storage) -> Option<&Vec<Self>>;
    #[doc(hidden)]
    #[expect(
        private_interfaces,
        reason = "sealed: storage stays private, the trait is public only as a bound"
    )]
    fn vec_mut(storage: &mut Storage) -> Option<&mut Vec<Self>>;
    #[doc(hidden)]
    #[expect(
        private_interfaces,
        reason = "sealed: storage stays private, the trait is public only as a bound"
    )]
    fn store(values: Vec<Self>) -> Storage;
    /// The slice as kernel operand; `None` for integers.
    fn data(values: &[Self]) -> Option<Data<'_>>;
}

macro_rules! element {
    ($type:ty, $variant:ident, $values:ident => $data:expr) => {
        impl Element for $type {
            const DTYPE: DType = DType::$variant;
            #[expect(private_interfaces, reason = "sealed")]
            fn vec(storage: &Storage) -> Option<&Vec<Self>> {
                if let Storage::$variant(v) = storage {
                    Some(v)
                } else {
                    None
                }
            }
            #[expect(private_interfaces, reason = "sealed")]
            fn vec_mut(storage: &mut Storage) -> Option<&mut Vec<Self>> {
                if let Storage::$variant(v) = storage {
                    Some(v)
                } else {
                    None
                }
            }
            #[expect(private_interfaces, reason = "sealed")]
            fn store(values: Vec<Self>) -> Storage {
                Storage::$variant(values)
            }
            fn data($values: &[Self]) -> Option<Data<'_>> {
                $data
            }
        }
    };
}
element!(f32, F32, v => Some(Data::F32(v)));
element!(f64, F64, v => Some(Data::F64(v)));
element!(bf16, BF16, v => Some(Data::Bf16(v)));
element!(f16, F16, v => Some(Data::F16(v)));
element!(i64, I64, _v => None);

/// Element types operations compute in: f32, and f64 for gradient checks.
pub(crate) trait Real: Element + Float {
    /// A buffer of `len` elements with arbitrary contents; the caller overwrites all of them.
    fn buffer(len: usize) -> Vec<Self>;
}
impl Real for f32 {
    fn buffer(len: usize) -> Vec<f32> {
        take(len)
    }
}
impl Real for f64 {
    fn buffer(len: usize) -> Vec<f64> {
        vec![0.0; len]
    }
}

/// Buffers below this many elements are left to the allocator.
const RECYCLE_FROM: usize = 16 * 1024;
/// At most this many elements wait in the free list; training raises it.
static RECYCLE_LIMIT: AtomicUsize = AtomicUsize::new(16 * 1024 * 1024);

#[derive(Default)]
struct FreeList {
    /// Waiting buffers by capacity, always a size of [`class`].
    by_class: HashMap<usize, Vec<Vec<f32>>>,
    elements: usize,
}
static FREE: Mutex<Option<FreeList>> = Mutex::new(None);

/// Sizes are rounded up to one of eight steps per power of two: buffers whose length changes from call to call (experts
/// see a different number of tokens each time) still fit each other, and at most an eighth is wasted.
fn class(len: usize) -> usize {
    let step = (len.next_power_of_two() / 16).max(1);
    len.next_multiple_of(step)
}

fn take(len: usize) -> Vec<f32> {
    if len < RECYCLE_FROM {
        return vec![0.0; len];
    }
    let class = class(len);
    if let Ok(mut guard) = FREE.lock()
        && let Some(free) = guard.as_mut()
        && let Some(mut values) = free.by_class.get_mut(&class).and_then(Vec::pop)
    {
        free.elements -= class;
        // Only what the last user's length did not reach is filled.
        values.resize(len, 0.0);
        return values;
    }
    let mut values = Vec::with_capacity(class);
    ounce_kernels::prefer_large_pages(&mut values);
    values.resize(len, 0.0);
    values
}

fn recycle(values: Vec<f32>) {
    let class = class(values.len());
    if values.len() < RECYCLE_FROM || values.capacity() != class {
        return;
    }
    if let Ok(mut guard) = FREE.lock() {
        let free = guard.get_or_insert_with(FreeList::default);
        if free.elements + class <= RECYCLE_LIMIT.load(Ordering::Relaxed) {
            free.elements += class;
            free.by_class.entry(class).or_default().push(values);
        }
    }
}

/// Gives every waiting buffer back to the allocator and keeps at most `bytes` from now on: for work whose memory is
/// bounded.
pub(crate) fn limit_buffers(bytes: usize) {
    RECYCLE_LIMIT.store(bytes / size_of::<f32>(), Ordering::Relaxed);
    if let Ok(mut guard) = FREE.lock() {
        *guard = None;
    }
}
