//! The cache on disk, laid out as Python's `huggingface_hub` does and shared with it:
//!
//! ```text
//! models--OWNER--NAME/blobs/HASH              content, named by what it hashes to
//! models--OWNER--NAME/snapshots/COMMIT/PATH   links to blobs
//! models--OWNER--NAME/refs/REVISION           the commit that a branch or tag meant last
//! .locks/models--OWNER--NAME/HASH.lock        held while a blob is being fetched
//! ```

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::repo::{RepoId, Revision, is_oid, is_sha256, safe_path};
use crate::tree::Entry;
use crate::{HubError, Watch};

/// How often a lock that someone else holds is tried again.
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// The cache of one repository.
pub(crate) struct RepoCache {
    root: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    pub(crate) fn new(cache: &Path, repo: &RepoId) -> Self {
        Self { root: cache.join(repo.folder()), locks: cache.join(".locks").join(repo.folder()) }
    }

    /// The directory of a commit.
    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// Where a file of a commit is, or would be. The path must be safe, as every [`Entry`]'s is.
    pub(crate) fn pointer(&self, commit: &str, path: &str) -> PathBuf {
        self.snapshot(commit).join(safe_path(path).unwrap_or_default())
    }

    pub(crate) fn blob(&self, name: &str) -> PathBuf {
        self.root.join("blobs").join(name)
    }

    /// Where a content gathers before it has been checked.
    pub(crate) fn partial(&self, entry: &Entry) -> PathBuf {
        self.root.join("blobs").join(format!("{}.incomplete", entry.oid))
    }

    /// The blob that holds a file's content, if it is here: its name vouches for it, its length is compared.
    pub(crate) fn find(&self, entry: &Entry) -> Option<String> {
        let whole = |name: &str| fs::metadata(self.blob(name)).is_ok_and(|blob| blob.len() == entry.size);
        if !entry.stored {
            return whole(&entry.oid).then(|| entry.oid.clone());
        }
        let blobs = fs::read_dir(self.root.join("blobs")).ok()?;
        blobs
            .filter_map(|blob| blob.ok()?.file_name().into_string().ok())
            .find(|name| is_sha256(name) && whole(name) && entry.accepts(name))
    }

    /// Whether a file of a commit is here, whoever put it there, with or without links.
    pub(crate) fn has(&self, commit: &str, entry: &Entry) -> bool {
        let pointer = fs::metadata(self.pointer(commit, &entry.path));
        pointer.is_ok_and(|file| file.is_file() && file.len() == entry.size) || self.find(entry).is_some()
    }

    /// The commit that a revision means according to the cache.
    pub(crate) fn commit_of(&self, revision: &Revision) -> Option<String> {
        if revision.is_commit() {
            return Some(revision.as_str().to_owned());
        }
        let commit = fs::read_to_string(self.reference(revision)).ok()?.trim().to_owned();
        is_oid(&commit).then_some(commit)
    }

    fn reference(&self, revision: &Revision) -> PathBuf {
        self.root.join("refs").join(revision.as_str())
    }

    /// Remembers what a branch or tag means.
    pub(crate) fn remember(&self, revision: &Revision, commit: &str) -> Result<(), HubError> {
        let path = self.reference(revision);
        if revision.is_commit() || self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        make_parent(&path)?;
        fs::write(&path, commit).map_err(HubError::io(path))
    }

    /// Makes a file of a commit point to a blob, and leaves alone what is there already.
    pub(crate) fn link(&self, commit: &str, entry: &Entry, blob: &str) -> Result<(), HubError> {
        let pointer = self.pointer(commit, &entry.path);
        if fs::metadata(&pointer).is_ok_and(|file| file.is_file() && file.len() == entry.size) {
            return Ok(());
        }
        make_parent(&pointer)?;
        let failed = || HubError::io(&pointer);
        match fs::remove_file(&pointer) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed()(error)),
            _ => {}
        }
        // From snapshots/COMMIT/ two up, and one more for each folder of the path.
        let up = "../".repeat(2 + entry.path.matches('/').count());
        #[cfg(unix)]
        let linked = std::os::unix::fs::symlink(format!("{up}blobs/{blob}"), &pointer);
        #[cfg(not(unix))]
        let linked = {
            let _ = up;
            fs::copy(self.blob(blob), &pointer).map(|_| ())
        };
        match linked {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            other => other.map_err(failed()),
        }
    }

    /// Waits until nobody else fetches this content. Where the file system has no locks there is none to wait for: a
    /// blob still appears only whole and checked.
    pub(crate) fn lock(&self, entry: &Entry, watch: &dyn Watch) -> Result<File, HubError> {
        let path = self.locks.join(format!("{}.lock", entry.oid));
        make_parent(&path)?;
        make_parent(&self.partial(entry))?;
        let file = File::create(&path).map_err(HubError::io(&path))?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(error)) if error.kind() == std::io::ErrorKind::Unsupported => {
                    return Ok(file);
                }
                Err(TryLockError::Error(error)) => return Err(HubError::Io { path, source: error }),
                Err(TryLockError::WouldBlock) if watch.is_cancelled() => return Err(HubError::Cancelled),
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            }
        }
    }
}

pub(crate) fn make_parent(path: &Path) -> Result<(), HubError> {
    match path.parent() {
        Some(parent) => fs::create_dir_all(parent).map_err(HubError::io(parent)),
        None => Ok(()),
    }
}
