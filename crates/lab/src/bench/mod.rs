//! Benchmarks: the product's own forward, decoder and training step, timed.
//!
//! Nothing exists only to be benchmarked: every figure runs the code a user runs. Each benchmark warms up once, then
//! runs a fixed number of times and reports minimum, median and maximum; comparisons against other programs belong in a
//! script that interleaves both on a quiet machine.

mod attention;
mod checkpoint;
mod decode;
mod kernels;
mod train;

use serde::Serialize;
use std::time::Instant;

pub use attention::{AttentionBench, METHODS as ATTENTION_METHODS, attention};
pub use checkpoint::{CheckpointError, SHAPES, random_checkpoint};
pub use decode::{decode, prefill};
pub use kernels::kernels;
pub use train::{train, train_recipes};

/// One benchmark's figures.
#[derive(Debug, Clone, Serialize)]
pub struct BenchRow {
    /// Name, fixed.
    pub name: String,
    /// Unit of the figures.
    pub unit: &'static str,
    /// Slowest run's figure is the smallest rate.
    pub min: f64,
    /// Median.
    pub median: f64,
    /// Largest.
    pub max: f64,
    /// Counted runs.
    pub runs: usize,
    /// Threads of the pool.
    pub threads: usize,
    /// Peak resident memory of the process, 0 where the system does not tell.
    pub peak_rss_bytes: u64,
}

impl BenchRow {
    /// A row from the rates of several runs.
    pub fn new(name: impl Into<String>, unit: &'static str, mut rates: Vec<f64>) -> Self {
        rates.sort_by(f64::total_cmp);
        Self {
            name: name.into(),
            unit,
            min: rates.first().copied().unwrap_or(0.0),
            median: rates.get(rates.len() / 2).copied().unwrap_or(0.0),
            max: rates.last().copied().unwrap_or(0.0),
            runs: rates.len(),
            threads: ounce_kernels::threads(),
            peak_rss_bytes: peak_rss_bytes(),
        }
    }
}

/// Runs `work` once to warm up and `runs` times for the clock; `amount` of work per run gives rates per second.
///
/// # Errors
/// What `work` returns.
pub fn rates<E>(runs: usize, amount: f64, mut work: impl FnMut() -> Result<(), E>) -> Result<Vec<f64>, E> {
    work()?;
    (0..runs)
        .map(|_| {
            let start = Instant::now();
            work()?;
            Ok(amount / start.elapsed().as_secs_f64())
        })
        .collect()
}

/// Peak resident memory of this process in bytes (Linux); 0 elsewhere.
pub fn peak_rss_bytes() -> u64 {
    memory_line("VmHWM:")
}

/// Resident memory that is not backed by a file, in bytes (Linux); 0 elsewhere.
pub fn anonymous_rss_bytes() -> u64 {
    memory_line("RssAnon:")
}

fn memory_line(key: &str) -> u64 {
    let Ok(status) = ounce_formats::fsx::read_to_string(std::path::Path::new("/proc/self/status")) else {
        return 0;
    };
    let line = status.lines().find_map(|l| l.strip_prefix(key));
    line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}
