//! What belongs to a model besides its weights: tokenizer, configs of its modules, licence, templates.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use super::atomic::directory_of;
use crate::FormatError;

/// Directories that belong to tools, not to the model.
const FOREIGN_DIRS: [&str; 2] = [".git", ".cache"];
/// Endings of weight files, of their external data and of indexes over their shards.
const WEIGHT_ENDINGS: [&str; 18] = [
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".onnx",
    ".onnx_data",
    ".onnx.data",
    ".h5",
    ".msgpack",
    ".ot",
    ".gguf",
    ".tflite",
    ".safetensors.index.json",
    ".bin.index.json",
    ".h5.index.json",
    ".msgpack.index.json",
    ".incomplete",
];

/// Whether a file of a model directory, named relative to it, holds weights or only describes files that do.
///
/// Besides the usual endings that is the graph of an `openvino` directory, which is of no use without its weights.
pub fn is_weight_file(relative: &Path) -> bool {
    let name = relative.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let in_openvino = relative.parent().is_some_and(|dir| dir.iter().any(|part| part == "openvino"));
    let is_graph = relative.extension().is_some_and(|extension| extension == "xml");
    WEIGHT_ENDINGS.iter().any(|ending| name.ends_with(ending)) || in_openvino && is_graph
}

/// Copies every file of a model directory that is not a weight file, subdirectories included, and returns their paths
/// relative to it, sorted.
///
/// Left out: weight files ([`is_weight_file`]), `.git` and `.cache`, and what `skip` says by relative path. Symbolic links to
/// files are followed, because the snapshots of the Hugging Face cache consist of them; links to directories are not. A
/// file that the destination already has is kept and not in the list.
pub fn copy_companions(
    source_dir: impl AsRef<Path>,
    dest_dir: impl AsRef<Path>,
    skip: impl Fn(&Path) -> bool,
) -> Result<Vec<PathBuf>, FormatError> {
    let (source, dest) = (source_dir.as_ref(), dest_dir.as_ref());
    fs::create_dir_all(dest).map_err(FormatError::io("create", dest))?;
    // The destination may lie inside the source; it does not belong to the model.
    let own = fs::canonicalize(dest).map_err(FormatError::io("read", dest))?;
    let mut found = Vec::new();
    collect(source, Path::new(""), Some(&own), &skip, &mut found)?;
    found.sort();
    let mut copied = Vec::with_capacity(found.len());
    for relative in found {
        if copy_new(&source.join(&relative), &dest.join(&relative))? {
            copied.push(relative);
        }
    }
    Ok(copied)
}

/// The files that [`copy_companions`] would copy into an empty directory elsewhere: their paths relative to the source,
/// sorted.
pub fn companion_files(
    source_dir: impl AsRef<Path>,
    skip: impl Fn(&Path) -> bool,
) -> Result<Vec<PathBuf>, FormatError> {
    let mut found = Vec::new();
    collect(source_dir.as_ref(), Path::new(""), None, &skip, &mut found)?;
    found.sort();
    Ok(found)
}

/// Adds the relative paths of the files under `relative` that are to be copied.
fn collect(
    source: &Path,
    relative: &Path,
    own: Option<&Path>,
    skip: &impl Fn(&Path) -> bool,
    found: &mut Vec<PathBuf>,
) -> Result<(), FormatError> {
    let dir = source.join(relative);
    let entries = fs::read_dir(&dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    for entry in entries.map_err(FormatError::io("read", &dir))? {
        let (name, path) = (relative.join(entry.file_name()), entry.path());
        let kind = entry.file_type().map_err(FormatError::io("read", &path))?;
        if kind.is_dir() {
            let foreign = FOREIGN_DIRS.iter().any(|dir| entry.file_name() == OsStr::new(dir));
            let real = fs::canonicalize(&path).map_err(FormatError::io("read", &path))?;
            if !foreign && own != Some(real.as_path()) && !skip(&name) {
                collect(source, &name, own, skip, found)?;
            }
        } else if !is_weight_file(&name) && !skip(&name) {
            // Followed here: a link that leads nowhere is an error, one to a directory is left out.
            if fs::metadata(&path).map_err(FormatError::io("read", &path))?.is_file() {
                found.push(name);
            } else {
                tracing::debug!(path = %path.display(), "not a file, not copied");
            }
        }
    }
    Ok(())
}

/// Copies the bytes, not the permissions: files of a cache may be read-only. `false` when there is a file already.
fn copy_new(from: &Path, to: &Path) -> Result<bool, FormatError> {
    let dir = directory_of(to);
    fs::create_dir_all(dir).map_err(FormatError::io("create", dir))?;
    let mut target = match File::create_new(to) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        Err(error) => return Err(FormatError::io("create", to)(error)),
    };
    let mut source = File::open(from).map_err(FormatError::io("read", from))?;
    io::copy(&mut source, &mut target).map_err(FormatError::io("copy", from))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(dir: &Path, files: &[&str]) {
        for file in files {
            let path = dir.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
    }

    #[test]
    fn companions_are_every_file_but_weights_and_tools() {
        let (source, dest) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let kept = [
            "1_Pooling/config.json",
            "LICENSE",
            "config.json",
            "deep/er/still.txt",
            "modules.json",
            "tokenizer.json",
        ];
        put(source.path(), &kept);
        put(
            source.path(),
            &[
                "model.safetensors",
                "MODEL.SAFETENSORS",
                "model.safetensors.index.json",
                "pytorch_model.bin",
                "pytorch_model.bin.index.json",
                "tf_model.h5",
                "flax_model.msgpack",
                "rust_model.ot",
                "onnx/model_O1.onnx",
                "onnx/model.onnx_data",
                "openvino/openvino_model.xml",
                "openvino/openvino_model.bin",
                "a.gguf",
                "a.pt",
                "a.pth",
                ".git/config",
                ".cache/huggingface/x.json",
                "README.md",
            ],
        );
        let copied =
            copy_companions(source.path(), dest.path(), |path| path == Path::new("README.md")).unwrap();
        assert_eq!(copied, kept.map(PathBuf::from));
        let listed = companion_files(source.path(), |path| path == Path::new("README.md")).unwrap();
        assert_eq!(listed, copied);
        for file in kept {
            assert_eq!(fs::read_to_string(dest.path().join(file)).unwrap(), file);
        }
        assert!(!dest.path().join("onnx").exists(), "no empty directories");
    }

    #[test]
    fn what_the_destination_has_is_kept() {
        let (source, dest) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        put(source.path(), &["config.json", "vocab.txt"]);
        fs::write(dest.path().join("config.json"), "ours").unwrap();
        assert_eq!(
            copy_companions(source.path(), dest.path(), |_| false).unwrap(),
            [PathBuf::from("vocab.txt")]
        );
        assert_eq!(fs::read_to_string(dest.path().join("config.json")).unwrap(), "ours");
    }

    #[test]
    fn a_destination_inside_the_source_does_not_copy_itself() {
        let source = tempfile::tempdir().unwrap();
        put(source.path(), &["config.json", "out/old.json"]);
        let dest = source.path().join("out");
        assert_eq!(copy_companions(source.path(), &dest, |_| false).unwrap(), [PathBuf::from("config.json")]);
        assert!(!dest.join("out").exists());
    }

    #[cfg(unix)]
    #[test]
    fn links_to_files_are_followed_and_links_to_directories_are_not() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        let (cache, dest) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        put(cache.path(), &["blobs/1234", "outside/secret", "snapshots/main/real.txt"]);
        fs::set_permissions(cache.path().join("blobs/1234"), fs::Permissions::from_mode(0o444)).unwrap();
        let snapshot = cache.path().join("snapshots/main");
        symlink("../../blobs/1234", snapshot.join("config.json")).unwrap();
        symlink("../../blobs/absent", snapshot.join("model.safetensors")).unwrap();
        symlink("../../outside", snapshot.join("elsewhere")).unwrap();
        symlink(".", snapshot.join("loop")).unwrap();
        let copied = copy_companions(&snapshot, dest.path(), |_| false).unwrap();
        assert_eq!(copied, ["config.json", "real.txt"].map(PathBuf::from));
        let config = dest.path().join("config.json");
        assert!(fs::symlink_metadata(&config).unwrap().is_file(), "a copy, not a link");
        assert!(!fs::metadata(&config).unwrap().permissions().readonly());

        symlink("../../blobs/absent", snapshot.join("tokenizer.json")).unwrap();
        let error = copy_companions(&snapshot, dest.path(), |_| false).unwrap_err();
        assert!(error.to_string().contains("tokenizer.json"), "{error}");
    }
}
