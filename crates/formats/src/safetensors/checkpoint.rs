//! The weights of a model directory, in one file or several.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    ops::{Bound, Range},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use serde::Deserialize;
use zeropoint_core::Fingerprint;

use super::overlay::{Made, Overlay};
use super::{
    INDEX_FILE, MAX_HEADER_BYTES, SINGLE_FILE, SafetensorsFile, TensorInfo, element, header::UniqueMap,
};
use crate::FormatError;
use crate::staged::fingerprint;

/// The tensors of a model directory: `model.safetensors`, or the shards that `model.safetensors.index.json` names. An
/// [`Overlay`] may stand in for some of them.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    files: Vec<SafetensorsFile>,
    paths: Vec<PathBuf>,
    tensors: BTreeMap<String, Place>,
    sharded: bool,
    made: Option<Made>,
}

/// Where a tensor comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The file of that index.
    File(usize),
    /// The overlay.
    Made,
}

#[derive(Deserialize)]
struct RawIndex {
    weight_map: UniqueMap<String>,
}

impl Checkpoint {
    /// Opens the weights in `dir`. The single file is preferred where both it and an index exist, as transformers does.
    ///
    /// An index must agree with its shards: plain file names, every mapped tensor in its shard, every tensor of a shard
    /// mapped to it.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, FormatError> {
        let dir = dir.as_ref();
        let single = dir.join(SINGLE_FILE);
        let index = dir.join(INDEX_FILE);
        if exists(&single)? {
            let file = SafetensorsFile::open(&single)?;
            let tensors = file.tensors().map(|info| (info.name.clone(), Place::File(0))).collect();
            let (files, paths) = (vec![file], vec![single]);
            Ok(Self { dir: dir.to_owned(), files, paths, tensors, sharded: false, made: None })
        } else if exists(&index)? {
            Self::open_sharded(dir, &index)
        } else {
            Err(FormatError::NoWeights { dir: dir.to_owned(), advice: advice(dir)? })
        }
    }

    fn open_sharded(dir: &Path, index: &Path) -> Result<Self, FormatError> {
        let refused = |reason: String| FormatError::Index { path: index.to_owned(), reason };
        let bytes = fs::metadata(index).map_err(FormatError::io("read", index))?.len();
        if bytes > MAX_HEADER_BYTES {
            return Err(refused(format!("it has {bytes} bytes, more than the limit of {MAX_HEADER_BYTES}")));
        }
        let json = fs::read(index).map_err(FormatError::io("read", index))?;
        let map = serde_json::from_slice::<RawIndex>(&json).map_err(|e| refused(e.to_string()))?.weight_map.0;
        let names: BTreeSet<&String> = map.values().collect();
        if names.is_empty() {
            return Err(refused("its weight_map is empty".to_owned()));
        }
        let mut files = Vec::with_capacity(names.len());
        for name in &names {
            if !is_plain_file_name(name) {
                let name = name.escape_debug();
                return Err(refused(format!("`{name}` in its weight_map is not a plain file name")));
            }
            files.push(SafetensorsFile::open(dir.join(name))?);
        }
        for (file, name) in files.iter().zip(&names) {
            if let Some(info) = file.tensors().find(|info| map.get(&info.name) != Some(name)) {
                let tensor = info.name.escape_debug();
                return Err(refused(format!(
                    "{name} holds tensor `{tensor}`, which its weight_map does not place there"
                )));
            }
        }
        let places: BTreeMap<&String, usize> = names.iter().copied().zip(0..).collect();
        for (name, file) in &map {
            let file = &files[places[file]];
            if file.get(name).is_none() {
                let (tensor, file) = (name.escape_debug(), file.path().display());
                return Err(refused(format!(
                    "it places tensor `{tensor}` in {file}, which does not hold it"
                )));
            }
        }
        let tensors = map.iter().map(|(name, file)| (name.clone(), Place::File(places[file]))).collect();
        let paths = files.iter().map(|file| file.path().to_owned()).collect();
        Ok(Self { dir: dir.to_owned(), files, paths, tensors, sharded: true, made: None })
    }

    /// The same checkpoint in which the tensors of `overlay` stand in for those of their names, or beside them.
    #[must_use]
    pub fn with_overlay(mut self, overlay: Arc<dyn Overlay>) -> Self {
        let made = Made::new(overlay);
        self.tensors.extend(made.tensors.keys().map(|name| (name.clone(), Place::Made)));
        self.made = Some(made);
        self
    }

    /// The directory it was opened by.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The weight files, in the order of their names.
    pub fn files(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Whether an index placed the tensors.
    pub fn is_sharded(&self) -> bool {
        self.sharded
    }

    /// Bytes of the weight files on disk, headers included.
    pub fn weight_bytes(&self) -> u64 {
        self.files.iter().map(SafetensorsFile::file_bytes).sum()
    }

    /// All tensors, in the order of their names.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.tensors.iter().filter_map(|(name, place)| self.info_at(name, *place))
    }

    /// The tensors whose names begin with `prefix`, in the order of their names.
    pub fn tensors_under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a TensorInfo> {
        self.tensors
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(move |(name, _)| name.starts_with(prefix))
            .filter_map(|(name, place)| self.info_at(name, *place))
    }

    fn info_at(&self, name: &str, place: Place) -> Option<&TensorInfo> {
        match place {
            Place::File(file) => self.files[file].get(name),
            Place::Made => self.made.as_ref()?.tensors.get(name),
        }
    }

    /// The tensor of that name. Of one that an overlay makes, the offsets count from its own first byte.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.info_at(name, *self.tensors.get(name)?)
    }

    /// As [`get`](Self::get), with an error that names the directory.
    pub fn require(&self, name: &str) -> Result<&TensorInfo, FormatError> {
        self.get(name).ok_or_else(|| self.missing(name))
    }

    fn missing(&self, name: &str) -> FormatError {
        FormatError::MissingTensor { path: self.dir.clone(), tensor: name.to_owned() }
    }

    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The file that holds a tensor; an error where there is none, or an overlay makes it.
    pub fn file_of(&self, name: &str) -> Result<&SafetensorsFile, FormatError> {
        match self.tensors.get(name) {
            Some(Place::File(file)) => Ok(&self.files[*file]),
            Some(Place::Made) | None => Err(self.missing(name)),
        }
    }

    /// The overlay, where it makes that tensor.
    fn maker(&self, name: &str) -> Option<(&Made, &TensorInfo)> {
        let made = self.made.as_ref()?;
        Some((made, made.tensors.get(name)?))
    }

    /// Where a tensor is or would be, for messages.
    pub(crate) fn place_of(&self, name: &str) -> &Path {
        self.file_of(name).map_or(&self.dir, SafetensorsFile::path)
    }

    /// All bytes of a tensor: little-endian, row-major.
    pub fn read_bytes(&self, name: &str) -> Result<Vec<u8>, FormatError> {
        match self.maker(name) {
            Some((made, info)) => made.read(info),
            None => self.file_of(name)?.read_bytes(name),
        }
    }

    /// As [`read_bytes`](Self::read_bytes), into memory that is there already; what was in it is gone.
    pub fn read_bytes_into(&self, name: &str, bytes: &mut Vec<u8>) -> Result<(), FormatError> {
        match self.maker(name) {
            Some((made, info)) => {
                *bytes = made.read(info)?;
                Ok(())
            }
            None => self.file_of(name)?.read_bytes_into(name, bytes),
        }
    }

    /// Some bytes of a tensor; the range counts from its first byte.
    pub fn read_range(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>, FormatError> {
        match self.maker(name) {
            Some((made, info)) => made.read_range(&self.dir, info, range),
            None => self.file_of(name)?.read_range(name, range),
        }
    }

    /// The elements of a floating-point tensor (F32, F16, BF16, F64) as f32; other dtypes are an error.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, FormatError> {
        let Some((made, info)) = self.maker(name) else { return self.file_of(name)?.read_f32(name) };
        element::floats_from_bytes(info.dtype, &made.read(info)?).ok_or_else(|| FormatError::WrongDtype {
            path: self.dir.clone(),
            tensor: name.to_owned(),
            dtype: info.dtype,
            allowed: "F32, F16, BF16 or F64",
        })
    }

    /// The elements of an I8 tensor; other dtypes are an error. An overlay makes none.
    pub fn read_i8(&self, name: &str) -> Result<Vec<i8>, FormatError> {
        self.file_of(name)?.read_i8(name)
    }

    /// A fingerprint of every tensor's name, dtype, shape and data. It reads all weights, block by block, and does not
    /// depend on how they are split over files.
    pub fn content_fingerprint(&self) -> Result<Fingerprint, FormatError> {
        self.fingerprint_with(|info| self.hash(info))
    }

    /// The same fingerprint where the BLAKE3 of every tensor's bytes is known already.
    pub fn fingerprint_of(&self, hashes: &BTreeMap<String, Fingerprint>) -> Result<Fingerprint, FormatError> {
        self.fingerprint_with(|info| {
            let hash = hashes.get(&info.name).and_then(|hash| blake3::Hash::from_hex(hash.to_string()).ok());
            let missing = || FormatError::MissingTensor { path: self.dir.clone(), tensor: info.name.clone() };
            hash.ok_or_else(missing)
        })
    }

    /// BLAKE3 of one tensor's bytes.
    pub fn tensor_hash(&self, name: &str) -> Result<Fingerprint, FormatError> {
        Ok(fingerprint(self.hash(self.require(name)?)?))
    }

    fn hash(&self, info: &TensorInfo) -> Result<blake3::Hash, FormatError> {
        match self.maker(&info.name) {
            Some((made, info)) => Ok(blake3::hash(&made.read(info)?)),
            None => self.file_of(&info.name)?.hash(info),
        }
    }

    fn fingerprint_with(
        &self,
        hash: impl Fn(&TensorInfo) -> Result<blake3::Hash, FormatError>,
    ) -> Result<Fingerprint, FormatError> {
        let mut builder = Fingerprint::builder("checkpoint");
        for name in self.tensors.keys() {
            let info = self.require(name)?;
            let shape: Vec<u8> = info.shape.iter().flat_map(|&d| (d as u64).to_le_bytes()).collect();
            builder.field("name", name).field("dtype", info.dtype.name()).field("shape", shape);
            builder.field("data", hash(info)?.as_bytes());
        }
        Ok(builder.finish())
    }
}

/// One component, no separator of any system, not `.` or `..`.
fn is_plain_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(only)), None) if only == name)
        && !name.contains(['/', '\\', '\0'])
}

fn exists(path: &Path) -> Result<bool, FormatError> {
    path.try_exists().map_err(FormatError::io("read", path))
}

fn advice(dir: &Path) -> Result<String, FormatError> {
    if !exists(dir)? {
        return Ok("the directory does not exist: check the path".to_owned());
    }
    for pickle in ["pytorch_model.bin", "pytorch_model.bin.index.json"] {
        if exists(&dir.join(pickle))? {
            return Ok(format!(
                "it holds {pickle}, which is pickled and not read: convert it to safetensors (in Python, \
                 `AutoModel.from_pretrained(dir).save_pretrained(dir, safe_serialization=True)`)"
            ));
        }
    }
    Ok("check that it is a model directory whose weights have been fetched".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_file_names_are_followed() {
        for name in ["model-00001-of-00002.safetensors", "a", "..a"] {
            assert!(is_plain_file_name(name), "{name}");
        }
        for name in ["", ".", "..", "/etc/passwd", "../a", "a/b", "a/", "./a", "a\\b", "a\0"] {
            assert!(!is_plain_file_name(name), "{name}");
        }
    }
}
