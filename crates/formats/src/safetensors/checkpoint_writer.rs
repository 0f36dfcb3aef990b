//! A model's weights as one file or as shards with an index.

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
};

use serde_json::json;

use super::{
    INDEX_FILE, SINGLE_FILE, SafetensorsWriter, TensorSpec,
    layout::{Layout, planned_bytes, pt_metadata},
};
use crate::{FormatError, staged::write_file_atomically};

/// Writes `model.safetensors`, or `model-00001-of-0000N.safetensors` and `model.safetensors.index.json`.
///
/// As with [`SafetensorsWriter`], tensors may come in any order, one at a time.
#[derive(Debug)]
pub struct CheckpointWriter {
    dir: PathBuf,
    shards: Vec<SafetensorsWriter>,
    names: Vec<String>,
    /// Name -> index into `shards`.
    places: BTreeMap<String, usize>,
    data_bytes: u64,
}

/// Makes the writer of one file.
type NewFile =
    fn(PathBuf, Vec<TensorSpec>, &BTreeMap<String, String>) -> Result<SafetensorsWriter, FormatError>;

impl CheckpointWriter {
    /// Plans the files of a checkpoint in the existing directory `dir`.
    ///
    /// One file if the data has at most `max_shard_bytes`; otherwise shards that take the tensors in the order of their
    /// names, each up to that many bytes of data. A single larger tensor gets a shard of its own.
    pub fn create(
        dir: impl AsRef<Path>,
        specs: Vec<TensorSpec>,
        max_shard_bytes: u64,
    ) -> Result<Self, FormatError> {
        Self::new(dir.as_ref(), specs, max_shard_bytes, SafetensorsWriter::create)
    }

    /// As [`create`](Self::create), each file [in place](SafetensorsWriter::in_place), and the index from the beginning, so that
    /// what is written can be read before all of it is.
    pub fn in_place(
        dir: impl AsRef<Path>,
        specs: Vec<TensorSpec>,
        max_shard_bytes: u64,
    ) -> Result<Self, FormatError> {
        let writer = Self::new(dir.as_ref(), specs, max_shard_bytes, SafetensorsWriter::in_place)?;
        if let Some(index) = writer.index() {
            write_file_atomically(writer.dir.join(INDEX_FILE), index)?;
        }
        Ok(writer)
    }

    fn new(
        dir: &Path,
        mut specs: Vec<TensorSpec>,
        max_shard_bytes: u64,
        new_file: NewFile,
    ) -> Result<Self, FormatError> {
        // Names are unique over all shards, so the whole plan is checked before it is cut.
        let data_bytes = Layout::new(&dir.join(SINGLE_FILE), specs.clone())?.data_bytes;
        specs.sort_by(|a, b| a.name.cmp(&b.name));
        let plan = split(specs, max_shard_bytes);
        let names = file_names(plan.len());
        let mut places = BTreeMap::new();
        let mut shards = Vec::with_capacity(plan.len());
        for (place, (specs, name)) in plan.into_iter().zip(&names).enumerate() {
            places.extend(specs.iter().map(|spec| (spec.name.clone(), place)));
            shards.push(new_file(dir.join(name), specs, &pt_metadata())?);
        }
        Ok(Self { dir: dir.to_owned(), shards, names, places, data_bytes })
    }

    /// The names of the weight files, without the index.
    pub fn file_names(&self) -> &[String] {
        &self.names
    }

    /// Exact size of all weight files together, headers included.
    pub fn weight_bytes(&self) -> u64 {
        self.shards.iter().map(SafetensorsWriter::file_bytes).sum()
    }

    /// The tensors file by file, each in the order of its file, which is the fastest order to write them in.
    pub fn order(&self) -> impl Iterator<Item = &super::TensorInfo> {
        self.shards.iter().flat_map(SafetensorsWriter::order)
    }

    /// The file of a planned tensor, and the bytes in it where the tensor lies.
    pub fn place_of(&self, name: &str) -> Option<(&str, Range<u64>)> {
        let &shard = self.places.get(name)?;
        Some((&self.names[shard], self.shards[shard].place_of(name)?))
    }

    /// Takes a planned tensor for written by an earlier writer.
    pub fn is_written(&mut self, name: &str) -> Result<(), FormatError> {
        let shard = self.places.get(name).copied().ok_or_else(|| self.unplanned(name))?;
        self.shards[shard].is_written(name)
    }

    fn unplanned(&self, name: &str) -> FormatError {
        let reason = "it was not planned; write each planned tensor once".to_owned();
        FormatError::Write { path: self.dir.clone(), tensor: name.to_owned(), reason }
    }

    /// Writes the data of one tensor: little-endian, row-major, exactly its planned length, once.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), FormatError> {
        let place = self.places.get(name).copied().ok_or_else(|| self.unplanned(name))?;
        self.shards[place].write(name, bytes)
    }

    /// Checks that every tensor was written, then puts the files and, if there are several, the index under their names.
    pub fn finish(self) -> Result<(), FormatError> {
        for shard in &self.shards {
            shard.check_complete()?;
        }
        let index = self.index();
        for shard in self.shards {
            shard.finish()?;
        }
        index.map_or(Ok(()), |index| write_file_atomically(self.dir.join(INDEX_FILE), index))
    }

    /// Of several files.
    fn index(&self) -> Option<String> {
        (self.names.len() > 1).then(|| index_json(&self.places, &self.names, self.data_bytes))
    }
}

/// The files that a [`CheckpointWriter`] would make, known before any tensor exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedCheckpoint {
    /// Names and exact sizes of the weight files, headers included.
    pub files: Vec<(String, u64)>,
    /// Exact size of the index; 0 when there is one file, which needs none.
    pub index_bytes: u64,
}

impl PlannedCheckpoint {
    /// Plans the files for these tensors and this limit on a shard's data, as [`CheckpointWriter::create`] would.
    pub fn new(mut specs: Vec<TensorSpec>, max_shard_bytes: u64) -> Self {
        specs.sort_by(|a, b| a.name.cmp(&b.name));
        let data_bytes = specs.iter().fold(0u64, |sum, spec| sum.saturating_add(spec.bytes()));
        let plan = split(specs, max_shard_bytes);
        let names = file_names(plan.len());
        let places = plan
            .iter()
            .enumerate()
            .flat_map(|(place, specs)| specs.iter().map(move |spec| (spec.name.clone(), place)))
            .collect();
        let index_bytes =
            if plan.len() > 1 { index_json(&places, &names, data_bytes).len() as u64 } else { 0 };
        let files = names.into_iter().zip(plan.iter().map(|specs| planned_bytes(specs))).collect();
        Self { files, index_bytes }
    }

    /// Exact size of all weight files together, without the index.
    pub fn weight_bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
    }
}

fn file_names(count: usize) -> Vec<String> {
    match count {
        1 => vec![SINGLE_FILE.to_owned()],
        count => (1..=count).map(|i| format!("model-{i:05}-of-{count:05}.safetensors")).collect(),
    }
}

fn index_json(places: &BTreeMap<String, usize>, names: &[String], data_bytes: u64) -> String {
    let map: BTreeMap<&String, &String> = places.iter().map(|(name, &place)| (name, &names[place])).collect();
    let index = json!({ "metadata": { "total_size": data_bytes }, "weight_map": map });
    format!("{index:#}\n")
}

/// Cuts the list greedily; always at least one part, so that a checkpoint without tensors is still a file.
fn split(specs: Vec<TensorSpec>, max_bytes: u64) -> Vec<Vec<TensorSpec>> {
    let mut parts = vec![Vec::new()];
    let mut filled = 0u64;
    for spec in specs {
        let bytes = spec.bytes();
        let last = parts.len() - 1;
        if !parts[last].is_empty() && filled.saturating_add(bytes) > max_bytes {
            parts.push(vec![spec]);
            filled = bytes;
        } else {
            parts[last].push(spec);
            filled = filled.saturating_add(bytes);
        }
    }
    parts
}
