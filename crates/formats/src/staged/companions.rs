//! What belongs to a model besides its weights: tokenizer, configs of its modules, licence, templates.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use super::atomic::directory_of;
use crate::FormatError;

/// Endings of the files of a model: configs, tokenizer, cards and terms, templates, weights.
const EXTENSIONS: [&str; 7] = ["json", "txt", "md", "model", "jinja", "tiktoken", "safetensors"];
/// How the names of files without an ending begin.
const TERMS: [&str; 5] = ["readme", "license", "licence", "notice", "use_policy"];
/// Folders with the model in the formats of other runtimes. What lies there is of no use without the weights.
const OTHER_RUNTIMES: [&str; 2] = ["onnx", "openvino"];
/// Endings of weight files and of indexes over their shards, in whatever format.
const WEIGHT_ENDINGS: [&str; 5] =
    [".safetensors", ".safetensors.index.json", ".bin.index.json", ".h5.index.json", ".msgpack.index.json"];

/// Whether a file of a model directory, named relative to it, belongs to the model: what is copied from a source, and
/// what is published of a result.
///
/// These are configs, tokenizers, templates, cards, licences and safetensors, in any folder. Everything else stays
/// where it is: hidden files and folders, which belong to tools and may hold secrets, code, pictures, what training left,
/// weights in other formats and the folders of other runtimes.
pub fn is_model_file(relative: &Path) -> bool {
    let foreign = |part: &OsStr| is_hidden(part) || OTHER_RUNTIMES.iter().any(|folder| part == *folder);
    if relative.iter().any(foreign) {
        return false;
    }
    let name = lowercase_name(relative);
    match name.rsplit_once('.') {
        Some((_, extension)) => EXTENSIONS.contains(&extension),
        None => TERMS.iter().any(|start| name.starts_with(start)),
    }
}

/// Whether a file of a model holds weights or only describes files that do.
fn is_weight_file(relative: &Path) -> bool {
    let name = lowercase_name(relative);
    WEIGHT_ENDINGS.iter().any(|ending| name.ends_with(ending))
}

fn lowercase_name(relative: &Path) -> String {
    relative.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase()
}

fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

/// Copies what belongs to a model ([`is_model_file`]) except its weights, subdirectories included, and returns the paths
/// relative to the source, sorted.
///
/// `skip` leaves out more, by relative path. A file that the destination already has is kept and not in the list. Links
/// to directories are not followed. Links to files are, because the snapshots of the Hugging Face cache consist of them,
/// but not out of the model: see [`FormatError::ForeignLink`].
pub fn copy_companions(
    source_dir: impl AsRef<Path>,
    dest_dir: impl AsRef<Path>,
    skip: impl Fn(&Path) -> bool,
) -> Result<Vec<PathBuf>, FormatError> {
    let (source, dest) = (source_dir.as_ref(), dest_dir.as_ref());
    fs::create_dir_all(dest).map_err(FormatError::io("create", dest))?;
    // The destination may lie inside the source; it does not belong to the model.
    let own = fs::canonicalize(dest).map_err(FormatError::io("read", dest))?;
    let found = Source::open(source)?.companions(Some(&own), &skip)?;
    let mut copied = Vec::with_capacity(found.len());
    for relative in found {
        if copy_new(&source.join(&relative), &dest.join(&relative))? {
            copied.push(relative);
        }
    }
    Ok(copied)
}

/// The files that [`copy_companions`] would copy into an empty directory elsewhere: their paths relative to the source,
/// sorted. Their names are UTF-8.
pub fn companion_files(
    source_dir: impl AsRef<Path>,
    skip: impl Fn(&Path) -> bool,
) -> Result<Vec<PathBuf>, FormatError> {
    Source::open(source_dir.as_ref())?.companions(None, &skip)
}

/// A directory that files are taken from.
struct Source<'a> {
    dir: &'a Path,
    /// Where it really is, whatever links lead there.
    real: PathBuf,
    /// Where its files really are if it is a snapshot of the hub's cache.
    blobs: Option<PathBuf>,
}

impl<'a> Source<'a> {
    fn open(dir: &'a Path) -> Result<Self, FormatError> {
        let real = fs::canonicalize(dir).map_err(FormatError::io("read", dir))?;
        let blobs = blobs_of(&real);
        Ok(Self { dir, real, blobs })
    }

    fn companions(
        &self,
        own: Option<&Path>,
        skip: &impl Fn(&Path) -> bool,
    ) -> Result<Vec<PathBuf>, FormatError> {
        let mut found = Vec::new();
        self.collect(Path::new(""), own, skip, &mut found)?;
        found.sort();
        Ok(found)
    }

    /// Adds the relative paths of the files under `relative` that are to be copied.
    fn collect(
        &self,
        relative: &Path,
        own: Option<&Path>,
        skip: &impl Fn(&Path) -> bool,
        found: &mut Vec<PathBuf>,
    ) -> Result<(), FormatError> {
        let dir = self.dir.join(relative);
        let entries = fs::read_dir(&dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        for entry in entries.map_err(FormatError::io("read", &dir))? {
            let (name, path) = (relative.join(entry.file_name()), entry.path());
            let kind = entry.file_type().map_err(FormatError::io("read", &path))?;
            if kind.is_dir() {
                if is_hidden(&entry.file_name()) || skip(&name) {
                    continue;
                }
                let real = fs::canonicalize(&path).map_err(FormatError::io("read", &path))?;
                if own != Some(real.as_path()) {
                    self.collect(&name, own, skip, found)?;
                }
            } else if is_model_file(&name) && !is_weight_file(&name) && !skip(&name) {
                // Followed here: a link that leads nowhere is an error, one to a directory is left out.
                if !fs::metadata(&path).map_err(FormatError::io("read", &path))?.is_file() {
                    tracing::debug!(path = %path.display(), "not a file, not copied");
                    continue;
                }
                if kind.is_symlink() {
                    self.check_link(&path)?;
                }
                // A report, a journal or a repository could not name it.
                if name.to_str().is_none() {
                    return Err(FormatError::FileName { path });
                }
                found.push(name);
            }
        }
        Ok(())
    }

    /// Refuses a link out of the model: its repository may come from anyone, and what it leads to would be published.
    /// Hidden files are out of it too: `.git/config` may hold a password.
    fn check_link(&self, path: &Path) -> Result<(), FormatError> {
        let target = fs::canonicalize(path).map_err(FormatError::io("read", path))?;
        let in_model = target.strip_prefix(&self.real).is_ok_and(|inside| !inside.iter().any(is_hidden));
        let in_cache = self.blobs.as_ref().is_some_and(|blobs| target.starts_with(blobs));
        if in_model || in_cache {
            return Ok(());
        }
        Err(FormatError::ForeignLink { path: path.to_owned(), target, dir: self.dir.to_owned() })
    }
}

/// The `blobs` of the `models--OWNER--NAME` of the hub's cache in whose snapshots a directory is, given by its real path.
/// A link in their place could lead anywhere and does not count.
fn blobs_of(real: &Path) -> Option<PathBuf> {
    let is_cache = |dir: &&Path| {
        let name = dir.file_name().unwrap_or_default();
        name.as_encoded_bytes().starts_with(b"models--") && real.starts_with(dir.join("snapshots"))
    };
    let blobs = real.ancestors().find(is_cache)?.join("blobs");
    fs::symlink_metadata(&blobs).is_ok_and(|found| found.is_dir()).then_some(blobs)
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
    fn companions_are_what_belongs_to_the_model_but_its_weights() {
        let (source, dest) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let kept = [
            "1_Pooling/config.json",
            "LICENSE",
            "LICENSE-APACHE",
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
                "onnx/config.json",
                "onnx/model_O1.onnx",
                "onnx/model.onnx_data",
                "openvino/openvino_model.xml",
                "openvino/openvino_model.bin",
                "a.gguf",
                "a.pt",
                "a.pth",
                ".env",
                ".gitattributes",
                ".git/config",
                ".cache/huggingface/x.json",
                "1_Pooling/.secret.json",
                "train_script.py",
                "benchmark.png",
                "Makefile",
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
    fn what_belongs_to_a_model_file_by_file() {
        for (path, belongs) in [
            ("model-00001-of-00002.safetensors", true),
            ("model.safetensors.index.json", true),
            ("2_Dense/model.safetensors", true),
            ("additional_chat_templates/tools.jinja", true),
            ("cl100k_base.tiktoken", true),
            ("sentencepiece.bpe.model", true),
            ("README.md", true),
            ("Notice", true),
            ("USE_POLICY.md", true),
            ("Config.JSON", true),
            ("checkpoint/state.bin", false),
            ("optimizer.pt", false),
            ("modeling_custom.py", false),
            (".DS_Store", false),
            (".ipynb_checkpoints/config.json", false),
            ("onnx/tokenizer.json", false),
            ("license_scan.pkl", false),
            ("", false),
        ] {
            assert_eq!(is_model_file(Path::new(path)), belongs, "{path}");
        }
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
        let (hub, dest) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let cache = hub.path().join("models--owner--name");
        put(&cache, &["blobs/1234", "outside/secret", "snapshots/main/1_Pooling/own.json"]);
        fs::set_permissions(cache.join("blobs/1234"), fs::Permissions::from_mode(0o444)).unwrap();
        let snapshot = cache.join("snapshots/main");
        symlink("../../blobs/1234", snapshot.join("config.json")).unwrap();
        symlink("../../../blobs/1234", snapshot.join("1_Pooling/config.json")).unwrap();
        symlink("config.json", snapshot.join("again.json")).unwrap();
        symlink("../../blobs/absent", snapshot.join("model.safetensors")).unwrap();
        symlink("../../outside", snapshot.join("elsewhere.json")).unwrap();
        symlink(".", snapshot.join("loop")).unwrap();
        let expected =
            ["1_Pooling/config.json", "1_Pooling/own.json", "again.json", "config.json"].map(PathBuf::from);
        assert_eq!(copy_companions(&snapshot, dest.path(), |_| false).unwrap(), expected);
        let config = dest.path().join("config.json");
        assert!(fs::symlink_metadata(&config).unwrap().is_file(), "a copy, not a link");
        assert!(!fs::metadata(&config).unwrap().permissions().readonly());
        // The way to the directory may be a link.
        symlink(&snapshot, hub.path().join("alias")).unwrap();
        assert_eq!(companion_files(hub.path().join("alias"), |_| false).unwrap(), expected);

        symlink("../../blobs/absent", snapshot.join("tokenizer.json")).unwrap();
        let error = copy_companions(&snapshot, dest.path(), |_| false).unwrap_err();
        assert!(error.to_string().contains("tokenizer.json"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn links_out_of_the_model_are_refused() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let snapshot = "models--owner--name/snapshots/main";
        put(
            dir.path(),
            &["id_rsa", "models--other--name/blobs/1234", "model/config.json", "model/.git/config"],
        );
        put(&dir.path().join(snapshot), &["config.json"]);
        symlink(dir.path(), dir.path().join("models--owner--name/blobs")).unwrap();
        for (model, link, target) in [
            ("model", "LICENSE", "../id_rsa"),
            ("model", "deep/notice.txt", "../../id_rsa"),
            ("model", "tokenizer.json", "../models--other--name/blobs/1234"),
            ("model", "vocab.txt", ".git/config"),
            (snapshot, "LICENSE", "../../../id_rsa"),
            (snapshot, "tokenizer.json", "../../../models--other--name/blobs/1234"),
            // Blobs that are a link are not the cache's.
            (snapshot, "vocab.txt", "../../blobs/id_rsa"),
        ] {
            let model = dir.path().join(model);
            let link = model.join(link);
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            symlink(target, &link).unwrap();
            let error = companion_files(&model, |_| false).unwrap_err();
            assert!(matches!(&error, FormatError::ForeignLink { path, .. } if *path == link), "{error}");
            let real = fs::canonicalize(&link).unwrap();
            let message = error.to_string();
            for part in [link.to_str().unwrap(), real.to_str().unwrap(), "copy of the file"] {
                assert!(message.contains(part), "{message}");
            }
            let dest = dir.path().join("dest");
            assert!(copy_companions(&model, &dest, |_| false).is_err());
            assert_eq!(fs::read_dir(&dest).unwrap().count(), 0, "nothing is copied");
            // What would not be copied may lead anywhere.
            assert_eq!(companion_files(&model, |path| model.join(path) == link).unwrap().len(), 1);
            fs::remove_file(&link).unwrap();
        }
    }

    /// Elsewhere file systems refuse such names.
    #[cfg(target_os = "linux")]
    #[test]
    fn names_that_are_not_utf8_are_refused_where_they_would_be_copied() {
        use std::os::unix::ffi::OsStrExt as _;
        for (name, refused) in [
            (&b"vocab\xff.txt"[..], true),
            (b"\xff/config.json", true),
            (b"\xff.py", false),
            (b".\xff.json", false),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(OsStr::from_bytes(name));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            match companion_files(dir.path(), |_| false) {
                Ok(found) => assert!(found.is_empty() && !refused, "{found:?}"),
                Err(error) => {
                    assert!(refused && matches!(error, FormatError::FileName { .. }), "{error}");
                    assert!(error.to_string().contains("rename"), "{error}");
                }
            }
        }
    }
}
