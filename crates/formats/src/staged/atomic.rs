//! Single files, written beside their place and renamed into it.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;

use crate::FormatError;

/// A file that appears under its name only when it is complete.
///
/// It is written to a temporary file in the same directory; [`persist`](Self::persist) syncs and renames it, replacing
/// what bore the name. Dropped before that, it leaves nothing. A symbolic link at the place is replaced, not followed.
#[derive(Debug)]
pub struct AtomicFile {
    path: PathBuf,
    file: NamedTempFile,
}

impl AtomicFile {
    /// Begins a file at `path`, whose directory must exist.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, FormatError> {
        let path = path.as_ref();
        let mut builder = tempfile::Builder::new();
        builder.prefix(".zeropoint-").suffix(".tmp");
        #[cfg(unix)]
        {
            use std::{fs::Permissions, os::unix::fs::PermissionsExt as _};
            // As `File::create` would: the umask applies. The default is for secrets.
            builder.permissions(Permissions::from_mode(0o666));
        }
        let file = builder.tempfile_in(directory_of(path)).map_err(FormatError::io("create", path))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// A second handle on the unfinished file.
    pub(crate) fn reopen(&self) -> Result<File, FormatError> {
        self.file.as_file().try_clone().map_err(FormatError::io("create", &self.path))
    }

    /// Syncs the file and puts it under its name.
    pub fn persist(self) -> Result<(), FormatError> {
        let Self { path, file } = self;
        file.as_file().sync_all().map_err(FormatError::io("sync", &path))?;
        file.persist(&path).map_err(|e| FormatError::io("write", &path)(e.error))?;
        sync_directory(directory_of(&path))
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.as_file_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_file_mut().flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.file.as_file_mut().seek(position)
    }
}

/// Writes a whole file so that its name always stands for either the old bytes or all of the new ones.
pub fn write_file_atomically(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> Result<(), FormatError> {
    let mut file = AtomicFile::create(&path)?;
    file.write_all(bytes.as_ref()).map_err(FormatError::io("write", path.as_ref()))?;
    file.persist()
}

/// The directory of a path; `.` for a bare name, whose parent is empty.
pub(crate) fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes renames inside a directory durable. Only Unix can sync a directory; elsewhere this does nothing.
pub(crate) fn sync_directory(dir: &Path) -> Result<(), FormatError> {
    if cfg!(unix) {
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(FormatError::io("sync", dir))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_file_is_replaced_whole_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.json");
        write_file_atomically(&path, "a longer first version").unwrap();
        write_file_atomically(&path, b"second").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "second");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_stream_appears_when_it_is_persisted_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.bin");
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"0123").unwrap();
        file.seek(SeekFrom::Start(1)).unwrap();
        file.write_all(b"x").unwrap();
        assert!(!path.exists());
        file.persist().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"0x23");

        let mut dropped = AtomicFile::create(&path).unwrap();
        dropped.write_all(b"lost").unwrap();
        drop(dropped);
        assert_eq!(fs::read(&path).unwrap(), b"0x23");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_directory_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let message = write_file_atomically(dir.path().join("no/file"), "").unwrap_err().to_string();
        assert!(message.contains("no/file") && message.contains("check the path"), "{message}");
        assert_eq!(directory_of(Path::new("bare")), Path::new("."));
    }

    #[cfg(unix)]
    #[test]
    fn links_are_replaced_and_permissions_are_those_of_any_new_file() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        let dir = tempfile::tempdir().unwrap();
        let (real, link, plain) =
            (dir.path().join("real"), dir.path().join("link"), dir.path().join("plain"));
        fs::write(&real, "keep").unwrap();
        symlink(&real, &link).unwrap();
        write_file_atomically(&link, "new").unwrap();
        assert_eq!(fs::read_to_string(&real).unwrap(), "keep");
        assert!(fs::symlink_metadata(&link).unwrap().is_file());
        File::create(&plain).unwrap();
        let mode = |path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&link), mode(&plain));
    }
}
