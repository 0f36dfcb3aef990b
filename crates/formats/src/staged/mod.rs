//! Outputs that are complete or absent: directories and files that appear under their names in one step.
//!
//! [`StagedDir`] is a directory under construction, [`AtomicFile`] and [`write_file_atomically`] are single files, and
//! [`copy_companions`] brings along what belongs to a model besides its weights.

mod atomic;
mod companions;
mod directory;
mod lock;

pub use atomic::{AtomicFile, write_file_atomically};
pub use companions::{copy_companions, is_weight_file};
pub use directory::StagedDir;
