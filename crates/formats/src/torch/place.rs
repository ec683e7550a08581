//! Where a tensor's elements are: a range of the file if they lie side by side, else memory into which they are gathered.
//! Such memory is bounded by the length of the file, whatever shapes and strides it declares.

use super::{
    element_bytes,
    objects::{Storage, TensorRecord},
    refusal::{Refusal, Step},
};
use ounce_kernels::mapped::MappedFile;
use std::{io, ops::Range};

/// Small tensors may be repeated (stride 0) whatever the file's length: a mask made by `expand` is no attack.
const ALWAYS: usize = 1 << 20;

/// What begins at a multiple of this in memory needs no copy to be used.
const ALIGNMENT: usize = 64;

/// Tensors to be gathered, and how much memory they take.
pub(super) struct Gather {
    file: usize,
    used: usize,
    pieces: Vec<Piece>,
}

struct Piece {
    /// Place in the memory.
    to: Range<usize>,
    /// Offset of the tensor's first element in the file.
    from: usize,
    size: usize,
    shape: Vec<usize>,
    stride: Vec<usize>,
}

impl Gather {
    /// For a file of `file` bytes.
    pub(super) fn new(file: usize) -> Self {
        Self {
            file,
            used: 0,
            pieces: Vec::new(),
        }
    }

    /// Where the bytes of `tensor` are, whose storage is `range` of the file: below the file's length there, else in memory.
    pub(super) fn place(
        &mut self,
        tensor: &TensorRecord,
        storage: &Storage<'_>,
        range: &Range<usize>,
    ) -> Step<Range<usize>> {
        let size = element_bytes(storage);
        if storage.elements.checked_mul(size) != Some(range.len()) {
            return Err(format!(
                "its storage says {} elements of {}, in the file it has {} bytes",
                storage.elements,
                storage.dtype,
                range.len()
            )
            .into());
        }
        let elements = tensor.shape.iter().try_fold(1_usize, |n, &d| n.checked_mul(d));
        let elements = elements.ok_or("has more elements than can be counted")?;
        let start = range.start + tensor.offset.saturating_mul(size).min(range.len());
        if elements == 0 {
            return Ok(start..start);
        }
        let steps = tensor.shape.iter().zip(&tensor.stride);
        let last = steps.clone().try_fold(tensor.offset, |at, (&dim, &stride)| {
            at.checked_add((dim - 1).checked_mul(stride)?)
        });
        if last.is_none_or(|last| last >= storage.elements) {
            return Err(format!(
                "elements from {} of shape {:?}, strides {:?} lie outside its storage of {}",
                tensor.offset, tensor.shape, tensor.stride, storage.elements
            )
            .into());
        }
        let mut side_by_side = 1;
        let contiguous = steps.rev().all(|(&dim, &stride)| {
            let fits = dim == 1 || stride == side_by_side;
            side_by_side *= dim;
            fits
        });
        if contiguous {
            return Ok(start..start + elements * size);
        }
        let first = self.used.next_multiple_of(ALIGNMENT);
        let end = elements.checked_mul(size).and_then(|len| first.checked_add(len));
        let Some(end) = end.filter(|&end| end <= self.file.saturating_add(ALWAYS)) else {
            return Err(Refusal {
                rule: format!(
                    "shape {:?} with strides {:?} repeats its storage, so that it would need more memory than the file has bytes",
                    tensor.shape, tensor.stride
                ),
                hint: "save it with .contiguous(), or export safetensors",
            });
        };
        self.pieces.push(Piece {
            to: first..end,
            from: start,
            size,
            shape: tensor.shape.clone(),
            stride: tensor.stride.clone(),
        });
        self.used = end;
        Ok(self.file + first..self.file + end)
    }

    /// The memory, filled from the file's bytes; none if nothing is to be gathered.
    pub(super) fn fill(self, bytes: &[u8]) -> io::Result<Option<MappedFile>> {
        if self.pieces.is_empty() {
            return Ok(None);
        }
        let made = MappedFile::in_memory(self.used, |memory| {
            for piece in &self.pieces {
                piece.copy(bytes, &mut memory[piece.to.clone()]);
            }
        });
        made.map(Some)
    }
}

impl Piece {
    /// Counts through the indices, the last dimension fastest. All places were checked.
    fn copy(&self, bytes: &[u8], to: &mut [u8]) {
        let mut index = vec![0; self.shape.len()];
        let mut from = self.from;
        for element in to.chunks_exact_mut(self.size) {
            element.copy_from_slice(&bytes[from..from + self.size]);
            for d in (0..index.len()).rev() {
                let step = self.stride[d] * self.size;
                index[d] += 1;
                if index[d] < self.shape[d] {
                    from += step;
                    break;
                }
                from -= (index[d] - 1) * step;
                index[d] = 0;
            }
        }
    }
}
