//! The files in which an original's coded log-probabilities are kept between evaluations.
//!
//! A file is a header (magic, version, key, columns and batches), and for each batch a digest and its rows as
//! [`RowCode`] writes them, all little-endian. Its length follows from header and batches, and is
//! compared before anything is read.

use std::fs::{self, File};
use std::io::{BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use zeropoint_core::Fingerprint;
use zeropoint_evaluator::log_probabilities::RowCode;
use zeropoint_formats::staged::AtomicFile;

use crate::system::free_disk;

/// Most bytes that all files together may take.
const LIMIT: u64 = 8 << 30;

const MAGIC: &[u8; 8] = b"zp-logp\0";
/// Of the form of the file.
const VERSION: u32 = 1;
/// Characters of a fingerprint.
const DIGEST: usize = 64;
const HEADER: usize = MAGIC.len() + 4 + DIGEST + 4 + 4;
/// A larger vocabulary is none.
const MOST_COLUMNS: usize = 1 << 24;
const EXTENSION: &str = "log-probabilities";

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Of the model and the batches.
    pub(crate) key: Fingerprint,
    /// Rows of each batch.
    pub(crate) rows: Vec<usize>,
}

impl Entry {
    fn bytes(&self, columns: usize) -> u64 {
        bytes(&self.rows, columns)
    }

    fn header(&self, columns: usize) -> Vec<u8> {
        let mut header = MAGIC.to_vec();
        header.extend_from_slice(&VERSION.to_le_bytes());
        header.extend_from_slice(self.key.to_string().as_bytes());
        header.extend_from_slice(&(columns as u32).to_le_bytes());
        header.extend_from_slice(&(self.rows.len() as u32).to_le_bytes());
        header
    }
}

/// Of a file with batches of so many rows.
fn bytes(rows: &[usize], columns: usize) -> u64 {
    let total: u64 = rows.iter().map(|rows| *rows as u64).sum();
    let row = RowCode::new(columns).bytes() as u64;
    HEADER as u64 + (rows.len() * DIGEST) as u64 + total.saturating_mul(row)
}

/// A directory with such files.
#[derive(Debug, Clone)]
pub(crate) struct LogProbCache {
    dir: PathBuf,
    limit: u64,
}

impl LogProbCache {
    /// In this directory, which need not exist.
    pub(crate) fn at(dir: PathBuf) -> Self {
        Self { dir, limit: LIMIT }
    }

    /// Most bytes that all files together may take.
    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes of a file with batches of so many rows; 0 where it would be too large to be kept.
    pub(crate) fn planned_bytes(&self, rows: &[usize], columns: usize) -> u64 {
        Some(bytes(rows, columns)).filter(|bytes| *bytes <= self.limit).unwrap_or(0)
    }

    fn path(&self, entry: &Entry) -> PathBuf {
        self.dir.join(format!("{}.{EXTENSION}", entry.key))
    }

    /// The file of an entry, if there is one; why it cannot be used, if it cannot.
    pub(crate) fn open(&self, entry: &Entry) -> Result<Option<Reader>, String> {
        let path = self.path(entry);
        let said = |reason: &dyn std::fmt::Display| format!("{}: {reason}", path.display());
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(said(&error)),
        };
        let length = file.metadata().map_err(|error| said(&error))?.len();
        let mut reader = BufReader::new(file);
        let mut header = [0u8; HEADER];
        reader.read_exact(&mut header).map_err(|_| said(&"it is no file of log-probabilities"))?;
        let number = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]) as usize
        };
        let columns = number(HEADER - 8);
        if !(1..=MOST_COLUMNS).contains(&columns) || header.as_slice() != entry.header(columns) {
            return Err(said(&"it is of another version or of something else"));
        }
        let expected = entry.bytes(columns);
        if length != expected {
            return Err(said(&format!("it has {length} bytes and {expected} are expected")));
        }
        // The files that have not been used for longest go first. One whose time cannot be set goes earlier.
        let _ = reader.get_ref().set_modified(SystemTime::now());
        Ok(Some(Reader { path, file: reader, columns }))
    }

    /// Begins the file of an entry; `None` where it would be too large.
    pub(crate) fn create(&self, entry: &Entry, columns: usize) -> Result<Option<Writer>, String> {
        let bytes = entry.bytes(columns);
        let free = free_disk(&self.dir).unwrap_or(u64::MAX);
        if bytes > self.limit.min(free) || columns > MOST_COLUMNS {
            tracing::debug!(bytes, limit = self.limit, free, "log-probabilities are too large to be kept");
            return Ok(None);
        }
        let path = self.path(entry);
        let said = |reason: &dyn std::fmt::Display| format!("{}: {reason}", path.display());
        fs::create_dir_all(&self.dir).map_err(|error| said(&error))?;
        let mut file = AtomicFile::create(&path).map_err(|error| error.to_string())?;
        file.write_all(&entry.header(columns)).map_err(|error| said(&error))?;
        Ok(Some(Writer { cache: self.clone(), path, file, bytes }))
    }

    /// Removes the file of an entry, if it can be.
    pub(crate) fn remove(&self, entry: &Entry) {
        let _ = fs::remove_file(self.path(entry));
    }

    /// Removes the files that have not been used for longest until there is room for so many bytes.
    fn make_room(&self, bytes: u64, but: &Path) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        let of_ours = |path: &PathBuf| path.extension().is_some_and(|extension| extension == EXTENSION);
        let mut files: Vec<(SystemTime, PathBuf, u64)> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| of_ours(path) && path != but)
            .filter_map(|path| {
                let found = fs::symlink_metadata(&path).ok().filter(fs::Metadata::is_file)?;
                Some((found.modified().unwrap_or(SystemTime::UNIX_EPOCH), path, found.len()))
            })
            .collect();
        files.sort();
        let mut total = files.iter().map(|(_, _, bytes)| bytes).sum::<u64>().saturating_add(bytes);
        for (_, path, bytes) in files {
            if total <= self.limit {
                return;
            }
            if fs::remove_file(&path).is_ok() {
                tracing::debug!(path = %path.display(), "log-probabilities removed for newer ones");
                total = total.saturating_sub(bytes);
            }
        }
    }
}

/// The rows of an entry, batch by batch.
pub(crate) struct Reader {
    path: PathBuf,
    file: BufReader<File>,
    /// Entries of a row.
    pub(crate) columns: usize,
}

impl Reader {
    /// The coded rows of the next batch, of which there are so many.
    pub(crate) fn batch(&mut self, rows: usize) -> Result<Vec<u8>, String> {
        let said = |reason: &dyn std::fmt::Display| format!("{}: {reason}", self.path.display());
        let mut expected = [0u8; DIGEST];
        let mut coded = vec![0u8; rows * RowCode::new(self.columns).bytes()];
        let read = self.file.read_exact(&mut expected).and_then(|()| self.file.read_exact(&mut coded));
        read.map_err(|error| said(&error))?;
        if digest(&coded).as_bytes() == expected { Ok(coded) } else { Err(said(&"it is damaged")) }
    }
}

/// A file that is being written, and appears when it is whole.
pub(crate) struct Writer {
    cache: LogProbCache,
    path: PathBuf,
    file: AtomicFile,
    bytes: u64,
}

impl Writer {
    /// Adds the coded rows of a batch.
    pub(crate) fn batch(&mut self, coded: &[u8]) -> Result<(), String> {
        let written = self.file.write_all(digest(coded).as_bytes()).and_then(|()| self.file.write_all(coded));
        written.map_err(|error| format!("{}: {error}", self.path.display()))
    }

    /// Puts the file under its name, and removes older ones if all together take too much.
    pub(crate) fn finish(self) -> Result<(), String> {
        self.cache.make_room(self.bytes, &self.path);
        self.file.persist().map_err(|error| error.to_string())
    }
}

fn digest(coded: &[u8]) -> String {
    Fingerprint::builder("log-probabilities").field("rows", coded).finish().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str) -> Entry {
        Entry { key: Fingerprint::builder("test").field("name", name).finish(), rows: vec![2, 1] }
    }

    /// Rows of three columns, as bytes of any meaning.
    fn coded(rows: usize) -> Vec<u8> {
        (0..rows * RowCode::new(3).bytes()).map(|at| at as u8).collect()
    }

    fn write(cache: &LogProbCache, entry: &Entry) {
        let mut writer = cache.create(entry, 3).unwrap().unwrap();
        writer.batch(&coded(2)).unwrap();
        writer.batch(&coded(1)).unwrap();
        writer.finish().unwrap();
    }

    #[test]
    fn what_was_written_is_read_and_a_file_appears_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, entry) = (LogProbCache::at(dir.path().join("new")), entry("a"));
        assert!(cache.open(&entry).unwrap().is_none());
        let mut writer = cache.create(&entry, 3).unwrap().unwrap();
        writer.batch(&coded(2)).unwrap();
        assert!(cache.open(&entry).unwrap().is_none());
        drop(writer);
        assert_eq!(fs::read_dir(dir.path().join("new")).unwrap().count(), 0, "nothing is left");
        write(&cache, &entry);
        let mut reader = cache.open(&entry).unwrap().unwrap();
        assert_eq!(reader.columns, 3);
        assert_eq!(reader.batch(2).unwrap(), coded(2));
        assert_eq!(reader.batch(1).unwrap(), coded(1));
        assert!(reader.batch(1).is_err());
    }

    #[test]
    fn a_damaged_or_foreign_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, entry) = (LogProbCache::at(dir.path().to_owned()), entry("a"));
        write(&cache, &entry);
        let path = cache.path(&entry);
        let whole = fs::read(&path).unwrap();
        let refused = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            cache.open(&entry).err()
        };
        for at in [0, 8, 12, HEADER - 8, HEADER - 4] {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            assert!(refused(&bytes).is_some(), "{at}");
        }
        // Columns whose bytes no machine has.
        let mut bytes = whole.clone();
        bytes[HEADER - 8..HEADER - 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(refused(&bytes).unwrap().contains("another version"));
        assert!(refused(&whole[..10]).unwrap().contains("no file of log-probabilities"));
        assert!(refused(&whole[..whole.len() - 1]).unwrap().contains("are expected"));
        assert!(refused(&[whole.as_slice(), &[0]].concat()).unwrap().contains("are expected"));
        // Rows are compared with their digest, each batch when it is read.
        let mut bytes = whole.clone();
        *bytes.last_mut().unwrap() ^= 1;
        assert_eq!(refused(&bytes), None);
        let mut reader = cache.open(&entry).unwrap().unwrap();
        assert_eq!(reader.batch(2).unwrap(), coded(2));
        assert!(reader.batch(1).unwrap_err().ends_with("it is damaged"));
        cache.remove(&entry);
        assert!(!path.exists());
    }

    #[test]
    fn the_files_that_were_not_used_for_longest_make_room() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = entry("a").bytes(3);
        let cache = LogProbCache { dir: dir.path().to_owned(), limit: 2 * bytes };
        let age = |name: &str, seconds: u64| {
            let file = File::options().write(true).open(cache.path(&entry(name))).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds)).unwrap();
        };
        let there = || ["a", "b", "c"].map(|name| cache.path(&entry(name)).exists());
        fs::write(dir.path().join("other"), vec![0u8; 4 * bytes as usize]).unwrap();
        write(&cache, &entry("a"));
        write(&cache, &entry("b"));
        age("a", 10);
        age("b", 20);
        // A use makes it young again.
        assert!(cache.open(&entry("a")).unwrap().is_some());
        write(&cache, &entry("c"));
        assert_eq!(there(), [true, false, true]);
        assert!(dir.path().join("other").exists(), "what others wrote stays");
        let small = LogProbCache { limit: bytes - 1, ..cache.clone() };
        assert!(small.create(&entry("b"), 3).unwrap().is_none(), "what would not fit is not begun");
        assert_eq!(there(), [true, false, true]);
    }
}
