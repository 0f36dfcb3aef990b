//! What a file holds, in 40 bytes.

use std::{fs::File, io::Read as _, path::Path};

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
    let hex = hasher.finalize().to_hex().to_string();
    Ok(FileDigest { bytes, blake3: Fingerprint::try_from(hex).expect("a hash is 64 hexadecimal digits") })
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
        assert!(file_digest(dir.path().join("absent")).unwrap_err().to_string().contains("absent"));
    }
}
