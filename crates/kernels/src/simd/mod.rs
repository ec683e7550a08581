//! Vectors of f32: one trait, three implementations, and the macro that enters vector code.
//!
//! A kernel is written once, generic over [`Vf32`], as an `#[inline(always)]` function, and [`kernel!`] makes the function
//! that callers see: it picks the instruction set and inlines the generic body into a function compiled for it. The
//! AVX-512 path therefore differs from the AVX2 path only in the one-line wrappers below.
//!
//! Soundness rule of the crate: **only `kernel!` names `Avx2` and `Avx512`** (and code that itself is generic over
//! `Vf32`), so no vector instruction runs on a CPU that lacks it. This module must not know any kernel.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
#[cfg(test)]
mod tests;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
use half::{bf16, f16};
pub(crate) use portable::Portable;

/// Wraps an intrinsic whose only precondition is the instruction set (or a pointer that the caller vouches for).
#[cfg(target_arch = "x86_64")]
macro_rules! cpu {
    ($e:expr) => {
        // SAFETY: the vector types are named by `kernel!` alone, after the instruction set was detected; where a pointer
        // is read or written, the function is unsafe and its caller promises that the pointer is good.
        unsafe { $e }
    };
}
#[cfg(target_arch = "x86_64")]
use cpu;

/// Asks for the cache line of `data[at]`, which need not exist.
#[inline(always)]
pub(crate) fn ask<T>(data: &[T], at: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: part of every x86-64; a prefetch reads nothing that the program could see, and never faults.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(data.as_ptr().wrapping_add(at).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (data, at);
}

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
