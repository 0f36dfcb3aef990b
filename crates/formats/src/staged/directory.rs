//! A directory under construction.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use super::{
    atomic::{directory_of, sync_directory, write_file_atomically},
    lock::{OutputLock, symlink_metadata},
};
use crate::FormatError;

const MARKER_TEXT: &str = "This directory was written by Zeropoint, which may replace it when asked to.\n";

/// An output directory that is built as `TARGET.partial` and takes its name in one step.
///
/// While it is built, a lock beside it (`TARGET.partial.lock`) keeps other processes away. Dropped without
/// [`publish`](Self::publish), the partial directory is removed. After a crash it stays, and the next run removes it,
/// because it holds our marker file and its lock is free. Nothing that lacks the marker is ever removed, and nothing is
/// removed through a symbolic link.
#[derive(Debug)]
pub struct StagedDir {
    target: PathBuf,
    partial: PathBuf,
    marker: String,
    force: bool,
    /// Cleared when there is nothing left to remove.
    unpublished: bool,
    /// Last, so that the lock is released after the partial directory is gone.
    _lock: OutputLock,
}

impl StagedDir {
    /// Begins a directory that will be `target`; parents are created. `marker` is the name of the file that says a
    /// directory is ours, such as `.zeropoint`; it is written into the directory and published with it.
    ///
    /// Refused: a target that is a file or a symbolic link; one that exists and is not empty, unless `force` is given
    /// and it holds the marker; a partial directory without the marker; a target that another process is writing.
    pub fn create(target: impl AsRef<Path>, marker: &str, force: bool) -> Result<Self, FormatError> {
        let given = target.as_ref();
        let refused =
            |reason: &str| FormatError::Target { path: given.to_owned(), reason: reason.to_owned() };
        let mut components = Path::new(marker).components();
        if !matches!((components.next(), components.next()), (Some(std::path::Component::Normal(_)), None)) {
            return Err(refused(&format!("the marker `{marker}` is not a plain file name; choose one")));
        }
        let target = std::path::absolute(given).map_err(FormatError::io("find", given))?;
        let Some(name) = target.file_name() else {
            return Err(refused("it has no name of its own; name a directory that can be created"));
        };
        // Put together anew, without a separator at its end.
        let parent = directory_of(&target);
        let target = parent.join(name);
        fs::create_dir_all(parent).map_err(FormatError::io("create", parent))?;

        let lock = OutputLock::acquire(with_suffix(&target, ".partial.lock"), &target)?;
        check_target(&target, marker, force)?;
        let partial = with_suffix(&target, ".partial");
        remove_stale(&partial, marker)?;
        fs::create_dir(&partial).map_err(FormatError::io("create", &partial))?;
        // From here on dropping cleans up.
        let staged =
            Self { target, partial, marker: marker.to_owned(), force, unpublished: true, _lock: lock };
        write_file_atomically(staged.partial.join(marker), MARKER_TEXT)?;
        Ok(staged)
    }

    /// Where to write; valid until the directory is published or dropped.
    pub fn path(&self) -> &Path {
        &self.partial
    }

    /// Where it will be.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Syncs every file and directory and puts the whole under its name.
    ///
    /// An older output that is replaced is first renamed aside (`TARGET.old-...`) and removed once the new one has its
    /// name. When that fails half-way the old one is put back.
    pub fn publish(mut self) -> Result<PathBuf, FormatError> {
        // Looked at again: what was absent at the beginning may have come since.
        let found = check_target(&self.target, &self.marker, self.force)?;
        sync_tree(&self.partial)?;
        let mut old = None;
        match found {
            Found::Nothing => {}
            Found::Empty => fs::remove_dir(&self.target).map_err(FormatError::io("replace", &self.target))?,
            Found::Ours => {
                let aside = unused_name(&self.target)?;
                fs::rename(&self.target, &aside).map_err(FormatError::io("rename", &self.target))?;
                old = Some(aside);
            }
        }
        if let Err(error) = fs::rename(&self.partial, &self.target) {
            if let Some(old) = &old
                && let Err(error) = fs::rename(old, &self.target)
            {
                tracing::error!(path = %old.display(), %error, "the old output could not be put back under its name");
            }
            return Err(FormatError::io("create", &self.target)(error));
        }
        self.unpublished = false;
        sync_directory(directory_of(&self.target))?;
        if let Some(old) = old
            && let Err(error) = fs::remove_dir_all(&old)
        {
            tracing::warn!(path = %old.display(), %error, "the old output could not be removed");
        }
        Ok(self.target.clone())
    }
}

impl Drop for StagedDir {
    fn drop(&mut self) {
        if self.unpublished
            && let Err(error) = fs::remove_dir_all(&self.partial)
        {
            tracing::warn!(path = %self.partial.display(), %error, "unfinished output left behind");
        }
    }
}

/// What stands where the output will be.
enum Found {
    Nothing,
    Empty,
    /// An output of ours that may be replaced.
    Ours,
}

fn check_target(target: &Path, marker: &str, force: bool) -> Result<Found, FormatError> {
    let refused = |reason: &str| FormatError::Target { path: target.to_owned(), reason: reason.to_owned() };
    match symlink_metadata(target)? {
        None => Ok(Found::Nothing),
        Some(found) if found.is_symlink() => {
            Err(refused("it is a symbolic link; give the directory that it means"))
        }
        Some(found) if !found.is_dir() => Err(refused("it is a file; choose another name")),
        Some(_) if is_empty(target)? => Ok(Found::Empty),
        Some(_) if !force => Err(FormatError::Exists { path: target.to_owned() }),
        Some(_) if has_marker(target, marker)? => Ok(Found::Ours),
        Some(_) => Err(FormatError::NotOurs { path: target.to_owned(), marker: marker.to_owned() }),
    }
}

/// Removes what a crashed run has left. An empty directory is what a crash leaves before the marker is written.
fn remove_stale(partial: &Path, marker: &str) -> Result<(), FormatError> {
    let Some(found) = symlink_metadata(partial)? else {
        return Ok(());
    };
    if !(found.is_dir() && (has_marker(partial, marker)? || is_empty(partial)?)) {
        return Err(FormatError::NotOurs { path: partial.to_owned(), marker: marker.to_owned() });
    }
    tracing::info!(path = %partial.display(), "removing what an interrupted run has left");
    fs::remove_dir_all(partial).map_err(FormatError::io("remove", partial))
}

fn has_marker(dir: &Path, marker: &str) -> Result<bool, FormatError> {
    Ok(symlink_metadata(&dir.join(marker))?.is_some_and(|found| found.is_file()))
}

fn is_empty(dir: &Path) -> Result<bool, FormatError> {
    Ok(fs::read_dir(dir).map_err(FormatError::io("read", dir))?.next().is_none())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

/// A name for the old output that nothing bears. The lock keeps others from taking it meanwhile.
fn unused_name(target: &Path) -> Result<PathBuf, FormatError> {
    for number in 0..10_000 {
        let name = with_suffix(target, &format!(".old-{number:04}"));
        if symlink_metadata(&name)?.is_none() {
            return Ok(name);
        }
    }
    let reason = "too many directories beside it end in .old-NNNN; remove them".to_owned();
    Err(FormatError::Target { path: target.to_owned(), reason })
}

/// Syncs files first and directories after what they hold. Symbolic links are left alone.
fn sync_tree(dir: &Path) -> Result<(), FormatError> {
    let entries = fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    for entry in entries.map_err(FormatError::io("read", dir))? {
        let path = entry.path();
        let kind = entry.file_type().map_err(FormatError::io("read", &path))?;
        if kind.is_dir() {
            sync_tree(&path)?;
        } else if kind.is_file() {
            // Windows syncs only what is open for writing.
            let file =
                if cfg!(windows) { File::options().write(true).open(&path) } else { File::open(&path) };
            file.and_then(|file| file.sync_all()).map_err(FormatError::io("sync", &path))?;
        }
    }
    sync_directory(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARKER: &str = ".zeropoint";

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn publish(target: &Path, force: bool, text: &str) -> Result<PathBuf, FormatError> {
        let staged = StagedDir::create(target, MARKER, force)?;
        fs::create_dir(staged.path().join("sub")).unwrap();
        fs::write(staged.path().join("sub/file"), text).unwrap();
        staged.publish()
    }

    fn text(target: &Path) -> String {
        fs::read_to_string(target.join("sub/file")).unwrap()
    }

    #[test]
    fn a_directory_appears_whole_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("new/parents/out");
        let staged = StagedDir::create(&target, MARKER, false).unwrap();
        fs::write(staged.path().join("a"), "1").unwrap();
        assert!(!target.exists());
        assert_eq!(staged.path(), dir.path().join("new/parents/out.partial"));
        assert_eq!(staged.publish().unwrap(), target);
        assert_eq!(names(&target), [MARKER, "a"]);
        assert_eq!(names(target.parent().unwrap()), ["out"]);
    }

    #[test]
    fn dropped_before_publishing_it_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let staged = StagedDir::create(dir.path().join("out"), MARKER, false).unwrap();
        fs::write(staged.path().join("a"), "1").unwrap();
        drop(staged);
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn two_writers_of_one_output_cannot_be() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        let first = StagedDir::create(&target, MARKER, false).unwrap();
        fs::write(first.path().join("a"), "1").unwrap();
        let error = StagedDir::create(&target, MARKER, true).unwrap_err();
        assert!(matches!(error, FormatError::Locked { .. }), "{error}");
        assert!(error.to_string().contains("another process"));
        assert_eq!(
            fs::read_to_string(first.path().join("a")).unwrap(),
            "1",
            "the first writer is not disturbed"
        );
        // A guard that leaks while its process lives keeps the lock.
        std::mem::forget(first);
        assert!(matches!(StagedDir::create(&target, MARKER, true), Err(FormatError::Locked { .. })));
        assert!(StagedDir::create(dir.path().join("other"), MARKER, false).is_ok());
    }

    #[test]
    #[expect(
        clippy::used_underscore_binding,
        reason = "the lock is held for its destructor; here it must die early"
    )]
    fn what_a_crash_leaves_is_removed_and_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        // A process that dies runs no destructor, but the system closes its files: forgotten, then unlocked.
        let staged = std::mem::ManuallyDrop::new(StagedDir::create(&target, MARKER, false).unwrap());
        fs::write(staged.path().join("half-written"), "1").unwrap();
        staged._lock.file.unlock().unwrap();
        assert_eq!(names(dir.path()), ["out.partial", "out.partial.lock"]);
        let again = StagedDir::create(&target, MARKER, false).unwrap();
        assert_eq!(names(again.path()), [MARKER]);
        again.publish().unwrap();
        assert_eq!(names(dir.path()), ["out"]);
    }

    #[test]
    fn a_crash_before_the_marker_does_not_block_the_next_run() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("out.partial")).unwrap();
        publish(&dir.path().join("out"), false, "1").unwrap();
        assert_eq!(names(dir.path()), ["out"]);
    }

    #[test]
    fn an_output_is_replaced_only_by_force_and_only_when_it_is_ours() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        publish(&target, false, "1").unwrap();
        assert!(matches!(publish(&target, false, "2"), Err(FormatError::Exists { .. })));
        assert_eq!(text(&target), "1");
        publish(&target, true, "3").unwrap();
        assert_eq!(text(&target), "3");
        fs::remove_file(target.join(MARKER)).unwrap();
        let error = publish(&target, true, "4").unwrap_err();
        assert!(matches!(&error, FormatError::NotOurs { .. }), "{error}");
        assert!(error.to_string().contains(MARKER));
        // A directory of that name is not our marker.
        fs::create_dir(target.join(MARKER)).unwrap();
        assert!(matches!(publish(&target, true, "5"), Err(FormatError::NotOurs { .. })));
        assert_eq!(text(&target), "3");
        assert_eq!(names(dir.path()), ["out"]);
    }

    #[test]
    fn an_empty_directory_may_be_filled_and_a_file_may_not() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("empty")).unwrap();
        publish(&dir.path().join("empty"), false, "1").unwrap();
        assert_eq!(text(&dir.path().join("empty")), "1");
        fs::write(dir.path().join("file"), "keep").unwrap();
        for force in [false, true] {
            assert!(matches!(publish(&dir.path().join("file"), force, "1"), Err(FormatError::Target { .. })));
        }
        assert_eq!(fs::read_to_string(dir.path().join("file")).unwrap(), "keep");
        for nameless in ["/", "out/.."] {
            assert!(matches!(StagedDir::create(nameless, MARKER, true), Err(FormatError::Target { .. })));
        }
    }

    #[test]
    fn a_target_that_comes_meanwhile_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        let staged = StagedDir::create(&target, MARKER, false).unwrap();
        fs::create_dir(&target).unwrap();
        fs::write(target.join("theirs"), "keep").unwrap();
        assert!(matches!(staged.publish(), Err(FormatError::Exists { .. })));
        assert_eq!(names(dir.path()), ["out"]);
        assert_eq!(names(&target), ["theirs"]);
    }

    #[test]
    fn a_partial_directory_or_a_lock_file_of_someone_else_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        let partial = dir.path().join("out.partial");
        fs::create_dir(&partial).unwrap();
        fs::write(partial.join("theirs"), "keep").unwrap();
        assert!(matches!(publish(&target, true, "1"), Err(FormatError::NotOurs { .. })));
        assert_eq!(names(&partial), ["theirs"]);
        fs::remove_dir_all(&partial).unwrap();
        let lock = dir.path().join("out.partial.lock");
        fs::write(&lock, "keep").unwrap();
        assert!(matches!(publish(&target, true, "1"), Err(FormatError::Target { .. })));
        assert_eq!(fs::read_to_string(&lock).unwrap(), "keep");
    }

    #[cfg(unix)]
    #[test]
    fn nothing_is_removed_through_a_symbolic_link() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real");
        publish(&real, false, "keep").unwrap();
        for link in ["out", "made.partial", "locked.partial.lock"] {
            symlink(&real, dir.path().join(link)).unwrap();
        }
        for target in ["out", "made", "locked"] {
            assert!(publish(&dir.path().join(target), true, "1").is_err(), "{target}");
        }
        // A link inside an output of ours goes, and what it points at stays.
        let ours = dir.path().join("ours");
        let staged = StagedDir::create(&ours, MARKER, false).unwrap();
        symlink(&real, staged.path().join("link")).unwrap();
        staged.publish().unwrap();
        publish(&ours, true, "2").unwrap();
        assert_eq!(text(&ours), "2");
        assert_eq!(text(&real), "keep");
    }

    #[test]
    fn a_bare_relative_name_is_taken_from_the_working_directory() {
        // Tests share one working directory, so the name must be their own; the guard removes it.
        let name = tempfile::Builder::new().prefix("zeropoint-relative-").tempdir_in(".").unwrap();
        let relative = PathBuf::from(name.path().file_name().unwrap());
        let staged = StagedDir::create(&relative, MARKER, false).unwrap();
        assert_eq!(staged.target(), std::path::absolute(&relative).unwrap());
        staged.publish().unwrap();
        assert_eq!(names(&relative), [MARKER]);
    }
}
