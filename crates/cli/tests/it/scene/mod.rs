//! A temporary directory with the program in it: its working directory, its temporary files, its default cache.

#[cfg(unix)]
pub(crate) mod answers;
pub(crate) mod packed;
pub(crate) mod real;
pub(crate) mod safetensors;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// Files of a directory by their path in it, directories with a slash at the end.
pub(crate) type Tree = BTreeMap<String, Vec<u8>>;

/// The repository root, where the paths in `configs/` begin.
pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .expect("the crate lies in its workspace")
}

/// A model of `tests/fixtures`.
pub(crate) fn fixture(name: &str) -> PathBuf {
    workspace().join("tests/fixtures").join(name)
}

/// `calibration-data/` of the repository.
pub(crate) fn data(name: &str) -> PathBuf {
    workspace().join("calibration-data").join(name)
}

pub(crate) struct Scene {
    /// Removed with the scene.
    _dir: TempDir,
    /// Its path without symbolic links.
    path: PathBuf,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let dir = TempDir::new().expect("a temporary directory can be made");
        let path = dir.path().canonicalize().expect("it is there");
        for name in ["work", "tmp"] {
            fs::create_dir(path.join(name)).expect("it is writable");
        }
        Self { _dir: dir, path }
    }

    /// The program, in the scene's directory.
    pub(crate) fn zeropoint<S: AsRef<std::ffi::OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zeropoint"));
        command
            .current_dir(self.root())
            .env("TMPDIR", self.path.join("tmp"))
            .env("XDG_CACHE_HOME", self.path.join("cache"))
            .env("COLUMNS", "100")
            .env("HF_HOME", self.path.join("hf"))
            .env("HF_HUB_OFFLINE", "1")
            .env_remove("HF_HUB_CACHE")
            .env_remove("HF_TOKEN")
            .env_remove("HF_TOKEN_PATH")
            .env_remove("HF_ENDPOINT")
            .env_remove("RUST_BACKTRACE")
            .args(arguments);
        command
    }

    /// Runs the program; it must end with `code`.
    pub(crate) fn ends_with<S: AsRef<std::ffi::OsStr>>(
        &self,
        code: i32,
        arguments: impl IntoIterator<Item = S>,
    ) -> Output {
        expect_code(&mut self.zeropoint(arguments), code)
    }

    /// Runs the program; it must succeed.
    pub(crate) fn succeeds<S: AsRef<std::ffi::OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Output {
        self.ends_with(0, arguments)
    }

    /// The directory that the program works in.
    pub(crate) fn root(&self) -> PathBuf {
        self.path.join("work")
    }

    /// A path in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// The cache of the hub.
    pub(crate) fn hub_cache(&self) -> PathBuf {
        self.path.join("hf/hub")
    }

    /// Where the program puts statistics when nothing else is said.
    pub(crate) fn default_cache(&self) -> PathBuf {
        self.path.join("cache/zeropoint")
    }

    /// What the program has left in the directory for temporary files.
    pub(crate) fn temporary_files(&self) -> Vec<String> {
        tree(&self.path.join("tmp")).into_keys().collect()
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a path in the scene has a parent")).expect("directory");
        fs::write(path, content).expect("file");
    }

    /// Everything in a directory of the scene; `""` is all of it.
    pub(crate) fn tree(&self, name: &str) -> Tree {
        tree(&self.path(name))
    }

    pub(crate) fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(name)).expect("the file is there")).expect("it is JSON")
    }

    pub(crate) fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).expect("the file is there and holds text")
    }

    /// A copy of a fixture under its own name.
    pub(crate) fn copy_fixture(&self, fixture_name: &str, to: &str) {
        for (name, content) in tree(&fixture(fixture_name)) {
            if !name.ends_with('/') {
                self.write(&format!("{to}/{name}"), content);
            }
        }
    }
}

pub(crate) fn expect_code(command: &mut Command, code: i32) -> Output {
    let output = command.output().expect("the program starts");
    assert_eq!(output.status.code(), Some(code), "{command:?}\n{}", stderr(&output));
    output
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("standard output is UTF-8")
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("standard error is UTF-8")
}

/// Lines of JSON.
pub(crate) fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
}

pub(crate) fn tree(dir: &Path) -> Tree {
    fn walk(dir: &Path, prefix: &str, found: &mut Tree) {
        for entry in fs::read_dir(dir).expect("the directory is there") {
            let path = entry.expect("it can be listed").path();
            let name = format!("{prefix}{}", path.file_name().unwrap_or_default().to_string_lossy());
            if path.is_dir() {
                let name = format!("{name}/");
                walk(&path, &name, found);
                found.insert(name, Vec::new());
            } else {
                found.insert(name, fs::read(&path).expect("the file can be read"));
            }
        }
    }
    let mut found = Tree::new();
    walk(dir, "", &mut found);
    found
}

/// Equal trees; says which file differs instead of printing all of both.
#[track_caller]
pub(crate) fn assert_same_tree(left: &Tree, right: &Tree) {
    let names = |tree: &Tree| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(left), names(right));
    let differ: Vec<&String> = left.keys().filter(|name| left[*name] != right[*name]).collect();
    assert!(differ.is_empty(), "these files differ: {differ:?}");
}
