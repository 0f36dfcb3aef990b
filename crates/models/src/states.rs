//! The hidden states of all batches between two parts of a model.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use zeropoint_formats::safetensors::element::f32_bytes;
use zeropoint_formats::{Dtype, SafetensorsFile, SafetensorsWriter, TensorSpec};

use crate::ModelError;
use crate::parts::{Hidden, State};

/// How far each of some batches has come: in memory up to a limit, and beyond it in a file that has no name and goes away with
/// this.
#[derive(Debug)]
pub struct HiddenStates {
    states: Vec<Place>,
    kept_bytes: u64,
    limit: u64,
    /// Where the file is made.
    dir: PathBuf,
    spilled: Option<File>,
    spilled_bytes: u64,
}

#[derive(Debug)]
enum Place {
    Memory(State),
    /// Values in the file from that byte on, as many as the offsets say.
    File {
        start: u64,
        values: usize,
        offsets: Vec<usize>,
    },
}

impl HiddenStates {
    /// Of so many batches that have not begun. Values beyond `limit` bytes go into a file in `dir`.
    pub fn new(batches: usize, limit: u64, dir: &Path) -> Self {
        Self {
            states: (0..batches).map(|_| Place::Memory(State::Begin)).collect(),
            kept_bytes: 0,
            limit,
            dir: dir.to_owned(),
            spilled: None,
            spilled_bytes: 0,
        }
    }

    /// Batches.
    pub fn len(&self) -> usize {
        self.states.len()
    }

    /// Whether there is no batch.
    pub fn is_empty(&self) -> bool {
        self.states.is_empty()
    }

    /// Bytes that were put into the file.
    pub fn spilled_bytes(&self) -> u64 {
        self.spilled_bytes
    }

    /// Takes a batch a step further.
    pub fn update(
        &mut self,
        batch: usize,
        step: impl FnOnce(State) -> Result<State, ModelError>,
    ) -> Result<(), ModelError> {
        let state = step(self.take(batch)?)?;
        self.put(batch, state)
    }

    /// The state of a batch, which is [`State::Begin`] here afterwards.
    pub fn take(&mut self, batch: usize) -> Result<State, ModelError> {
        match &mut self.states[batch] {
            Place::Memory(state) => {
                let state = std::mem::replace(state, State::Begin);
                self.kept_bytes -= bytes(&state);
                Ok(state)
            }
            Place::File { start, values, offsets } => {
                let (start, values, offsets) = (*start, *values, std::mem::take(offsets));
                let mut raw = vec![0; 4 * values];
                self.file()
                    .and_then(|mut file| {
                        file.seek(SeekFrom::Start(start))?;
                        file.read_exact(&mut raw)
                    })
                    .map_err(|source| self.failed(source))?;
                let (quads, _) = raw.as_chunks::<4>();
                let values = quads.iter().map(|quad| f32::from_le_bytes(*quad)).collect();
                Ok(State::Hidden(Hidden { values, offsets }))
            }
        }
    }

    fn put(&mut self, batch: usize, state: State) -> Result<(), ModelError> {
        let size = bytes(&state);
        let State::Hidden(hidden) = state else {
            self.states[batch] = Place::Memory(state);
            return Ok(());
        };
        // A batch has the same size behind every part, and so keeps its place in the file.
        let place = match &self.states[batch] {
            Place::File { start, .. } => Some(*start),
            Place::Memory(_) if self.kept_bytes + size > self.limit => Some(self.spilled_bytes),
            Place::Memory(_) => None,
        };
        let Some(start) = place else {
            self.kept_bytes += size;
            self.states[batch] = Place::Memory(State::Hidden(hidden));
            return Ok(());
        };
        self.file()
            .and_then(|mut file| {
                file.seek(SeekFrom::Start(start))?;
                file.write_all(&f32_bytes(&hidden.values))
            })
            .map_err(|source| self.failed(source))?;
        self.spilled_bytes = self.spilled_bytes.max(start + size);
        self.states[batch] = Place::File { start, values: hidden.values.len(), offsets: hidden.offsets };
        Ok(())
    }

    fn file(&mut self) -> io::Result<&File> {
        if self.spilled.is_none() {
            self.spilled = Some(tempfile::tempfile_in(&self.dir)?);
        }
        self.spilled.as_ref().ok_or_else(|| io::Error::other("the file was lost"))
    }

    fn failed(&self, source: io::Error) -> ModelError {
        ModelError::Io { path: self.dir.clone(), source }
    }

    /// Writes all hidden states to a file, from which [`HiddenStates::load`] has them again.
    pub fn save(&mut self, path: &Path) -> Result<(), ModelError> {
        let mut specs = Vec::with_capacity(self.len());
        for (batch, place) in self.states.iter().enumerate() {
            let values = match place {
                Place::Memory(State::Hidden(hidden)) => hidden.values.len(),
                Place::Memory(_) => 0,
                Place::File { values, .. } => *values,
            };
            specs.push(TensorSpec::new(name(batch), Dtype::F32, vec![values]));
        }
        let mut writer = SafetensorsWriter::create(path, specs, &std::collections::BTreeMap::new())?;
        for batch in 0..self.len() {
            let state = self.take(batch)?;
            if let State::Hidden(hidden) = &state {
                writer.write(&name(batch), &f32_bytes(&hidden.values))?;
            } else {
                writer.write(&name(batch), &[])?;
            }
            self.put(batch, state)?;
        }
        Ok(writer.finish()?)
    }

    /// Reads what [`HiddenStates::save`] has written. `offsets` are those of each batch, whose rows have `hidden` values.
    pub fn load(&mut self, path: &Path, offsets: &[Vec<usize>], hidden: usize) -> Result<(), ModelError> {
        let file = SafetensorsFile::open(path)?;
        for (batch, offsets) in offsets.iter().enumerate() {
            let values = file.read_f32(&name(batch))?;
            let rows = offsets.last().copied().unwrap_or(0);
            if values.len() != rows * hidden {
                return Err(ModelError::Tensor {
                    path: path.to_owned(),
                    tensor: name(batch),
                    reason: format!("has {} values; {rows} rows of {hidden} are expected", values.len()),
                });
            }
            self.put(batch, State::Hidden(Hidden { values, offsets: offsets.clone() }))?;
        }
        Ok(())
    }
}

fn name(batch: usize) -> String {
    format!("batch.{batch:08}")
}

fn bytes(state: &State) -> u64 {
    match state {
        State::Hidden(hidden) => 4 * hidden.values.len() as u64,
        State::Begin | State::Done(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hidden(batch: usize, rows: usize) -> State {
        let values = (0..rows * 2).map(|i| (batch * 100 + i) as f32).collect();
        State::Hidden(Hidden { values, offsets: vec![0, rows] })
    }

    #[test]
    fn states_are_the_same_in_memory_and_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        // Two batches of 3 rows fit into 48 bytes, the others do not.
        let mut states = HiddenStates::new(4, 48, dir.path());
        for batch in 0..4 {
            states
                .update(batch, |state| (state == State::Begin).then(|| hidden(batch, 3)).ok_or_else(lost))
                .unwrap();
        }
        assert_eq!(states.spilled_bytes(), 48);
        for batch in [3, 0, 2, 1] {
            states
                .update(batch, |state| {
                    assert_eq!(state, hidden(batch, 3));
                    Ok(hidden(batch + 10, 3))
                })
                .unwrap();
        }
        assert_eq!(states.spilled_bytes(), 48, "each keeps its place");
        let saved = dir.path().join("states.safetensors");
        states.save(&saved).unwrap();
        let mut again = HiddenStates::new(4, 1000, dir.path());
        again.load(&saved, &vec![vec![0, 3]; 4], 2).unwrap();
        for batch in 0..4 {
            assert_eq!(again.take(batch).unwrap(), hidden(batch + 10, 3));
            assert_eq!(states.take(batch).unwrap(), hidden(batch + 10, 3));
        }
        let refused = again.load(&saved, &vec![vec![0, 4]; 4], 2).unwrap_err().to_string();
        assert!(refused.contains("has 6 values; 4 rows of 2 are expected"), "{refused}");
        let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(names.len(), 1, "the file of what did not fit has no name");
    }

    fn lost() -> ModelError {
        ModelError::Sample { reason: "lost".to_owned() }
    }
}
