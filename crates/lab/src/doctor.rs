//! `ounce doctor`: is this machine, and this build, fit to run Ounce?
//!
//! The heart is a self-check: kernels run on every instruction set the CPU has, and their results are compared with those
//! of the portable one. Everything else is a look at the surroundings that explains slowness or failures elsewhere.

use ounce_kernels::{
    AttentionRows, AttentionShape, Compute, Data, Gemm, Heads, Isa, Mat, Philox, attention, check_isa, gemm,
    isa::bf16_dot, rms_norm, softmax, supported, swiglu, threads, with_isa,
};
use serde::Serialize;
use std::path::Path;

/// How far f32 results of two instruction sets may lie apart, relative to the largest: sums are taken in another order.
const TOLERANCE_F32: f64 = 1e-5;
/// The same where inputs are rounded to bf16. The rounding is the same everywhere, only denormals may differ.
const TOLERANCE_BF16: f64 = 1e-4;

/// How a look at one thing came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// Ounce runs, but not as well as it could.
    Warning,
    /// Something will fail.
    Bad,
}

/// One thing looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub name: String,
    /// What was found.
    pub value: String,
    /// What to think of it.
    pub verdict: Verdict,
    /// What to do about it; empty if nothing.
    pub hint: String,
}

impl Finding {
    fn new(name: impl Into<String>, value: impl Into<String>, verdict: Verdict, hint: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            value: value.into(),
            verdict,
            hint: hint.into(),
        }
    }
    fn good(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self::new(name, value, Verdict::Good, "")
    }
}

/// Looks at everything. `data` is the folder that recipes read from, if one was named.
pub fn examine(data: Option<&Path>) -> Vec<Finding> {
    let mut findings = vec![cpu(), instruction_set()];
    findings.push(Finding::good(
        "threads",
        format!(
            "{} (the system offers {})",
            threads(),
            std::thread::available_parallelism().map_or(1, usize::from)
        ),
    ));
    findings.push(memory());
    for isa in supported() {
        findings.extend(self_check(isa));
    }
    findings.push(temporary());
    findings.push(data_folder(data));
    findings
}

#[cfg(target_arch = "x86_64")]
fn cpu_features() -> Vec<&'static str> {
    let mut found = Vec::new();
    macro_rules! look {
        ($($feature:tt),*) => { $(if std::is_x86_feature_detected!($feature) { found.push($feature); })* };
    }
    look!(
        "avx2",
        "fma",
        "f16c",
        "avx512f",
        "avx512bw",
        "avx512vl",
        "avx512dq",
        "avx512bf16"
    );
    found
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_features() -> Vec<&'static str> {
    Vec::new()
}

fn cpu() -> Finding {
    let features = cpu_features();
    let value = format!("{} {}", std::env::consts::ARCH, features.join(" "));
    if features.contains(&"avx2") {
        return Finding::good("cpu", value);
    }
    let hint = "there are no vector kernels for this CPU; the portable ones are several times slower";
    Finding::new("cpu", value.trim_end(), Verdict::Warning, hint)
}

fn instruction_set() -> Finding {
    match check_isa() {
        Ok(isa) => {
            let chosen = std::env::var_os("OUNCE_ISA").filter(|v| !v.is_empty());
            let why = if chosen.is_some() {
                "OUNCE_ISA asks for it"
            } else {
                "the best there is"
            };
            let bf16 = if bf16_dot() { "in hardware" } else { "emulated in f32" };
            Finding::good(
                "instruction set",
                format!("{} ({why}); bf16 products {bf16}", isa.name()),
            )
        }
        Err(rule) => Finding::new(
            "instruction set",
            rule,
            Verdict::Bad,
            "unset OUNCE_ISA to use the best there is",
        ),
    }
}

fn memory() -> Finding {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let bytes = |key: &str| -> Option<u64> {
        let line = text.lines().find(|l| l.starts_with(key))?;
        Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
    };
    let (Some(total), Some(available)) = (bytes("MemTotal:"), bytes("MemAvailable:")) else {
        return Finding::new("memory", "the system does not tell", Verdict::Warning, "");
    };
    let value = format!(
        "{} available of {}",
        crate::report::format_bytes(available),
        crate::report::format_bytes(total)
    );
    if available < 1 << 30 {
        return Finding::new(
            "memory",
            value,
            Verdict::Warning,
            "end other programs before loading a model",
        );
    }
    Finding::good("memory", value)
}

fn temporary() -> Finding {
    let dir = std::env::temp_dir();
    let probe = dir.join(format!("ounce-doctor-{}", std::process::id()));
    let written = std::fs::write(&probe, b"ounce").and_then(|()| std::fs::remove_file(&probe));
    match written {
        Ok(()) => Finding::good("temporary folder", format!("{} can be written", dir.display())),
        Err(e) => Finding::new(
            "temporary folder",
            format!("{}: {e}", dir.display()),
            Verdict::Bad,
            "set TMPDIR to a folder that can be written",
        ),
    }
}

fn data_folder(data: Option<&Path>) -> Finding {
    let Some(dir) = data else {
        let value = "none named; recipes use the toy corpora";
        return Finding::good("data folder", value);
    };
    if dir.is_dir() {
        return Finding::good("data folder", dir.display().to_string());
    }
    let hint = "name an existing folder with --data or OUNCE_DATA, or leave both out";
    Finding::new(
        "data folder",
        format!("{} is not a folder", dir.display()),
        Verdict::Bad,
        hint,
    )
}

/// A kernel on fixed inputs.
type Kernel = fn() -> Vec<f32>;

/// Every kernel of the check on `isa`, against the portable set.
fn self_check(isa: Isa) -> Vec<Finding> {
    let kernels: [(&str, f64, Kernel); 6] = [
        ("gemm f32", TOLERANCE_F32, || product(Compute::F32)),
        ("gemm bf16", TOLERANCE_BF16, || product(Compute::Bf16)),
        ("attention", TOLERANCE_F32, attend),
        ("rms norm", TOLERANCE_F32, || {
            let mut y = vec![0.0; ROWS * COLS];
            rms_norm(&noise(1, ROWS * COLS), &noise(2, COLS), 1e-5, &mut y, None);
            y
        }),
        ("softmax", TOLERANCE_F32, || {
            let mut y = vec![0.0; ROWS * COLS];
            softmax(&noise(3, ROWS * COLS), COLS, &mut y);
            y
        }),
        ("swiglu", TOLERANCE_F32, || {
            let mut y = vec![0.0; ROWS * COLS];
            swiglu(&noise(4, ROWS * COLS), &noise(5, ROWS * COLS), &mut y);
            y
        }),
    ];
    kernels
        .into_iter()
        .map(|(kernel, tolerance, run)| {
            let name = format!("{kernel} on {}", isa.name());
            let (ours, reference) = (with_isa(isa, run), with_isa(Isa::Portable, run));
            let worst = relative(&ours, &reference);
            let value = format!("worst difference {worst:.1e}, allowed {tolerance:.0e}");
            if worst <= tolerance {
                Finding::good(name, value)
            } else {
                let hint = "results on this machine are wrong; try OUNCE_ISA=portable, and report it";
                Finding::new(name, value, Verdict::Bad, hint)
            }
        })
        .collect()
}

/// Odd, so that every kernel meets a tail.
const ROWS: usize = 67;
const COLS: usize = 259;

fn noise(stream: u64, n: usize) -> Vec<f32> {
    (0..n).map(|i| Philox::normal(0, stream, 0, i as u64) as f32).collect()
}

fn relative(ours: &[f32], reference: &[f32]) -> f64 {
    let scale = reference.iter().fold(1e-30_f64, |m, &x| m.max(f64::from(x.abs())));
    ours.iter().zip(reference).fold(0.0, |worst, (a, b)| {
        let d = f64::from((a - b).abs()) / scale;
        if d.is_nan() { f64::INFINITY } else { worst.max(d) }
    })
}

fn product(compute: Compute) -> Vec<f32> {
    const N: usize = 131;
    let (a, b) = (noise(6, ROWS * COLS), noise(7, N * COLS));
    let mut c = vec![0.0; ROWS * N];
    let problem = Gemm {
        m: ROWS,
        n: N,
        k: COLS,
        a: Mat {
            data: Data::F32(&a),
            row_stride: COLS,
            col_stride: 1,
        },
        b: Mat {
            data: Data::F32(&b),
            row_stride: 1,
            col_stride: COLS,
        },
        c: &mut c,
        ldc: N,
        accumulate: false,
    };
    gemm(&mut [problem], compute);
    c
}

fn attend() -> Vec<f32> {
    const HEAD: usize = 40;
    let shape = AttentionShape {
        batch: 1,
        q_len: ROWS,
        q_heads: 4,
        kv_heads: 2,
        head_dim: HEAD,
        window: None,
        causal: true,
        scale: (HEAD as f64).powf(-0.5),
        slopes: None,
    };
    let rows = AttentionRows {
        q_start: &[0],
        kv_begin: &[0],
        kv_len: &[ROWS],
        positions: None,
    };
    let (q, k, v) = (
        noise(8, ROWS * 4 * HEAD),
        noise(9, ROWS * 2 * HEAD),
        noise(10, ROWS * 2 * HEAD),
    );
    let heads = |data| Heads {
        data: Data::F32(data),
        batch_stride: ROWS * 2 * HEAD,
        token_stride: 2 * HEAD,
        head_stride: HEAD,
    };
    let mut out = vec![0.0; q.len()];
    attention(&shape, &rows, &q, heads(&k), heads(&v), &mut out, None, Compute::F32);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_result_is_bad_and_a_nan_is_never_close() {
        assert_eq!(relative(&[1.0, 2.0], &[1.0, 2.0]), 0.0);
        assert!(relative(&[1.0, 2.1], &[1.0, 2.0]) > TOLERANCE_F32);
        assert!(relative(&[f32::NAN], &[1.0]).is_infinite());
    }

    #[test]
    fn this_machine_passes_and_a_missing_data_folder_is_named() {
        let findings = examine(Some(Path::new("no/such/folder")));
        let bad: Vec<_> = findings.iter().filter(|f| f.verdict == Verdict::Bad).collect();
        assert_eq!(bad.len(), 1, "{bad:?}");
        assert!(bad[0].value.contains("no/such/folder"));
    }
}
