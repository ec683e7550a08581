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
}

impl Isa {
    /// The name that `OUNCE_ISA` takes and reports print.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn best() -> Isa {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq");
    match (avx2, avx512) {
        (true, true) => Isa::Avx512,
        (true, false) => Isa::Avx2,
        _ => Isa::Portable,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn best() -> Isa {
    Isa::Portable
}

/// The instruction sets this CPU can run, worst first.
pub fn supported() -> Vec<Isa> {
    [Isa::Portable, Isa::Avx2, Isa::Avx512]
        .into_iter()
        .filter(|&isa| isa <= best())
        .collect()
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
    let isa = [Isa::Portable, Isa::Avx2, Isa::Avx512]
        .into_iter()
        .find(|isa| isa.name() == wanted)
        .ok_or_else(|| format!("OUNCE_ISA={wanted}: no such instruction set (avx512, avx2 or portable)"))?;
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
    return isa() == Isa::Avx512 && is_x86_feature_detected!("avx512bf16");
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
