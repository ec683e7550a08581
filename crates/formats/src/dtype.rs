//! Element types as files name them.

use std::fmt;

use ounce_kernels::BlockKind;

/// The element type of a stored tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// 32-bit float.
    F32,
    /// 64-bit float.
    F64,
    /// IEEE half precision.
    F16,
    /// bfloat16: the upper half of an `F32`.
    BF16,
    /// 64-bit signed integer.
    I64,
    /// 32-bit signed integer.
    I32,
    /// Byte.
    U8,
    /// One byte, 0 or 1.
    Bool,
    /// Quantised weights, in blocks of a row; only GGUF files hold them.
    Blocks(BlockKind),
    /// A type the safetensors format has and Ounce does not compute with. Such tensors can be listed and measured, so
    /// that a file which holds one among others still opens; asking for their data is an error.
    Foreign(ForeignDtype),
}

/// Name and width of a [`Dtype::Foreign`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ForeignDtype {
    name: &'static str,
    bits: usize,
}

const NATIVE: [Dtype; 8] = [
    Dtype::F32,
    Dtype::F64,
    Dtype::F16,
    Dtype::BF16,
    Dtype::I64,
    Dtype::I32,
    Dtype::U8,
    Dtype::Bool,
];

const FOREIGN: [ForeignDtype; 14] = [
    ForeignDtype { name: "F4", bits: 4 },
    ForeignDtype {
        name: "F6_E2M3",
        bits: 6,
    },
    ForeignDtype {
        name: "F6_E3M2",
        bits: 6,
    },
    ForeignDtype { name: "I8", bits: 8 },
    ForeignDtype {
        name: "F8_E5M2",
        bits: 8,
    },
    ForeignDtype {
        name: "F8_E4M3",
        bits: 8,
    },
    ForeignDtype {
        name: "F8_E8M0",
        bits: 8,
    },
    ForeignDtype {
        name: "F8_E4M3FNUZ",
        bits: 8,
    },
    ForeignDtype {
        name: "F8_E5M2FNUZ",
        bits: 8,
    },
    ForeignDtype { name: "I16", bits: 16 },
    ForeignDtype { name: "U16", bits: 16 },
    ForeignDtype { name: "U32", bits: 32 },
    ForeignDtype { name: "C64", bits: 64 },
    ForeignDtype { name: "U64", bits: 64 },
];

impl Dtype {
    /// The type a safetensors header calls `name`; `None` if the format has no such type.
    pub fn from_name(name: &str) -> Option<Self> {
        NATIVE
            .into_iter()
            .chain(FOREIGN.map(Self::Foreign))
            .find(|dtype| dtype.name() == name)
    }

    /// The name in a safetensors header.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F64 => "F64",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::U8 => "U8",
            Self::Bool => "BOOL",
            Self::Blocks(kind) => kind.name(),
            Self::Foreign(foreign) => foreign.name,
        }
    }

    /// Bits per element; some foreign types are narrower than a byte. Of blocks, those of a whole block by its values,
    /// rounded up.
    pub fn bits(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 64,
            Self::F32 | Self::I32 => 32,
            Self::F16 | Self::BF16 => 16,
            Self::U8 | Self::Bool => 8,
            Self::Blocks(kind) => (kind.bytes() * 8).div_ceil(kind.values()),
            Self::Foreign(foreign) => foreign.bits,
        }
    }

    /// Bytes of a tensor of this type and `shape`; `None` if they cannot be counted in a `usize` or are not whole. Rows
    /// are whole blocks, where there are blocks.
    pub fn byte_len(self, shape: &[usize]) -> Option<usize> {
        let elements = shape.iter().try_fold(1_usize, |n, &d| n.checked_mul(d))?;
        if let Self::Blocks(kind) = self {
            let row = shape.last().copied().unwrap_or(1);
            return kind.byte_len(elements).filter(|_| row.is_multiple_of(kind.values()));
        }
        let bits = elements.checked_mul(self.bits())?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_exact() {
        for dtype in NATIVE.into_iter().chain(FOREIGN.map(Dtype::Foreign)) {
            assert_eq!(Dtype::from_name(dtype.name()), Some(dtype));
        }
        assert_eq!(Dtype::from_name("f32"), None);
    }

    #[test]
    fn uncountable_and_broken_sizes_are_none() {
        assert_eq!(Dtype::F32.byte_len(&[]), Some(4));
        assert_eq!(Dtype::F32.byte_len(&[3, 0]), Some(0));
        assert_eq!(Dtype::F32.byte_len(&[usize::MAX, 2]), None);
        assert_eq!(Dtype::F32.byte_len(&[usize::MAX / 4]), None);
        assert_eq!(Dtype::from_name("F4").unwrap().byte_len(&[3]), None);
        assert_eq!(Dtype::from_name("F4").unwrap().byte_len(&[4]), Some(2));
    }
}
