//! The files of a commit as the hub lists them, and how their content is recognised.
//!
//! A listing names each file by its git object: for a file that git keeps itself, SHA-1 over a header and the content.
//! For a file in large-file storage the object is a small pointer with the SHA-256 and the size of the content, in one
//! prescribed form (<https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md>), so that SHA-256, size and object vouch
//! for one another. The cache names files by what is hashed last: SHA-1 of the first kind, SHA-256 of the second, which
//! is also what the hub sends as their `ETag`.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use crate::HubError;
use crate::digest::{Digest, Sha1, Sha256};
use crate::repo::{RepoId, is_oid, safe_path};

/// One file of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its path in the repository, which stays below any directory it is joined to.
    pub(crate) path: String,
    /// Bytes of its content.
    pub(crate) size: u64,
    /// Its git object, 40 digits.
    pub(crate) oid: String,
    /// Whether the object is a pointer into large-file storage.
    pub(crate) stored: bool,
}

impl Entry {
    /// Checks what a server says of a file.
    pub(crate) fn new(
        repo: &RepoId,
        path: String,
        size: u64,
        oid: String,
        stored: bool,
    ) -> Result<Self, HubError> {
        let bad = |reason| HubError::Answer { repo: repo.clone(), reason };
        if safe_path(&path).is_none() {
            return Err(bad(format!("it lists a file `{}`, which would lie outside", path.escape_debug())));
        }
        if !is_oid(&oid) {
            return Err(bad(format!("the object of `{path}` is `{}`, not 40 digits", oid.escape_debug())));
        }
        Ok(Self { path, size, oid, stored })
    }

    /// The cache's name for this content when its SHA-256 is known; `None` when it is not this file's content.
    pub(crate) fn accepts(&self, sha256: &str) -> bool {
        self.stored && pointer_oid(sha256, self.size) == self.oid
    }

    /// The name in the cache that a file's content has earned; `None` when it is not what the commit holds.
    pub(crate) fn name_of(&self, file: &Path) -> std::io::Result<Option<String>> {
        let mut file = File::open(file)?;
        if file.metadata()?.len() != self.size {
            return Ok(None);
        }
        if self.stored {
            let name = drain(&mut file, Digest::<Sha256>::new())?;
            Ok(self.accepts(&name).then_some(name))
        } else {
            let name = drain(&mut file, blob(self.size))?;
            Ok((name == self.oid).then_some(name))
        }
    }
}

fn drain<C: crate::digest::Compress>(file: &mut File, mut digest: Digest<C>) -> std::io::Result<String> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(digest.finish()),
            read => digest.update(&buffer[..read]),
        }
    }
}

/// The digest of a git object of a given length, its header taken in.
fn blob(bytes: u64) -> Digest<Sha1> {
    let mut digest = Digest::new();
    digest.update(format!("blob {bytes}\0").as_bytes());
    digest
}

/// The git object of the pointer to a content.
pub(crate) fn pointer_oid(sha256: &str, size: u64) -> String {
    let pointer = format!("version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n");
    let mut digest = blob(pointer.len() as u64);
    digest.update(pointer.as_bytes());
    digest.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, oid: &str) -> Result<Entry, HubError> {
        let repo = RepoId::model("a/b").expect("a name");
        Entry::new(&repo, path.to_owned(), 3, oid.to_owned(), false)
    }

    /// Entries of public repositories, as `api/.../tree` of huggingface.co gave them: object, SHA-256, size.
    #[test]
    fn pointers_have_the_objects_that_the_public_hub_lists() {
        for (oid, sha256, size) in [
            // ggerganov/whisper.cpp, ggml-large-v3-turbo.bin
            (
                "819841c70bdf4488c4ff778f8becdcb37df43969",
                "1fc70f774d38eb169993ac391eea357ef47c88757ef72ee5943879b7e8e2bc69",
                1_624_555_275,
            ),
            // nvidia/OpenMathInstruct-2, data/train-00000-of-00032.parquet
            (
                "3099393f19fb1244ab97d642612bed31db3f94b3",
                "55bae5fa27c8956ab996a94d82fdcda683a650d0a16fe9ee6d26c831adc31087",
                236_568_045,
            ),
        ] {
            assert_eq!(pointer_oid(sha256, size), oid);
        }
    }

    #[test]
    fn content_earns_its_name_or_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("content");
        // `printf abc | git hash-object --stdin`
        let kept = entry("a.txt", "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f").expect("an entry");
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let stored = Entry { oid: pointer_oid(sha256, 3), stored: true, ..kept.clone() };
        for (content, name, stored_name) in [
            ("abc", Some("f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f"), Some(sha256)),
            ("abd", None, None),
            ("ab", None, None),
            ("abcd", None, None),
        ] {
            std::fs::write(&file, content).expect("file");
            assert_eq!(kept.name_of(&file).expect("readable").as_deref(), name, "{content}");
            assert_eq!(stored.name_of(&file).expect("readable").as_deref(), stored_name, "{content}");
        }
    }

    #[test]
    fn a_listing_that_leaves_the_repository_is_refused() {
        let oid = "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f";
        for path in ["../../.ssh/authorized_keys", "/etc/passwd", "a/../../b", ""] {
            assert!(entry(path, oid).is_err(), "{path}");
        }
        for oid in ["", "abc", "../../x", &"G".repeat(40)] {
            assert!(entry("config.json", oid).is_err(), "{oid}");
        }
    }
}
