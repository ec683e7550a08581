//! Vectors of f32: one trait, three implementations, and the macro that enters vector code.
//!
//! A kernel is written once, generic over [`Vf32`], as an `#[inline(always)]` function, and [`kernel!`] makes the function
//! that callers see: it picks the instruction set and inlines the generic body into a function compiled for it. The
//! AVX-512 path therefore differs from the AVX2 path only in the one-line wrappers below.
//!
//! Soundness rule of the crate: **only `kernel!` names `Avx2` and `Avx512`** (and code that itself is generic over
//! `Vf32`), so no vector instruction runs on a CPU that lacks it. This module must not know any kernel.

use half::{bf16, f16};

/// LANES f32 values in a register. Comparisons follow x86: see [`Vf32::max`].
pub(crate) trait Vf32: Copy {
    /// Values in a register; at most 16.
    const LANES: usize;

    /// All lanes `x`.
    fn splat(x: f32) -> Self;
    /// Reads LANES values.
    ///
    /// # Safety
    /// `p .. p + LANES` must be readable.
    unsafe fn load_ptr(p: *const f32) -> Self;
    /// Writes LANES values.
    ///
    /// # Safety
    /// `p .. p + LANES` must be writable.
    unsafe fn store_ptr(self, p: *mut f32);
    /// Reads LANES bf16 values, widened.
    ///
    /// # Safety
    /// `p .. p + LANES` must be readable.
    unsafe fn load_bf16_ptr(p: *const bf16) -> Self;
    /// Reads LANES f16 values, widened.
    ///
    /// # Safety
    /// `p .. p + LANES` must be readable.
    unsafe fn load_f16_ptr(p: *const f16) -> Self;
    /// Writes LANES values rounded to bf16 (to nearest, ties to even).
    ///
    /// # Safety
    /// `p .. p + LANES` must be writable.
    unsafe fn store_bf16_ptr(self, p: *mut bf16);
    /// Writes LANES values rounded to f16 (to nearest, ties to even).
    ///
    /// # Safety
    /// `p .. p + LANES` must be writable.
    unsafe fn store_f16_ptr(self, p: *mut f16);

    /// `self + o`
    fn add(self, o: Self) -> Self;
    /// `self - o`
    fn sub(self, o: Self) -> Self;
    /// `self * o`
    fn mul(self, o: Self) -> Self;
    /// `self / o`
    fn div(self, o: Self) -> Self;
    /// `self * a + b`, rounded once where the CPU can (the portable path rounds twice).
    fn fma(self, a: Self, b: Self) -> Self;
    /// `self > o ? self : o`: `o` if either is NaN.
    fn max(self, o: Self) -> Self;
    /// `self < o ? self : o`: `o` if either is NaN.
    fn min(self, o: Self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// Nearest integer, ties to even. Right for |x| < 2²².
    fn round(self) -> Self;
    /// `self * 2^n` for integral n in -252 ..= 252, with gradual underflow.
    fn scale2(self, n: Self) -> Self;
    /// Per lane: `self < o ? a : b` (b if either is NaN).
    fn select_lt(self, o: Self, a: Self, b: Self) -> Self;
    /// Rounds to bf16 and widens again: the low 16 bits become zero. NaN stays NaN.
    fn round_bf16(self) -> Self;
    /// Both rounded to bf16 and packed: per lane, `self` in the low 16 bits and `high` in the high 16 bits.
    /// The result is bits, not a number.
    fn pair_bf16(self, high: Self) -> Self;
    /// Sum of all lanes; the order is fixed per instruction set.
    fn sum(self) -> f32;
    /// Largest lane.
    fn hmax(self) -> f32;

    /// Transposes 8x8 values of 32 bits: `dst[c * dst_stride + r] = src[r * src_stride + c]`.
    ///
    /// # Safety
    /// Eight rows of eight values must be readable at `src` and writable at `dst`, and must not overlap.
    unsafe fn transpose8(src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize);

    /// All lanes 0.
    #[inline(always)]
    fn zero() -> Self {
        Self::splat(0.0)
    }
    /// The first LANES values of `x`; panics if there are fewer.
    #[inline(always)]
    fn load(x: &[f32]) -> Self {
        assert!(x.len() >= Self::LANES);
        // SAFETY: the length was checked.
        unsafe { Self::load_ptr(x.as_ptr()) }
    }
    /// Writes to the first LANES values of `x`; panics if there are fewer.
    #[inline(always)]
    fn store(self, x: &mut [f32]) {
        assert!(x.len() >= Self::LANES);
        // SAFETY: the length was checked.
        unsafe { self.store_ptr(x.as_mut_ptr()) }
    }
    /// Like [`Vf32::load`], from bf16.
    #[inline(always)]
    fn load_bf16(x: &[bf16]) -> Self {
        assert!(x.len() >= Self::LANES);
        // SAFETY: the length was checked.
        unsafe { Self::load_bf16_ptr(x.as_ptr()) }
    }
    /// Like [`Vf32::load`], from f16.
    #[inline(always)]
    fn load_f16(x: &[f16]) -> Self {
        assert!(x.len() >= Self::LANES);
        // SAFETY: the length was checked.
        unsafe { Self::load_f16_ptr(x.as_ptr()) }
    }
    /// Like [`Vf32::store`], rounded to bf16.
    #[inline(always)]
    fn store_bf16(self, x: &mut [bf16]) {
        assert!(x.len() >= Self::LANES);
        // SAFETY: the length was checked.
        unsafe { self.store_bf16_ptr(x.as_mut_ptr()) }
    }
    /// Like [`Vf32::store`], rounded to f16.
    #[inline(always)]
    fn store_f16(self, x: &mut [f16]) {
        assert!(x.len() >= Self::LANES);
        // SAFETY: the length was checked.
        unsafe { self.store_f16_ptr(x.as_mut_ptr()) }
    }
    /// Up to LANES values of `x`; the missing lanes are `fill`.
    #[inline(always)]
    fn load_partial(x: &[f32], fill: f32) -> Self {
        let mut lanes = [fill; 16];
        let n = x.len().min(Self::LANES);
        lanes[..n].copy_from_slice(&x[..n]);
        Self::load(&lanes)
    }
    /// Up to LANES values of `x`; the missing lanes are 0.
    #[inline(always)]
    fn load_bf16_partial(x: &[bf16]) -> Self {
        let mut lanes = [bf16::ZERO; 16];
        let n = x.len().min(Self::LANES);
        lanes[..n].copy_from_slice(&x[..n]);
        Self::load_bf16(&lanes)
    }
    /// Up to LANES values of `x`; the missing lanes are 0.
    #[inline(always)]
    fn load_f16_partial(x: &[f16]) -> Self {
        let mut lanes = [f16::ZERO; 16];
        let n = x.len().min(Self::LANES);
        lanes[..n].copy_from_slice(&x[..n]);
        Self::load_f16(&lanes)
    }
    /// Writes as many of the first lanes as `x` can hold, at most LANES.
    #[inline(always)]
    fn store_partial(self, x: &mut [f32]) {
        let mut lanes = [0.0; 16];
        self.store(&mut lanes);
        let n = x.len().min(Self::LANES);
        x[..n].copy_from_slice(&lanes[..n]);
    }
    /// Like [`Vf32::store_partial`], rounded to bf16.
    #[inline(always)]
    fn store_bf16_partial(self, x: &mut [bf16]) {
        let mut lanes = [bf16::ZERO; 16];
        self.store_bf16(&mut lanes);
        let n = x.len().min(Self::LANES);
        x[..n].copy_from_slice(&lanes[..n]);
    }
    /// Like [`Vf32::store_partial`], rounded to f16.
    #[inline(always)]
    fn store_f16_partial(self, x: &mut [f16]) {
        let mut lanes = [f16::ZERO; 16];
        self.store_f16(&mut lanes);
        let n = x.len().min(Self::LANES);
        x[..n].copy_from_slice(&lanes[..n]);
    }
    /// `-self`
    #[inline(always)]
    fn neg(self) -> Self {
        self.mul(Self::splat(-1.0))
    }
    /// `|self|`
    #[inline(always)]
    fn abs(self) -> Self {
        self.neg().max(self)
    }
    /// eˣ within about 1e-7 (relative); 0 at -∞, ∞ above 88.73, NaN stays NaN. Cephes' polynomial.
    #[inline(always)]
    fn exp(self) -> Self {
        // Beyond these bounds the result is 0 or ∞ anyway; `self` comes second so that NaN gets through.
        let x = Self::splat(89.0).min(Self::splat(-105.0).max(self));
        let n = x.mul(Self::splat(std::f32::consts::LOG2_E)).round();
        // ln 2 in two parts, the first with few enough bits that n times it is exact.
        let r = n.fma(Self::splat(-355.0 / 512.0), x);
        let r = n.fma(Self::splat(2.121_944_4e-4), r);
        let mut p = Self::splat(1.987_569_1e-4);
        for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = p.fma(r, Self::splat(c));
        }
        p.mul(r).fma(r, r).add(Self::splat(1.0)).scale2(n)
    }
}

/// Eight lanes in plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; 8]);

impl Portable {
    #[inline(always)]
    fn zip(self, o: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], o.0[i])))
    }
    #[inline(always)]
    fn map(self, f: impl Fn(f32) -> f32) -> Self {
        Self(self.0.map(f))
    }
}

/// 2ⁿ for integral n in -126 ..= 127.
#[inline(always)]
fn pow2(n: i32) -> f32 {
    f32::from_bits(((n + 127) as u32) << 23)
}

impl Vf32 for Portable {
    const LANES: usize = 8;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self([x; 8])
    }
    #[inline(always)]
    unsafe fn load_ptr(p: *const f32) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { p.cast::<[f32; 8]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store_ptr(self, p: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[f32; 8]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn load_bf16_ptr(p: *const bf16) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { p.cast::<[u16; 8]>().read_unaligned() }.map(|x| f32::from_bits(u32::from(x) << 16)))
    }
    #[inline(always)]
    unsafe fn load_f16_ptr(p: *const f16) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { p.cast::<[f16; 8]>().read_unaligned() }.map(f32::from))
    }
    #[inline(always)]
    unsafe fn store_bf16_ptr(self, p: *mut bf16) {
        let bits = self.round_bf16().0.map(|x| (x.to_bits() >> 16) as u16);
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[u16; 8]>().write_unaligned(bits) }
    }
    #[inline(always)]
    unsafe fn store_f16_ptr(self, p: *mut f16) {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[f16; 8]>().write_unaligned(self.0.map(f16::from_f32)) }
    }
    #[inline(always)]
    fn add(self, o: Self) -> Self {
        self.zip(o, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, o: Self) -> Self {
        self.zip(o, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, o: Self) -> Self {
        self.zip(o, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, o: Self) -> Self {
        self.zip(o, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: Self, b: Self) -> Self {
        self.mul(a).add(b)
    }
    #[inline(always)]
    fn max(self, o: Self) -> Self {
        self.zip(o, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, o: Self) -> Self {
        self.zip(o, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        self.map(f32::sqrt)
    }
    #[inline(always)]
    fn round(self) -> Self {
        // 1.5 · 2²³: adding it drops the fraction bits. The library function is a slow call on old x86.
        self.map(|x| (x + 12_582_912.0) - 12_582_912.0)
    }
    #[inline(always)]
    fn scale2(self, n: Self) -> Self {
        self.zip(n, |x, n| {
            let (n, half) = (n as i32, (n as i32) >> 1);
            x * pow2(half) * pow2(n - half)
        })
    }
    #[inline(always)]
    fn select_lt(self, o: Self, a: Self, b: Self) -> Self {
        Self(std::array::from_fn(
            |i| {
                if self.0[i] < o.0[i] { a.0[i] } else { b.0[i] }
            },
        ))
    }
    #[inline(always)]
    fn round_bf16(self) -> Self {
        self.map(|x| {
            let bits = x.to_bits();
            let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
            f32::from_bits(if x.is_nan() { bits | 0x0040_0000 } else { rounded } & 0xffff_0000)
        })
    }
    #[inline(always)]
    fn pair_bf16(self, high: Self) -> Self {
        self.round_bf16().zip(high.round_bf16(), |lo, hi| {
            f32::from_bits((lo.to_bits() >> 16) | hi.to_bits())
        })
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        let [a, b, c, d, e, f, g, h] = self.0;
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }
    #[inline(always)]
    fn hmax(self) -> f32 {
        self.0.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    unsafe fn transpose8(src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize) {
        for r in 0..8 {
            for c in 0..8 {
                // SAFETY: the caller's promise. Moved as u32, because the values may be pairs of bf16.
                unsafe { *dst.cast::<u32>().add(c * dst_stride + r) = *src.cast::<u32>().add(r * src_stride + c) }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Vf32, bf16, f16};
    use std::arch::x86_64::*;

    /// Eight lanes of AVX2.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(pub(crate) __m256);

    /// Sixteen lanes of AVX-512.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512(pub(crate) __m512);

    /// Wraps an intrinsic whose only precondition is the instruction set (or a pointer that the caller vouches for).
    macro_rules! cpu {
        ($e:expr) => {
            // SAFETY: these types are named by `kernel!` alone, after the instruction set was detected; where a pointer
            // is read or written, the function is unsafe and its caller promises that the pointer is good.
            unsafe { $e }
        };
    }

    /// Bits of the eight lanes rounded to bf16; the low halves are zero.
    #[inline(always)]
    fn round256(x: __m256) -> __m256i {
        cpu!({
            let bits = _mm256_castps_si256(x);
            let odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
            let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
            let nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
            let result = _mm256_blendv_epi8(rounded, quiet, nan);
            _mm256_and_si256(result, _mm256_set1_epi32(0xffff_0000_u32 as i32))
        })
    }

    /// Bits of the sixteen lanes rounded to bf16; the low halves are zero.
    #[inline(always)]
    fn round512(x: __m512) -> __m512i {
        cpu!({
            let bits = _mm512_castps_si512(x);
            let odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
            let nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
            let result = _mm512_mask_mov_epi32(rounded, nan, quiet);
            _mm512_and_si512(result, _mm512_set1_epi32(0xffff_0000_u32 as i32))
        })
    }

    /// 2ⁿ for integral n in -126 ..= 127.
    #[inline(always)]
    fn pow2x8(n: __m256i) -> __m256 {
        cpu!(_mm256_castsi256_ps(_mm256_slli_epi32(
            _mm256_add_epi32(n, _mm256_set1_epi32(127)),
            23
        )))
    }

    /// Four values from `low` and four from `high`.
    ///
    /// # Safety
    /// Both must be readable.
    #[inline(always)]
    unsafe fn join_quarters(low: *const f32, high: *const f32) -> __m256 {
        cpu!(_mm256_insertf128_ps(
            _mm256_castps128_ps256(_mm_loadu_ps(low)),
            _mm_loadu_ps(high),
            1
        ))
    }

    impl Vf32 for Avx2 {
        const LANES: usize = 8;

        #[inline(always)]
        fn splat(x: f32) -> Self {
            Self(cpu!(_mm256_set1_ps(x)))
        }
        #[inline(always)]
        unsafe fn load_ptr(p: *const f32) -> Self {
            Self(cpu!(_mm256_loadu_ps(p)))
        }
        #[inline(always)]
        unsafe fn store_ptr(self, p: *mut f32) {
            cpu!(_mm256_storeu_ps(p, self.0));
        }
        #[inline(always)]
        unsafe fn load_bf16_ptr(p: *const bf16) -> Self {
            let wide = cpu!(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())));
            Self(cpu!(_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))))
        }
        #[inline(always)]
        unsafe fn load_f16_ptr(p: *const f16) -> Self {
            Self(cpu!(_mm256_cvtph_ps(_mm_loadu_si128(p.cast()))))
        }
        #[inline(always)]
        unsafe fn store_bf16_ptr(self, p: *mut bf16) {
            cpu!({
                let bits = _mm256_srli_epi32(round256(self.0), 16);
                // packus works within 128-bit halves: the four quarters are lo, lo, hi, hi; 0b1000 takes 0 and 2.
                let packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(bits, bits), 0b1000);
                _mm_storeu_si128(p.cast(), _mm256_castsi256_si128(packed));
            });
        }
        #[inline(always)]
        unsafe fn store_f16_ptr(self, p: *mut f16) {
            cpu!(_mm_storeu_si128(
                p.cast(),
                _mm256_cvtps_ph(self.0, _MM_FROUND_TO_NEAREST_INT)
            ));
        }
        #[inline(always)]
        fn add(self, o: Self) -> Self {
            Self(cpu!(_mm256_add_ps(self.0, o.0)))
        }
        #[inline(always)]
        fn sub(self, o: Self) -> Self {
            Self(cpu!(_mm256_sub_ps(self.0, o.0)))
        }
        #[inline(always)]
        fn mul(self, o: Self) -> Self {
            Self(cpu!(_mm256_mul_ps(self.0, o.0)))
        }
        #[inline(always)]
        fn div(self, o: Self) -> Self {
            Self(cpu!(_mm256_div_ps(self.0, o.0)))
        }
        #[inline(always)]
        fn fma(self, a: Self, b: Self) -> Self {
            Self(cpu!(_mm256_fmadd_ps(self.0, a.0, b.0)))
        }
        #[inline(always)]
        fn max(self, o: Self) -> Self {
            Self(cpu!(_mm256_max_ps(self.0, o.0)))
        }
        #[inline(always)]
        fn min(self, o: Self) -> Self {
            Self(cpu!(_mm256_min_ps(self.0, o.0)))
        }
        #[inline(always)]
        fn sqrt(self) -> Self {
            Self(cpu!(_mm256_sqrt_ps(self.0)))
        }
        #[inline(always)]
        fn round(self) -> Self {
            Self(cpu!(_mm256_round_ps(
                self.0,
                _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC
            )))
        }
        #[inline(always)]
        fn scale2(self, n: Self) -> Self {
            cpu!({
                let n = _mm256_cvtps_epi32(n.0);
                let half = _mm256_srai_epi32(n, 1);
                Self(_mm256_mul_ps(
                    _mm256_mul_ps(self.0, pow2x8(half)),
                    pow2x8(_mm256_sub_epi32(n, half)),
                ))
            })
        }
        #[inline(always)]
        fn select_lt(self, o: Self, a: Self, b: Self) -> Self {
            Self(cpu!(_mm256_blendv_ps(b.0, a.0, _mm256_cmp_ps(self.0, o.0, _CMP_LT_OQ))))
        }
        #[inline(always)]
        fn round_bf16(self) -> Self {
            Self(cpu!(_mm256_castsi256_ps(round256(self.0))))
        }
        #[inline(always)]
        fn pair_bf16(self, high: Self) -> Self {
            let low = cpu!(_mm256_srli_epi32(round256(self.0), 16));
            Self(cpu!(_mm256_castsi256_ps(_mm256_or_si256(low, round256(high.0)))))
        }
        #[inline(always)]
        fn sum(self) -> f32 {
            cpu!({
                let x = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps(self.0, 1));
                let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
                _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
            })
        }
        #[inline(always)]
        fn hmax(self) -> f32 {
            cpu!({
                let x = _mm_max_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps(self.0, 1));
                let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
                _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
            })
        }
        #[inline(always)]
        unsafe fn transpose8(src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize) {
            // Rows 0..4 meet rows 4..8 while loading (as two halves of a register), then 4x4 transposes within halves.
            for c in [0, 4] {
                // SAFETY: the caller's promise: eight columns from `src`, of which these are four, and eight rows.
                let (src, dst) = unsafe { (src.add(c), dst.add(c * dst_stride)) };
                cpu!({
                    let r0 = join_quarters(src, src.add(4 * src_stride));
                    let r1 = join_quarters(src.add(src_stride), src.add(5 * src_stride));
                    let r2 = join_quarters(src.add(2 * src_stride), src.add(6 * src_stride));
                    let r3 = join_quarters(src.add(3 * src_stride), src.add(7 * src_stride));
                    let (a, b) = (_mm256_unpacklo_ps(r0, r1), _mm256_unpackhi_ps(r0, r1));
                    let (d, e) = (_mm256_unpacklo_ps(r2, r3), _mm256_unpackhi_ps(r2, r3));
                    _mm256_storeu_ps(dst, _mm256_shuffle_ps(a, d, 0b01_00_01_00));
                    _mm256_storeu_ps(dst.add(dst_stride), _mm256_shuffle_ps(a, d, 0b11_10_11_10));
                    _mm256_storeu_ps(dst.add(2 * dst_stride), _mm256_shuffle_ps(b, e, 0b01_00_01_00));
                    _mm256_storeu_ps(dst.add(3 * dst_stride), _mm256_shuffle_ps(b, e, 0b11_10_11_10));
                });
            }
        }
    }

    impl Vf32 for Avx512 {
        const LANES: usize = 16;

        #[inline(always)]
        fn splat(x: f32) -> Self {
            Self(cpu!(_mm512_set1_ps(x)))
        }
        #[inline(always)]
        unsafe fn load_ptr(p: *const f32) -> Self {
            Self(cpu!(_mm512_loadu_ps(p)))
        }
        #[inline(always)]
        unsafe fn store_ptr(self, p: *mut f32) {
            cpu!(_mm512_storeu_ps(p, self.0));
        }
        #[inline(always)]
        unsafe fn load_bf16_ptr(p: *const bf16) -> Self {
            let wide = cpu!(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())));
            Self(cpu!(_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))))
        }
        #[inline(always)]
        unsafe fn load_f16_ptr(p: *const f16) -> Self {
            Self(cpu!(_mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))))
        }
        #[inline(always)]
        unsafe fn store_bf16_ptr(self, p: *mut bf16) {
            let bits = cpu!(_mm512_srli_epi32(round512(self.0), 16));
            cpu!(_mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(bits)));
        }
        #[inline(always)]
        unsafe fn store_f16_ptr(self, p: *mut f16) {
            cpu!(_mm256_storeu_si256(
                p.cast(),
                _mm512_cvtps_ph(self.0, _MM_FROUND_TO_NEAREST_INT)
            ));
        }
        #[inline(always)]
        fn add(self, o: Self) -> Self {
            Self(cpu!(_mm512_add_ps(self.0, o.0)))
        }
        #[inline(always)]
        fn sub(self, o: Self) -> Self {
            Self(cpu!(_mm512_sub_ps(self.0, o.0)))
        }
        #[inline(always)]
        fn mul(self, o: Self) -> Self {
            Self(cpu!(_mm512_mul_ps(self.0, o.0)))
        }
        #[inline(always)]
        fn div(self, o: Self) -> Self {
            Self(cpu!(_mm512_div_ps(self.0, o.0)))
        }
        #[inline(always)]
        fn fma(self, a: Self, b: Self) -> Self {
            Self(cpu!(_mm512_fmadd_ps(self.0, a.0, b.0)))
        }
        #[inline(always)]
        fn max(self, o: Self) -> Self {
            Self(cpu!(_mm512_max_ps(self.0, o.0)))
        }
        #[inline(always)]
        fn min(self, o: Self) -> Self {
            Self(cpu!(_mm512_min_ps(self.0, o.0)))
        }
        #[inline(always)]
        fn sqrt(self) -> Self {
            Self(cpu!(_mm512_sqrt_ps(self.0)))
        }
        #[inline(always)]
        fn round(self) -> Self {
            // Immediate: bits 7..4 = 0 binary places, bit 3 = no exceptions, bits 1..0 = 0 to nearest even.
            Self(cpu!(_mm512_roundscale_ps(
                self.0,
                _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC
            )))
        }
        #[inline(always)]
        fn scale2(self, n: Self) -> Self {
            Self(cpu!(_mm512_scalef_ps(self.0, n.0)))
        }
        #[inline(always)]
        fn select_lt(self, o: Self, a: Self, b: Self) -> Self {
            Self(cpu!(_mm512_mask_mov_ps(
                b.0,
                _mm512_cmp_ps_mask(self.0, o.0, _CMP_LT_OQ),
                a.0
            )))
        }
        #[inline(always)]
        fn round_bf16(self) -> Self {
            Self(cpu!(_mm512_castsi512_ps(round512(self.0))))
        }
        #[inline(always)]
        fn pair_bf16(self, high: Self) -> Self {
            let low = cpu!(_mm512_srli_epi32(round512(self.0), 16));
            Self(cpu!(_mm512_castsi512_ps(_mm512_or_si512(low, round512(high.0)))))
        }
        #[inline(always)]
        fn sum(self) -> f32 {
            let high = cpu!(_mm512_extractf32x8_ps(self.0, 1));
            Avx2(cpu!(_mm256_add_ps(_mm512_castps512_ps256(self.0), high))).sum()
        }
        #[inline(always)]
        fn hmax(self) -> f32 {
            let high = cpu!(_mm512_extractf32x8_ps(self.0, 1));
            Avx2(cpu!(_mm256_max_ps(_mm512_castps512_ps256(self.0), high))).hmax()
        }
        #[inline(always)]
        unsafe fn transpose8(src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize) {
            // 256-bit code is part of AVX-512.
            cpu!(Avx2::transpose8(src, src_stride, dst, dst_stride));
        }
    }
}

/// A storage type whose vectors load as f32.
pub(crate) trait Element: Copy + Send + Sync + 'static {
    /// Whether every value is a bf16 already.
    const IS_BF16: bool;

    /// Reads LANES values, widened.
    ///
    /// # Safety
    /// `p .. p + LANES` must be readable.
    unsafe fn load_ptr<V: Vf32>(p: *const Self) -> V;
    /// Up to LANES values of `x`; the missing lanes are 0.
    fn load_partial<V: Vf32>(x: &[Self]) -> V;
    /// The slice itself if `Self` is f32, else `None`.
    fn as_f32(x: &[Self]) -> Option<&[f32]>;
}

macro_rules! element {
    ($t:ty, $is_bf16:literal, $load:ident, |$x:ident| $partial:expr, $as_f32:expr) => {
        impl Element for $t {
            const IS_BF16: bool = $is_bf16;

            #[inline(always)]
            unsafe fn load_ptr<V: Vf32>(p: *const Self) -> V {
                // SAFETY: the caller's promise.
                unsafe { V::$load(p) }
            }
            #[inline(always)]
            fn load_partial<V: Vf32>($x: &[Self]) -> V {
                $partial
            }
            #[inline(always)]
            fn as_f32(x: &[Self]) -> Option<&[f32]> {
                $as_f32(x)
            }
        }
    };
}
element!(f32, false, load_ptr, |x| V::load_partial(x, 0.0), Some);
element!(bf16, true, load_bf16_ptr, |x| V::load_bf16_partial(x), |_| None);
element!(f16, false, load_f16_ptr, |x| V::load_f16_partial(x), |_| { None });

/// Makes a function that runs a generic kernel on the instruction set of the calling thread.
///
/// `kernel! { /// doc  pub(crate) fn name(x: &[f32], y: &mut [f32]) = body; }` calls `body::<V>(x, y)`; `body` must be
/// `#[inline(always)]` and generic over `V: Vf32` first. Vector operations inside of closures may be compiled without the
/// instruction set (and then be function calls): in bodies, use loops and `#[inline(always)]` functions instead. Further type parameters: `fn name<E: Element>(…)` calls
/// `body::<V, E>`. `unsafe fn` makes an unsafe function of an unsafe body.
macro_rules! kernel {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$($g:ident : $bound:path),+>)? ($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident;) => {
        $(#[$meta])*
        #[allow(clippy::inline_always)]
        $vis fn $name $(<$($g: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2 $(<$($g: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? {
                    $body::<$crate::simd::Avx2 $($(, $g)+)?>($($arg),*)
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
                fn avx512 $(<$($g: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? {
                    $body::<$crate::simd::Avx512 $($(, $g)+)?>($($arg),*)
                }
                match $crate::isa::isa() {
                    // SAFETY: `isa` returns only what this CPU has.
                    $crate::isa::Isa::Avx512 | $crate::isa::Isa::Amx => return unsafe { avx512 $(::<$($g),+>)? ($($arg),*) },
                    // SAFETY: as above.
                    $crate::isa::Isa::Avx2 => return unsafe { avx2 $(::<$($g),+>)? ($($arg),*) },
                    $crate::isa::Isa::Portable => {}
                }
            }
            $body::<$crate::simd::Portable $($(, $g)+)?>($($arg),*)
        }
    };
    ($(#[$meta:meta])* $vis:vis unsafe fn $name:ident $(<$($g:ident : $bound:path),+>)? ($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident;) => {
        $(#[$meta])*
        $vis unsafe fn $name $(<$($g: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c")]
                unsafe fn avx2 $(<$($g: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? {
                    // SAFETY: the caller's promise, handed on.
                    unsafe { $body::<$crate::simd::Avx2 $($(, $g)+)?>($($arg),*) }
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
                unsafe fn avx512 $(<$($g: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? {
                    // SAFETY: the caller's promise, handed on.
                    unsafe { $body::<$crate::simd::Avx512 $($(, $g)+)?>($($arg),*) }
                }
                match $crate::isa::isa() {
                    // SAFETY: `isa` returns only what this CPU has; the rest is the caller's promise, handed on.
                    $crate::isa::Isa::Avx512 | $crate::isa::Isa::Amx => return unsafe { avx512 $(::<$($g),+>)? ($($arg),*) },
                    // SAFETY: as above.
                    $crate::isa::Isa::Avx2 => return unsafe { avx2 $(::<$($g),+>)? ($($arg),*) },
                    $crate::isa::Isa::Portable => {}
                }
            }
            // SAFETY: the caller's promise, handed on.
            unsafe { $body::<$crate::simd::Portable $($(, $g)+)?>($($arg),*) }
        }
    };
}
pub(crate) use kernel;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{supported, with_isa};

    /// Values that rounding, ordering and conversion treat specially, and ordinary ones.
    const INPUT: [f32; 16] = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.333_333_34,
        1.003_906_3,
        1.011_718_8,
        -2.5,
        3.5,
        65504.0,
        1e-8,
        -1e-40,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        3.0e38,
    ];

    fn each_isa(f: impl Fn()) {
        supported().into_iter().for_each(|isa| with_isa(isa, &f));
    }

    /// Runs a unary operation over a slice whose length is a multiple of every LANES.
    macro_rules! unary {
        ($name:ident, |$x:ident| $e:expr) => {
            fn $name(x: &[f32], y: &mut [f32]) {
                #[inline(always)]
                fn body<V: Vf32>(x: &[f32], y: &mut [f32]) {
                    for (x, y) in x.chunks_exact(V::LANES).zip(y.chunks_exact_mut(V::LANES)) {
                        let $x = V::load(x);
                        $e.store(y);
                    }
                }
                kernel! { fn run(x: &[f32], y: &mut [f32]) = body; }
                run(x, y);
            }
        };
    }
    unary!(v_exp, |x| x.exp());
    unary!(v_round_bf16, |x| x.round_bf16());
    unary!(v_round, |x| x.round());
    unary!(v_abs, |x| x.abs());
    unary!(v_sqrt, |x| x.sqrt());
    unary!(v_scale_up, |x| x.scale2(V::splat(100.0)));
    unary!(v_scale_down, |x| x.scale2(V::splat(-140.0)));
    unary!(v_select, |x| x.select_lt(V::splat(1.0), V::splat(2.0), x));
    unary!(v_pair, |x| x.pair_bf16(V::splat(1.5)));
    unary!(v_max_one, |x| V::splat(1.0).max(x));
    unary!(v_arith, |x| x
        .fma(V::splat(2.0), V::splat(1.0))
        .sub(x)
        .div(V::splat(4.0))
        .add(x.mul(x))
        .min(V::splat(9.0)));

    fn same(a: f32, b: f32) -> bool {
        a == b || (a.is_nan() && b.is_nan())
    }

    #[test]
    fn lane_operations_match_scalars() {
        type Case = (fn(&[f32], &mut [f32]), fn(f32) -> f32);
        let cases: [Case; 8] = [
            (v_round_bf16, |x| bf16::from_f32(x).to_f32()),
            (v_abs, f32::abs),
            (v_sqrt, f32::sqrt),
            (v_scale_up, |x| (f64::from(x) * 2f64.powi(100)) as f32),
            (v_scale_down, |x| (f64::from(x) * 2f64.powi(-140)) as f32),
            (v_select, |x| if x < 1.0 { 2.0 } else { x }),
            (v_max_one, |x| if 1.0 > x { 1.0 } else { x }),
            (v_arith, |x| {
                let y = (x * 2.0 + 1.0 - x) / 4.0 + x * x;
                if y < 9.0 { y } else { 9.0 }
            }),
        ];
        each_isa(|| {
            for (i, (run, oracle)) in cases.iter().enumerate() {
                let mut y = [0.0; 16];
                run(&INPUT, &mut y);
                for (x, y) in INPUT.into_iter().zip(y) {
                    let want = oracle(x);
                    // The last case may or may not be fused; the others are exact.
                    let close = i == 7 && (y - want).abs() <= 1e-6 * want.abs();
                    assert!(same(y, want) || close, "case {i}: {x} gave {y}, not {want}");
                }
            }
            let mut y = [0.0; 16];
            v_round(&INPUT[..8].repeat(2), &mut y);
            assert!(INPUT[..8].iter().zip(y).all(|(x, y)| x.round_ties_even() == y));
            v_pair(&INPUT, &mut y);
            for (x, y) in INPUT.into_iter().zip(y) {
                assert_eq!(y.to_bits() & 0xffff, u32::from(bf16::from_f32(x).to_bits()));
                assert_eq!(y.to_bits() >> 16, u32::from(bf16::from_f32(1.5).to_bits()));
            }
        });
    }

    #[test]
    fn exp_is_accurate_and_keeps_its_limits() {
        let x: Vec<f32> = (-1_040_000..=887_183).step_by(13).map(|i| i as f32 * 1e-4).collect();
        let x = &x[..x.len() / 16 * 16];
        each_isa(|| {
            let mut y = vec![0.0; x.len()];
            v_exp(x, &mut y);
            for (&x, &y) in x.iter().zip(&y) {
                let want = f64::from(x).exp();
                let tolerance = (want * 2.5e-7).max(1.5e-45);
                assert!(
                    (f64::from(y) - want).abs() <= tolerance,
                    "exp({x}) gave {y}, not {want}"
                );
            }
            let special = [
                f32::NEG_INFINITY,
                f32::INFINITY,
                f32::NAN,
                0.0,
                89.5,
                -110.0,
                -1e30,
                1e30,
            ]
            .repeat(2);
            let want = [
                0.0,
                f32::INFINITY,
                f32::NAN,
                1.0,
                f32::INFINITY,
                0.0,
                0.0,
                f32::INFINITY,
            ]
            .repeat(2);
            let mut y = [0.0; 16];
            v_exp(&special, &mut y);
            assert!(want.iter().zip(y).all(|(&a, b)| same(a, b)), "{y:?}");
        });
    }

    #[inline(always)]
    fn convert_body<V: Vf32>(x: &[f32], wide: &mut [f32; 4], half: &mut [f32]) {
        let n = V::LANES;
        let (mut b, mut h) = ([bf16::ZERO; 16], [f16::ZERO; 16]);
        for (x, y) in x.chunks_exact(n).zip(half.chunks_exact_mut(2 * n)) {
            V::load(x).store_bf16(&mut b);
            V::load(x).store_f16(&mut h);
            V::load_bf16(&b).store(&mut y[..n]);
            V::load_f16(&h).store(&mut y[n..]);
        }
        let part = V::load_partial(&x[2..5], -7.0);
        *wide = [
            part.sum(),
            part.hmax(),
            V::load_bf16_partial(&b[..2]).sum(),
            V::load_f16_partial(&h[..3]).hmax(),
        ];
        part.store_partial(&mut wide[..1]);
        part.store_bf16_partial(&mut b[..1]);
        part.store_f16_partial(&mut h[..1]);
        wide[2] += f32::from(b[0]) + f32::from(h[0]);
    }
    kernel! { fn convert(x: &[f32], wide: &mut [f32; 4], half: &mut [f32]) = convert_body; }

    #[test]
    fn conversions_round_to_nearest_even() {
        each_isa(|| {
            let (mut wide, mut half) = ([0.0; 4], vec![0.0; 32]);
            convert(&INPUT, &mut wide, &mut half);
            let n = if crate::isa::isa() >= crate::isa::Isa::Avx512 {
                16
            } else {
                8
            };
            for (i, x) in INPUT.into_iter().enumerate() {
                let at = i / n * 2 * n + i % n;
                assert!(same(half[at], bf16::from_f32(x).to_f32()), "bf16 of {x}");
                assert!(same(half[at + n], f16::from_f32(x).to_f32()), "f16 of {x}");
            }
            assert_eq!(wide[0], 1.0);
            assert_eq!(wide[1], 1.0);
        });
    }

    #[inline(always)]
    fn reduce_body<V: Vf32>(x: &[f32], out: &mut [f32; 2]) {
        *out = [V::load(x).sum(), V::load(x).hmax()];
    }
    kernel! { fn reduce(x: &[f32], out: &mut [f32; 2]) = reduce_body; }

    #[inline(always)]
    unsafe fn transpose_body<V: Vf32>(src: *const f32, dst: *mut f32) {
        // SAFETY: the test hands over 8 rows of 10 and 8 rows of 9.
        unsafe { V::transpose8(src, 10, dst, 9) }
    }
    kernel! { unsafe fn transpose(src: *const f32, dst: *mut f32) = transpose_body; }

    #[test]
    fn reductions_see_every_lane_and_transposes_move_every_element() {
        each_isa(|| {
            let n = if crate::isa::isa() >= crate::isa::Isa::Avx512 {
                16
            } else {
                8
            };
            for lane in 0..n {
                let mut x = [-3.0; 16];
                x[lane] = 5.0;
                let mut out = [0.0; 2];
                reduce(&x, &mut out);
                assert_eq!(out, [5.0 - 3.0 * (n - 1) as f32, 5.0], "lane {lane}");
            }
            let src: Vec<f32> = (0..80).map(|i| i as f32).collect();
            let mut dst = vec![0.0; 72];
            // SAFETY: the sizes that `transpose_body` states.
            unsafe { transpose(src.as_ptr(), dst.as_mut_ptr()) };
            for r in 0..8 {
                for c in 0..8 {
                    assert_eq!(dst[c * 9 + r], src[r * 10 + c]);
                }
            }
        });
    }
}
