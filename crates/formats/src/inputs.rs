//! The files a job reads, known by their contents.
//!
//! A job that is continued must read what it read before. Small files are summed (SHA-256) when the job begins. The sums
//! of large ones are made beside the work, by threads of their own ([`Summing`]), and go into the journal as they become
//! known: reading a model of many gigabytes twice, one time after the other, would cost more than a conversion does.
//! Until a sum is known, a file that is untouched (the same inode, size and times) is taken to be the same; one that was
//! touched is compared by its sum, and where there is none yet, it is not taken to be the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::Metadata,
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread::{JoinHandle, available_parallelism, sleep, spawn},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    error::{FormatError, Result},
    fsx,
};

/// Files up to this size are summed at once.
const SMALL: u64 = 8 << 20;
/// More threads than this do not make a disk faster.
const THREADS: usize = 4;
/// A file changed less than this before it was looked at could be changed again without its times showing it.
const SETTLED: i64 = 100_000_000;

/// What the file system says of a file, as far as it changes when the contents do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    bytes: u64,
    device: u64,
    inode: u64,
    modified: i64,
    changed: i64,
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        let nanoseconds = |s: i64, ns: i64| s.wrapping_mul(1_000_000_000).wrapping_add(ns);
        Self {
            bytes: meta.len(),
            device: meta.dev(),
            inode: meta.ino(),
            modified: nanoseconds(meta.mtime(), meta.mtime_nsec()),
            changed: nanoseconds(meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// Whether a later change would show in the times.
    fn settled(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |d| d.as_nanos() as i64);
        now.wrapping_sub(self.modified.max(self.changed)) > SETTLED
    }
}

/// What is known of one file.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Known {
    stamp: Stamp,
    settled: bool,
    sum: Option<String>,
}

/// The files a job reads, by the name they have in messages.
#[derive(Debug, Default)]
pub struct Inputs {
    files: BTreeMap<String, (PathBuf, Known)>,
}

impl Inputs {
    /// Looks at `files`, names and places, and sums the small ones.
    ///
    /// # Errors
    /// One of them is no regular file or cannot be read.
    pub fn of(files: impl IntoIterator<Item = (String, PathBuf)>) -> Result<Self> {
        Self::with_small(files, SMALL)
    }

    fn with_small(files: impl IntoIterator<Item = (String, PathBuf)>, small: u64) -> Result<Self> {
        let mut known = BTreeMap::new();
        for (name, path) in files {
            let stamp = stamp(&path)?;
            let (settled, sum) = (stamp.settled(), (stamp.bytes <= small).then(|| fsx::sha256_file(&path)));
            let sum = sum.transpose()?;
            known.insert(name, (path, Known { stamp, settled, sum }));
        }
        Ok(Self { files: known })
    }

    /// For the journal: what is known of each file now.
    pub fn to_json(&self) -> Value {
        self.files
            .iter()
            .map(|(name, (_, known))| (name.clone(), json!(known)))
            .collect()
    }

    /// Sums that have become known.
    pub fn learn(&mut self, sums: &BTreeMap<String, String>) {
        for (name, sum) in sums {
            if let Some((_, known)) = self.files.get_mut(name) {
                known.sum = Some(sum.clone());
            }
        }
    }

    /// The sums that are known, by name.
    pub fn sums(&self) -> BTreeMap<String, String> {
        let known = |(name, (_, known)): (&String, &(PathBuf, Known))| Some((name.clone(), known.sum.clone()?));
        self.files.iter().filter_map(known).collect()
    }

    /// The sums of all files; those that are not known are made now.
    ///
    /// # Errors
    /// A file cannot be read.
    pub(crate) fn all_sums(&mut self) -> Result<BTreeMap<String, String>> {
        for (path, known) in self.files.values_mut() {
            if known.sum.is_none() {
                known.sum = Some(fsx::sha256_file(path)?);
            }
        }
        Ok(self.sums())
    }

    /// The names of the files whose contents are not those of an earlier process, or not known to be. `earlier` is its
    /// [`Inputs::to_json`], `sums` what it learnt later. Large files that were touched meanwhile are read for this.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn differences(&mut self, earlier: &Value, sums: &BTreeMap<String, String>) -> Result<Vec<String>> {
        let earlier: BTreeMap<String, Known> = serde_json::from_value(earlier.clone()).unwrap_or_default();
        let names: BTreeSet<String> = self.files.keys().chain(earlier.keys()).cloned().collect();
        let mut differ = Vec::new();
        for name in names {
            let same = match (self.files.get_mut(&name), earlier.get(&name)) {
                (Some((path, now)), Some(then)) => same(path, now, then, sums.get(&name))?,
                _ => false,
            };
            if !same {
                differ.push(name);
            }
        }
        Ok(differ)
    }

    /// Makes sure that no file was changed since it was first looked at.
    ///
    /// # Errors
    /// One of them was.
    pub fn check_untouched(&self) -> Result<()> {
        for (path, known) in self.files.values() {
            if stamp(path)? != known.stamp {
                return Err(FormatError::place(
                    path,
                    "was changed while it was read",
                    "start again when nobody writes to it",
                ));
            }
        }
        Ok(())
    }

    /// Begins to sum the files whose sums are not known, beside what the caller does.
    pub fn start_summing(&self) -> Summing {
        let unknown = self.files.iter().filter(|(_, (_, known))| known.sum.is_none());
        // The list is taken from its end.
        let mut left: Vec<(String, PathBuf)> = unknown.map(|(name, (path, _))| (name.clone(), path.clone())).collect();
        left.reverse();
        let threads = THREADS
            .min(available_parallelism().map_or(1, usize::from))
            .min(left.len());
        let (left, cancel) = (Arc::new(Mutex::new(left)), Arc::new(AtomicBool::new(false)));
        let (send, done) = channel();
        let worker = |_| {
            let (left, cancel, send) = (left.clone(), cancel.clone(), send.clone());
            spawn(move || sum_files(&left, &cancel, &send))
        };
        Summing {
            threads: (0..threads).map(worker).collect(),
            cancel,
            done,
        }
    }
}

fn stamp(path: &Path) -> Result<Stamp> {
    let meta = fsx::open(path)?.metadata();
    Ok(Stamp::of(&meta.map_err(FormatError::io(path, "read its times"))?))
}

/// Whether the contents are those of `then`, of which the sum may have become known `later`.
fn same(path: &Path, now: &mut Known, then: &Known, later: Option<&String>) -> Result<bool> {
    let then_sum = then.sum.as_ref().or(later);
    if now.stamp.bytes != then.stamp.bytes {
        return Ok(false);
    }
    match (&now.sum, then_sum) {
        (Some(now), Some(then)) => Ok(now == then),
        _ if now.stamp == then.stamp && then.settled => {
            now.sum = then_sum.cloned();
            Ok(true)
        }
        (None, Some(then)) => Ok(now.sum.insert(fsx::sha256_file(path)?) == then),
        (_, None) => Ok(false),
    }
}

/// Threads that sum large files. Dropping it ends them.
#[derive(Debug)]
pub struct Summing {
    threads: Vec<JoinHandle<()>>,
    cancel: Arc<AtomicBool>,
    done: Receiver<(String, Result<String>)>,
}

impl Summing {
    /// The sums made since the last call.
    ///
    /// # Errors
    /// A file could not be read.
    pub fn ready(&self) -> Result<BTreeMap<String, String>> {
        self.done.try_iter().map(|(name, sum)| Ok((name, sum?))).collect()
    }

    /// The sums made since the last call of [`Summing::ready`], once all are made; `None` if `stop` is set before.
    ///
    /// # Errors
    /// A file could not be read.
    pub fn wait(&mut self, stop: &AtomicBool) -> Result<Option<BTreeMap<String, String>>> {
        loop {
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            if self.threads.iter().all(JoinHandle::is_finished) {
                break;
            }
            sleep(Duration::from_millis(2));
        }
        for thread in self.threads.drain(..) {
            thread
                .join()
                .expect("invariant: a summing thread reports errors and does not panic");
        }
        self.ready().map(Some)
    }
}

impl Drop for Summing {
    fn drop(&mut self) {
        self.cancel.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // Its panic would be told where its sums are waited for.
            let _ = thread.join();
        }
    }
}

fn sum_files(left: &Mutex<Vec<(String, PathBuf)>>, cancel: &AtomicBool, done: &Sender<(String, Result<String>)>) {
    loop {
        let next = left.lock().map_or(None, |mut left| left.pop());
        let Some((name, path)) = next else { return };
        match sum_unless(&path, cancel) {
            Ok(None) => return,
            Ok(Some(sum)) => {
                if done.send((name, Ok(sum))).is_err() {
                    return;
                }
            }
            // Whoever waits for it is told; if nobody does, nobody needs the sum.
            Err(error) => drop(done.send((name, Err(error)))),
        }
    }
}

/// The sum of a file, or `None` once `cancel` is set.
fn sum_unless(path: &Path, cancel: &AtomicBool) -> Result<Option<String>> {
    let mut file = fsx::open(path)?;
    let mut hasher = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut piece).map_err(FormatError::io(path, "read it"))?;
        if n == 0 {
            return Ok(Some(fsx::hex(&hasher.finalize())));
        }
        if cancel.load(Ordering::Relaxed) {
            return Ok(None);
        }
        hasher.update(&piece[..n]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn look(dir: &Path, small: u64) -> Inputs {
        let named = |name: &str| (name.to_owned(), dir.join(name));
        Inputs::with_small([named("config"), named("weights")], small).unwrap()
    }

    fn written() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config"), "{}").unwrap();
        fs::write(dir.path().join("weights"), vec![7; 3 << 20]).unwrap();
        dir
    }

    #[test]
    fn small_files_are_known_by_their_contents_alone() {
        let dir = written();
        let earlier = look(dir.path(), SMALL).to_json();
        let none = BTreeMap::new();
        assert!(look(dir.path(), SMALL).differences(&earlier, &none).unwrap().is_empty());
        // The same bytes in other files.
        let moved = written();
        assert!(
            look(moved.path(), SMALL)
                .differences(&earlier, &none)
                .unwrap()
                .is_empty()
        );
        let mut bytes = vec![7; 3 << 20];
        bytes[2 << 20] = 8;
        fs::write(dir.path().join("weights"), bytes).unwrap();
        assert_eq!(
            look(dir.path(), SMALL).differences(&earlier, &none).unwrap(),
            ["weights"]
        );
        let mut fewer = Inputs::of([("config".to_owned(), dir.path().join("config"))]).unwrap();
        assert_eq!(fewer.differences(&earlier, &none).unwrap(), ["weights"]);
    }

    #[test]
    fn a_large_file_is_the_same_untouched_or_by_its_sum() {
        let dir = written();
        sleep(Duration::from_millis(150));
        let mut first = look(dir.path(), 100);
        let (earlier, none) = (first.to_json(), BTreeMap::new());
        assert_eq!(first.sums().len(), 1);
        assert!(
            look(dir.path(), 100).differences(&earlier, &none).unwrap().is_empty(),
            "untouched"
        );
        let sums = first.start_summing().wait(&AtomicBool::new(false)).unwrap().unwrap();
        first.learn(&sums);
        assert_eq!(
            first.sums()["weights"],
            fsx::sha256_file(&dir.path().join("weights")).unwrap()
        );

        // Moved: the stamp differs, the sum does not. Without a sum nothing is taken for granted.
        let moved = written();
        assert_eq!(
            look(moved.path(), 100).differences(&earlier, &none).unwrap(),
            ["weights"]
        );
        let mut again = look(moved.path(), 100);
        assert!(again.differences(&earlier, &sums).unwrap().is_empty());
        assert_eq!(again.sums(), first.sums(), "summed once, known from then on");
        let mut bytes = vec![7; 3 << 20];
        bytes[1] = 8;
        fs::write(moved.path().join("weights"), bytes).unwrap();
        assert_eq!(
            look(moved.path(), 100).differences(&earlier, &sums).unwrap(),
            ["weights"]
        );
        assert!(
            again
                .check_untouched()
                .unwrap_err()
                .to_string()
                .contains("was changed while it was read")
        );
        first.check_untouched().unwrap();
    }

    /// A change within the resolution of the file system's clock leaves size and times as they were.
    #[test]
    fn times_of_a_file_just_written_prove_nothing() {
        let dir = written();
        let first = look(dir.path(), 100);
        assert_eq!(
            look(dir.path(), 100)
                .differences(&first.to_json(), &BTreeMap::new())
                .unwrap(),
            ["weights"]
        );
    }

    #[test]
    fn summing_ends_when_it_is_told_to() {
        let dir = written();
        let first = look(dir.path(), 100);
        assert_eq!(first.start_summing().wait(&AtomicBool::new(true)).unwrap(), None);
        fs::remove_file(dir.path().join("weights")).unwrap();
        let error = first.start_summing().wait(&AtomicBool::new(false)).unwrap_err();
        assert!(error.to_string().contains("weights: cannot open it"), "{error}");
    }
}
