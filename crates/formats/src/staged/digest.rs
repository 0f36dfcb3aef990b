//! What a file holds, in 40 bytes.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    ops::Range,
    path::Path,
};

use serde::{Deserialize, Serialize};
use zeropoint_core::Fingerprint;

use crate::FormatError;

/// Length and BLAKE3 of a file's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileDigest {
    /// Length in bytes.
    pub bytes: u64,
    /// BLAKE3 of the bytes, as `b3sum` prints it.
    pub blake3: Fingerprint,
}

/// Reads a file, block by block.
pub fn file_digest(path: impl AsRef<Path>) -> Result<FileDigest, FormatError> {
    const BLOCK: usize = 1 << 18;
    let path = path.as_ref();
    let mut file = File::open(path).map_err(FormatError::io("open", path))?;
    let (mut hasher, mut bytes, mut block) = (blake3::Hasher::new(), 0u64, vec![0; BLOCK]);
    loop {
        let read = file.read(&mut block).map_err(FormatError::io("read", path))?;
        if read == 0 {
            break;
        }
        hasher.update(&block[..read]);
        bytes += read as u64;
    }
    Ok(FileDigest { bytes, blake3: fingerprint(hasher.finalize()) })
}

/// BLAKE3 of parts of files, in the order given.
pub fn ranges_digest<'a>(
    ranges: impl IntoIterator<Item = (&'a Path, Range<u64>)>,
) -> Result<Fingerprint, FormatError> {
    let mut hasher = blake3::Hasher::new();
    for (path, range) in ranges {
        let mut read = || {
            let mut file = File::open(path)?;
            file.seek(SeekFrom::Start(range.start))?;
            let length = range.end - range.start;
            let copied = io::copy(&mut file.take(length), &mut hasher)?;
            if copied == length { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
        };
        read().map_err(FormatError::io("read", path))?;
    }
    Ok(fingerprint(hasher.finalize()))
}

/// Bytes that come one after the other on their way to [`ranges_digest`].
#[derive(Debug, Default)]
pub struct BytesHasher(blake3::Hasher);

impl BytesHasher {
    /// Adds what comes next.
    pub fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// BLAKE3 of all.
    pub fn finish(self) -> Fingerprint {
        fingerprint(self.0.finalize())
    }
}

/// BLAKE3 of bytes, as [`file_digest`] has it.
pub fn bytes_digest(bytes: &[u8]) -> Fingerprint {
    fingerprint(blake3::hash(bytes))
}

pub(crate) fn fingerprint(hash: blake3::Hash) -> Fingerprint {
    Fingerprint::try_from(hash.to_hex().to_string()).expect("a hash is 64 hexadecimal digits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_length_and_hash_of_the_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let content = vec![7u8; 300_001];
        std::fs::write(&path, &content).unwrap();
        let digest = file_digest(&path).unwrap();
        assert_eq!(digest.bytes, 300_001);
        assert_eq!(digest.blake3.to_string(), blake3::hash(&content).to_hex().to_string());
        let both = ranges_digest([(path.as_path(), 0..100), (&path, 100..300_001)]).unwrap();
        assert_eq!(both, digest.blake3);
        assert_eq!(bytes_digest(&content), digest.blake3);
        assert!(ranges_digest([(path.as_path(), 0..300_002)]).is_err());
        assert!(file_digest(dir.path().join("absent")).unwrap_err().to_string().contains("absent"));
    }
}
