//! Writing the weights of a Hugging Face folder: one file, or shards and their index, resumable between tensors.
//!
//! The split depends on the declared tensors alone, so that a second process comes to the same shards. What is finished
//! is known from the journal of the output folder and from nothing else: a tensor is entered there only after its bytes
//! are on the disk, and what is not entered is written again.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};

use crate::{
    checkpoint::{INDEX, SINGLE},
    error::{FormatError, Result},
    fsx,
    output::OutputFolder,
    writer::{SafetensorsWriter, TensorSpec, byte_len, first_duplicate},
};

/// The key of this writer's lines in the journal: the tensors that became finished, with the check sums of their bytes.
const JOURNAL_KEY: &str = "finished_tensors";

/// How weights are split and marked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardOptions {
    /// Bytes of tensors per file; a larger tensor gets a file of its own. 5 GB by default, as Hugging Face has it.
    pub max_shard_bytes: u64,
    /// The string map of every file's header. By default `format = pt`, which other loaders insist on.
    pub metadata: BTreeMap<String, String>,
}

impl Default for ShardOptions {
    fn default() -> Self {
        Self {
            max_shard_bytes: 5_000_000_000,
            metadata: BTreeMap::from([("format".to_owned(), "pt".to_owned())]),
        }
    }
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    specs: Vec<TensorSpec>,
}

/// Writes declared tensors into a folder, in the declared order.
#[derive(Debug)]
pub struct ShardedWriter {
    dir: PathBuf,
    metadata: BTreeMap<String, String>,
    shards: Vec<Shard>,
    /// The shard that takes the next bytes, and its writer once there are some.
    at: usize,
    current: Option<SafetensorsWriter>,
    /// The index, if there are several shards.
    index: Option<Vec<u8>>,
    /// Complete, but not yet in the journal.
    uncommitted: Vec<(String, u32)>,
    finished: usize,
}

impl ShardedWriter {
    /// Starts writing `declared` into the folder `dir`, over weights that may be there.
    ///
    /// # Errors
    /// A tensor is declared twice or is too large to count. Files are created as their first bytes arrive.
    pub fn create(dir: &Path, declared: Vec<TensorSpec>, options: &ShardOptions) -> Result<Self> {
        if let Some(name) = first_duplicate(&declared) {
            let hint = "this is a fault in the code that writes the checkpoint; please report it";
            return Err(FormatError::tensor(dir, name, "is declared twice", hint));
        }
        let (groups, total) = split(dir, declared, options.max_shard_bytes)?;
        let n = groups.len();
        let mut weight_map = Map::new();
        let mut shards = Vec::with_capacity(n);
        for (i, specs) in groups.into_iter().enumerate() {
            let file = if n == 1 {
                SINGLE.to_owned()
            } else {
                format!("model-{:05}-of-{n:05}.safetensors", i + 1)
            };
            weight_map.extend(specs.iter().map(|spec| (spec.name.clone(), Value::from(file.as_str()))));
            shards.push(Shard {
                path: dir.join(file),
                specs,
            });
        }
        let index = (n > 1).then(|| {
            let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
            format!("{index:#}\n").into_bytes()
        });
        Ok(Self {
            dir: dir.to_owned(),
            metadata: options.metadata.clone(),
            shards,
            at: 0,
            current: None,
            index,
            uncommitted: Vec::new(),
            finished: 0,
        })
    }

    /// Goes on where `journal` says an earlier process stopped; with nothing in the journal, as [`ShardedWriter::create`].
    /// `dir` lies in the journal's folder.
    ///
    /// # Errors
    /// As [`ShardedWriter::create`]; also if the journal's finished tensors are not the first declared ones, or the files
    /// do not hold their bytes.
    pub fn resume(
        dir: &Path,
        declared: Vec<TensorSpec>,
        options: &ShardOptions,
        journal: &OutputFolder,
    ) -> Result<Self> {
        let finished = finished_tensors(dir, journal)?;
        let hint = "the job was started with another recipe or model; `--overwrite` starts again";
        for (i, (name, _)) in finished.iter().enumerate() {
            if declared.get(i).is_none_or(|spec| spec.name != *name) {
                let rule = format!(
                    "is number {} of the journal's finished tensors, but not of those to write",
                    i + 1
                );
                return Err(FormatError::tensor(dir, name, rule, hint));
            }
        }
        let mut writer = Self::create(dir, declared, options)?;
        let sums: Vec<u32> = finished.iter().map(|(_, sum)| *sum).collect();
        let mut left = sums.as_slice();
        while !left.is_empty() {
            let shard = &writer.shards[writer.at];
            let (here, rest) = left.split_at(left.len().min(shard.specs.len()));
            let file = SafetensorsWriter::resume(&shard.path, shard.specs.clone(), &writer.metadata, here)?;
            writer.current = Some(file);
            writer.close_if_complete()?;
            left = rest;
        }
        writer.finished = finished.len();
        Ok(writer)
    }

    /// How many of the declared tensors are complete: the caller goes on with the one after them.
    pub fn finished(&self) -> usize {
        self.finished
    }

    /// Appends `bytes` to the tensor called `name`; see [`SafetensorsWriter::write`]. Returns whether it is now complete.
    ///
    /// # Errors
    /// As [`SafetensorsWriter::write`].
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<bool> {
        if self.current.is_none() {
            let Some(shard) = self.shards.get(self.at) else {
                let hint = "this is a fault in the code that writes the checkpoint; please report it";
                return Err(FormatError::tensor(
                    &self.dir,
                    name,
                    "is written after the last declared tensor",
                    hint,
                ));
            };
            self.current = Some(SafetensorsWriter::create(
                &shard.path,
                shard.specs.clone(),
                &self.metadata,
            )?);
        }
        let current = self.current.as_mut().expect("invariant: the lines above set it");
        if !current.write(name, bytes)? {
            return Ok(false);
        }
        self.uncommitted.push((name.to_owned(), current.last_sum()));
        self.close_if_complete()?;
        self.finished += 1;
        Ok(true)
    }

    /// Enters the tensors completed since the last call into the journal, once their bytes are on the disk. A process
    /// that is killed loses what it wrote after its last commit.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn commit(&mut self, journal: &mut OutputFolder) -> Result<()> {
        if self.uncommitted.is_empty() {
            return Ok(());
        }
        if let Some(current) = &mut self.current {
            current.sync()?;
        }
        let sums = self.uncommitted.iter();
        let sums: Map<String, Value> = sums.map(|(name, sum)| (name.clone(), json!(sum))).collect();
        journal.record(&json!({ JOURNAL_KEY: sums }))?;
        self.uncommitted.clear();
        Ok(())
    }

    /// Checks that all is written and writes the index, if there are several files.
    ///
    /// # Errors
    /// A declared tensor is missing or incomplete, or the disk refuses.
    pub fn finish(mut self) -> Result<()> {
        while let Some(shard) = self.shards.get(self.at) {
            let current = match self.current.take() {
                Some(current) => current,
                None => SafetensorsWriter::create(&shard.path, shard.specs.clone(), &self.metadata)?,
            };
            // Says which tensor is missing; only the one empty file of an empty declaration gets past it.
            current.finish()?;
            self.at += 1;
        }
        match self.index {
            Some(index) => fsx::write_atomic(&self.dir.join(INDEX), &index),
            None => Ok(()),
        }
    }

    fn close_if_complete(&mut self) -> Result<()> {
        if let Some(current) = self.current.take_if(|c| c.expected().is_none()) {
            current.finish()?;
            self.at += 1;
        }
        Ok(())
    }
}

/// Cuts the list where the next tensor would exceed `max_bytes`; at least one group, and the bytes of all.
fn split(dir: &Path, declared: Vec<TensorSpec>, max_bytes: u64) -> Result<(Vec<Vec<TensorSpec>>, u64)> {
    let mut groups = vec![Vec::new()];
    let (mut in_group, mut total) = (0_u64, 0_u64);
    for spec in declared {
        let bytes = byte_len(dir, &spec)?;
        let group = groups
            .last_mut()
            .expect("invariant: the list starts with one group and only grows");
        if group.is_empty() || in_group.saturating_add(bytes) <= max_bytes {
            group.push(spec);
            in_group = in_group.saturating_add(bytes);
        } else {
            groups.push(vec![spec]);
            in_group = bytes;
        }
        total = total.saturating_add(bytes);
    }
    Ok((groups, total))
}

fn finished_tensors(dir: &Path, journal: &OutputFolder) -> Result<Vec<(String, u32)>> {
    let lists = journal.entries().iter().filter_map(|entry| entry.get(JOURNAL_KEY));
    let mut all = Vec::new();
    for list in lists {
        let sums: Option<Map<String, Value>> = list.as_object().cloned();
        for (name, sum) in sums.unwrap_or_default() {
            let sum = sum.as_u64().and_then(|sum| u32::try_from(sum).ok()).ok_or_else(|| {
                let rule = "has no check sum in the journal";
                FormatError::tensor(dir, &name, rule, "the journal was edited; `--overwrite` starts again")
            })?;
            all.push((name, sum));
        }
    }
    Ok(all)
}
