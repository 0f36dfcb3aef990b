//! Fixtures in directories of their own, to be changed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;
use zeropoint_formats::{Checkpoint, CheckpointWriter, TensorSpec};
use zeropoint_models::{ModelDirectory, SourceRef, Task};

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

/// A fixture in a directory of its own, to be damaged.
pub(crate) struct Copy(pub(crate) TempDir);

impl Copy {
    pub(crate) fn of(name: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        copy_all(&fixture(name), dir.path());
        Self(dir)
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    pub(crate) fn remove(&self, file: &str) -> &Self {
        std::fs::remove_file(self.path(file)).expect("removed");
        self
    }

    pub(crate) fn write(&self, file: &str, text: &str) -> &Self {
        std::fs::write(self.path(file), text).expect("written");
        self
    }

    /// Changes a JSON file.
    pub(crate) fn edit(&self, file: &str, change: impl FnOnce(&mut Value)) -> &Self {
        let text = std::fs::read(self.path(file)).expect("read");
        let mut value = serde_json::from_slice(&text).expect("JSON");
        change(&mut value);
        self.write(file, &value.to_string())
    }

    /// Sets a key of config.json.
    pub(crate) fn set(&self, key: &str, value: impl Into<Value>) -> &Self {
        self.edit("config.json", |config| config[key] = value.into())
    }

    /// Changes the tensors of a checkpoint in one file.
    pub(crate) fn tensors(&self, change: impl FnOnce(&mut BTreeMap<String, (TensorSpec, Vec<u8>)>)) -> &Self {
        let source = Checkpoint::open(self.0.path()).expect("a checkpoint");
        let read = |name: &str| source.read_bytes(name).expect("a tensor");
        let mut tensors =
            source.tensors().map(|info| (info.name.clone(), (info.into(), read(&info.name)))).collect();
        change(&mut tensors);
        let specs = tensors.values().map(|(spec, _)| spec.clone()).collect();
        let mut writer = CheckpointWriter::create(self.0.path(), specs, u64::MAX).expect("a writer");
        for (name, (_, bytes)) in &tensors {
            writer.write(name, bytes).expect("written");
        }
        writer.finish().expect("finished");
        self
    }

    pub(crate) fn open(&self, task: Task) -> Result<ModelDirectory, String> {
        let source = SourceRef::Directory(self.0.path().to_owned());
        ModelDirectory::open(&source, task).map_err(|error| error.to_string())
    }

    pub(crate) fn opened(&self) -> ModelDirectory {
        self.open(Task::Auto).expect("the directory opens")
    }
}

fn copy_all(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            std::fs::create_dir(&target).expect("created");
            copy_all(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).expect("copied");
        }
    }
}
