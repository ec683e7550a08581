//! Which instruction set the kernels run on.
//!
//! Chosen once per process: the best the CPU has, or the one that `OUNCE_ISA` asks for. Tests run every kernel on every
//! set of [`supported`] through [`with_isa`]. This module knows nothing of what the kernels compute; everything that
//! enters vector code relies on its one promise: [`isa`] never returns what the CPU lacks.

use std::cell::Cell;
use std::sync::OnceLock;

/// An instruction set that the kernels are compiled for, worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust; whatever the compiler makes of arrays of eight floats.
    Portable,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, VL and DQ (and all of AVX2).
    Avx512,
    /// AVX-512 with AVX-512-BF16, and tile registers (AMX) for bf16 products.
    Amx,
}

/// All of them, worst first.
const ALL: [Isa; 4] = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Amx];

impl Isa {
    /// The name that `OUNCE_ISA` takes and reports print.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Amx => "amx",
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn best() -> Isa {
    static BEST: OnceLock<Isa> = OnceLock::new();
    *BEST.get_or_init(detect)
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Isa {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq");
    match (avx2, avx512) {
        (true, true) if is_x86_feature_detected!("avx512bf16") && tile_registers() => Isa::Amx,
        (true, true) => Isa::Avx512,
        (true, false) => Isa::Avx2,
        _ => Isa::Portable,
    }
}

/// Whether the CPU has tile registers for bf16 and the system lets this process use them. Linux hands them out only on
/// request, because they make every thread's saved state 8 KiB larger; the answer holds for all threads.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn tile_registers() -> bool {
    use std::arch::{asm, x86_64::__cpuid_count};
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    const SYS_ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILEDATA: i64 = 18;
    // Leaf 7 exists on every CPU with AVX2.
    let features = __cpuid_count(7, 0).edx;
    if features & (AMX_BF16 | AMX_TILE) != (AMX_BF16 | AMX_TILE) {
        return false;
    }
    let refused: i64;
    // SAFETY: a system call that takes two numbers and touches no memory of ours; an old kernel refuses it with an error.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") SYS_ARCH_PRCTL => refused,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    refused == 0
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn tile_registers() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn best() -> Isa {
    Isa::Portable
}

/// The instruction sets this CPU can run, worst first.
pub fn supported() -> Vec<Isa> {
    ALL.into_iter().filter(|&isa| isa <= best()).collect()
}

/// The instruction set of this process, or why the one that `OUNCE_ISA` asks for cannot be had.
///
/// # Errors
/// `OUNCE_ISA` names no instruction set, or one that this CPU lacks. [`isa`] then uses the best one there is.
pub fn check_isa() -> Result<Isa, String> {
    let Some(wanted) = std::env::var_os("OUNCE_ISA").filter(|v| !v.is_empty()) else {
        return Ok(best());
    };
    let wanted = wanted.to_string_lossy();
    let isa = ALL
        .into_iter()
        .find(|isa| isa.name() == wanted)
        .ok_or_else(|| format!("OUNCE_ISA={wanted}: no such instruction set (amx, avx512, avx2 or portable)"))?;
    if isa > best() {
        return Err(format!(
            "OUNCE_ISA={wanted}: this CPU lacks it; the best it has is {}",
            best().name()
        ));
    }
    Ok(isa)
}

thread_local! {
    /// Thread-local, so that tests running side by side do not change each other's bits; the pool hands it on.
    static FORCED: Cell<Option<Isa>> = const { Cell::new(None) };
}

/// The instruction set that kernels called from this thread use. Never one that the CPU lacks.
#[inline]
pub fn isa() -> Isa {
    static CHOSEN: OnceLock<Isa> = OnceLock::new();
    FORCED
        .get()
        .unwrap_or_else(|| *CHOSEN.get_or_init(|| check_isa().unwrap_or_else(|_| best())))
}

/// Whether bf16 products run on AVX-512-BF16 (`dpbf16`) on this thread.
#[inline]
pub fn bf16_dot() -> bool {
    #[cfg(target_arch = "x86_64")]
    return isa() >= Isa::Avx512 && is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Runs `f` with the kernels forced to `isa`, on this thread and on the pool's threads that help it.
///
/// # Panics
/// If the CPU lacks `isa`: choose from [`supported`].
pub fn with_isa<R>(isa: Isa, f: impl FnOnce() -> R) -> R {
    assert!(isa <= best(), "this CPU lacks {}", isa.name());
    struct Restore(Option<Isa>);
    impl Drop for Restore {
        fn drop(&mut self) {
            FORCED.set(self.0);
        }
    }
    let _restore = Restore(FORCED.replace(Some(isa)));
    f()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_override_is_scoped_and_survives_panics() {
        let before = isa();
        for forced in supported() {
            with_isa(forced, || {
                assert_eq!(isa(), forced);
                let _ = std::panic::catch_unwind(|| with_isa(Isa::Portable, || panic!("on purpose")));
                assert_eq!(isa(), forced);
            });
        }
        assert_eq!(isa(), before);
        assert!(supported().contains(&before));
    }
}
