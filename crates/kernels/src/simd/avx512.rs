//! Sixteen lanes of AVX-512.

use super::{Avx2, Vf32, cpu};
use half::{bf16, f16};
use std::arch::x86_64::*;

/// Sixteen lanes of AVX-512.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(pub(crate) __m512);
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
