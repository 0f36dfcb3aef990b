//! The journal of a run: one line for the run's identity, then one for each thing that is done, so that a run that was
//! killed goes on where it was.
//!
//! Lines are appended and synced one by one. A line counts when it is whole and the files that it names hold what it
//! says; with the first that does not, everything after it is done again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;
use zeropoint_core::Fingerprint;
use zeropoint_evaluator::report::{Metric, SelfCheck};
use zeropoint_formats::staged::{FileDigest, file_digest, write_file_atomically};

use crate::PipelineError;
use crate::deploy::MODEL_DIR;
use crate::distribution::WeightDistribution;
use crate::identity::Identity;
use crate::written::WrittenRanges;

/// Its name in the partial directory.
pub(crate) const JOURNAL: &str = "journal.jsonl";
/// The version of its lines that this crate writes and reads.
const VERSION: u64 = 2;
/// A longer file is not ours: a line for each Linear of the largest models is far below.
const MAX_BYTES: u64 = 256 << 20;

/// A file that is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WrittenFile {
    /// In the partial directory, with `/` between the parts.
    pub(crate) path: String,
    bytes: u64,
    blake3: Fingerprint,
}

impl WrittenFile {
    /// Reads a file of `dir`.
    pub(crate) fn of(dir: &Path, path: &str) -> Result<Self, PipelineError> {
        let FileDigest { bytes, blake3 } = file_digest(dir.join(path))?;
        Ok(Self { path: path.to_owned(), bytes, blake3 })
    }

    /// Every file below a directory in `dir` but some, in the order of their paths.
    pub(crate) fn all_below_but(
        dir: &Path,
        folder: &str,
        but: &BTreeSet<String>,
    ) -> Result<Vec<Self>, PipelineError> {
        let mut paths = Vec::new();
        collect(dir, folder, &mut paths)
            .map_err(|source| PipelineError::Io { path: dir.join(folder), source })?;
        paths.retain(|path| !but.contains(path));
        paths.sort();
        paths.iter().map(|path| Self::of(dir, path)).collect()
    }

    /// Whether the file holds what it held. `thorough` compares the content, otherwise only the length.
    fn is_as_written(&self, dir: &Path, thorough: bool) -> bool {
        let plain = Path::new(&self.path).components().all(|part| matches!(part, Component::Normal(_)));
        let path = dir.join(&self.path);
        let of_its_length = |found: fs::Metadata| found.is_file() && found.len() == self.bytes;
        let same = || file_digest(&path).is_ok_and(|found| found.blake3 == self.blake3);
        plain && fs::symlink_metadata(&path).is_ok_and(of_its_length) && (!thorough || same())
    }
}

fn collect(dir: &Path, folder: &str, paths: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(dir.join(folder))? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else {
            return Err(io::Error::other("a file name that is not UTF-8"));
        };
        let path = format!("{folder}/{name}");
        if entry.file_type()?.is_dir() { collect(dir, &path, paths)? } else { paths.push(path) }
    }
    Ok(())
}

/// A number to the bit, infinities included, which JSON numbers cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(crate) struct Exact(pub(crate) f64);

impl From<Exact> for String {
    fn from(Exact(value): Exact) -> Self {
        format!("{value:?}")
    }
}

impl TryFrom<String> for Exact {
    type Error = std::num::ParseFloatError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}

/// What a stage cost.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cost {
    pub(crate) seconds: f64,
    pub(crate) peak_rss_bytes: u64,
}

/// The statistics after some parts of the model, and some batches in the next one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CheckpointDone {
    pub(crate) parts: usize,
    pub(crate) of_parts: usize,
    pub(crate) batches: usize,
    pub(crate) of_batches: usize,
    pub(crate) file: WrittenFile,
    /// Hidden states behind the parts that are done.
    pub(crate) states: Option<WrittenFile>,
    pub(crate) cost: Cost,
}

/// The statistics.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StatisticsDone {
    /// Whether this run observed them, or took them from elsewhere.
    pub(crate) observed: bool,
    pub(crate) file: WrittenFile,
    pub(crate) cost: Cost,
}

/// What the report says of a quantised Linear and only its making tells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LinearDone {
    pub(crate) path: String,
    pub(crate) bytes: u64,
    pub(crate) weight_sqnr_db: Exact,
    pub(crate) input_sqnr_db: Option<Exact>,
    pub(crate) output_sqnr_db: Option<Exact>,
    pub(crate) distribution: Option<WeightDistribution>,
}

/// A part of the model, written and checked against its simulation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PartDone {
    /// Its place in the order of a forward, from 0.
    pub(crate) index: usize,
    pub(crate) of: usize,
    pub(crate) linears: Vec<LinearDone>,
    /// In the folder of the model.
    pub(crate) written: WrittenRanges,
    /// BLAKE3 of the source's tensors, of runs that do not read them before.
    pub(crate) sources: BTreeMap<String, Fingerprint>,
    /// How far the samples of the self-check have come.
    pub(crate) probes: Option<WrittenFile>,
    /// After the last part.
    pub(crate) self_check: Option<SelfCheck>,
    pub(crate) cost: Cost,
}

/// The model, complete: what is there besides the tensors of its parts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ModelDone {
    pub(crate) files: Vec<WrittenFile>,
    pub(crate) cost: Cost,
}

/// The metrics of an evaluation task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TaskDone {
    /// Its place in the config, from 0.
    pub(crate) index: usize,
    pub(crate) metrics: Vec<Metric>,
    pub(crate) cost: Cost,
}

/// A line of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "done", rename_all = "kebab-case")]
pub(crate) enum Entry {
    Checkpoint(CheckpointDone),
    /// Those of the original, where a pass over the transformed model follows.
    Untransformed(StatisticsDone),
    Statistics(StatisticsDone),
    Part(PartDone),
    Model(ModelDone),
    Task(TaskDone),
}

/// What is done of a run and still as it was written.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Done {
    pub(crate) checkpoint: Option<CheckpointDone>,
    /// Of the original, where those of a graph follow.
    pub(crate) untransformed: Option<StatisticsDone>,
    pub(crate) statistics: Option<StatisticsDone>,
    pub(crate) parts: Vec<PartDone>,
    pub(crate) model: Option<ModelDone>,
    pub(crate) tasks: BTreeMap<usize, TaskDone>,
}

impl Done {
    fn of(entries: Vec<Entry>, dir: &Path, thorough: bool) -> Self {
        let mut done = Self::default();
        for entry in entries {
            let written = |file: &WrittenFile| file.is_as_written(dir, thorough);
            match entry {
                // Of two checkpoints the older may be gone already.
                Entry::Checkpoint(entry) if done.statistics.is_none() => {
                    if written(&entry.file) && entry.states.iter().all(written) {
                        done.checkpoint = Some(entry);
                    }
                }
                Entry::Untransformed(entry) if done.statistics.is_none() && written(&entry.file) => {
                    (done.checkpoint, done.untransformed) = (None, Some(entry));
                }
                Entry::Statistics(entry) if written(&entry.file) => {
                    (done.checkpoint, done.statistics) = (None, Some(entry));
                }
                Entry::Part(entry)
                    if done.statistics.is_some()
                        && entry.index == done.parts.len()
                        && entry.written.are_as_written(&dir.join(MODEL_DIR), thorough) =>
                {
                    done.parts.push(entry);
                }
                Entry::Model(entry) if done.has_all_parts() && entry.files.iter().all(written) => {
                    done.model = Some(entry);
                }
                Entry::Task(entry) if done.model.is_some() => {
                    done.tasks.insert(entry.index, entry);
                }
                _ => break,
            }
        }
        // A part can follow where the samples of the check are at hand; of two files the older may be gone.
        if done.model.is_none() {
            let ready = |part: &PartDone| {
                let probes = part.probes.as_ref();
                probes.is_none_or(|file| file.is_as_written(dir, thorough))
            };
            while done.parts.last().is_some_and(|part| !ready(part)) {
                done.parts.pop();
            }
        }
        done
    }

    fn has_all_parts(&self) -> bool {
        self.parts.last().is_some_and(|part| part.index + 1 == part.of)
    }

    fn entries(&self) -> Vec<Entry> {
        let checkpoint = self.checkpoint.clone().map(Entry::Checkpoint);
        let untransformed = self.untransformed.clone().map(Entry::Untransformed);
        let statistics = self.statistics.clone().map(Entry::Statistics);
        let parts = self.parts.iter().cloned().map(Entry::Part);
        let model = self.model.clone().map(Entry::Model);
        let tasks = self.tasks.values().cloned().map(Entry::Task);
        untransformed
            .into_iter()
            .chain(checkpoint)
            .chain(statistics)
            .chain(parts)
            .chain(model)
            .chain(tasks)
            .collect()
    }

    /// Whether a file of the partial directory belongs to what is done.
    pub(crate) fn holds(&self, path: &Path) -> bool {
        let own = self.checkpoint.iter().flat_map(|done| [Some(&done.file), done.states.as_ref()]).flatten();
        let files = own
            .chain(self.untransformed.iter().chain(&self.statistics).map(|done| &done.file))
            .chain(self.parts.last().and_then(|done| done.probes.as_ref()))
            .chain(self.model.iter().flat_map(|done| &done.files));
        let paths: BTreeSet<&Path> = files.map(|file| Path::new(&file.path)).collect();
        let weights = self.parts.iter().flat_map(|done| done.written.files());
        let weights: BTreeSet<PathBuf> = weights.map(|file| Path::new(MODEL_DIR).join(file)).collect();
        path == Path::new(JOURNAL) || paths.contains(path) || weights.contains(path)
    }

    /// What comes next, of a run with so many tasks that measures latency or does not.
    pub(crate) fn next(&self, tasks: usize, latency: bool) -> String {
        match (&self.checkpoint, &self.statistics, &self.model) {
            (Some(at), None, _) if at.of_parts > 1 => {
                format!("calibration, part {} of {} of the model", at.parts + 1, at.of_parts)
            }
            (Some(at), None, _) => format!("calibration, batch {} of {}", at.batches + 1, at.of_batches),
            (None, None, _) => "calibration".to_owned(),
            (_, Some(_), None) => match self.parts.last() {
                Some(part) if part.index + 1 < part.of => {
                    format!("quantisation, part {} of {} of the model", part.index + 2, part.of)
                }
                _ => "quantisation".to_owned(),
            },
            _ => match (0..tasks).find(|index| !self.tasks.contains_key(index)) {
                Some(index) => format!("evaluation, task {} of {tasks}", index + 1),
                None if latency => "latency".to_owned(),
                None => "card and reports".to_owned(),
            },
        }
    }
}

/// The open journal of a run.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    bytes: u64,
    /// Whether anything beyond the identity is in it.
    pub(crate) has_entries: bool,
}

/// A journal as it was found.
struct Found {
    identity: Identity,
    entries: Vec<Entry>,
}

impl Journal {
    /// Opens the journal of a partial directory, or begins it, and says what is done already.
    ///
    /// Refused: a journal of another run, or one that cannot be understood.
    pub(crate) fn open(dir: &Path, identity: &Identity) -> Result<(Self, Done), PipelineError> {
        let path = dir.join(JOURNAL);
        let other = |difference: String| PipelineError::OtherRun { partial: dir.to_owned(), difference };
        let done = match read(&path)? {
            None => Done::default(),
            Some(Err(reason)) => return Err(other(reason)),
            Some(Ok(found)) => match identity.difference(&found.identity) {
                Some(difference) => return Err(other(difference)),
                None => Done::of(found.entries, dir, true),
            },
        };
        // Written anew: without a torn line, and without what no longer holds.
        let entries = done.entries();
        let mut text = line(&json!({ "zeropoint_journal": VERSION, "identity": identity }));
        for entry in &entries {
            text.push_str(&line(entry));
        }
        write_file_atomically(&path, &text)?;
        let io = |source| PipelineError::Io { path: path.clone(), source };
        let file = File::options().append(true).open(&path).map_err(io)?;
        let journal = Self { path, file, bytes: text.len() as u64, has_entries: !entries.is_empty() };
        Ok((journal, done))
    }

    /// What is done of the run in a partial directory, by the lengths of its files, touching nothing. The inner error says
    /// why it cannot be continued.
    pub(crate) fn look(dir: &Path, identity: &Identity) -> Result<Result<Done, String>, PipelineError> {
        Ok(match read(&dir.join(JOURNAL))? {
            None => Ok(Done::default()),
            Some(Err(reason)) => Err(reason),
            Some(Ok(found)) => match identity.difference(&found.identity) {
                Some(difference) => Err(difference),
                None => Ok(Done::of(found.entries, dir, false)),
            },
        })
    }

    /// Adds a line, which is on the disk when this returns.
    pub(crate) fn append(&mut self, entry: &Entry) -> Result<(), PipelineError> {
        let line = line(entry);
        let written = self.file.write_all(line.as_bytes()).and_then(|()| self.file.sync_data());
        if let Err(source) = written {
            // A torn line would be recognised as such; without it there is nothing to recognise.
            if let Err(error) = self.file.set_len(self.bytes) {
                tracing::debug!(%error, "a torn line stays at the end of the journal");
            }
            return Err(PipelineError::Io { path: self.path.clone(), source });
        }
        self.bytes += line.len() as u64;
        self.has_entries = true;
        Ok(())
    }
}

fn line(value: &impl Serialize) -> String {
    let mut line = serde_json::to_string(value).expect("string keys and no failing serializer");
    line.push('\n');
    line
}

/// `None` when there is no journal, or one that was torn in its first line; the inner error says why it is not understood.
fn read(path: &Path) -> Result<Option<Result<Found, String>>, PipelineError> {
    let io = |source| PipelineError::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(io)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    if bytes.len() as u64 > MAX_BYTES {
        return Ok(Some(Err("its journal is too long to be one".to_owned())));
    }
    let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    let mut lines = bytes[..whole].split(|&byte| byte == b'\n');
    let Some(first) = lines.next().filter(|first| !first.is_empty()) else { return Ok(None) };
    let identity = match identity_of(first) {
        Ok(identity) => identity,
        Err(reason) => return Ok(Some(Err(reason))),
    };
    let entries = lines.map_while(|line| serde_json::from_slice(line).ok()).collect();
    Ok(Some(Ok(Found { identity, entries })))
}

fn identity_of(line: &[u8]) -> Result<Identity, String> {
    #[derive(Deserialize)]
    struct Version {
        zeropoint_journal: u64,
    }
    #[derive(Deserialize)]
    struct Header {
        identity: Identity,
    }
    let damaged = |_| "its journal is damaged".to_owned();
    let Version { zeropoint_journal } = serde_json::from_slice(line).map_err(damaged)?;
    if zeropoint_journal != VERSION {
        return Err("its journal was written by another release of zeropoint".to_owned());
    }
    serde_json::from_slice(line).map(|Header { identity }| identity).map_err(damaged)
}

#[cfg(test)]
mod tests;
