//! A disk that is full, a directory that may not be written, a limit on file sizes: one sentence with a way out, nothing
//! lost, and the run goes on when there is room.
#![cfg(target_os = "linux")]
#![allow(clippy::print_stderr, reason = "a test that is skipped says why")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::scene::{self, Scene, data, expect_code, stderr};

/// A file system of its own for the length of a test.
struct Mount(PathBuf);

impl Mount {
    /// `None`, with the reason said, where this user may not mount.
    fn new(path: PathBuf, options: &str) -> Option<Self> {
        std::fs::create_dir_all(&path).expect("the scene is writable");
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&path).output();
        match done {
            Ok(output) if output.status.success() => Some(Self(path)),
            Ok(output) => {
                eprintln!("skipped: a file system cannot be mounted here: {}", stderr(&output).trim());
                None
            }
            Err(error) => {
                eprintln!("skipped: there is no `mount`: {error}");
                None
            }
        }
    }

    fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        let done = Command::new("mount").args(["-o", &options]).arg(&self.0).status();
        assert!(done.expect("it was there before").success(), "{options}");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn scene() -> Scene {
    // The embedded model from its directory: unpacking it would need room of its own.
    let source = scene::workspace().join("crates/models/embedded");
    let scene = Scene::new();
    let config = format!(
        "version = 1\nmodel.source = '{}'\n[calibration]\ndata = ['{}']\nsamples = 400\nbatch_size = 1\n\
         [[evaluation.tasks]]\nkind = 'fidelity'\ndata = '{}'\nlimit = 60\n",
        source.display(),
        data("topics-train.jsonl").display(),
        data("topics-test.jsonl").display(),
    );
    scene.write("config.toml", config);
    scene
}

const RUN: [&str; 5] = ["run", "config.toml", "--no-cache", "--out", "disk/out"];

/// What the run leaves, without what holds times and names.
fn product(scene: &Scene, out: &str) -> scene::Tree {
    let mut tree = scene.tree(out);
    tree.retain(|name, _| name.starts_with("model/") || name == "statistics.safetensors");
    assert!(tree.len() > 5, "{out} is a run directory");
    tree
}

fn fill(path: &Path) {
    use std::io::Write as _;
    let mut file = std::fs::File::create(path).expect("there is room for a name");
    // Large blocks first: the run goes on meanwhile.
    for size in [1 << 20, 4096] {
        let block = vec![0u8; size];
        while file.write_all(&block).is_ok() {}
    }
}

#[test]
fn a_disk_that_is_too_small_is_refused_before_the_work() {
    let scene = scene();
    let Some(_mount) = Mount::new(scene.path("disk"), "size=512k") else { return };
    let said = stderr(&scene.ends_with(1, RUN));
    assert!(
        said.contains("disk/out: the output needs ") && said.contains("bytes and the disk has "),
        "{said}"
    );
    assert!(said.contains("free some space, or give another place with --out"), "{said}");
    assert_eq!(scene.tree("disk").len(), 0);
}

#[test]
fn a_disk_that_fills_up_stops_the_run_and_room_lets_it_go_on() {
    let scene = scene();
    let Some(_mount) = Mount::new(scene.path("disk"), "size=24m") else { return };
    scene.succeeds(["run", "config.toml", "--no-cache", "--out", "reference"]);
    let expected = product(&scene, "reference");
    let journal = scene.path("disk/out.partial/journal.jsonl");
    // The disk is full after so many lines of the journal: while calibrating, before the model, while evaluating.
    for lines in [2, 8, 9] {
        scene.succeeds(RUN.iter().chain(&["--set", "quantization.scheme=w8a8-static"]));
        let old = scene.tree("disk/out");
        let mut command = scene.zeropoint(RUN.iter().chain(&["--force"]));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().expect("the program starts");
        while std::fs::read_to_string(&journal).unwrap_or_default().matches('\n').count() < lines {
            std::thread::sleep(Duration::from_micros(200));
        }
        let filler = scene.path("disk/filler");
        fill(&filler);
        let output = child.wait_with_output().expect("it ends");
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("No space left on device"), "{said}");
        assert!(said.contains("; what is done so far is kept in "), "{said}");
        assert!(
            said.contains(" bytes more are needed there: free them, and the same command goes on"),
            "{said}"
        );
        scene::assert_same_tree(&scene.tree("disk/out"), &old);
        // Still full: the same answer, before any work, and nothing is lost.
        let said = stderr(&scene.ends_with(1, RUN.iter().chain(&["--force"])));
        assert!(said.contains("No space left") || said.contains("the output needs "), "{said}");

        std::fs::remove_file(&filler).expect("it is there");
        let said = stderr(&scene.succeeds(RUN.iter().chain(&["--force"])));
        assert!(said.contains("Going on with the interrupted run in "), "{said}");
        scene::assert_same_tree(&product(&scene, "disk/out"), &expected);
        std::fs::remove_dir_all(scene.path("disk/out")).expect("it is there");
        assert_eq!(scene.tree("disk").len(), 0);
    }
}

#[test]
fn a_file_system_that_becomes_read_only_loses_nothing() {
    let scene = scene();
    let Some(mount) = Mount::new(scene.path("disk"), "size=24m") else { return };
    mount.remount("ro");
    let said = stderr(&scene.ends_with(1, RUN));
    assert!(
        said.contains("Read-only file system") && said.contains("choose a place that can be written"),
        "{said}"
    );
    for arguments in [
        &["calibrate", "config.toml", "--no-cache", "--out", "disk/statistics"][..],
        &["encode", "reference/model", "--data", "texts.txt", "--out", "disk/vectors.jsonl"],
    ] {
        if arguments[0] == "encode" {
            scene.write("texts.txt", "one\n");
            scene.succeeds(["run", "config.toml", "--no-cache", "--out", "reference"]);
        }
        let said = stderr(&scene.ends_with(1, arguments));
        assert!(
            said.contains("Read-only file system") && said.contains(arguments[arguments.len() - 1]),
            "{said}"
        );
        assert!(!said.contains("Calibrating"), "it is known before the work: {said}");
    }
    // The cache is not needed: a warning is enough.
    let said = stderr(&scene.succeeds(["run", "config.toml", "--cache", "disk/cache", "--out", "cached"]));
    assert!(said.contains("warning: the statistics are not kept for later runs: "), "{said}");

    // An interrupted run waits until the file system can be written again.
    mount.remount("rw");
    let journal = scene.path("disk/out.partial/journal.jsonl");
    let mut child = scene.zeropoint(RUN).stderr(Stdio::null()).spawn().expect("the program starts");
    while std::fs::read_to_string(&journal).unwrap_or_default().matches('\n').count() < 2 {
        std::thread::sleep(Duration::from_micros(200));
    }
    child.kill().and_then(|()| child.wait()).expect("it ends");
    mount.remount("ro");
    let before = scene.tree("disk");
    let said = stderr(&scene.ends_with(1, RUN));
    assert!(said.contains("Read-only file system"), "{said}");
    scene::assert_same_tree(&scene.tree("disk"), &before);
    let plan = scene::stdout(&scene.succeeds(RUN.iter().chain(&["--dry-run"])));
    assert!(plan.contains("would be gone on with: "), "{plan}");
    mount.remount("rw");
    let said = stderr(&scene.succeeds(RUN));
    assert!(said.contains("Going on with the interrupted run in "), "{said}");
    scene::assert_same_tree(&product(&scene, "disk/out"), &product(&scene, "reference"));
}

#[test]
fn a_directory_that_may_not_be_written_is_named() {
    use std::os::unix::fs::PermissionsExt as _;
    let scene = scene();
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("it is ours");
    };
    scene.write("disk/keep", "");
    mode(scene.root().parent().expect("it has one"), 0o755);
    mode(&scene.path("disk"), 0o555);
    // The super-user may write everywhere, so the run is another user's.
    let root = std::fs::File::create(scene.path("disk/probe")).is_ok();
    let output = if root {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
        command.arg(env!("CARGO_BIN_EXE_zeropoint")).args(RUN).current_dir(scene.root());
        let Ok(output) = command.output() else {
            eprintln!("skipped: there is no `setpriv`");
            return;
        };
        output
    } else {
        scene.zeropoint(RUN).output().expect("the program starts")
    };
    let said = stderr(&output);
    if said.contains("setpriv") {
        eprintln!("skipped: this user cannot become another: {said}");
        return;
    }
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("disk/out.partial.lock: Permission denied") && said.contains("check the permissions"),
        "{said}"
    );
    mode(&scene.path("disk"), 0o755);
}

#[test]
fn a_limit_on_file_sizes_stops_the_run_and_raising_it_lets_it_go_on() {
    let scene = scene();
    scene.succeeds(["run", "config.toml", "--no-cache", "--out", "reference"]);
    let weights =
        std::fs::metadata(scene.path("reference/model/model.safetensors")).expect("it is there").len();
    let limited = |ignored: &str, kib: u64| {
        let mut command = Command::new("bash");
        let script = format!("{ignored} ulimit -f {kib}; exec \"$@\"");
        command.args(["-c", &script, "bash", env!("CARGO_BIN_EXE_zeropoint")]).args(RUN);
        command.current_dir(scene.root());
        command
    };
    // The statistics are larger than the weights of this small model, so they are made without a limit.
    let journal = scene.path("disk/out.partial/journal.jsonl");
    loop {
        let mut child = scene.zeropoint(RUN).stderr(Stdio::null()).spawn().expect("the program starts");
        while !std::fs::read_to_string(&journal).unwrap_or_default().contains("\"done\":\"statistics\"") {
            std::thread::sleep(Duration::from_micros(200));
        }
        child.kill().and_then(|()| child.wait()).expect("it ends");
        match std::fs::read_to_string(&journal) {
            Ok(text) if !text.contains("\"done\":\"model\"") => break,
            _ => drop(std::fs::remove_dir_all(scene.path("disk"))),
        }
    }
    // Too little for the weights. The signal of the limit is ignored, then it kills.
    let kib = weights / 1024 - 8;
    let said = stderr(&expect_code(&mut limited("trap '' XFSZ;", kib), 1));
    assert!(said.contains("File too large") && said.contains("ulimit -f"), "{said}");
    assert!(said.contains("what is done so far is kept in "), "{said}");
    let killed = limited("", kib).output().expect("bash is there");
    assert_eq!(killed.status.code(), None, "{}", stderr(&killed));
    assert!(!scene.path("disk/out").exists());
    let said = stderr(&scene.succeeds(RUN));
    assert!(
        said.contains("Going on with the interrupted run in ") && said.contains(": quantisation"),
        "{said}"
    );
    scene::assert_same_tree(&product(&scene, "disk/out"), &product(&scene, "reference"));
}

#[test]
fn devices_are_written_to_and_not_replaced() {
    use std::os::unix::fs::FileTypeExt as _;
    let scene = scene();
    scene.write("texts.txt", "one\ntwo\n");
    scene.succeeds([
        "run",
        "config.toml",
        "--no-cache",
        "--out",
        "reference",
        "--set",
        "evaluation.tasks=[]",
    ]);
    let encode = ["encode", "reference/model", "--data", "texts.txt", "--out"];
    let said = stderr(&scene.ends_with(1, encode.iter().chain(&["/dev/full"])));
    assert!(said.contains("cannot write /dev/full: No space left on device"), "{said}");
    scene.succeeds(encode.iter().chain(&["/dev/null"]));
    let output = scene.succeeds(encode.iter().chain(&["/dev/stdout"]));
    assert_eq!(scene::stdout(&output).lines().count(), 2);
    let calibrate = ["calibrate", "config.toml", "--no-cache", "--out", "/dev/full"];
    let said = stderr(&scene.ends_with(1, calibrate));
    assert!(said.contains("/dev/full: it is a device or a pipe; give the name of a file"), "{said}");
    for device in ["/dev/full", "/dev/null"] {
        let kind = std::fs::metadata(device).expect("it is there").file_type();
        assert!(kind.is_char_device(), "{device} is what it was");
    }
}

#[test]
fn a_run_goes_on_where_nobody_can_be_told() {
    let scene = scene();
    let full = || std::fs::File::options().write(true).open("/dev/full").expect("Linux has it");
    for (arguments, code) in [
        (vec!["run", "config.toml", "--no-cache", "--out", "out", "-vv"], 0),
        (vec!["run", "nothing.toml"], 2),
    ] {
        let status = scene.zeropoint(&arguments).stderr(full()).status().expect("it starts");
        assert_eq!(status.code(), Some(code), "{arguments:?}");
    }
    assert!(scene.root().join("out/report.json").is_file());
}
