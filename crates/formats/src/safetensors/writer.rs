//! One safetensors file, written tensor by tensor.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    ops::Range,
    path::{Path, PathBuf},
};

use super::{TensorInfo, TensorSpec, layout::Layout, positioned::PositionedFile};
use crate::{FormatError, staged::AtomicFile};

/// Writes a safetensors file whose tensors are planned first and then given one at a time.
///
/// The header and every offset follow from the plan alone, so tensors may come in any order and the bytes of the file do
/// not depend on it. The file appears under its name, complete and synced, when [`finish`](Self::finish) returns; a
/// writer that is dropped leaves nothing behind, unless it writes [in place](Self::in_place).
#[derive(Debug)]
pub struct SafetensorsWriter {
    path: PathBuf,
    target: Target,
    file: PositionedFile,
    data_start: u64,
    file_bytes: u64,
    order: Vec<TensorInfo>,
    /// Name -> place in `order`, of those not yet written.
    missing: BTreeMap<String, usize>,
}

#[derive(Debug)]
enum Target {
    /// Gets its name when it is complete.
    Atomic(AtomicFile),
    /// Has its name from the beginning.
    InPlace(File),
}

impl SafetensorsWriter {
    /// Plans `specs` and writes the header. `metadata` is text for the header; models carry `{"format": "pt"}`.
    ///
    /// Refused: names planned twice or reserved by the format, sizes that overflow.
    pub fn create(
        path: impl AsRef<Path>,
        specs: Vec<TensorSpec>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self, FormatError> {
        let path = path.as_ref();
        let (layout, header) = plan(path, specs, metadata)?;
        let target = AtomicFile::create(path)?;
        let file = PositionedFile::new(target.reopen()?);
        Self::begin(path, layout, &header, Target::Atomic(target), file)
    }

    /// As [`create`](Self::create), under the file's name from the beginning, for a directory that is itself published when
    /// everything in it is complete. What is there is kept, so that a writer can go on where another one was stopped:
    /// see [`is_written`](Self::is_written).
    pub fn in_place(
        path: impl AsRef<Path>,
        specs: Vec<TensorSpec>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self, FormatError> {
        let path = path.as_ref();
        let (layout, header) = plan(path, specs, metadata)?;
        let open = || {
            let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
            file.set_len(header.len() as u64 + layout.data_bytes)?;
            Ok::<_, io::Error>((file.try_clone()?, file))
        };
        let (file, target) = open().map_err(FormatError::io("create", path))?;
        Self::begin(path, layout, &header, Target::InPlace(target), PositionedFile::new(file))
    }

    fn begin(
        path: &Path,
        layout: Layout,
        header: &[u8],
        target: Target,
        file: PositionedFile,
    ) -> Result<Self, FormatError> {
        file.write_all_at(header, 0).map_err(FormatError::io("write", path))?;
        let data_start = header.len() as u64;
        let missing = layout.tensors.iter().map(|info| info.name.clone()).zip(0..).collect();
        let file_bytes = data_start.saturating_add(layout.data_bytes);
        Ok(Self {
            path: path.to_owned(),
            target,
            file,
            data_start,
            file_bytes,
            order: layout.tensors,
            missing,
        })
    }

    /// The tensors in the order of the file, which is the fastest order to write them in.
    pub fn order(&self) -> &[TensorInfo] {
        &self.order
    }

    /// Exact size of the finished file.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// The bytes of the file where a planned tensor lies.
    pub fn place_of(&self, name: &str) -> Option<Range<u64>> {
        let info = self.order.iter().find(|info| info.name == name)?;
        let start = self.data_start + info.begin;
        Some(start..start + info.bytes())
    }

    /// Takes a planned tensor for written: an earlier writer, [in place](Self::in_place), has done it.
    pub fn is_written(&mut self, name: &str) -> Result<(), FormatError> {
        self.missing.remove(name).map(drop).ok_or_else(|| {
            let reason = "it was not planned, or is written already".to_owned();
            FormatError::Write { path: self.path.clone(), tensor: name.to_owned(), reason }
        })
    }

    /// Writes the data of one tensor: little-endian, row-major, exactly its planned length, once.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), FormatError> {
        let refused =
            |reason: String| FormatError::Write { path: self.path.clone(), tensor: name.to_owned(), reason };
        let Some(&place) = self.missing.get(name) else {
            let planned = self.order.iter().any(|info| info.name == name);
            let reason = if planned { "it was written before" } else { "it was not planned" };
            return Err(refused(format!("{reason}; write each planned tensor once")));
        };
        let info = &self.order[place];
        if bytes.len() as u64 != info.bytes() {
            let (dtype, shape) = (info.dtype, &info.shape);
            let (given, planned) = (bytes.len(), info.bytes());
            return Err(refused(format!(
                "{given} bytes were given, but {dtype} of shape {shape:?} takes {planned}"
            )));
        }
        self.file
            .write_all_at(bytes, self.data_start + info.begin)
            .map_err(FormatError::io("write", &self.path))?;
        self.missing.remove(name);
        Ok(())
    }

    /// Checks that every tensor was written, syncs the file and puts it under its name, replacing what was there.
    pub fn finish(self) -> Result<(), FormatError> {
        self.check_complete()?;
        match self.target {
            Target::Atomic(target) => target.persist(),
            Target::InPlace(file) => file.sync_all().map_err(FormatError::io("sync", &self.path)),
        }
    }

    pub(crate) fn check_complete(&self) -> Result<(), FormatError> {
        match self.missing.keys().next() {
            None => Ok(()),
            Some(name) => Err(FormatError::Write {
                path: self.path.clone(),
                tensor: name.clone(),
                reason: "it was planned but never written; write every planned tensor".to_owned(),
            }),
        }
    }
}

/// Where tensors lie, and the header that says so.
fn plan(
    path: &Path,
    specs: Vec<TensorSpec>,
    metadata: &BTreeMap<String, String>,
) -> Result<(Layout, Vec<u8>), FormatError> {
    let layout = Layout::new(path, specs)?;
    let header = layout.checked_header(path, metadata)?;
    Ok((layout, header))
}
