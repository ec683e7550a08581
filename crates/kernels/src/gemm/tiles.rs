//! bf16 products on tile registers (AMX): cuts, packs and multiplies. Entered only where [`crate::isa::Isa::Amx`] is.
//!
//! They multiply so fast that packing decides: unlike in `blocked`, both factors are packed once (`amx` says how), by all
//! threads, into scratch that all share (first region), and then multiplied (second region). Large B are taken in
//! pieces, so that the scratch stays small. Sums along k start again from C every [`CHUNK`] tiles, wherever C was cut,
//! so bits depend neither on the cut nor on the number of threads.

use super::Mat;
use super::amx::{Configured, LANES, Place, SIDE, TILE, pack_panels, panels, square, tiles};
use super::blocked::{Problem, Scratch};
use crate::pool::{parallel_for, threads};
use std::{cell::RefCell, ops::Range};

/// Tiles along k between two visits to C. Sixteen would keep two panels of A in the first-level cache, but starting and
/// ending a square costs more than reading them from the second level.
const CHUNK: usize = 64;
/// Units of B that are packed before they are multiplied: 8 MiB.
const PIECE: usize = 2 << 20;
/// Columns (and rows) of a task at most: B[CHUNK, MOST] takes half of a second-level cache of 2 MiB.
const MOST: usize = 256;
/// Values that a packing task moves at least, if there are so many.
const PACKED: usize = 64 * 1024;
/// Multiply-adds below which waking another thread costs more than it saves.
const ALONE: usize = 1 << 20;

thread_local! {
    /// Packed A and packed B of the products that this thread asked for.
    static SHARED: RefCell<(Scratch, Scratch)> = RefCell::default();
    /// Squares of C between chunks.
    static RESTING: RefCell<Scratch> = RefCell::default();
}

/// Some columns of a problem, and where its factors are packed.
struct Part {
    problem: usize,
    cols: Range<usize>,
    a_at: usize,
    b_at: usize,
    /// Whether A is yet to be packed.
    fresh: bool,
}

fn packed_size(lanes: usize, k: usize) -> usize {
    panels(lanes) * tiles(k) * TILE
}

/// Computes all problems, rounded to bf16. None has m, n or k 0, or f64 data.
pub(super) fn run(problems: &[Problem<'_>]) {
    SHARED.with_borrow_mut(|(a, b)| {
        let mut batch: Vec<Part> = Vec::new();
        let (mut a_end, mut b_end) = (0, 0);
        for (problem, p) in problems.iter().enumerate() {
            let piece = (PIECE / (tiles(p.k) * TILE) / LANES * SIDE).max(SIDE);
            let mut a_at = None;
            for j in (0..p.n).step_by(piece) {
                let cols = j..p.n.min(j + piece);
                let b_size = packed_size(cols.len(), p.k);
                if b_end > 0 && b_end + b_size > PIECE {
                    multiply_all(problems, &batch, a, b);
                    batch.clear();
                    b_end = 0;
                    if a_at.is_none() {
                        a_end = 0;
                    }
                }
                let fresh = a_at.is_none();
                let at = *a_at.get_or_insert(a_end);
                if fresh {
                    a_end += packed_size(p.m, p.k);
                }
                batch.push(Part {
                    problem,
                    cols,
                    a_at: at,
                    b_at: b_end,
                    fresh,
                });
                b_end += b_size;
            }
        }
        multiply_all(problems, &batch, a, b);
    });
}

/// Some panels of a factor, to be packed.
struct Pack {
    part: usize,
    of_a: bool,
    panels: Range<usize>,
}

/// A block of C.
struct Block {
    part: usize,
    rows: Range<usize>,
    cols: Range<usize>,
}

/// Memory that tasks write disjoint parts of.
#[derive(Clone, Copy)]
struct Shared(*mut f32);
// SAFETY: every user says why its part is its own.
unsafe impl Sync for Shared {}

/// Packs what the parts need and multiplies.
fn multiply_all(problems: &[Problem<'_>], parts: &[Part], a: &mut Scratch, b: &mut Scratch) {
    let work = |part: &Part| {
        let p = &problems[part.problem];
        p.m.saturating_mul(part.cols.len()).saturating_mul(p.k)
    };
    let total: usize = parts.iter().map(work).fold(0, usize::saturating_add);
    let threads = if total < ALONE { 1 } else { threads() };
    let each = |tasks: usize, run: &(dyn Fn(usize) + Sync)| {
        if threads == 1 {
            (0..tasks).for_each(run);
        } else {
            parallel_for(tasks, run);
        }
    };
    let (mut packs, mut blocks) = (Vec::new(), Vec::new());
    let (mut a_size, mut b_size) = (0, 0);
    for (part, x) in parts.iter().enumerate() {
        let p = &problems[x.problem];
        let step = (PACKED / (LANES * p.k)).max(4);
        if x.fresh {
            packs.extend(ranges(panels(p.m), step).map(|panels| Pack {
                part,
                of_a: true,
                panels,
            }));
        }
        packs.extend(ranges(panels(x.cols.len()), step).map(|panels| Pack {
            part,
            of_a: false,
            panels,
        }));
        a_size = a_size.max(x.a_at + packed_size(p.m, p.k));
        b_size = b_size.max(x.b_at + packed_size(x.cols.len(), p.k));
        let (mut rows, mut cols) = (p.m.min(MOST), x.cols.len().min(MOST));
        while threads > 1 && rows * cols * p.k > total / (4 * threads) && rows.max(cols) > SIDE {
            let side = if rows > cols { &mut rows } else { &mut cols };
            *side = side.div_ceil(2).next_multiple_of(SIDE);
        }
        for cols in ranges(x.cols.len(), cols.next_multiple_of(SIDE)) {
            let rows = ranges(p.m, rows.next_multiple_of(SIDE));
            blocks.extend(rows.map(|rows| Block {
                part,
                rows,
                cols: cols.clone(),
            }));
        }
    }
    let (a, b) = (Shared(a.get(a_size).as_mut_ptr()), Shared(b.get(b_size).as_mut_ptr()));
    each(packs.len(), &|i| {
        let (a, b) = (&a, &b);
        let pack: &Pack = &packs[i];
        let part = &parts[pack.part];
        let p = &problems[part.problem];
        // SAFETY: within the scratch just sized; no other task has these panels, and nobody reads before the region ends.
        unsafe {
            if pack.of_a {
                pack_panels(&p.a, p.m, p.k, 0, true, &pack.panels, a.0.add(part.a_at));
            } else {
                // As B with columns for rows, the first of them at `cols.start`.
                let b_turned = Mat {
                    data: p.b.data,
                    row_stride: p.b.col_stride,
                    col_stride: p.b.row_stride,
                };
                let (lanes, start) = (part.cols.len(), part.cols.start * p.b.col_stride);
                pack_panels(&b_turned, lanes, p.k, start, false, &pack.panels, b.0.add(part.b_at));
            }
        }
    });
    each(blocks.len(), &|i| {
        let (a, b) = (&a, &b);
        let block: &Block = &blocks[i];
        let part = &parts[block.part];
        // SAFETY: both factors were packed by the first region; no other task has these rows and columns of C.
        RESTING.with_borrow_mut(|resting| unsafe {
            let (a, b) = (a.0.add(part.a_at), b.0.add(part.b_at));
            multiply(&problems[part.problem], part, block, a, b, resting);
        });
    });
}

fn ranges(len: usize, step: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(step).map(move |i| i..len.min(i + step))
}

/// Computes a block of C. Between chunks its squares rest in scratch, each in one piece: rows of a large C that lie a
/// power of two apart would push each other out of the cache.
///
/// # Safety
/// The CPU must have tile registers, `a` and `b` be the packed factors of the part, and the block of C be this task's.
unsafe fn multiply(p: &Problem<'_>, part: &Part, block: &Block, a: *const f32, b: *const f32, resting: &mut Scratch) {
    let _configured = Configured::new();
    let tiles = tiles(p.k);
    let across = block.cols.len().div_ceil(SIDE);
    let squares = resting
        .get(block.rows.len().div_ceil(SIDE) * across * SIDE * SIDE)
        .as_mut_ptr();
    for t in (0..tiles).step_by(CHUNK) {
        let depth = CHUNK.min(tiles - t);
        for (y, i) in block.rows.clone().step_by(SIDE).enumerate() {
            let rows = (block.rows.end - i).min(SIDE);
            for (x, j) in block.cols.clone().step_by(SIDE).enumerate() {
                let cols = (block.cols.end - j).min(SIDE);
                let whole = rows == SIDE && cols == SIDE;
                // SAFETY: panels come in pairs, so two of A and two of B are there; `rest` is a square of the scratch
                // just sized; C is this task's, and is touched directly only where a whole square of it exists.
                unsafe {
                    let a = a.add((i / LANES * tiles + t) * TILE);
                    let b = b.add((j / LANES * tiles + t) * TILE);
                    let c = (p.c.add(i * p.ldc + part.cols.start + j), p.ldc);
                    let rest = (squares.add((y * across + x) * SIDE * SIDE), SIDE);
                    if t == 0 && p.accumulate && !whole {
                        copy(c, rest, rows, cols);
                    }
                    let from = match (t, p.accumulate) {
                        (0, false) => (std::ptr::null_mut(), 0),
                        (0, true) if whole => c,
                        _ => rest,
                    };
                    let last = t + depth == tiles;
                    square(a, b, tiles * TILE, depth, from, if last && whole { c } else { rest });
                    if last && !whole {
                        copy(rest, c, rows, cols);
                    }
                }
            }
        }
    }
}

/// Copies `rows` rows of `cols` values.
///
/// # Safety
/// They must be readable and writable, and must not overlap.
unsafe fn copy(from: Place, to: Place, rows: usize, cols: usize) {
    for r in 0..rows {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from.0.add(r * from.1), to.0.add(r * to.1), cols) }
    }
}
