//! The register tile: C[R, NR] (+)= A[R, k] · B[k, NR] with all of C in registers, and the loop over the tiles of a block.
//!
//! A is read one value at a time (from rows as they lie in memory, or from panels), B one row of NR lanes at a time.
//! Every element of C is one chain of multiply-adds in the order of k, whatever the tile it falls into: bits do not
//! depend on how the matrix was cut. This module knows nothing of storage types or threads.

#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::{
    isa::Isa,
    simd::{Portable, Vf32, kernel},
};

/// A block of C and the packed (or fitting) inputs. Distances are in units of 32 bits.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub(super) m: usize,
    pub(super) n: usize,
    /// Units along k.
    pub(super) units: usize,
    /// Unit u of row r is at `a[r / MR * a_panel + r % MR * a_row + u * a_step]`.
    pub(super) a: *const f32,
    pub(super) a_panel: usize,
    pub(super) a_row: usize,
    pub(super) a_step: usize,
    /// Unit u of column j is at `b[j / NR * b_panel + j % NR + u * b_step]`; every panel is NR wide.
    pub(super) b: *const f32,
    pub(super) b_panel: usize,
    pub(super) b_step: usize,
    pub(super) c: *mut f32,
    pub(super) ldc: usize,
    /// Whether to add to C.
    pub(super) add: bool,
}

/// (MR, NR): rows and columns of the register tile.
pub(super) fn tile_size(isa: Isa) -> (usize, usize) {
    match isa {
        Isa::Portable => (4, 8),
        Isa::Avx2 => (6, 16),
        Isa::Avx512 | Isa::Amx => (14, 32),
    }
}

/// How two units are multiplied and added to a lane.
trait Dot<V> {
    fn step(a: V, b: V, sum: V) -> V;
}

/// Units are f32.
struct Fma;

impl<V: Vf32> Dot<V> for Fma {
    #[inline(always)]
    fn step(a: V, b: V, sum: V) -> V {
        a.fma(b, sum)
    }
}

/// Units are pairs of bf16, multiplied by AVX-512-BF16.
#[cfg(target_arch = "x86_64")]
struct DotBf16;

#[cfg(target_arch = "x86_64")]
impl Dot<Avx512> for DotBf16 {
    #[inline(always)]
    fn step(a: Avx512, b: Avx512, sum: Avx512) -> Avx512 {
        use std::arch::x86_64::{__m512, __m512bh, _mm512_dpbf16_ps};
        // SAFETY: plain bits of the same size; `block_pairs` is the only user and checks for AVX-512-BF16.
        unsafe {
            let bits = |x: __m512| std::mem::transmute::<__m512, __m512bh>(x);
            Avx512(_mm512_dpbf16_ps(sum.0, bits(a.0), bits(b.0)))
        }
    }
}

/// The vectors of an instruction set together with its register tile.
trait Tiles: Vf32 {
    const MR: usize;
    const NR: usize;

    /// One tile of `rows <= MR` rows and NR columns.
    ///
    /// # Safety
    /// As [`block`], for one tile.
    unsafe fn tile<D: Dot<Self>>(rows: usize, t: &Block);
}

/// Units of B that are fetched ahead of the one in use.
const AHEAD: usize = 8;

/// Brings a cache line near, wherever the pointer points.
#[inline(always)]
fn prefetch(at: *const f32) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint; an address that cannot be read is ignored.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

#[inline(always)]
unsafe fn tile<V: Vf32, D: Dot<V>, const R: usize, const NV: usize>(t: &Block) {
    let mut sums = [[V::zero(); NV]; R];
    let (mut a, mut b) = (t.a, t.b);
    // SAFETY: all reads are of row r < rows, unit u < units and columns below NR; all writes within the tile of C.
    unsafe {
        if t.add {
            // C was last touched a whole chunk ago.
            for r in 0..R {
                for j in 0..NV {
                    prefetch(t.c.add(r * t.ldc + j * V::LANES));
                }
            }
        }
        for _ in 0..t.units {
            let mut row = [V::zero(); NV];
            for j in 0..NV {
                row[j] = V::load_ptr(b.add(j * V::LANES));
                // Panels that overflow the first-level cache arrive before they are needed; a prefetch reads nothing.
                prefetch(b.wrapping_add(j * V::LANES + AHEAD * t.b_step));
            }
            for r in 0..R {
                let x = V::splat(*a.add(r * t.a_row));
                for j in 0..NV {
                    sums[r][j] = D::step(x, row[j], sums[r][j]);
                }
            }
            a = a.add(t.a_step);
            b = b.add(t.b_step);
        }
        for r in 0..R {
            for j in 0..NV {
                let c = t.c.add(r * t.ldc + j * V::LANES);
                let sum = if t.add {
                    V::load_ptr(c).add(sums[r][j])
                } else {
                    sums[r][j]
                };
                sum.store_ptr(c);
            }
        }
    }
}

macro_rules! tiles {
    ($v:ty, $nv:literal, $mr:literal, $($rows:literal)*) => {
        impl Tiles for $v {
            const MR: usize = $mr;
            const NR: usize = $nv * <$v as Vf32>::LANES;

            #[inline(always)]
            unsafe fn tile<D: Dot<Self>>(rows: usize, t: &Block) {
                // SAFETY: the caller's promise.
                unsafe {
                    match rows {
                        $($rows => tile::<Self, D, $rows, $nv>(t),)*
                        _ => tile::<Self, D, $mr, $nv>(t),
                    }
                }
            }
        }
    };
}
tiles!(Portable, 1, 4, 1 2 3);
#[cfg(target_arch = "x86_64")]
tiles!(Avx2, 2, 6, 1 2 3 4 5);
#[cfg(target_arch = "x86_64")]
tiles!(Avx512, 2, 14, 1 2 3 4 5 6 7 8 9 10 11 12 13);

#[inline(always)]
unsafe fn block_with<V: Tiles, D: Dot<V>>(b: &Block) {
    debug_assert_eq!((V::MR, V::NR), tile_size(crate::isa::isa()));
    // A panel of B stays in the first-level cache while the rows of A pass by.
    for j in (0..b.n).step_by(V::NR) {
        let cols = (b.n - j).min(V::NR);
        for i in (0..b.m).step_by(V::MR) {
            let rows = (b.m - i).min(V::MR);
            // SAFETY: the caller vouches for the block; these are its parts. At the right edge the tile goes to `edge`,
            // which holds the largest tile there is (14 x 32), and only the columns that exist are copied.
            unsafe {
                let mut t = Block {
                    a: b.a.add(i / V::MR * b.a_panel),
                    b: b.b.add(j / V::NR * b.b_panel),
                    c: b.c.add(i * b.ldc + j),
                    ..*b
                };
                if cols == V::NR {
                    V::tile::<D>(rows, &t);
                    continue;
                }
                let mut edge = [0.0f32; 14 * 32];
                let c = t.c;
                (t.c, t.ldc, t.add) = (edge.as_mut_ptr(), V::NR, false);
                V::tile::<D>(rows, &t);
                for r in 0..rows {
                    for j in 0..cols {
                        let (c, x) = (c.add(r * b.ldc + j), edge[r * V::NR + j]);
                        *c = if b.add { *c + x } else { x };
                    }
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn block_body<V: Tiles>(b: &Block) {
    // SAFETY: the caller's promise.
    unsafe { block_with::<V, Fma>(b) }
}

kernel! {
    /// Computes a block whose units are f32.
    ///
    /// # Safety
    /// `a` must be readable for all rows below m and units below `units`, `b` for all whole panels, and `c` writable for
    /// m rows of n values that no other thread touches.
    pub(super) unsafe fn block(b: &Block) = block_body;
}

/// Computes a block whose units are pairs of bf16. Needs [`crate::isa::bf16_dot`]. The CPU treats denormals as zero.
///
/// # Safety
/// As [`block`].
#[cfg(not(test))]
pub(super) unsafe fn block_pairs(b: &Block) {
    // SAFETY: the caller's promise.
    unsafe { block_dpbf16(b) }
}

/// Computes a block whose units are pairs of bf16, on any CPU, so that the packing of pairs is tested everywhere.
///
/// # Safety
/// As [`block`].
#[cfg(test)]
pub(super) unsafe fn block_pairs(b: &Block) {
    // SAFETY: the caller's promise.
    unsafe {
        if crate::isa::bf16_dot() {
            block_dpbf16(b)
        } else {
            emulated::block(b)
        }
    }
}

/// See [`block_pairs`].
unsafe fn block_dpbf16(b: &Block) {
    assert!(
        crate::isa::bf16_dot(),
        "invariant: pairs are packed only where the CPU multiplies them"
    );
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
        unsafe fn run(b: &Block) {
            // SAFETY: the caller's promise.
            unsafe { block_with::<Avx512, DotBf16>(b) }
        }
        // SAFETY: the instruction set was just checked; the rest is the caller's promise.
        unsafe { run(b) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = b;
}

/// What `dpbf16` computes, in plain f32, for the CPUs that lack it.
#[cfg(test)]
mod emulated {
    use super::{Block, Dot, Tiles, Vf32, block_with, kernel};

    struct DotEmulated;

    impl<V: Vf32> Dot<V> for DotEmulated {
        #[inline(always)]
        fn step(a: V, b: V, sum: V) -> V {
            let split = |x: V| {
                let (mut low, mut high) = ([0.0; 16], [0.0; 16]);
                x.store(&mut low);
                for (low, high) in low.iter_mut().zip(&mut high) {
                    (*low, *high) = (
                        f32::from_bits(low.to_bits() << 16),
                        f32::from_bits(low.to_bits() & 0xffff_0000),
                    );
                }
                (V::load(&low), V::load(&high))
            };
            let ((a0, a1), (b0, b1)) = (split(a), split(b));
            a1.fma(b1, a0.fma(b0, sum))
        }
    }

    #[inline(always)]
    unsafe fn block_body<V: Tiles>(b: &Block) {
        // SAFETY: the caller's promise.
        unsafe { block_with::<V, DotEmulated>(b) }
    }

    kernel! { pub(super) unsafe fn block(b: &Block) = block_body; }
}
