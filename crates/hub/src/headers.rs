//! A directory that looks like a model and holds only the headers of its weights: enough to plan, nothing to run.

use std::fs::{self, File};
use std::io::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::HubError;
use crate::cache::make_parent;
use crate::download::Part;
use crate::repo::safe_path;
use crate::transfer::Transfer;
use crate::tree::Entry;

/// Bytes before a safetensors header: its length, little-endian.
const PREFIX: u64 = 8;
/// No header is longer, as the reader of safetensors has it.
const MAX_HEADER: u64 = 100 << 20;

/// A temporary directory, removed when dropped.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(dir = %self.0.display(), %error, "a temporary directory stays behind");
        }
    }
}

impl Scratch {
    pub(crate) fn new() -> Result<Self, HubError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let path =
                std::env::temp_dir().join(format!("zeropoint-headers-{}-{number}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(HubError::Io { path, source: error }),
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    fn place(&self, entry: &Entry) -> Result<PathBuf, HubError> {
        let path = self.0.join(safe_path(&entry.path).unwrap_or_default());
        make_parent(&path)?;
        Ok(path)
    }

    /// Takes a file over as it is.
    pub(crate) fn take(&self, entry: &Entry, from: &Path) -> Result<(), HubError> {
        let path = self.place(entry)?;
        fs::copy(from, &path).map_err(HubError::io(path))?;
        Ok(())
    }

    /// Fetches the header of a weight file and makes a file of the whole length, empty behind it.
    pub(crate) fn header(&self, transfer: &Transfer<'_>, entry: &Entry) -> Result<(), HubError> {
        let broken = |reason: String| HubError::Transfer {
            repo: transfer.repo.clone(),
            file: entry.path.clone(),
            reason,
        };
        let bytes = |range: Range<u64>| -> Result<Vec<u8>, HubError> {
            // Of a server without ranges, which sends the whole file, no more is heard than the header.
            let part = Part { path: &entry.path, size: entry.size, enough: range.end, range };
            let mut found = Vec::new();
            let mut take = |bytes: &[u8]| -> Result<(), HubError> {
                found.extend_from_slice(bytes);
                Ok(())
            };
            let subject = transfer.subject(&entry.path);
            transfer.client.bytes(subject, transfer.commit, &part, transfer.watch, &mut |_| (), &mut take)?;
            Ok(found)
        };
        if entry.size < PREFIX {
            return Err(broken(format!("{} bytes are no safetensors file", entry.size)));
        }
        let prefix = bytes(0..PREFIX)?;
        let length = prefix.iter().rev().fold(0u64, |length, &byte| length << 8 | u64::from(byte));
        if length > MAX_HEADER || length > entry.size - PREFIX {
            return Err(broken(format!("its header claims {length} bytes")));
        }
        let header = if length == 0 { Vec::new() } else { bytes(PREFIX..PREFIX + length)? };
        let path = self.place(entry)?;
        let mut file = File::create(&path).map_err(HubError::io(&path))?;
        file.write_all(&prefix)
            .and_then(|()| file.write_all(&header))
            .and_then(|()| file.set_len(entry.size))
            .map_err(HubError::io(&path))
    }
}
