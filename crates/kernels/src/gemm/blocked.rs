//! Cuts matrix products into tasks and computes them: which thread does what, what is packed and how often.
//!
//! A task is a block of C with all of k. Its thread packs what it needs into scratch of its own, so that tasks never
//! wait for each other; a block of B is kept for the next task that wants it. Since the order of the sums along k is
//! fixed (chunks of [`Cut::depth`] units, see `microkernel`), the cut may depend on the number of threads and bits still do not.

use super::gemv::{Rows, gemv, round_of_rows};
use super::microkernel::{Block, block, block_pairs, tile_size};
use super::pack::{Form, Lines, Panels, copy_rows, pack_across, pack_along, row_distance};
use super::{Data, Mat};
use crate::isa::{Isa, isa};
use crate::pool::{parallel_for, threads};
use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How a task is cut to fit the caches.
struct Cut {
    /// Units along k that are summed before C is touched.
    depth: usize,
    /// Rows of A that meet all panels of B before the next rows do.
    rows: usize,
    /// Columns of a task at most; B[depth, cols] is half of the second-level cache.
    cols: usize,
}

/// With 1 MiB of second-level cache a panel of B of 256 units stays in the first level. With 2 MiB (processors that have
/// tiles) panels of twice that depth stream from the second level, prefetched, and C is read and written half as often.
fn cut() -> Cut {
    match isa() {
        Isa::Amx => Cut {
            depth: 512,
            rows: 28,
            cols: 512,
        },
        _ => Cut {
            depth: 256,
            rows: 96,
            cols: 512,
        },
    }
}
/// Up to so many rows, every value of B is used so few times that packing it would cost as much as using it.
const UNPACKED_ROWS: usize = 48;
/// Up to so many rows, weights are streamed instead of packed.
const STREAMED_ROWS: usize = 8;
/// Multiply-adds below which waking another thread costs more than it saves.
const ALONE: usize = 160_000;
/// Values of W in blocks that are widened at a time when streaming, if rows are shorter: 64 KiB.
const WIDENED: usize = 16 * 1024;
/// Elements of W that a streaming task reads at least.
const STREAM: usize = 32 * 1024;

/// A product whose checks are done, as the tasks share it.
pub(super) struct Problem<'a> {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) a: Mat<'a>,
    pub(super) b: Mat<'a>,
    /// Points to m rows of n values, `ldc` apart, that nothing else refers to while the problem lives.
    pub(super) c: *mut f32,
    pub(super) ldc: usize,
    pub(super) accumulate: bool,
    /// A row's bits must not depend on the number of rows.
    pub(super) by_rows: bool,
}

// SAFETY: `c` is the only member that is not shareable by itself, and tasks write disjoint blocks of it.
unsafe impl Sync for Problem<'_> {}

impl Problem<'_> {
    /// Whether this is x Wᵀ with few rows: both factors lie along k.
    pub(super) fn streamed(&self) -> bool {
        (self.m <= STREAMED_ROWS || self.by_rows) && self.k > 0 && self.a.col_stride == 1 && self.b.row_stride == 1
    }

    fn work(&self) -> usize {
        self.m.max(2).saturating_mul(self.n).saturating_mul(self.k.max(1))
    }
}

/// A block of C of one problem.
struct Task {
    problem: usize,
    rows: Range<usize>,
    cols: Range<usize>,
}

/// Memory whose cache lines begin at its start.
#[derive(Default)]
pub(super) struct Scratch(Vec<CacheLine>);

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct CacheLine([f32; 16]);

impl Scratch {
    /// At least `len` values, whatever they are; earlier contents stay while `len` does not grow.
    pub(super) fn get(&mut self, len: usize) -> &mut [f32] {
        let lines = len.div_ceil(16);
        if self.0.len() < lines {
            self.0.resize(lines, CacheLine([0.0; 16]));
        }
        // SAFETY: a line is exactly sixteen f32.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * 16) }
    }
}

/// What a thread packs, and which block it last packed: (call, problem, first column, first k).
#[derive(Default)]
struct Packed {
    a: Scratch,
    b: Scratch,
    strip: Scratch,
    /// Values that lie in blocks, widened.
    wide: Scratch,
    b_key: Option<(u64, usize, usize, usize)>,
    x_key: Option<(u64, usize)>,
}

thread_local! {
    static PACKED: RefCell<Packed> = RefCell::default();
}

/// Runs a generic function on the elements of a matrix whose type is only known now.
macro_rules! with_lines {
    ($mat:expr, $start:expr, $stride:expr, |$lines:ident| $body:expr) => {
        match $mat.data {
            Data::F32(data) => {
                let $lines = Lines {
                    data,
                    start: $start,
                    stride: $stride,
                };
                $body
            }
            Data::Bf16(data) => {
                let $lines = Lines {
                    data,
                    start: $start,
                    stride: $stride,
                };
                $body
            }
            Data::F16(data) => {
                let $lines = Lines {
                    data,
                    start: $start,
                    stride: $stride,
                };
                $body
            }
            Data::F64(_) => unreachable!("invariant: f64 matrices take the plain loops"),
            Data::Blocks(_) => unreachable!("invariant: blocks are widened before"),
        }
    };
}

pub(super) use with_lines;

/// Computes all problems. None has m or n 0, or f64 data.
pub(super) fn run(problems: &[Problem<'_>], form: Form) {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let call = CALLS.fetch_add(1, Relaxed);
    let work: usize = problems.iter().map(Problem::work).fold(0, usize::saturating_add);
    let alone = work < ALONE;
    let tasks = plan(problems, if alone { 1 } else { threads() });
    let run = |i: usize| {
        let task: &Task = &tasks[i];
        let problem = &problems[task.problem];
        PACKED.with_borrow_mut(|packed| {
            if problem.streamed() {
                stream(problem, task, form, call, packed);
            } else {
                multiply(problem, task, form, call, packed);
            }
        });
    };
    if alone {
        (0..tasks.len()).for_each(run)
    } else {
        parallel_for(tasks.len(), run)
    }
}

/// Cuts every problem so that there are about two equal tasks per thread, but none too small to be worth its packing.
fn plan(problems: &[Problem<'_>], threads: usize) -> Vec<Task> {
    let (mr, nr) = tile_size(isa());
    let work: usize = problems.iter().map(Problem::work).fold(0, usize::saturating_add);
    let share = if threads == 1 { usize::MAX } else { work / (2 * threads) };
    let mut tasks = Vec::new();
    for (problem, p) in problems.iter().enumerate() {
        let (mut rows, mut cols) = (p.m, p.n.min(cut().cols));
        if p.streamed() {
            let most = if threads == 1 { p.n } else { p.n.div_ceil(16 * threads) };
            let line = p.b.col_stride * if matches!(p.b.data, Data::F32(_)) { 4 } else { 2 };
            let least = (STREAM / p.k).max(1);
            let even = p.n.div_ceil(2 * threads).max(least);
            cols = least.max(most).next_multiple_of(round_of_rows(line)).min(even);
        } else {
            while rows.saturating_mul(cols).saturating_mul(p.k) > share {
                if rows > cols && rows >= 8 * mr {
                    rows = rows.div_ceil(2).next_multiple_of(mr);
                } else if cols >= 4 * nr {
                    cols = cols.div_ceil(2).next_multiple_of(nr);
                } else {
                    break;
                }
            }
        }
        // Columns outside: tasks with the same block of B follow each other.
        for j in (0..p.n).step_by(cols) {
            for i in (0..p.m).step_by(rows) {
                tasks.push(Task {
                    problem,
                    rows: i..p.m.min(i + rows),
                    cols: j..p.n.min(j + cols),
                });
            }
        }
    }
    tasks
}

/// A task of a streamed problem: some rows of W, all rows of X.
fn stream(p: &Problem<'_>, task: &Task, form: Form, call: u64, packed: &mut Packed) {
    let round = form != Form::Exact;
    let (x, x_stride) = match p.a.data {
        Data::F32(x) if !round => (x.as_ptr(), p.a.row_stride),
        _ => {
            let distance = row_distance(Form::Rounded, p.k);
            let x = packed.a.get(p.m * distance);
            if packed.x_key.replace((call, task.problem)) != Some((call, task.problem)) {
                let form = if round { Form::Rounded } else { Form::Exact };
                with_lines!(p.a, 0, p.a.row_stride, |lines| copy_rows(
                    lines, p.m, p.k, form, x, distance
                ));
            }
            (x.as_ptr(), distance)
        }
    };
    // SAFETY: within C, since the task lies within the problem.
    let c = unsafe { p.c.add(task.cols.start) };
    let stride = p.b.col_stride;
    let rows = Rows {
        m: p.m,
        k: p.k,
        x,
        x_stride,
        c,
        ldc: p.ldc,
        add: p.accumulate,
        round,
    };
    if let Data::Blocks(blocks) = p.b.data {
        // A few rows at a time, which are used while they are in the cache.
        let together = round_of_rows(usize::MAX);
        let some = together * (WIDENED / (together * p.k)).max(1);
        for (i, j) in task.cols.clone().step_by(some).enumerate() {
            let n = some.min(task.cols.end - j);
            let wide = packed.wide.get(n * p.k);
            blocks.widen_lines(j * stride, stride, n, p.k, wide);
            let w = Lines {
                data: &wide[..n * p.k],
                start: 0,
                stride: p.k,
            };
            // SAFETY: as below, for these columns of C.
            unsafe {
                let c = rows.c.add(i * some);
                gemv(w, n, &Rows { c, ..rows });
            }
        }
        return;
    }
    // SAFETY: X has m rows of k values (checked, or just copied); no other task has these columns of C.
    with_lines!(p.b, task.cols.start * stride, stride, |w| unsafe {
        gemv(w, task.cols.len(), &rows)
    });
}

/// A task of an ordinary problem.
fn multiply(p: &Problem<'_>, task: &Task, form: Form, call: u64, packed: &mut Packed) {
    let (mr, nr) = tile_size(isa());
    let Cut { depth, rows, .. } = cut();
    let rows = rows / mr * mr;
    let mut first = 0;
    loop {
        let k = (p.k - first).min(if form == Form::Pairs { 2 * depth } else { depth });
        let n = task.cols.len();
        // Whole panels of a B that is used only a few times are read where they lie.
        let unpacked = match p.b.data {
            Data::F32(b) if form == Form::Exact && p.b.col_stride == 1 && p.m <= UNPACKED_ROWS => Some(b),
            _ => None,
        };
        let left = if unpacked.is_some() { n - n % nr } else { 0 };
        let packed_cols = task.cols.start + left..task.cols.end;
        if !packed_cols.is_empty() {
            pack_b(p, task.problem, packed_cols, first, k, form, call, packed);
        }
        let panels = Panels { width: nr };
        let units = form.units(k);
        let b_packed = packed.b.get(0).as_ptr();
        for i in task.rows.clone().step_by(rows) {
            let m = (task.rows.end - i).min(rows);
            let (a, a_panel, a_row, a_step) = pack_a(p, i, m, first, k, form, packed);
            let add = p.accumulate || first > 0;
            // SAFETY: the first block reads B in place, columns `left` of it, all within the matrix; the second reads
            // what was packed. A has m rows of k. No other task has these rows and columns of C.
            unsafe {
                let c = p.c.add(i * p.ldc + task.cols.start);
                let part = Block {
                    m,
                    n: 0,
                    units,
                    a,
                    a_panel,
                    a_row,
                    a_step,
                    b: b_packed,
                    b_panel: nr,
                    b_step: nr,
                    c,
                    ldc: p.ldc,
                    add,
                };
                if let Some(b) = unpacked.filter(|_| left > 0) {
                    let b = b[(first * p.b.row_stride + task.cols.start).min(b.len())..].as_ptr();
                    block(&Block {
                        n: left,
                        b,
                        b_step: p.b.row_stride,
                        ..part
                    });
                }
                if left < n {
                    let rest = Block {
                        n: n - left,
                        b_panel: panels.distance(units),
                        c: c.add(left),
                        ..part
                    };
                    if form == Form::Pairs {
                        block_pairs(&rest)
                    } else {
                        block(&rest)
                    }
                }
            }
        }
        first += k;
        if first >= p.k {
            break;
        }
    }
}

/// Packs the columns `cols` of B, `k` elements from `first`, unless they are what this thread packed last.
fn pack_b(
    p: &Problem<'_>,
    problem: usize,
    cols: Range<usize>,
    first: usize,
    k: usize,
    form: Form,
    call: u64,
    packed: &mut Packed,
) {
    let key = Some((call, problem, cols.start, first));
    if std::mem::replace(&mut packed.b_key, key) == key {
        return;
    }
    let panels = Panels {
        width: tile_size(isa()).1,
    };
    let b = packed.b.get(panels.size(cols.len(), form.units(k)));
    let start = first * p.b.row_stride + cols.start * p.b.col_stride;
    let across = p.b.col_stride == 1;
    let (mut source, mut stride) = (p.b, if across { p.b.row_stride } else { p.b.col_stride });
    let mut start = start;
    if let Data::Blocks(blocks) = p.b.data {
        let (lines, len) = if across { (k, cols.len()) } else { (cols.len(), k) };
        let wide = packed.wide.get(lines * len);
        blocks.widen_lines(start, stride, lines, len, wide);
        source.data = Data::F32(&wide[..lines * len]);
        (start, stride) = (0, len);
    }
    if across {
        with_lines!(source, start, stride, |lines| pack_across(
            lines,
            cols.len(),
            k,
            panels,
            form,
            b
        ));
    } else {
        let strip = packed.strip.get(8 * row_distance(form, k));
        with_lines!(source, start, stride, |lines| pack_along(
            lines,
            cols.len(),
            k,
            panels,
            form,
            b,
            strip
        ));
    }
}

/// Makes rows `i .. i + m` of A, `k` elements from `first`, readable for the microkernel: where they lie if that will do,
/// else in scratch. Gives the pointer, and the distances from panel to panel, row to row and unit to unit.
fn pack_a(
    p: &Problem<'_>,
    i: usize,
    m: usize,
    first: usize,
    k: usize,
    form: Form,
    packed: &mut Packed,
) -> (*const f32, usize, usize, usize) {
    let mr = tile_size(isa()).0;
    packed.x_key = None;
    let start = i * p.a.row_stride + first * p.a.col_stride;
    if p.a.col_stride == 1 {
        // Rows a multiple of 4 KiB apart share one set of the first-level cache, and fourteen do not fit into it.
        let crowded = p.a.row_stride.is_multiple_of(1024) && m > 8;
        if let (Data::F32(a), Form::Exact, false) = (p.a.data, form, crowded) {
            return (a[start.min(a.len())..].as_ptr(), mr * p.a.row_stride, p.a.row_stride, 1);
        }
        let distance = row_distance(form, k);
        let a = packed.a.get(m * distance);
        with_lines!(p.a, start, p.a.row_stride, |lines| copy_rows(
            lines, m, k, form, a, distance
        ));
        (a.as_ptr(), mr * distance, distance, 1)
    } else {
        let panels = Panels { width: mr };
        let a = packed.a.get(panels.size(m, form.units(k)));
        with_lines!(p.a, start, p.a.col_stride, |lines| pack_across(
            lines, m, k, panels, form, a
        ));
        (a.as_ptr(), panels.distance(form.units(k)), 1, mr)
    }
}
