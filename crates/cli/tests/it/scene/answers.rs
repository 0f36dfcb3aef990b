//! Mistakes and their answers: one sentence that says what and where, a way out, an exit code, and nothing left behind.

use std::fmt::Write as _;
use std::process::Command;

use super::{Scene, assert_same_tree, stderr, workspace};

/// A small run of the embedded model.
const CONFIG: &str = "version = 1\n\n[model]\nsource = \"embedded\"\n\n[calibration]\nsamples = 4\n";

/// Mistakes made in one scene, and the answers to them as a document.
pub(crate) struct Answers {
    pub(crate) scene: Scene,
    document: String,
}

impl Answers {
    /// A scene with a config that works.
    pub(crate) fn new() -> Self {
        let scene = Scene::new();
        scene.write("config.toml", CONFIG);
        Self { scene, document: String::new() }
    }

    /// The command line must fail with `code`, say so on standard error alone, and leave the directory as it was.
    pub(crate) fn refused(&mut self, code: i32, mistake: &str, arguments: &[&str]) {
        self.refused_in(code, mistake, arguments, |_| ());
    }

    pub(crate) fn refused_in(
        &mut self,
        code: i32,
        mistake: &str,
        arguments: &[&str],
        change: impl FnOnce(&mut Command),
    ) {
        let before = self.scene.tree("");
        let mut command = self.scene.zeropoint(arguments);
        change(&mut command);
        let output = command.output().expect("the program starts");
        let answer = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{mistake}: {answer}");
        assert!(output.stdout.is_empty(), "{mistake}: standard output is for results");
        assert_eq!(answer.matches("error: ").count(), 1, "{mistake}: one error, said once: {answer}");
        assert_same_tree(&self.scene.tree(""), &before);
        assert_eq!(self.scene.temporary_files(), [] as [&str; 0], "{mistake}");
        assert!(!self.scene.default_cache().exists(), "{mistake}");
        let line = arguments.join(" ").replace(workspace().to_string_lossy().as_ref(), "[repository]");
        let _ = write!(self.document, "# {mistake}\n$ zeropoint {line}\n{answer}exit code {code}\n\n");
    }

    /// `run` of a config with this text.
    pub(crate) fn config(&mut self, mistake: &str, text: &str) {
        self.scene.write("mistake.toml", text);
        self.refused(2, mistake, &["run", "mistake.toml", "--no-cache", "--out", "out"]);
    }

    /// `run` of the config that works, with one key changed.
    pub(crate) fn set(&mut self, code: i32, mistake: &str, change: &str) {
        self.refused(code, mistake, &["run", "config.toml", "--no-cache", "--out", "out", "--set", change]);
    }

    /// `run` of a model in the scene.
    pub(crate) fn model(&mut self, code: i32, mistake: &str, directory: &str) {
        self.set(code, mistake, &format!("model.source={directory}"));
    }

    #[track_caller]
    pub(crate) fn compare(self, name: &str) {
        let scene = self.scene.root().to_string_lossy().into_owned();
        let repository = workspace().to_string_lossy().into_owned();
        let mut settings = insta::Settings::clone_current();
        settings.add_filter(&scene.replace('.', "\\."), "[scene]");
        settings.add_filter(&repository.replace('.', "\\."), "[repository]");
        settings.add_filter("/[^ ]*/zeropoint-embedded-[A-Za-z0-9]+", "[embedded]");
        settings.add_filter("\\b[0-9a-f]{12}\\b", "[fingerprint]");
        // Beside the test that calls, not beside this file.
        settings.set_snapshot_path("../snapshots");
        settings.set_prepend_module_to_snapshot(false);
        settings.bind(|| insta::assert_snapshot!(name, self.document.trim_end()));
    }
}
