//! Eight lanes of AVX2 with FMA and F16C.

use super::{Vf32, cpu};
use half::{bf16, f16};
use std::arch::x86_64::*;

/// Eight lanes of AVX2.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(pub(crate) __m256);
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
