//! Outputs that are complete or absent: directories and files that appear under their names in one step.
//!
//! [`StagedDir`] is a directory under construction, [`AtomicFile`] and [`write_file_atomically`] are single files, and
//! [`copy_companions`] brings along what belongs to a model besides its weights.

mod atomic;
mod companions;
mod digest;
mod directory;
mod exchange;
mod lock;

pub use atomic::{AtomicFile, OutputFile, check_writable, write_file_atomically};
pub use companions::{companion_files, copy_companions, is_model_file};
pub(crate) use digest::fingerprint;
pub use digest::{BytesHasher, FileDigest, bytes_digest, file_digest, ranges_digest};
pub use directory::StagedDir;
