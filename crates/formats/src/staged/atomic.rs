//! Single files, written beside their place and renamed into it.

use std::{
    fs::{self, File},
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
        let refused = |reason| FormatError::io("write", path)(io::Error::other(reason));
        match kind_of(path)? {
            Kind::File => {}
            Kind::Directory => return Err(refused("it is a directory; give the name of a file")),
            Kind::Stream => return Err(refused("it is a device or a pipe; give the name of a file")),
        }
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

/// A result that is written part by part: a file that appears when it is whole, or a device or pipe, which has no old bytes
/// to keep and is written to as it is. So is what `/dev/stdout` and its like stand for, be it a file.
#[derive(Debug)]
pub enum OutputFile {
    /// To appear under its name.
    File(AtomicFile),
    /// Written to at once.
    Stream(File),
}

impl OutputFile {
    /// Begins the output at `path`.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, FormatError> {
        let path = path.as_ref();
        if kind_of(path)? == Kind::Stream {
            return open_stream(path).map(Self::Stream);
        }
        AtomicFile::create(path).map(Self::File)
    }

    /// Puts a file under its name.
    pub fn finish(self) -> Result<(), FormatError> {
        match self {
            Self::File(file) => file.persist(),
            Self::Stream(_) => Ok(()),
        }
    }
}

impl Write for OutputFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.write(bytes),
            Self::Stream(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File(file) => file.flush(),
            Self::Stream(stream) => stream.flush(),
        }
    }
}

/// Writes a whole file so that its name always stands for either the old bytes or all of the new ones.
///
/// A device or a pipe has no old bytes: it is written to and stays what it is. Where `/dev/stdout` and its like are a file
/// to which output was redirected, the bytes go behind those that are there.
pub fn write_file_atomically(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> Result<(), FormatError> {
    let mut file = OutputFile::create(&path)?;
    file.write_all(bytes.as_ref()).map_err(FormatError::io("write", path.as_ref()))?;
    file.finish()
}

/// Makes sure that a file can be made at `path`, before the work whose result it will hold. Leaves nothing there.
pub fn check_writable(path: impl AsRef<Path>) -> Result<(), FormatError> {
    let path = path.as_ref();
    if kind_of(path)? == Kind::Stream {
        return open_stream(path).map(drop);
    }
    AtomicFile::create(path).map(drop)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A regular file, or nothing yet.
    File,
    Directory,
    /// A device, a pipe, a socket or a descriptor: what is renamed to its place would put an end to it.
    Stream,
}

/// What a path stands for, symbolic links followed.
fn kind_of(path: &Path) -> Result<Kind, FormatError> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Ok(Kind::Directory),
        Ok(found) if !found.is_file() => Ok(Kind::Stream),
        // A link that leads nowhere is replaced like one that leads to a file.
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FormatError::io("write", path)(error)),
        _ if names_descriptor(path) => Ok(Kind::Stream),
        _ => Ok(Kind::File),
    }
}

/// Whether a path, or a link on its way, is a name that the system gives: `/dev/stdout`, `/dev/fd/1`, `/proc/self/fd/1`.
/// Behind it may be a file to which output was redirected, but the name stays the system's.
///
/// Directories below `/dev` hold files like any other: `/dev/shm` is a disk in memory.
fn names_descriptor(path: &Path) -> bool {
    /// Linux follows no more.
    const MOST_LINKS: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        let dir = directory_of(&path);
        let dir = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
        if dir == Path::new("/dev") || dir == Path::new("/dev/fd") || dir.starts_with("/proc") {
            return true;
        }
        let Some(name) = path.file_name() else { return false };
        match fs::read_link(dir.join(name)) {
            Ok(target) => path = dir.join(target),
            Err(_) => return false,
        }
    }
    false
}

/// Opens a stream for writing. Of a file behind a descriptor nothing is lost: what is written goes to its end.
fn open_stream(path: &Path) -> Result<File, FormatError> {
    let is_file = fs::metadata(path).is_ok_and(|found| found.is_file());
    File::options().write(true).append(is_file).open(path).map_err(FormatError::io("open", path))
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

    #[cfg(target_os = "linux")]
    #[test]
    fn devices_are_written_to_and_never_replaced() {
        use std::os::unix::fs::{FileTypeExt as _, symlink};
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        symlink("/dev/full", &link).unwrap();
        write_file_atomically("/dev/null", "gone").unwrap();
        check_writable("/dev/null").unwrap();
        for path in [Path::new("/dev/full"), &link] {
            let message = write_file_atomically(path, "1").unwrap_err().to_string();
            assert!(message.contains("No space left") && message.contains("free some space"), "{message}");
            let message = AtomicFile::create(path).unwrap_err().to_string();
            assert!(message.contains("it is a device or a pipe"), "{message}");
        }
        for device in ["/dev/null", "/dev/full"] {
            assert!(fs::metadata(device).unwrap().file_type().is_char_device(), "{device}");
        }
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_behind_a_descriptor_is_appended_to_and_no_name_is_taken() {
        use std::os::{fd::AsRawFd as _, unix::fs::symlink};
        let dir = tempfile::tempdir().unwrap();
        let [redirected, first, second] = ["redirected", "first", "second"].map(|name| dir.path().join(name));
        fs::write(&redirected, "before").unwrap();
        let open = File::open(&redirected).unwrap();
        let descriptor = PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd()));
        let short = PathBuf::from(format!("/dev/fd/{}", open.as_raw_fd()));
        symlink(&descriptor, &first).unwrap();
        symlink("first", &second).unwrap();
        for (path, content) in
            [(&descriptor, "before1"), (&short, "before11"), (&first, "before111"), (&second, "before1111")]
        {
            check_writable(path).unwrap();
            write_file_atomically(path, "1").unwrap();
            assert_eq!(fs::read_to_string(&redirected).unwrap(), content);
            assert!(AtomicFile::create(path).is_err(), "{}", path.display());
        }
        for link in [&first, &second] {
            assert!(fs::symlink_metadata(link).unwrap().is_symlink());
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
        // Closed again, it is no place for a file either.
        drop(open);
        assert!(names_descriptor(&descriptor) && names_descriptor(&first));
        assert!(names_descriptor(Path::new("/dev/stdout")));
        // A disk in memory is a disk.
        assert!(!names_descriptor(Path::new("/dev/shm/report.json")));
        assert!(!names_descriptor(&redirected) && !names_descriptor(Path::new("bare")));
    }

    #[test]
    fn whether_a_file_can_be_made_is_known_beforehand() {
        let dir = tempfile::tempdir().unwrap();
        check_writable(dir.path().join("out")).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(check_writable(dir.path().join("no/out")).is_err());
        let message = check_writable(dir.path()).unwrap_err().to_string();
        assert!(message.contains("it is a directory; give the name of a file"), "{message}");
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
