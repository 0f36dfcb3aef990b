//! What can be wrong with a file, said once for the whole crate.

use std::{
    io,
    path::{Path, PathBuf},
};

use thiserror::Error;

use crate::safetensors::Dtype;

/// Why a model file, directory or quantisation config could not be read or written.
///
/// Each message is one sentence that names the file, the tensor or key where there is one, and what to do.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The operating system refused an operation on a file or directory.
    #[error("cannot {action} {}: {reason}{}", .path.display(), advice(.reason))]
    Io {
        /// What was tried, as a verb: "read", "create".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        reason: io::Error,
    },
    /// A tensor that is made when it is read cannot be.
    #[error("tensor `{tensor}` cannot be made: {reason}")]
    Overlay {
        /// Its name.
        tensor: String,
        /// Why.
        reason: String,
    },
    /// A file is not well-formed safetensors.
    #[error("{} is not a well-formed safetensors file: {reason}; fetch or write it again", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A Git LFS pointer stands where a weight file should be.
    #[error("{} is a Git LFS pointer, not the weights; run `git lfs pull` in its directory", .path.display())]
    LfsPointer {
        /// The file.
        path: PathBuf,
    },
    /// The header describes a tensor in a way that cannot be true.
    #[error("tensor `{}` in {} {reason}; fetch or write the file again", .tensor.escape_debug(), .path.display())]
    MalformedTensor {
        /// The file.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// What is wrong with it, beginning with a verb.
        reason: String,
    },
    /// The element type of a tensor is not one that this crate knows.
    #[error(
        "tensor `{}` in {} has dtype {}, which is not supported; convert it to one of {}",
        .tensor.escape_debug(), .path.display(), .dtype.escape_debug(), Dtype::names()
    )]
    UnsupportedDtype {
        /// The file.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// The dtype as written in the header.
        dtype: String,
    },
    /// A tensor is not there.
    #[error("there is no tensor `{}` in {}; check that the files belong to this model", .tensor.escape_debug(), .path.display())]
    MissingTensor {
        /// The file or checkpoint directory.
        path: PathBuf,
        /// The name that was asked for.
        tensor: String,
    },
    /// A tensor exists but its element type is not usable here.
    #[error(
        "tensor `{}` in {} has dtype {dtype} where {allowed} is needed; check that the files belong to this model",
        .tensor.escape_debug(), .path.display()
    )]
    WrongDtype {
        /// The file.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// Its dtype.
        dtype: Dtype,
        /// What would have been right.
        allowed: &'static str,
    },
    /// A tensor exists but its shape is not usable here.
    #[error(
        "tensor `{}` in {} has shape {shape:?} where {allowed} is needed; check that the files belong to this model",
        .tensor.escape_debug(), .path.display()
    )]
    WrongShape {
        /// The file.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// What would have been right.
        allowed: String,
    },
    /// A range of bytes was asked for that the tensor does not have.
    #[error("bytes {start}..{end} were asked of tensor `{}` in {}, which has {len}; ask inside it", .tensor.escape_debug(), .path.display())]
    OutsideTensor {
        /// The file.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// First byte asked for.
        start: u64,
        /// End of the bytes asked for.
        end: u64,
        /// Bytes of the tensor.
        len: u64,
    },
    /// A model directory holds no weights that can be read.
    #[error("{} holds neither model.safetensors nor model.safetensors.index.json; {advice}", .dir.display())]
    NoWeights {
        /// The directory.
        dir: PathBuf,
        /// What to do about it.
        advice: String,
    },
    /// The index of a sharded checkpoint is malformed or disagrees with its shards.
    #[error("{} cannot be used: {reason}; fetch the whole checkpoint again", .path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The caller planned or wrote a tensor that the file cannot take.
    #[error("cannot write tensor `{}` to {}: {reason}", .tensor.escape_debug(), .path.display())]
    Write {
        /// The file being written.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// A `quantization_config` cannot be understood or run.
    #[error("config.json: `{key}` is {value}; {allowed}")]
    Config {
        /// Path of the key, from `quantization_config` on.
        key: String,
        /// Its value as JSON, shortened, or "missing".
        value: String,
        /// What is allowed or what to do.
        allowed: String,
    },
    /// The tensors of a quantised Linear contradict its scheme or each other.
    #[error("the quantised Linear `{}` in {} {reason}", .module.escape_debug(), .path.display())]
    Linear {
        /// The checkpoint directory or file.
        path: PathBuf,
        /// Name of the module, without `.weight`.
        module: String,
        /// What is wrong, beginning with a verb, and what to do.
        reason: String,
    },
    /// The parts of a quantised Linear that is to be written contradict its scheme or each other.
    #[error("the quantised Linear `{}` cannot be written: {reason}", .module.escape_debug())]
    LinearParts {
        /// Name of the module, without `.weight`.
        module: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// Values or words do not fit the packed layout.
    #[error("cannot convert packed integers: {reason}")]
    Packing {
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// The output path cannot be staged.
    #[error("{} cannot be an output directory: {reason}", .path.display())]
    Target {
        /// The path as it was understood.
        path: PathBuf,
        /// Why not, and what to do.
        reason: String,
    },
    /// The output directory exists and replacing it was not asked for.
    #[error("{} exists already and is not empty; choose another output directory, or force its replacement", .path.display())]
    Exists {
        /// The directory.
        path: PathBuf,
    },
    /// A directory that would have to be replaced was not written by this program.
    #[error(
        "{} will not be replaced: it does not hold the file `{marker}` that marks our own output; move it away or choose another output directory",
        .path.display()
    )]
    NotOurs {
        /// The directory.
        path: PathBuf,
        /// Name of the marker file.
        marker: String,
    },
    /// A file of a model directory is a link to what is no file of the model.
    #[error(
        "{} is a link to {}, which is no file of the model; only links to files in {} that are not hidden are followed, and \
         in the hub's cache those into `blobs`: replace the link by a copy of the file, or remove it",
        .path.display(), .target.display(), .dir.display()
    )]
    ForeignLink {
        /// The link.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
        /// The model directory.
        dir: PathBuf,
    },
    /// A file of a model directory whose name no report or repository could hold.
    #[error("the name of {} is not UTF-8, as the names of a model's files must be; rename it, or remove it", .path.display())]
    FileName {
        /// The file; the name of its directory may be the one at fault.
        path: PathBuf,
    },
    /// Another process is writing the same output.
    #[error("{} is being written by another process (it holds {}); wait for it or choose another output directory", .path.display(), .lock.display())]
    Locked {
        /// The output directory.
        path: PathBuf,
        /// The lock file.
        lock: PathBuf,
    },
}

impl FormatError {
    /// For `map_err`: an [`FormatError::Io`] that says what was tried on which path.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |reason| Self::Io { action, path: path.to_owned(), reason }
    }
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "; check the path",
        io::ErrorKind::PermissionDenied => "; check the permissions",
        io::ErrorKind::ReadOnlyFilesystem => "; choose a place that can be written",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free some space or choose another disk"
        }
        io::ErrorKind::FileTooLarge => "; raise the limit on file sizes (`ulimit -f`) or choose another disk",
        io::ErrorKind::UnexpectedEof => "; the file is shorter than it was: fetch it again",
        _ => "",
    }
}
