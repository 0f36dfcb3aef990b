//! A run that is stopped, killed or not alone: its output is whole or absent, and what it has done is not lost. That it goes
//! on to the same bytes is in `resume.rs`.
#![cfg(unix)]

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};

use crate::scene::{self, Scene};

/// A scene with so many texts that a signal comes long before the last of them.
fn long() -> Scene {
    const TEXTS: usize = 12_000;
    let scene = Scene::new();
    let mut texts = String::new();
    for i in 0..TEXTS {
        let _ = writeln!(texts, "{i} {}", "the doctor sent the tax bill by train to the garden ".repeat(6));
    }
    scene.write("long.txt", texts);
    scene.write("short.txt", "The flight was cheap.\nThe doctor was late.\n");
    let config = "version = 1\nmodel.source = 'embedded'\n[calibration]\ndata = ['short.txt']\nsamples = 2\n\
                  [evaluation]\nbootstrap_resamples = 100\n";
    scene.write("config.toml", config);
    scene
}

const LONG_CALIBRATION: [&str; 4] =
    ["--set", "calibration.data=['long.txt']", "--set", "calibration.samples=12000"];
const LONG_EVALUATION: [&str; 2] = ["--set", "evaluation.tasks=[{kind='fidelity',data='long.txt'}]"];

/// The program at work, with what it has yet to say.
struct Working {
    child: Child,
    told: BufReader<std::process::ChildStderr>,
}

impl Working {
    /// Starts the program and waits until it says `line`.
    fn until(mut command: Command, line: &str) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let mut told = BufReader::new(child.stderr.take().expect("it is piped"));
        let mut said = String::new();
        while !said.lines().any(|said| said.starts_with(line)) {
            let read = told.read_line(&mut said).expect("it is text");
            assert_ne!(read, 0, "the program ended before it said `{line}`: {said}");
        }
        Self { child, told }
    }

    /// Sends a signal.
    fn send(&self, name: &str) {
        let kill = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status();
        assert!(kill.expect("kill is there").success());
    }

    /// Sends a signal that ends the program; gives how it ended and what it said then.
    fn signal(mut self, name: &str) -> (ExitStatus, String) {
        self.send(name);
        let mut rest = String::new();
        self.told.read_to_string(&mut rest).expect("it is text");
        (self.child.wait().expect("it ends"), rest)
    }
}

#[test]
fn a_signal_stops_the_work_and_what_is_done_is_kept() {
    let scene = long();
    let run = ["run", "config.toml", "--no-cache", "--out", "out"];
    for signal in ["INT", "TERM"] {
        let command = scene.zeropoint(run.iter().chain(&LONG_EVALUATION));
        let (status, said) = Working::until(command, "Evaluating").signal(signal);
        assert_eq!(status.code(), Some(130), "{signal}: {said}");
        let kept = scene.path("out.partial");
        let told = format!("error: stopped as asked; what is done so far is kept in {}", kept.display());
        assert!(said.contains(&told) && said.contains("the same command goes on from there"), "{said}");
        assert!(kept.join("journal.jsonl").is_file() && !scene.path("out").exists());
        assert!(!scene.path("out.partial.lock").exists());
        assert_eq!(scene.temporary_files(), [] as [&str; 0]);
    }
    scene.succeeds(run.iter().chain(&["--restart"]));
    assert!(!scene.path("out.partial").exists());
}

#[test]
fn a_signal_before_anything_is_done_leaves_nothing() {
    let scene = long();
    // With batches of this size the first checkpoint is far away.
    let large = ["--set", "calibration.batch_size=512"];
    for command in [["run", "config.toml", "--no-cache"], ["calibrate", "config.toml", "--no-cache"]] {
        let before = scene.tree("");
        let arguments = command.iter().chain(&["--out", "out"]).chain(&LONG_CALIBRATION).chain(&large);
        let (status, said) = Working::until(scene.zeropoint(arguments), "Calibrating").signal("INT");
        assert_eq!(status.code(), Some(130), "{command:?}: {said}");
        assert!(said.contains("error: stopped as asked; no file was written"), "{said}");
        scene::assert_same_tree(&scene.tree(""), &before);
        assert_eq!(scene.temporary_files(), [] as [&str; 0]);
    }
}

#[test]
fn a_run_that_was_killed_is_not_taken_for_a_whole_one() {
    let scene = long();
    let run = ["run", "config.toml", "--no-cache", "--out", "out"];
    for (more, at) in [(&LONG_CALIBRATION[..], "Calibrating"), (&LONG_EVALUATION, "Evaluating")] {
        let (status, _) = Working::until(scene.zeropoint(run.iter().chain(more)), at).signal("KILL");
        assert_eq!(status.signal(), Some(9));
        assert!(!scene.path("out").exists(), "only what is whole has the name");
        assert!(scene.path("out.partial").exists(), "what was half-written lies beside it");

        let before = scene.tree("out.partial");
        let told = scene::stderr(&scene.ends_with(1, run));
        assert!(told.contains("interrupted run that cannot be continued: `"), "another config: {told}");
        assert!(told.contains("put back what has changed"), "{told}");
        scene::assert_same_tree(&scene.tree("out.partial"), &before);

        scene.succeeds(run.iter().chain(&["--restart"]));
        let names: Vec<String> = scene.tree("").into_keys().filter(|name| !name.contains('/')).collect();
        assert_eq!(names, ["config.toml", "long.txt", "short.txt"], "nothing else is left beside `out/`");
        assert!(!scene.path("out.partial").exists());
        assert_eq!(scene.json("out/report.json")["calibration"]["samples"], 2);
        std::fs::remove_dir_all(scene.path("out")).expect("it is there");
    }
}

#[test]
fn a_run_that_is_killed_leaves_the_earlier_one() {
    let scene = long();
    let run = ["run", "config.toml", "--no-cache", "--out", "out"];
    scene.succeeds(run);
    let before = scene.tree("out");
    let force = run.iter().chain(&["--force"]).chain(&LONG_EVALUATION);
    Working::until(scene.zeropoint(force), "Evaluating").signal("KILL");
    scene::assert_same_tree(&scene.tree("out"), &before);
    scene.succeeds(run.iter().chain(&["--force", "--restart"]));
    assert!(!scene.path("out.partial").exists());
}

#[test]
fn two_runs_do_not_write_one_output() {
    let scene = long();
    let run = ["run", "config.toml", "--no-cache", "--out", "out"];
    let first = Working::until(scene.zeropoint(run.iter().chain(&LONG_CALIBRATION)), "Calibrating");
    // It stands still, and holds its output, until the others have tried.
    first.send("STOP");
    for force in [&[][..], &["--force"]] {
        let told = scene::stderr(&scene.ends_with(1, run.iter().chain(force)));
        assert!(told.contains("is being written by another process"), "{told}");
    }
    assert!(scene.path("out.partial").exists(), "the first run is not disturbed");
    scene.succeeds(["run", "config.toml", "--no-cache", "--out", "elsewhere"]);
    first.send("INT");
    assert_eq!(first.signal("CONT").0.code(), Some(130));
    scene.succeeds(run.iter().chain(&["--restart"]));
}
