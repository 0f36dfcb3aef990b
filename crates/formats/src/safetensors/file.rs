//! One safetensors file, opened by its header and read tensor by tensor.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read as _,
    ops::Range,
    path::{Path, PathBuf},
};

use super::{
    Dtype, TensorInfo, element,
    header::{Header, MAX_HEADER_BYTES},
    positioned::PositionedFile,
};
use crate::FormatError;

/// Bytes converted at a time where stored elements differ from those asked for; a multiple of every element size.
const BLOCK: usize = 1 << 20;

/// A safetensors file whose header has been read and checked; the data stays on disk until it is asked for.
///
/// How a pointer of Git LFS goes on behind `version `, in every version of its form
/// (<https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md>).
const LFS_POINTER: &[u8] = b"https://git-lfs.github.com/spec/";

/// Reads take `&self` and may run on several threads. A file that is cut short after opening gives an error.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    file: PositionedFile,
    file_bytes: u64,
    data_start: u64,
    tensors: BTreeMap<String, TensorInfo>,
    metadata: BTreeMap<String, String>,
}

impl SafetensorsFile {
    /// Opens a file and reads its header, of at most [`MAX_HEADER_BYTES`].
    ///
    /// Refused: a header that is longer than the file or not a JSON object, names that come twice, unknown dtypes, and
    /// offsets that leave the file, overlap, leave holes or contradict dtype and shape.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, FormatError> {
        let path = path.as_ref();
        let mut file = File::open(path).map_err(FormatError::io("open", path))?;
        let file_bytes = file.metadata().map_err(FormatError::io("read", path))?.len();
        let malformed = |reason: String| FormatError::Malformed { path: path.to_owned(), reason };
        if file_bytes < 8 {
            return Err(malformed(format!("it has {file_bytes} bytes, too few for the length of a header")));
        }
        let mut prefix = [0; 8];
        file.read_exact(&mut prefix).map_err(FormatError::io("read", path))?;
        if &prefix == b"version " {
            let mut rest = Vec::new();
            file.by_ref()
                .take(LFS_POINTER.len() as u64)
                .read_to_end(&mut rest)
                .map_err(FormatError::io("read", path))?;
            if rest == LFS_POINTER {
                return Err(FormatError::LfsPointer { path: path.to_owned() });
            }
        }
        let header_bytes = u64::from_le_bytes(prefix);
        if header_bytes > MAX_HEADER_BYTES {
            let reason =
                format!("its header claims {header_bytes} bytes, more than the limit of {MAX_HEADER_BYTES}");
            return Err(malformed(reason));
        }
        let data_start = 8 + header_bytes;
        let Some(data_bytes) = file_bytes.checked_sub(data_start) else {
            let reason = format!("its header claims {header_bytes} bytes but {} follow", file_bytes - 8);
            return Err(malformed(reason));
        };
        let mut json = vec![0; header_bytes as usize];
        file.read_exact(&mut json).map_err(FormatError::io("read", path))?;
        let Header { tensors, metadata } = Header::parse(path, &json, data_bytes)?;
        let file = PositionedFile::new(file);
        Ok(Self { path: path.to_owned(), file, file_bytes, data_start, tensors, metadata })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the whole file when it was opened, header included.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// The header's text metadata, such as `{"format": "pt"}`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// All tensors, in the order of their names.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.tensors.values()
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// As [`get`](Self::get), with an error that names the file.
    pub fn require(&self, name: &str) -> Result<&TensorInfo, FormatError> {
        self.get(name)
            .ok_or_else(|| FormatError::MissingTensor { path: self.path.clone(), tensor: name.to_owned() })
    }

    /// All bytes of a tensor: little-endian, row-major.
    pub fn read_bytes(&self, name: &str) -> Result<Vec<u8>, FormatError> {
        let info = self.require(name)?;
        self.read_range(name, 0..info.bytes())
    }

    /// As [`read_bytes`](Self::read_bytes), into memory that is there already; what was in it is gone.
    pub fn read_bytes_into(&self, name: &str, bytes: &mut Vec<u8>) -> Result<(), FormatError> {
        let info = self.require(name)?;
        bytes.resize(info.bytes() as usize, 0);
        self.fill(info, bytes, 0)
    }

    /// Some bytes of a tensor; the range counts from its first byte.
    pub fn read_range(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>, FormatError> {
        let info = self.require(name)?;
        if range.start > range.end || range.end > info.bytes() {
            return Err(FormatError::OutsideTensor {
                path: self.path.clone(),
                tensor: name.to_owned(),
                start: range.start,
                end: range.end,
                len: info.bytes(),
            });
        }
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.fill(info, &mut bytes, range.start)?;
        Ok(bytes)
    }

    /// The elements of a floating-point tensor (F32, F16, BF16, F64) as f32; other dtypes are an error.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, FormatError> {
        let info = self.require(name)?;
        let not_float = || self.wrong_dtype(info, "F32, F16, BF16 or F64");
        if !info.dtype.is_float() {
            return Err(not_float());
        }
        let size = info.dtype.size();
        let mut values = vec![0f32; info.elements()];
        if info.dtype == Dtype::F32 && cfg!(target_endian = "little") {
            self.fill(info, bytemuck::cast_slice_mut(&mut values), 0)?;
            return Ok(values);
        }
        let mut block = vec![0; BLOCK.min(values.len() * size)];
        let mut offset = 0;
        for values in values.chunks_mut(BLOCK / size) {
            let block = &mut block[..values.len() * size];
            self.fill(info, block, offset)?;
            element::decode_floats(info.dtype, block, values).ok_or_else(not_float)?;
            offset += block.len() as u64;
        }
        Ok(values)
    }

    /// The elements of an I8 tensor; other dtypes are an error.
    pub fn read_i8(&self, name: &str) -> Result<Vec<i8>, FormatError> {
        let info = self.require(name)?;
        if info.dtype != Dtype::I8 {
            return Err(self.wrong_dtype(info, "I8"));
        }
        let mut values = vec![0i8; info.elements()];
        self.fill(info, bytemuck::cast_slice_mut(&mut values), 0)?;
        Ok(values)
    }

    /// BLAKE3 of a tensor's bytes, read block by block.
    pub(crate) fn hash(&self, info: &TensorInfo) -> Result<blake3::Hash, FormatError> {
        let mut hasher = blake3::Hasher::new();
        let mut block = vec![0; BLOCK.min(info.bytes() as usize)];
        let mut offset = 0;
        while offset < info.bytes() {
            let length = (info.bytes() - offset).min(BLOCK as u64) as usize;
            self.fill(info, &mut block[..length], offset)?;
            hasher.update(&block[..length]);
            offset += length as u64;
        }
        Ok(hasher.finalize())
    }

    /// Fills `buffer` with the bytes of a tensor from `offset` on; the caller has checked that they are inside it.
    fn fill(&self, info: &TensorInfo, buffer: &mut [u8], offset: u64) -> Result<(), FormatError> {
        self.file
            .read_exact_at(buffer, self.data_start + info.begin + offset)
            .map_err(FormatError::io("read", &self.path))
    }

    fn wrong_dtype(&self, info: &TensorInfo, allowed: &'static str) -> FormatError {
        FormatError::WrongDtype {
            path: self.path.clone(),
            tensor: info.name.clone(),
            dtype: info.dtype,
            allowed,
        }
    }
}
