//! bf16 products on tile registers (AMX): cuts, packs and multiplies. Entered only where [`crate::isa::Isa::Amx`] is.
//!
//! A tile register holds 16 rows of 64 bytes; one instruction multiplies 16 x 32 values of A by 32 x 16 of B and adds
//! to 16 x 16 sums in f32. That is so fast that packing decides: unlike in `blocked`, both factors are packed once, by all
//! threads, into scratch that all share (first region), and then multiplied (second region). Large B are taken in
//! pieces, so that the scratch stays small.
//!
//! A packed factor is a row of *tiles* of 256 units (a unit is two bf16, neighbours along k): tile t of panel q is at
//! `(q * tiles + t) * 256`. In a panel of A unit u of row r is at `16 r + u`, in one of B unit u of column j at `16 u + j`.
//! Missing rows and columns hold anything, a missing end of k holds zeros. Sums along k start again from C every
//! [`CHUNK`] tiles, wherever C was cut, so bits depend neither on the cut nor on the number of threads.

use super::blocked::{Problem, Scratch, with_lines};
use super::pack::Lines;
use super::{Data, Mat};
use crate::pool::{parallel_for, threads};
use crate::simd::{Element, Vf32, kernel};
use std::{arch::asm, cell::RefCell, ops::Range};

/// Rows of A or columns of B in a panel.
const LANES: usize = 16;
/// Values along k in a tile.
const DEPTH: usize = 32;
/// Units in a tile.
const TILE: usize = 256;
/// Rows and columns of C that are computed at a time: two tiles each way.
const SIDE: usize = 2 * LANES;
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

fn panels(lanes: usize) -> usize {
    lanes.div_ceil(SIDE) * 2
}

fn tiles(k: usize) -> usize {
    k.div_ceil(DEPTH)
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
                let (lanes, first) = (part.cols.len(), part.cols.start);
                pack_panels(&b_turned, lanes, p.k, first, false, &pack.panels, b.0.add(part.b_at));
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

/// Packs panels of a factor seen as [lanes, k], its lanes counted from `first`; `of_a` chooses the order in the tiles.
///
/// # Safety
/// `out` must be writable for all panels of the factor, and nobody else may touch the chosen ones.
unsafe fn pack_panels(
    factor: &Mat<'_>,
    lanes: usize,
    k: usize,
    first: usize,
    of_a: bool,
    panels: &Range<usize>,
    out: *mut f32,
) {
    let (start, along) = (first * factor.row_stride, factor.col_stride == 1);
    let stride = if along { factor.row_stride } else { factor.col_stride };
    let shape = Shape {
        lanes,
        k,
        along,
        // What comes out of memory lies along k in the order of A, and across it in the order of B.
        turn: along != of_a,
        panels: (panels.start, panels.end),
    };
    // SAFETY: the caller's promise.
    with_lines!(factor, start, stride, |lines| unsafe { pack(lines, shape, out) });
}

/// What [`pack`] does.
#[derive(Clone, Copy)]
struct Shape {
    lanes: usize,
    k: usize,
    /// Whether the lines of the source are lanes (else they are positions along k).
    along: bool,
    /// Whether tiles are transposed on the way.
    turn: bool,
    panels: (usize, usize),
}

// Functions, not closures: only what is marked so is inlined into the code compiled for an instruction set.
#[inline(always)]
unsafe fn pack_body<V: Vf32, E: Element>(src: Lines<'_, E>, shape: Shape, out: *mut f32) {
    let tiles = tiles(shape.k);
    let (first, end) = shape.panels;
    // SAFETY: tiles of the panels that the caller vouches for.
    unsafe {
        if shape.along {
            for q in first..end {
                for t in 0..tiles {
                    pack_tile::<V, E>(src, shape, q, t, out.add((q * tiles + t) * TILE));
                }
            }
        } else {
            // Lines run across the panels: read them as far as this task goes before the next ones.
            for t in 0..tiles {
                for q in first..end {
                    pack_tile::<V, E>(src, shape, q, t, out.add((q * tiles + t) * TILE));
                }
            }
        }
    }
}

/// Tile t of panel q.
///
/// # Safety
/// `tile` must be writable.
#[inline(always)]
unsafe fn pack_tile<V: Vf32, E: Element>(src: Lines<'_, E>, shape: Shape, q: usize, t: usize, tile: *mut f32) {
    let mut turned = [0.0f32; TILE];
    // SAFETY: the caller's promise.
    let tile = unsafe { &mut *tile.cast::<[f32; TILE]>() };
    let raw = if shape.turn { &mut turned } else { &mut *tile };
    if shape.along {
        rows_of_tile::<V, E>(src, q * LANES, t * DEPTH, shape, raw);
    } else {
        pairs_of_tile::<V, E>(src, q * LANES, t * DEPTH, shape, raw);
    }
    if shape.turn {
        for (i, j) in [(0, 0), (0, 8), (8, 0), (8, 8)] {
            // SAFETY: 8 x 8 of the 16 x 16 units of either.
            unsafe {
                let from = turned.as_ptr().add(i * LANES + j);
                V::transpose8(from, LANES, tile.as_mut_ptr().add(j * LANES + i), LANES);
            }
        }
    }
}

/// Sixteen lines from `lane`, values p .. p + 32 of each, rounded; missing ones become zeros.
#[inline(always)]
fn rows_of_tile<V: Vf32, E: Element>(src: Lines<'_, E>, lane: usize, p: usize, shape: Shape, raw: &mut [f32; TILE]) {
    let depth = (shape.k - p).min(DEPTH);
    for (r, units) in raw.chunks_exact_mut(LANES).enumerate() {
        if lane + r >= shape.lanes || depth < DEPTH {
            units.fill(0.0);
            if lane + r >= shape.lanes {
                continue;
            }
        }
        let line = &src.data[src.start + (lane + r) * src.stride + p..][..depth];
        let mut at = 0;
        while at < depth {
            // SAFETY: a vector is loaded only where the line has one; a row has 32 values and `at` is a multiple of LANES.
            unsafe {
                let x = if at + V::LANES <= depth {
                    E::load_ptr::<V>(line.as_ptr().add(at))
                } else {
                    E::load_partial::<V>(&line[at..])
                };
                x.store_bf16_ptr(units.as_mut_ptr().cast::<half::bf16>().add(at));
            }
            at += V::LANES;
        }
    }
}

/// Sixteen pairs of lines from `p`, positions lane .. lane + 16, rounded and paired; missing lines become zeros.
#[inline(always)]
fn pairs_of_tile<V: Vf32, E: Element>(src: Lines<'_, E>, lane: usize, p: usize, shape: Shape, raw: &mut [f32; TILE]) {
    for (u, units) in raw.chunks_exact_mut(LANES).enumerate() {
        for j in (0..LANES).step_by(V::LANES) {
            let low: V = value_of_line(src, p + 2 * u, lane + j, shape.k);
            let high = value_of_line(src, p + 2 * u + 1, lane + j, shape.k);
            low.pair_bf16(high).store(&mut units[j..]);
        }
    }
}

/// LANES values of line `p` from position `j`; zeros if the line lies beyond k, or past the end of the data.
#[inline(always)]
fn value_of_line<V: Vf32, E: Element>(src: Lines<'_, E>, p: usize, j: usize, k: usize) -> V {
    let at = src.start + p * src.stride + j;
    if p >= k {
        V::zero()
    } else if at + V::LANES <= src.data.len() {
        // SAFETY: just checked.
        unsafe { E::load_ptr(src.data.as_ptr().add(at)) }
    } else {
        E::load_partial(src.data.get(at..).unwrap_or_default())
    }
}

kernel! {
    /// Packs panels of a factor.
    ///
    /// # Safety
    /// As for [`pack_panels`].
    unsafe fn pack<E: Element>(src: Lines<'_, E>, shape: Shape, out: *mut f32) = pack_body;
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

/// Where rows begin, and how far apart they are.
type Place = (*mut f32, usize);

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

/// While it lives, this thread's tile registers have 16 rows of 64 bytes each.
struct Configured;

#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Configured {
    fn new() -> Self {
        let mut wanted = Configuration {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        wanted.row_bytes[..8].fill(64);
        wanted.rows[..8].fill(16);
        // SAFETY: reads 64 bytes; the caller runs only where tile registers exist and may be used.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const wanted, options(nostack, readonly, preserves_flags)) }
        Self
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        // SAFETY: as above. Released registers need not be saved when another thread gets the core.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) }
    }
}

/// Fetches the tile after the one at a register into the first-level cache, line by line. A tile load waits for each of its
/// lines; that the next ones are on their way keeps the second-level cache busy meanwhile.
macro_rules! fetch_next {
    ($at:literal) => {
        fetch_next!($at; 1024 1088 1152 1216 1280 1344 1408 1472 1536 1600 1664 1728 1792 1856 1920 1984)
    };
    ($at:literal; $($byte:literal)*) => {
        concat!($("prefetcht0 [{", $at, "} + ", $byte, "]\n"),*)
    };
}

/// `to` = `from` (zeros if null) + two panels of A times two panels of B, `depth` tiles of each.
///
/// # Safety
/// Tile registers must be configured; panels lie `panel` units apart with `depth` tiles to read; `to` and `from` have 32
/// rows of 32 values, and may be the same.
#[inline]
unsafe fn square(a: *const f32, b: *const f32, panel: usize, depth: usize, from: Place, to: Place) {
    // SAFETY: reads and writes what the caller promises, all within one block, so that no state of the tile registers but
    // their configuration is assumed between blocks.
    unsafe {
        asm!(
            "test {from}, {from}",
            "jz 2f",
            "lea {lower}, [{from_ld} * 8]",
            "lea {lower}, [{from} + {lower} * 2]",
            "tileloadd tmm0, [{from} + {from_ld}]",
            "tileloadd tmm1, [{from} + {from_ld} + 64]",
            "tileloadd tmm2, [{lower} + {from_ld}]",
            "tileloadd tmm3, [{lower} + {from_ld} + 64]",
            "jmp 3f",
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "3:",
            "tileloadd tmm4, [{a0} + {row}]",
            "tileloadd tmm6, [{b0} + {row}]",
            fetch_next!("a0"),
            "tileloadd tmm7, [{b1} + {row}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            fetch_next!("b0"),
            "tileloadd tmm5, [{a1} + {row}]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            fetch_next!("b1"),
            "add {a0}, 1024",
            "tdpbf16ps tmm2, tmm5, tmm6",
            fetch_next!("a1"),
            "add {a1}, 1024",
            "add {b0}, 1024",
            "add {b1}, 1024",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "dec {depth}",
            "jnz 3b",
            "lea {lower}, [{to_ld} * 8]",
            "lea {lower}, [{to} + {lower} * 2]",
            "tilestored [{to} + {to_ld}], tmm0",
            "tilestored [{to} + {to_ld} + 64], tmm1",
            "tilestored [{lower} + {to_ld}], tmm2",
            "tilestored [{lower} + {to_ld} + 64], tmm3",
            a0 = inout(reg) a => _,
            a1 = inout(reg) a.add(panel) => _,
            b0 = inout(reg) b => _,
            b1 = inout(reg) b.add(panel) => _,
            row = in(reg) 64usize,
            depth = inout(reg) depth => _,
            from = in(reg) from.0,
            from_ld = in(reg) from.1 * 4,
            to = in(reg) to.0,
            to_ld = in(reg) to.1 * 4,
            lower = out(reg) _,
            options(nostack),
        );
    }
}
