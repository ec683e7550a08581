//! Plain versions of the kernels: readable loops, generic over the scalar, one file per theme.
//!
//! They run for f64 (gradient checks) and are the oracle of every SIMD kernel's test. They must not know instruction
//! sets, threads or scratch memory: a reader who doubts a fast kernel reads here what it should compute.

pub(crate) mod attention;
pub(crate) mod elementwise;
pub(crate) mod loss;
pub(crate) mod norm;
#[cfg(test)]
pub(crate) mod optim;
pub(crate) mod rope;
pub(crate) mod rows;
