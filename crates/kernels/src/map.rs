//! Element-wise functions and sums over slices, written once for vectors.
//!
//! A function is a type that implements [`Map`]; what runs it is here: tails, threads, and the choice of instruction
//! set. (Types and not closures, because a closure is compiled for no particular instruction set.) This module must not
//! know any function.

use crate::{
    parallel_chunks_mut,
    simd::{Vf32, kernel},
};

/// Values per task of an element-wise kernel, and about as many per task of a row kernel.
pub(crate) const CHUNK: usize = 1 << 14;

/// A function of N inputs and of the value that it replaces, lane by lane.
pub(crate) trait Map<const N: usize>: Sync {
    /// The new value. Functions that overwrite ignore `old`.
    fn at<V: Vf32>(&self, x: [V; N], old: V) -> V;
}

/// y[i] = f(x[..][i], y[i]) on this thread; for use inside kernels. All slices have y's length.
#[inline(always)]
pub(crate) fn map_here<V: Vf32, const N: usize, F: Map<N>>(f: &F, x: [&[f32]; N], y: &mut [f32]) {
    for x in x {
        assert_eq!(x.len(), y.len(), "inputs and output of a map must have one length");
    }
    let whole = y.len() - y.len() % V::LANES;
    let mut i = 0;
    while i < whole {
        let mut inputs = [V::zero(); N];
        for (input, x) in inputs.iter_mut().zip(x) {
            *input = V::load(&x[i..]);
        }
        f.at(inputs, V::load(&y[i..])).store(&mut y[i..]);
        i += V::LANES;
    }
    if i < y.len() {
        let mut inputs = [V::zero(); N];
        for (input, x) in inputs.iter_mut().zip(x) {
            *input = V::load_partial(&x[i..], 0.0);
        }
        f.at(inputs, V::load_partial(&y[i..], 0.0)).store_partial(&mut y[i..]);
    }
}

/// The sum of f(x[..][i]) over all i, in an order that depends on the length only. f must be 0 where its inputs are 0.
#[inline(always)]
pub(crate) fn sum_here<V: Vf32, const N: usize, F: Map<N>>(f: &F, x: [&[f32]; N]) -> f32 {
    let len = x[0].len();
    for x in x {
        assert_eq!(x.len(), len, "inputs of a sum must have one length");
    }
    // Four sums, so that an addition need not wait for the one before it.
    let mut sums = [V::zero(); 4];
    let mut i = 0;
    while i + 4 * V::LANES <= len {
        for (lane, sum) in sums.iter_mut().enumerate() {
            let mut inputs = [V::zero(); N];
            for (input, x) in inputs.iter_mut().zip(x) {
                *input = V::load(&x[i + lane * V::LANES..]);
            }
            *sum = sum.add(f.at(inputs, V::zero()));
        }
        i += 4 * V::LANES;
    }
    while i < len {
        let mut inputs = [V::zero(); N];
        for (input, x) in inputs.iter_mut().zip(x) {
            *input = V::load_partial(&x[i..], 0.0);
        }
        sums[0] = sums[0].add(f.at(inputs, V::zero()));
        i += V::LANES;
    }
    sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum()
}

/// The largest value; -inf if there are none. NaN is passed over.
#[inline(always)]
pub(crate) fn max_here<V: Vf32>(x: &[f32]) -> f32 {
    let mut largest = [V::splat(f32::NEG_INFINITY); 2];
    let mut i = 0;
    while i + 2 * V::LANES <= x.len() {
        for (lane, largest) in largest.iter_mut().enumerate() {
            *largest = V::load(&x[i + lane * V::LANES..]).max(*largest);
        }
        i += 2 * V::LANES;
    }
    while i < x.len() {
        largest[0] = V::load_partial(&x[i..], f32::NEG_INFINITY).max(largest[0]);
        i += V::LANES;
    }
    largest[0].max(largest[1]).hmax()
}

/// The sum of all values of `x` after replacing each by f of it.
#[inline(always)]
pub(crate) fn map_and_sum_here<V: Vf32, F: Map<1>>(f: &F, x: &[f32], y: &mut [f32]) -> f32 {
    map_here::<V, 1, F>(f, [x], y);
    sum_here::<V, 1, _>(&First, [y])
}

/// Its first input.
pub(crate) struct First;
impl<const N: usize> Map<N> for First {
    #[inline(always)]
    fn at<V: Vf32>(&self, x: [V; N], _old: V) -> V {
        x[0]
    }
}

/// The product of its inputs.
pub(crate) struct Product;
impl<const N: usize> Map<N> for Product {
    #[inline(always)]
    fn at<V: Vf32>(&self, x: [V; N], _old: V) -> V {
        let mut product = x[0];
        for &x in &x[1..] {
            product = product.mul(x);
        }
        product
    }
}

/// Adds its input to what is there.
pub(crate) struct Add;
impl Map<1> for Add {
    #[inline(always)]
    fn at<V: Vf32>(&self, [x]: [V; 1], old: V) -> V {
        old.add(x)
    }
}

/// Its input times a number.
pub(crate) struct Scale(pub(crate) f32);
impl Map<1> for Scale {
    #[inline(always)]
    fn at<V: Vf32>(&self, [x]: [V; 1], _old: V) -> V {
        x.mul(V::splat(self.0))
    }
}

kernel! { fn chunk1<F: One>(f: &F, x: [&[f32]; 1], y: &mut [f32]) = chunk1_body; }
kernel! { fn chunk2<F: Two>(f: &F, x: [&[f32]; 2], y: &mut [f32]) = chunk2_body; }

/// Functions of one input.
pub(crate) trait One: Map<1> {}
impl<F: Map<1>> One for F {}
/// Functions of two inputs.
pub(crate) trait Two: Map<2> {}
impl<F: Map<2>> Two for F {}

#[inline(always)]
fn chunk1_body<V: Vf32, F: One>(f: &F, x: [&[f32]; 1], y: &mut [f32]) {
    map_here::<V, 1, F>(f, x, y);
}

#[inline(always)]
fn chunk2_body<V: Vf32, F: Two>(f: &F, x: [&[f32]; 2], y: &mut [f32]) {
    map_here::<V, 2, F>(f, x, y);
}

/// y[i] = f(x[i], y[i]), in parallel.
pub(crate) fn map1<F: Map<1>>(f: &F, x: &[f32], y: &mut [f32]) {
    parallel_chunks_mut(y, CHUNK, |i, y| chunk1(f, [&x[i * CHUNK..][..y.len()]], y));
}

/// y[i] = f(a[i], b[i], y[i]), in parallel.
pub(crate) fn map2<F: Map<2>>(f: &F, a: &[f32], b: &[f32], y: &mut [f32]) {
    parallel_chunks_mut(y, CHUNK, |i, y| {
        chunk2(f, [&a[i * CHUNK..][..y.len()], &b[i * CHUNK..][..y.len()]], y);
    });
}

/// Rows of `d` values per task.
pub(crate) fn rows_per_task(d: usize) -> usize {
    (CHUNK / d.max(1)).max(1)
}
