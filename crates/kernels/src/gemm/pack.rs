//! Packing: brings a block of a matrix into the order, the type and the cache lines that the microkernel reads.
//!
//! Numbers that the microkernel multiplies are f32, or bf16 in pairs (two neighbours along k share 32 bits, the first
//! one in the low half). Both are moved as 32-bit *units*, so that one packer and one microkernel serve both.
//! Lanes beyond the edge of the matrix hold old or neighbouring values: they end up in results that nobody stores.
//! This module knows nothing of blocking or threads.

use crate::simd::{Element, Vf32, kernel};

/// What a unit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// An f32, the element as it is.
    Exact,
    /// An f32, the element rounded to bf16.
    Rounded,
    /// Two elements rounded to bf16, neighbours along k. The partner of the last of an odd number is 0.
    Pairs,
}

impl Form {
    /// How many units `k` elements take.
    pub(super) fn units(self, k: usize) -> usize {
        if self == Self::Pairs { k.div_ceil(2) } else { k }
    }

    #[inline(always)]
    fn apply<V: Vf32, E: Element>(self, x: V) -> V {
        if self == Self::Rounded && !E::IS_BF16 {
            x.round_bf16()
        } else {
            x
        }
    }
}

/// Lines of contiguous elements: line `i` begins at `data[start + i * stride]`.
#[derive(Clone, Copy)]
pub(super) struct Lines<'a, E> {
    pub(super) data: &'a [E],
    pub(super) start: usize,
    pub(super) stride: usize,
}

/// Panels in scratch: unit `u` of lane `j` of panel `q` is at `q * distance(units) + u * width + j`.
#[derive(Clone, Copy)]
pub(super) struct Panels {
    /// Lanes of a panel.
    pub(super) width: usize,
}

impl Panels {
    /// Units from panel to panel: whole 8x8 blocks, and room for a vector that overshoots the last row.
    pub(super) fn distance(self, units: usize) -> usize {
        self.width * units.next_multiple_of(8) + 16
    }

    /// Units that panels for `lanes` lanes take.
    pub(super) fn size(self, lanes: usize, units: usize) -> usize {
        lanes.div_ceil(self.width) * self.distance(units)
    }
}

/// Distance between rows of `k` elements that [`copy_rows`] writes: whole vectors, and never a power of two, whose rows
/// would share one set of the cache.
pub(super) fn row_distance(form: Form, k: usize) -> usize {
    form.units(k).next_multiple_of(16) + 16
}

#[inline(always)]
fn copy_rows_body<V: Vf32, E: Element>(
    src: Lines<'_, E>,
    rows: usize,
    k: usize,
    form: Form,
    dst: &mut [f32],
    distance: usize,
) {
    assert!(distance >= form.units(k).next_multiple_of(16) && dst.len() >= rows * distance);
    for r in 0..rows {
        let line = &src.data[src.start + r * src.stride..][..k];
        let out = dst[r * distance..][..distance].as_mut_ptr();
        let whole = k - k % V::LANES;
        for p in (0..whole).step_by(V::LANES) {
            // SAFETY: p + LANES <= k, the length of the line, and the row has room for k rounded up to 16.
            unsafe { put::<V, E>(E::load_ptr(line.as_ptr().add(p)), form, out, p) };
        }
        if whole < k {
            // SAFETY: whole + LANES is at most k rounded up to 16.
            unsafe { put::<V, E>(E::load_partial(&line[whole..]), form, out, whole) };
        }
    }
}

/// Writes elements p .. p + LANES of a row of units.
///
/// # Safety
/// The row must have room for them.
#[inline(always)]
unsafe fn put<V: Vf32, E: Element>(x: V, form: Form, row: *mut f32, p: usize) {
    // SAFETY: the caller's promise; a pair takes the place of two elements of two bytes.
    unsafe {
        match form {
            Form::Pairs => x.store_bf16_ptr(row.cast::<half::bf16>().add(p)),
            _ => form.apply::<V, E>(x).store_ptr(row.add(p)),
        }
    }
}

/// LANES elements from position `j` of line `p`; 0 beyond the end of the data.
#[inline(always)]
fn take<V: Vf32, E: Element>(src: Lines<'_, E>, p: usize, j: usize) -> V {
    let at = src.start + p * src.stride + j;
    if at + V::LANES <= src.data.len() {
        // SAFETY: just checked.
        unsafe { E::load_ptr(src.data.as_ptr().add(at)) }
    } else {
        E::load_partial(src.data.get(at..).unwrap_or_default())
    }
}

#[inline(always)]
fn pack_across_body<V: Vf32, E: Element>(
    src: Lines<'_, E>,
    lanes: usize,
    k: usize,
    panels: Panels,
    form: Form,
    dst: &mut [f32],
) {
    const CHUNK: usize = 16;
    let (width, distance) = (panels.width, panels.distance(form.units(k)));
    assert!(dst.len() >= panels.size(lanes, form.units(k)) && width.next_multiple_of(V::LANES) - width <= 16);
    // Along k in chunks, so that neither the rows read nor the panels written are too many pages at once.
    for p0 in (0..k).step_by(CHUNK) {
        for (q, first) in (0..lanes).step_by(width).enumerate() {
            for p in (p0..k.min(p0 + CHUNK)).step_by(if form == Form::Pairs { 2 } else { 1 }) {
                for j in (0..width).step_by(V::LANES) {
                    let x = take::<V, E>(src, p, first + j);
                    let (u, x) = match form {
                        Form::Pairs if p + 1 < k => (p / 2, x.pair_bf16(take(src, p + 1, first + j))),
                        Form::Pairs => (p / 2, x.pair_bf16(V::zero())),
                        _ => (p, form.apply::<V, E>(x)),
                    };
                    // SAFETY: within panel q of `dst` or, past its last row, in the 16 units between the panels. A
                    // vector wider than the panel spills into the next row, which is written after it.
                    unsafe { x.store_ptr(dst.as_mut_ptr().add(q * distance + u * width + j)) };
                }
            }
        }
    }
}

#[inline(always)]
fn pack_along_body<V: Vf32, E: Element>(
    src: Lines<'_, E>,
    lanes: usize,
    k: usize,
    panels: Panels,
    form: Form,
    dst: &mut [f32],
    strip: &mut [f32],
) {
    let (width, units) = (panels.width, form.units(k));
    assert!(dst.len() >= panels.size(lanes, units) && width % 8 == 0);
    for first in (0..lanes).step_by(8) {
        let out = first / width * panels.distance(units) + first % width;
        let rows = (lanes - first).min(8);
        let lines = Lines {
            start: src.start + first * src.stride,
            ..src
        };
        let mut done = 0;
        if let (Form::Exact, Some(data), 8) = (form, E::as_f32(src.data), rows) {
            done = k - k % 8;
            let _ = &data[lines.start..][..7 * src.stride + k];
            for u in (0..done).step_by(8) {
                // SAFETY: eight lines of k values were just found to exist, u + 8 <= k; the panel has room for units
                // rounded up to eight.
                unsafe {
                    let from = data.as_ptr().add(lines.start + u);
                    V::transpose8(from, src.stride, dst.as_mut_ptr().add(out + u * width), width);
                }
            }
        }
        if done < k {
            let distance = row_distance(form, k - done);
            assert!(strip.len() >= 8 * distance);
            let rest = Lines {
                start: lines.start + done,
                ..lines
            };
            copy_rows_body::<V, E>(rest, rows, k - done, form, strip, distance);
            for u in (done..units).step_by(8) {
                // SAFETY: the strip has eight rows of units rounded up to 16, as has the panel, rounded up to 8.
                unsafe {
                    let from = strip.as_ptr().add(u - done);
                    V::transpose8(from, distance, dst.as_mut_ptr().add(out + u * width), width);
                }
            }
        }
    }
}

kernel! {
    /// Copies `rows` lines of `k` elements to `dst`, line `r` to unit `r * distance`; the rest of its last vector is 0.
    pub(super) fn copy_rows<E: Element>(src: Lines<'_, E>, rows: usize, k: usize, form: Form, dst: &mut [f32], distance: usize) = copy_rows_body;
}
kernel! {
    /// Packs panels from `k` lines that run *across* the lanes: element p of lane j is `src` line p, position j.
    pub(super) fn pack_across<E: Element>(src: Lines<'_, E>, lanes: usize, k: usize, panels: Panels, form: Form, dst: &mut [f32]) = pack_across_body;
}
kernel! {
    /// Packs panels from `lanes` lines that run *along* k: element p of lane j is `src` line j, position p.
    /// `strip` needs room for eight rows of [`row_distance`].
    pub(super) fn pack_along<E: Element>(src: Lines<'_, E>, lanes: usize, k: usize, panels: Panels, form: Form, dst: &mut [f32], strip: &mut [f32]) = pack_along_body;
}
