//! Chores of the workspace: `cargo xtask train-fixture` makes the embedded model anew.
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::exit, reason = "a command for developers")]

mod fixture;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

type Error = Box<dyn std::error::Error + Send + Sync>;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  train-fixture [--out DIR]   train the embedded model (reproducible; about a minute with --release);
                              DIR defaults to crates/models/embedded";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        ["train-fixture"] => fixture::train(&root(), &root().join("crates/models/embedded")),
        ["train-fixture", "--out", dir] => fixture::train(&root(), Path::new(dir)),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace's root: two levels above this crate.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}
