//! A directory under construction.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Component, Path, PathBuf},
};

use super::{
    atomic::{directory_of, sync_directory, write_file_atomically},
    exchange::exchange,
    lock::{OutputLock, symlink_metadata},
};
use crate::FormatError;

const PARTIAL_SUFFIX: &str = ".partial";
const LOCK_SUFFIX: &str = ".partial.lock";
const MARKER_TEXT: &str = "This directory was written by Zeropoint, which may replace it when asked to.\n";

/// An output directory that is built as `TARGET.partial` and takes its name in one step.
///
/// While it is built, a lock beside it (`TARGET.partial.lock`) keeps other processes away. Dropped without
/// [`publish`](Self::publish), the partial directory is removed, unless it is to be [kept](Self::keep). After a crash it
/// stays, its lock free; the next one removes it ([`create`](Self::create)) or goes on with it ([`resume`](Self::resume)).
/// Nothing that lacks our marker file is ever removed, and nothing is removed through a symbolic link.
#[derive(Debug)]
pub struct StagedDir {
    target: PathBuf,
    partial: PathBuf,
    marker: String,
    force: bool,
    resumed: bool,
    /// Whether dropping leaves the partial directory where it is.
    kept: bool,
    /// Last, so that the lock is released after the partial directory is gone.
    _lock: OutputLock,
}

impl StagedDir {
    /// Begins a directory that will be `target`; parents are created. `marker` is the name of the file that says a
    /// directory is ours, such as `.zeropoint`; it is written into the directory and published with it. What an
    /// interrupted writer of ours has left is removed.
    ///
    /// Refused: a target that is a file or a symbolic link; one that exists and is not empty, unless `force` is given
    /// and it holds the marker; a partial directory without the marker; a target that another process is writing.
    pub fn create(target: impl AsRef<Path>, marker: &str, force: bool) -> Result<Self, FormatError> {
        Self::begin(target.as_ref(), marker, force, false)
    }

    /// As [`create`](Self::create), but takes over what an interrupted writer of ours has left, if there is anything.
    /// A directory that was taken over is [kept](Self::keep) from the beginning.
    pub fn resume(target: impl AsRef<Path>, marker: &str, force: bool) -> Result<Self, FormatError> {
        Self::begin(target.as_ref(), marker, force, true)
    }

    fn begin(given: &Path, marker: &str, force: bool, resume: bool) -> Result<Self, FormatError> {
        let refused =
            |reason: &str| FormatError::Target { path: given.to_owned(), reason: reason.to_owned() };
        let mut components = Path::new(marker).components();
        if !matches!((components.next(), components.next()), (Some(Component::Normal(_)), None)) {
            return Err(refused(&format!("the marker `{marker}` is not a plain file name; choose one")));
        }
        let target = absolute_target(given)?;
        let parent = directory_of(&target);
        fs::create_dir_all(parent).map_err(FormatError::io("create", parent))?;

        let lock = OutputLock::acquire(with_suffix(&target, LOCK_SUFFIX), &target)?;
        put_back_old(&target, marker)?;
        check_target(&target, marker, force)?;
        let partial = with_suffix(&target, PARTIAL_SUFFIX);
        let (marker, resumed) = (marker.to_owned(), resume && is_ours(&partial, marker)?);
        if resumed {
            // A crash may have torn it.
            let path = partial.join(&marker);
            if fs::read(&path).map_err(FormatError::io("read", &path))? != MARKER_TEXT.as_bytes() {
                write_file_atomically(&path, MARKER_TEXT)?;
            }
            return Ok(Self { target, partial, marker, force, resumed, kept: true, _lock: lock });
        }
        remove_stale(&partial, &marker)?;
        fs::create_dir(&partial).map_err(FormatError::io("create", &partial))?;
        // From here on dropping cleans up.
        let staged = Self { target, partial, marker, force, resumed, kept: false, _lock: lock };
        // Under its own name from the first byte on: a crash leaves an empty directory or one that is known as ours.
        let path = staged.partial.join(&staged.marker);
        fs::write(&path, MARKER_TEXT).map_err(FormatError::io("write", &path))?;
        Ok(staged)
    }

    /// Whether a writer would be allowed to begin `target`, by what stands there now. Touches nothing.
    pub fn check(target: impl AsRef<Path>, marker: &str, force: bool) -> Result<(), FormatError> {
        check_target(&absolute_target(target.as_ref())?, marker, force).map(drop)
    }

    /// The directory that an interrupted writer of `target` has left and [`resume`](Self::resume) would take over.
    /// Touches nothing.
    pub fn interrupted(target: impl AsRef<Path>, marker: &str) -> Result<Option<PathBuf>, FormatError> {
        let partial = with_suffix(&absolute_target(target.as_ref())?, PARTIAL_SUFFIX);
        Ok(is_ours(&partial, marker)?.then_some(partial))
    }

    /// Where to write; valid until the directory is published or dropped.
    pub fn path(&self) -> &Path {
        &self.partial
    }

    /// Where it will be.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Whether it was begun by a writer that was interrupted.
    pub fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// Decides whether dropping leaves the partial directory where it is, for [`resume`](Self::resume) to go on with.
    pub fn keep(&mut self, keep: bool) {
        self.kept = keep;
    }

    /// Removes every file that `wanted`, given its path in the directory, does not want, and every directory that is
    /// empty then. The marker stays.
    pub fn retain(&self, wanted: impl Fn(&Path) -> bool) -> Result<(), FormatError> {
        let marker = Path::new(&self.marker);
        retain_in(&self.partial, Path::new(""), &|path| path == marker || wanted(path)).map(drop)
    }

    /// Syncs every file and directory and puts the whole under its name.
    ///
    /// An older output that is replaced changes places with the new one in one step and is removed then. Where the
    /// system cannot do that, it is first renamed aside (`TARGET.old-...`); when something fails half-way it is put
    /// back, at once or, after a crash, by the next writer.
    pub fn publish(self) -> Result<PathBuf, FormatError> {
        self.publish_as(None)
    }

    /// As [`publish`](Self::publish), without the file of this name, which belongs to the work and not to the output. It
    /// is removed as the last thing before the directory takes its name, and written again when that fails.
    pub fn publish_without(self, work_file: &str) -> Result<PathBuf, FormatError> {
        let path = self.partial.join(work_file);
        self.publish_as(Some(&path))
    }

    fn publish_as(mut self, work_file: Option<&Path>) -> Result<PathBuf, FormatError> {
        // Looked at again: what was absent at the beginning may have come since.
        let found = check_target(&self.target, &self.marker, self.force)?;
        sync_tree(&self.partial)?;
        let content = work_file.map(|path| {
            let content = fs::read(path).map_err(FormatError::io("read", path))?;
            fs::remove_file(path).map_err(FormatError::io("remove", path))?;
            Ok((path, content))
        });
        let content = content.transpose()?;
        let old = match self.rename(&found) {
            Ok(old) => old,
            Err(error) => {
                if let Some((path, content)) = content
                    && let Err(error) = write_file_atomically(path, content)
                {
                    tracing::error!(path = %path.display(), %error, "what was done so far is lost");
                }
                return Err(error);
            }
        };
        // The partial directory has another name now, or holds the old output.
        self.kept = true;
        sync_directory(directory_of(&self.target))?;
        if let Some(old) = old
            && let Err(error) = remove_ours(&old, &self.marker)
        {
            tracing::warn!(path = %old.display(), %error, "the old output could not be removed");
        }
        Ok(self.target.clone())
    }

    /// Gives the partial directory its name; returns where the old output is now.
    fn rename(&self, found: &Found) -> Result<Option<PathBuf>, FormatError> {
        let mut old = None;
        match found {
            Found::Nothing => {}
            Found::Empty => fs::remove_dir(&self.target).map_err(FormatError::io("replace", &self.target))?,
            Found::Ours => {
                if exchange(&self.partial, &self.target).map_err(FormatError::io("replace", &self.target))? {
                    return Ok(Some(self.partial.clone()));
                }
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
        Ok(old)
    }
}

impl Drop for StagedDir {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = remove_ours(&self.partial, &self.marker)
        {
            tracing::warn!(path = %self.partial.display(), %error, "unfinished output left behind");
        }
    }
}

/// The absolute form of an output's path, without a separator at its end.
fn absolute_target(given: &Path) -> Result<PathBuf, FormatError> {
    let target = std::path::absolute(given).map_err(FormatError::io("find", given))?;
    let Some(name) = target.file_name() else {
        let reason = "it has no name of its own; name a directory that can be created".to_owned();
        return Err(FormatError::Target { path: given.to_owned(), reason });
    };
    Ok(directory_of(&target).join(name))
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
    remove_ours(partial, marker)
}

/// Removes a directory of ours, the marker last: a crash in between leaves what is still known as ours.
fn remove_ours(dir: &Path, marker: &str) -> Result<(), FormatError> {
    retain_in(dir, Path::new(""), &|path| path == Path::new(marker))?;
    match fs::remove_file(dir.join(marker)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(FormatError::io("remove", &dir.join(marker))(error));
        }
        _ => {}
    }
    fs::remove_dir(dir).map_err(FormatError::io("remove", dir))
}

/// Whether there is a directory of ours at the path itself.
fn is_ours(dir: &Path, marker: &str) -> Result<bool, FormatError> {
    Ok(symlink_metadata(dir)?.is_some_and(|found| found.is_dir()) && has_marker(dir, marker)?)
}

/// Puts an old output back whose writer died after it was renamed aside and before the new one had its name.
fn put_back_old(target: &Path, marker: &str) -> Result<(), FormatError> {
    let aside = old_name(target, 0);
    if symlink_metadata(target)?.is_some() || !is_ours(&aside, marker)? {
        return Ok(());
    }
    tracing::info!(path = %target.display(), "putting an old output back under its name");
    fs::rename(&aside, target).map_err(FormatError::io("rename", &aside))
}

/// Returns whether nothing is left in the directory.
fn retain_in(dir: &Path, relative: &Path, wanted: &impl Fn(&Path) -> bool) -> Result<bool, FormatError> {
    let entries = fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let mut empty = true;
    for entry in entries.map_err(FormatError::io("read", dir))? {
        let (path, name) = (entry.path(), relative.join(entry.file_name()));
        let kind = entry.file_type().map_err(FormatError::io("read", &path))?;
        let removed = if kind.is_dir() {
            let left_empty = retain_in(&path, &name, wanted)?;
            if left_empty { Some(fs::remove_dir(&path)) } else { None }
        } else if wanted(&name) {
            None
        } else {
            Some(fs::remove_file(&path))
        };
        match removed {
            Some(result) => result.map_err(FormatError::io("remove", &path))?,
            None => empty = false,
        }
    }
    Ok(empty)
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

fn old_name(target: &Path, number: u32) -> PathBuf {
    with_suffix(target, &format!(".old-{number:04}"))
}

/// A name for the old output that nothing bears. The lock keeps others from taking it meanwhile.
fn unused_name(target: &Path) -> Result<PathBuf, FormatError> {
    for number in 0..10_000 {
        let name = old_name(target, number);
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
    fn what_a_crash_leaves_is_removed_and_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        let staged = StagedDir::create(&target, MARKER, false).unwrap();
        fs::write(staged.path().join("half-written"), "1").unwrap();
        abandon(staged);
        assert_eq!(names(dir.path()), ["out.partial", "out.partial.lock"]);
        let again = StagedDir::create(&target, MARKER, false).unwrap();
        assert_eq!(names(again.path()), [MARKER]);
        again.publish().unwrap();
        assert_eq!(names(dir.path()), ["out"]);
    }

    /// What a process leaves that dies: no destructor has run, but the system has released the lock.
    fn abandon(staged: StagedDir) {
        let staged = std::mem::ManuallyDrop::new(staged);
        #[expect(
            clippy::used_underscore_binding,
            reason = "the lock is held for its destructor; here it must die early"
        )]
        staged._lock.file.unlock().unwrap();
    }

    #[test]
    fn what_was_interrupted_is_taken_over_and_published_without_its_work_file() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        assert_eq!(StagedDir::interrupted(&target, MARKER).unwrap(), None);
        let staged = StagedDir::resume(&target, MARKER, false).unwrap();
        assert!(!staged.is_resumed());
        for file in ["done", "journal", "half-written"] {
            fs::write(staged.path().join(file), file).unwrap();
        }
        fs::create_dir_all(staged.path().join("empty/er")).unwrap();
        abandon(staged);
        assert_eq!(StagedDir::interrupted(&target, MARKER).unwrap(), Some(dir.path().join("out.partial")));

        let staged = StagedDir::resume(&target, MARKER, false).unwrap();
        assert!(staged.is_resumed());
        staged.retain(|path| [Path::new("done"), Path::new("journal")].contains(&path)).unwrap();
        assert_eq!(names(staged.path()), [MARKER, "done", "journal"]);
        drop(staged);
        assert_eq!(names(dir.path()), ["out.partial"], "it is kept, and the lock is gone");

        let staged = StagedDir::resume(&target, MARKER, false).unwrap();
        staged.publish_without("journal").unwrap();
        assert_eq!(names(&target), [MARKER, "done"]);
        assert_eq!(names(dir.path()), ["out"]);
    }

    #[test]
    fn what_is_kept_stays_and_what_is_not_goes() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        for (keep, left) in [(true, vec!["out.partial"]), (false, vec![])] {
            let mut staged = StagedDir::resume(&target, MARKER, false).unwrap();
            staged.keep(keep);
            drop(staged);
            assert_eq!(names(dir.path()), left);
        }
    }

    #[test]
    fn a_work_file_is_back_when_the_name_cannot_be_taken() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        let mut staged = StagedDir::create(&target, MARKER, false).unwrap();
        staged.keep(true);
        fs::write(staged.path().join("journal"), "what was done").unwrap();
        fs::write(&target, "a file that came meanwhile").unwrap();
        assert!(staged.publish_without("journal").is_err());
        assert_eq!(fs::read_to_string(dir.path().join("out.partial/journal")).unwrap(), "what was done");
    }

    #[test]
    fn an_old_output_whose_replacement_died_half_way_is_put_back() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        publish(&target, false, "old").unwrap();
        fs::rename(&target, dir.path().join("out.old-0000")).unwrap();
        assert!(matches!(StagedDir::resume(&target, MARKER, false), Err(FormatError::Exists { .. })));
        assert_eq!(text(&target), "old");
        assert_eq!(names(dir.path()), ["out"]);
        // What is not ours is not touched, whatever its name.
        fs::create_dir(dir.path().join("out.old-0000")).unwrap();
        fs::remove_dir_all(&target).unwrap();
        publish(&target, false, "new").unwrap();
        assert_eq!(names(dir.path()), ["out", "out.old-0000"]);
    }

    #[test]
    fn a_crash_while_something_is_removed_leaves_what_is_known_as_ours() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        let staged = StagedDir::create(&target, MARKER, false).unwrap();
        fs::create_dir(staged.path().join("sub")).unwrap();
        fs::write(staged.path().join("sub/file"), "1").unwrap();
        // Removing stops at what cannot be removed, and the marker is still there.
        let guard = staged.path().join(MARKER);
        retain_in(staged.path(), Path::new(""), &|path| path == Path::new(MARKER)).unwrap();
        assert_eq!((names(staged.path()), guard.is_file()), (vec![MARKER.to_owned()], true));
        abandon(staged);
        // A crash before the marker was whole.
        fs::write(&guard, "This dir").unwrap();
        let again = StagedDir::resume(&target, MARKER, false).unwrap();
        assert!(again.is_resumed());
        again.publish().unwrap();
        assert_eq!(fs::read_to_string(target.join(MARKER)).unwrap(), MARKER_TEXT);
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
