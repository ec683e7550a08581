//! Tile registers (AMX): what bf16 products and attention share. Entered only where [`crate::isa::Isa::Amx`] is.
//!
//! A tile register holds 16 rows of 64 bytes; one instruction multiplies 16 x 32 values of A by 32 x 16 of B and adds
//! to 16 x 16 sums in f32.
//!
//! A packed factor is a row of *tiles* of 256 units (a unit is two bf16, neighbours along k): tile t of panel q is at
//! `(q * tiles + t) * 256`. In a panel of A unit u of row r is at `16 r + u`, in one of B unit u of column j at `16 u + j`.
//! Missing rows and columns hold anything, a missing end of k holds zeros.

use super::blocked::{Scratch, with_lines};
use super::pack::Lines;
use super::{Data, Mat};
use crate::simd::{Element, Vf32, kernel};
use std::{arch::asm, cell::RefCell, ops::Range};

thread_local! {
    /// Lanes that lie in blocks, widened.
    static WIDE: RefCell<Scratch> = RefCell::default();
}

/// Rows of A or columns of B in a panel.
pub(crate) const LANES: usize = 16;
/// Values along k in a tile.
pub(crate) const DEPTH: usize = 32;
/// Units in a tile.
pub(crate) const TILE: usize = 256;
/// Rows and columns of C that are computed at a time: two tiles each way.
pub(crate) const SIDE: usize = 2 * LANES;

/// Panels of so many lanes: an even number, as squares take two.
pub(crate) fn panels(lanes: usize) -> usize {
    lanes.div_ceil(SIDE) * 2
}

/// Tiles of a panel whose lanes have `k` values.
pub(crate) fn tiles(k: usize) -> usize {
    k.div_ceil(DEPTH)
}

/// Packs panels of a factor seen as [lanes, k] that begins at the value `start`; `of_a` chooses the order in the tiles.
///
/// # Safety
/// `out` must be writable for all panels of the factor, and nobody else may touch the chosen ones.
pub(crate) unsafe fn pack_panels(
    factor: &Mat<'_>,
    lanes: usize,
    k: usize,
    start: usize,
    of_a: bool,
    panels: &Range<usize>,
    out: *mut f32,
) {
    let along = factor.col_stride == 1;
    let stride = if along { factor.row_stride } else { factor.col_stride };
    if let Data::Blocks(blocks) = factor.data {
        let first = panels.start * LANES;
        let n = lanes.saturating_sub(first).min(panels.len() * LANES);
        let (lines, len) = if along { (n, k) } else { (k, n) };
        return WIDE.with_borrow_mut(|wide| {
            let wide = wide.get(lines * len);
            blocks.widen_lines(start + first * if along { stride } else { 1 }, stride, lines, len, wide);
            let wide = Mat {
                data: Data::F32(&wide[..lines * len]),
                row_stride: if along { len } else { 1 },
                col_stride: if along { 1 } else { len },
            };
            // SAFETY: the caller's promise; the panels are those from `panels.start` on.
            unsafe {
                let out = out.add(panels.start * tiles(k) * TILE);
                pack_panels(&wide, n, k, 0, of_a, &(0..panels.len()), out);
            }
        });
    }
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

/// Where rows begin, and how far apart they are.
pub(crate) type Place = (*mut f32, usize);

/// While it lives, this thread's tile registers have 16 rows of 64 bytes each.
pub(crate) struct Configured;

#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Configured {
    pub(crate) fn new() -> Self {
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
pub(crate) unsafe fn square(a: *const f32, b: *const f32, panel: usize, depth: usize, from: Place, to: Place) {
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
