//! The one thread pool: fork-join regions over numbered tasks.
//!
//! Every kernel that runs on several threads goes through [`parallel_for`]. The pool hands out task numbers and knows
//! nothing of what they mean; results never depend on which thread takes which task, so they never depend on the number
//! of threads. Idle workers spin for some tens of microseconds (a decode step has regions every few microseconds) and
//! then park, because a pool that only spins collapses as soon as another process wants the cores.

use crate::isa::{isa, with_isa};
use std::any::Any;
use std::cell::Cell;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How long a thread looks for work, or for the end of a region, before it sleeps.
const SPIN: Duration = Duration::from_micros(30);

/// One region, on the caller's stack. Workers see it only between registering and leaving (see [`Pool::registered`]).
struct Job<'a> {
    run: &'a (dyn Fn(usize) + Sync),
    tasks: usize,
    next: AtomicUsize,
    /// How many workers may still join.
    seats: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    isa: crate::isa::Isa,
}

impl Job<'_> {
    /// Takes tasks until none is left; keeps the first panic for the caller and ends the region early.
    fn work(&self) {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let task = self.next.fetch_add(1, Relaxed);
                if task >= self.tasks {
                    break;
                }
                (self.run)(task);
            }
        }));
        if let Err(payload) = outcome {
            self.next.store(self.tasks, Relaxed);
            lock(&self.panic).get_or_insert(payload);
        }
    }
}

struct Pool {
    /// Held for the length of a region: one region at a time.
    region: Mutex<()>,
    /// Workers started so far; only grows.
    workers: AtomicUsize,
    /// Counts regions; a change tells workers to look at `job`.
    epoch: AtomicU64,
    /// The open region, or null.
    job: AtomicPtr<Job<'static>>,
    /// Workers that may be looking at `job`. A worker counts itself *before* it reads `job`, and the caller clears `job`
    /// *before* it waits for the count to reach zero (all `SeqCst`): a worker either finds null or is waited for.
    registered: AtomicUsize,
    /// Workers asleep on `wake`.
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    /// Whether the caller sleeps on `done`.
    caller_sleeps: AtomicBool,
    done_lock: Mutex<()>,
    done: Condvar,
}

static POOL: Pool = Pool {
    region: Mutex::new(()),
    workers: AtomicUsize::new(0),
    epoch: AtomicU64::new(0),
    job: AtomicPtr::new(std::ptr::null_mut()),
    registered: AtomicUsize::new(0),
    sleepers: AtomicUsize::new(0),
    sleep: Mutex::new(()),
    wake: Condvar::new(),
    caller_sleeps: AtomicBool::new(false),
    done_lock: Mutex::new(()),
    done: Condvar::new(),
};

/// 0 = physical cores.
static WANTED: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
    static LIMIT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// A lock whose data are valid at every moment, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sets the number of threads of the process, the calling one included; 0 stands for the number of physical cores.
pub fn set_threads(threads: usize) {
    WANTED.store(threads, Relaxed);
}

/// The number of threads that a region started here may use, the calling one included.
pub fn threads() -> usize {
    LIMIT.get().unwrap_or_else(|| match WANTED.load(Relaxed) {
        0 => physical_cores(),
        n => n,
    })
}

/// Runs `f` with regions started by this thread limited to `threads` threads (tests compare thread counts with it).
pub fn with_threads<R>(threads: usize, f: impl FnOnce() -> R) -> R {
    struct Restore(Option<usize>);
    impl Drop for Restore {
        fn drop(&mut self) {
            LIMIT.set(self.0);
        }
    }
    let _restore = Restore(LIMIT.replace(Some(threads.max(1))));
    f()
}

/// Cores that the process may use, counting the hardware threads of one core once. Two threads on one core only fight
/// for its vector units.
fn physical_cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| {
        let allowed = std::thread::available_parallelism().map_or(1, usize::from);
        let mut siblings: Vec<String> = (0..)
            .map_while(|i| {
                std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list")).ok()
            })
            .collect();
        siblings.sort();
        siblings.dedup();
        if siblings.is_empty() {
            allowed
        } else {
            allowed.min(siblings.len())
        }
    })
}

/// Calls `f(0)`, …, `f(tasks - 1)`, each once, on the pool's threads and on the calling one, and returns when all are done.
///
/// Called from inside a task it runs inline. A panic of a task ends the region (tasks not yet begun are dropped) and
/// continues in the caller. Regions of different threads wait for each other, so a task must not wait for one.
pub fn parallel_for(tasks: usize, f: impl Fn(usize) + Sync) {
    let helpers = threads().min(tasks).saturating_sub(1);
    if helpers == 0 || IN_TASK.get() {
        return (0..tasks).for_each(f);
    }
    let guard = lock(&POOL.region);
    start_workers(helpers);
    let job = Job {
        run: &f,
        tasks,
        next: AtomicUsize::new(0),
        seats: AtomicUsize::new(helpers),
        panic: Mutex::new(None),
        isa: isa(),
    };
    POOL.job.store((&raw const job).cast_mut().cast(), SeqCst);
    POOL.epoch.fetch_add(1, SeqCst);
    if POOL.sleepers.load(SeqCst) > 0 {
        let _sleep = lock(&POOL.sleep);
        for _ in 0..helpers {
            POOL.wake.notify_one();
        }
    }
    IN_TASK.set(true);
    job.work();
    IN_TASK.set(false);
    POOL.job.store(std::ptr::null_mut(), SeqCst);
    wait_for_workers();
    drop(guard);
    let panic = lock(&job.panic).take();
    if let Some(payload) = panic {
        resume_unwind(payload);
    }
}

/// Calls `f(i, chunk)` for the i-th `chunk` elements of `data` (the last one may be shorter), in parallel.
///
/// # Panics
/// If `chunk` is 0 and `data` is not empty, or if `f` panics.
pub fn parallel_chunks_mut<T: Send>(data: &mut [T], chunk: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    if data.is_empty() {
        return;
    }
    assert!(chunk > 0, "chunks of nothing");
    let len = data.len();
    let all = SharedMut::new(data);
    parallel_for(len.div_ceil(chunk), |i| {
        let start = i * chunk;
        // SAFETY: every task number is handed out once and the ranges of different numbers are disjoint.
        f(i, unsafe { all.slice(start, chunk.min(len - start)) });
    });
}

/// A mutable slice that tasks of one region share, each writing its own part.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut<'a, T> {
    ptr: *mut T,
    len: usize,
    life: PhantomData<&'a mut [T]>,
}

// SAFETY: it gives out parts only through `slice` and `ptr`, whose callers promise that no part is given out twice.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    pub(crate) fn new(data: &'a mut [T]) -> Self {
        Self {
            ptr: data.as_mut_ptr(),
            len: data.len(),
            life: PhantomData,
        }
    }

    /// `data[start .. start + len]`. Panics if that is out of range.
    ///
    /// # Safety
    /// While the result lives, no other part that overlaps it may be in use.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(
            start <= self.len && len <= self.len - start,
            "a part outside of the shared slice"
        );
        // SAFETY: in range by the assertion, not aliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(start), len) }
    }
}

/// Spins, then yields to `sleep` once [`SPIN`] is over; `ready` ends it.
fn spin_until(ready: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    loop {
        for _ in 0..64 {
            if ready() {
                return true;
            }
            std::hint::spin_loop();
        }
        if start.elapsed() > SPIN {
            return false;
        }
        // On a busy machine, the thread waited for may be waiting for this very core.
        std::thread::yield_now();
    }
}

fn wait_for_workers() {
    let idle = || POOL.registered.load(SeqCst) == 0;
    if spin_until(idle) {
        return;
    }
    let mut guard = lock(&POOL.done_lock);
    POOL.caller_sleeps.store(true, SeqCst);
    while !idle() {
        guard = POOL.done.wait(guard).unwrap_or_else(PoisonError::into_inner);
    }
    POOL.caller_sleeps.store(false, SeqCst);
}

/// Makes sure that `count` workers exist, or as many as the system grants: the caller can do all tasks alone.
fn start_workers(count: usize) {
    for i in POOL.workers.load(Relaxed)..count {
        if std::thread::Builder::new()
            .name(format!("ounce-{}", i + 1))
            .spawn(worker)
            .is_err()
        {
            break;
        }
        POOL.workers.store(i + 1, Relaxed);
    }
}

fn worker() {
    IN_TASK.set(true);
    let mut seen = 0;
    loop {
        let news = || POOL.epoch.load(SeqCst) != seen;
        if !spin_until(news) {
            let mut guard = lock(&POOL.sleep);
            POOL.sleepers.fetch_add(1, SeqCst);
            while !news() {
                guard = POOL.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
            }
            POOL.sleepers.fetch_sub(1, SeqCst);
        }
        seen = POOL.epoch.load(SeqCst);
        POOL.registered.fetch_add(1, SeqCst);
        // SAFETY: not null, and this worker is registered, so the region's caller keeps the job alive until it leaves.
        if let Some(job) = unsafe { POOL.job.load(SeqCst).as_ref() } {
            let seat = job.seats.fetch_update(Relaxed, Relaxed, |seats| seats.checked_sub(1));
            if seat.is_ok() {
                with_isa(job.isa, || job.work());
            }
        }
        if POOL.registered.fetch_sub(1, SeqCst) == 1 && POOL.caller_sleeps.load(SeqCst) {
            let _guard = lock(&POOL.done_lock);
            POOL.done.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{Isa, supported};

    #[test]
    fn every_task_runs_once_whatever_the_thread_count() {
        for threads in [1, 2, 3, 7] {
            for tasks in [0, 1, 2, 5, 1000] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                with_threads(threads, || parallel_for(tasks, |i| _ = counts[i].fetch_add(1, Relaxed)));
                assert!(
                    counts.iter().all(|c| c.load(Relaxed) == 1),
                    "{threads} threads, {tasks} tasks"
                );
            }
        }
    }

    #[test]
    fn many_short_regions_from_several_threads_neither_hang_nor_lose_tasks() {
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for round in 0..2000 {
                        let sum = AtomicUsize::new(0);
                        with_threads(3, || parallel_for(5, |i| _ = sum.fetch_add(i + round, Relaxed)));
                        assert_eq!(sum.load(Relaxed), 10 + 5 * round);
                        if round % 500 == 0 {
                            std::thread::sleep(Duration::from_millis(1)); // let the workers park
                        }
                    }
                });
            }
        });
    }

    #[test]
    fn helpers_join_and_inherit_the_instruction_set() {
        let wanted = supported()[0];
        let ids = Mutex::new(std::collections::HashSet::new());
        with_isa(wanted, || {
            with_threads(2, || {
                parallel_for(2, |_| {
                    assert_eq!(isa(), Isa::Portable);
                    lock(&ids).insert(std::thread::current().id());
                    // Each task waits for the other to begin, so they cannot both run on one thread.
                    let start = Instant::now();
                    while lock(&ids).len() < 2 {
                        assert!(start.elapsed() < Duration::from_secs(20), "no second thread came");
                        std::thread::yield_now();
                    }
                });
            });
        });
        assert_eq!(lock(&ids).len(), 2);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        for task in [0, 7] {
            let caught = catch_unwind(|| with_threads(2, || parallel_for(8, |i| assert!(i != task, "task {i}"))));
            let payload = caught.expect_err("the panic must reach the caller");
            assert_eq!(payload.downcast_ref::<String>(), Some(&format!("task {task}")));
        }
        let sum = AtomicUsize::new(0);
        with_threads(2, || parallel_for(4, |i| _ = sum.fetch_add(i, Relaxed)));
        assert_eq!(sum.load(Relaxed), 6);
    }

    #[test]
    fn nested_regions_run_inline() {
        let count = AtomicUsize::new(0);
        with_threads(2, || {
            parallel_for(4, |_| {
                let outer = std::thread::current().id();
                parallel_for(3, |_| {
                    assert_eq!(std::thread::current().id(), outer);
                    count.fetch_add(1, Relaxed);
                });
            });
        });
        assert_eq!(count.load(Relaxed), 12);
    }

    #[test]
    fn chunks_cover_the_slice() {
        let mut data = vec![0; 103];
        with_threads(2, || parallel_chunks_mut(&mut data, 10, |i, part| part.fill(i + 1)));
        assert!(data.iter().enumerate().all(|(i, &x)| x == i / 10 + 1));
        parallel_chunks_mut(&mut Vec::<u8>::new(), 0, |_, _| unreachable!());
    }
}
