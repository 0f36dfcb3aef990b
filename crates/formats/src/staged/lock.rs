//! One writer at a time: a lock file that the system releases when its holder dies.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use crate::FormatError;

/// An exclusive lock on a file beside an output directory. The file is removed while the lock is still held.
#[derive(Debug)]
pub(super) struct OutputLock {
    path: PathBuf,
    pub(super) file: File,
}

impl OutputLock {
    /// Takes the lock at `path` for the output `target`, or says that another process has it.
    pub(super) fn acquire(path: PathBuf, target: &Path) -> Result<Self, FormatError> {
        loop {
            // Not followed and never emptied: whatever the name may stand for, nothing but an empty file is ours.
            if let Some(found) = symlink_metadata(&path)?
                && !(found.is_file() && found.len() == 0)
            {
                let reason =
                    "its name is needed for a lock file but it is not an empty file; move it away".to_owned();
                return Err(FormatError::Target { path, reason });
            }
            let file = File::options()
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(FormatError::io("create", &path))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(FormatError::Locked { path: target.to_owned(), lock: path });
                }
                Err(TryLockError::Error(reason)) => {
                    return Err(FormatError::Io { action: "lock", path, reason });
                }
            }
            // The holder before us may have removed the file between our opening and locking it; then the lock is on a
            // file that no one else will find.
            if is_still_at(&file, &path)? {
                return Ok(Self { path, file });
            }
        }
    }
}

impl Drop for OutputLock {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "lock file left behind");
        }
        // Closing would do, but some systems take their time over it.
        if let Err(error) = self.file.unlock() {
            tracing::debug!(path = %self.path.display(), %error, "lock released late");
        }
    }
}

#[cfg(unix)]
fn is_still_at(file: &File, path: &Path) -> Result<bool, FormatError> {
    use std::os::unix::fs::MetadataExt as _;
    let ours = file.metadata().map_err(FormatError::io("read", path))?;
    Ok(symlink_metadata(path)?.is_some_and(|found| (found.dev(), found.ino()) == (ours.dev(), ours.ino())))
}

#[cfg(not(unix))]
fn is_still_at(_: &File, path: &Path) -> Result<bool, FormatError> {
    Ok(symlink_metadata(path)?.is_some())
}

/// What is at a path itself, not behind a symbolic link; `None` when there is nothing.
pub(super) fn symlink_metadata(path: &Path) -> Result<Option<fs::Metadata>, FormatError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(FormatError::io("read", path)(error)),
    }
}
