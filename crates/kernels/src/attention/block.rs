//! The one product that attention is made of: c (+)= a · b for tiles that lie in scratch memory.
//!
//! Every product of the forward and backward pass is written as "broadcast a value of a, multiply with a row of b", so
//! one register tile serves all five. It knows strides and vectors, nothing of queries or keys.

use crate::simd::{Element, Vf32};

/// Rows of the register tile: 6 x 2 vectors of sums fill 12 of AVX2's 16 registers.
pub(super) const ROWS: usize = 6;

/// A strided matrix of which element (i, l) is `data[i * row + l * step]`.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    pub(super) data: &'a [f32],
    pub(super) row: usize,
    pub(super) step: usize,
}

/// c[m, n] (+)= a[m, k] · b[k, n]; rows of b and c are contiguous, `b_row` and `c_row` apart, and `n` is a multiple of
/// the vector's lanes.
pub(super) struct Block<'a, E = f32> {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) a: Left<'a>,
    pub(super) b: &'a [E],
    pub(super) b_row: usize,
    pub(super) c: &'a mut [f32],
    pub(super) c_row: usize,
    pub(super) accumulate: bool,
}

impl<E: Element> Block<'_, E> {
    /// Computes the product. Each element of c is one chain of fused multiply-adds over l = 0, 1, …, so its bits do not
    /// depend on how rows and columns are tiled.
    #[inline(always)]
    pub(super) fn run<V: Vf32>(mut self) {
        if self.m == 0 || self.n == 0 {
            return;
        }
        assert!(self.n.is_multiple_of(V::LANES), "a block's width must be whole vectors");
        assert!((self.m - 1) * self.c_row + self.n <= self.c.len(), "c is too short");
        if let Some(last) = self.k.checked_sub(1) {
            assert!(
                (self.m - 1) * self.a.row + last * self.a.step < self.a.data.len(),
                "a is too short"
            );
            assert!(last * self.b_row + self.n <= self.b.len(), "b is too short");
        }
        let mut j = 0;
        if self.m <= 2 || V::LANES == 16 {
            // Two rows alone would leave the multipliers waiting for their own sums: take more columns at once. AVX-512
            // has the registers (6 x 4 sums of 32) for all rows, and then reads less per multiply-add.
            while j + 4 * V::LANES <= self.n {
                // SAFETY: columns j..j+4 LANES are inside n, and the assertions above cover m, n and k.
                unsafe { self.strip::<V, 4>(j) };
                j += 4 * V::LANES;
            }
        }
        while j + 2 * V::LANES <= self.n {
            // SAFETY: as above, for two vectors.
            unsafe { self.strip::<V, 2>(j) };
            j += 2 * V::LANES;
        }
        if j < self.n {
            // SAFETY: as above; n is a multiple of LANES, so exactly one vector is left.
            unsafe { self.strip::<V, 1>(j) };
        }
    }

    /// All rows of columns j..j + N LANES.
    ///
    /// # Safety
    /// The matrices must hold m rows, k steps and those columns.
    #[inline(always)]
    unsafe fn strip<V: Vf32, const N: usize>(&mut self, j: usize) {
        let mut i = 0;
        // SAFETY: rows i..i + M are inside m in every call below; the rest is the caller's promise.
        unsafe {
            while i + ROWS <= self.m {
                self.tile::<V, ROWS, N>(i, j);
                i += ROWS;
            }
            match self.m - i {
                1 => self.tile::<V, 1, N>(i, j),
                2 => self.tile::<V, 2, N>(i, j),
                3 => self.tile::<V, 3, N>(i, j),
                4 => self.tile::<V, 4, N>(i, j),
                5 => self.tile::<V, 5, N>(i, j),
                _ => {}
            }
        }
    }

    /// Rows i..i + M, columns j..j + N LANES.
    ///
    /// # Safety
    /// The matrices must hold those rows and columns, and k steps.
    #[inline(always)]
    unsafe fn tile<V: Vf32, const M: usize, const N: usize>(&mut self, i: usize, j: usize) {
        let (a_row, a_step, b_row, c_row) = (self.a.row, self.a.step, self.b_row, self.c_row);
        // SAFETY: the caller promises that rows i..i+M, columns j..j+N LANES and steps 0..k exist; with k = 0 neither a
        // nor b is read.
        unsafe {
            let a = self.a.data.as_ptr().wrapping_add(i * a_row);
            let b = self.b.as_ptr().wrapping_add(j);
            let c = self.c.as_mut_ptr().add(i * c_row + j);
            let mut sums = [[V::zero(); N]; M];
            if self.accumulate {
                for (r, sums) in sums.iter_mut().enumerate() {
                    for (x, sum) in sums.iter_mut().enumerate() {
                        *sum = V::load_ptr(c.add(r * c_row + x * V::LANES));
                    }
                }
            }
            for l in 0..self.k {
                let mut columns = [V::zero(); N];
                for (x, column) in columns.iter_mut().enumerate() {
                    *column = E::load_ptr(b.add(l * b_row + x * V::LANES));
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let factor = V::splat(*a.add(r * a_row + l * a_step));
                    for (sum, column) in sums.iter_mut().zip(columns) {
                        *sum = factor.fma(column, *sum);
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                for (x, sum) in sums.iter().enumerate() {
                    sum.store_ptr(c.add(r * c_row + x * V::LANES));
                }
            }
        }
    }
}
